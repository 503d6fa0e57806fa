"""Making every table but `events` and `inbox` again from the events (invariant 1).

Needs no code of the user's: every open workflow is marked due now, and its replay restores what it waits for.
"""

import time
from collections.abc import Sequence
from typing import Any, Final, LiteralString

import msgspec
import psycopg
from psycopg import sql

from refold.eventlog._connect import Connection, connect_sync
from refold.eventlog._errors import WorkersAlive
from refold.eventlog._events import (
    Event,
    IdentitySealed,
    Parked,
    PositionAdvanced,
    WorkflowCancelled,
    WorkflowCompleted,
    WorkflowFailed,
    WorkflowStarted,
    decode_event,
    from_micros,
)
from refold.eventlog._read import source_of
from refold.eventlog._schema import SCHEMA_VERSION, migrate_on, schema_sql
from refold.eventlog._workers import BEAT_EVERY, DEAD_AFTER

# The first event says what it is, the last how it stands: nothing between them is in a head.
_ENDS_OF_STREAMS: Final[LiteralString] = """
    select f.workflow_id, f.at, f.body, l.seq, l.at, l.body
      from (select workflow_id, at, body from refold.events where seq = 0) f
      join lateral (select seq, at, body from refold.events
                     where workflow_id = f.workflow_id order by seq desc limit 1) l on true
"""

_ENDINGS: Final = {WorkflowCompleted: "completed", WorkflowFailed: "failed", WorkflowCancelled: "cancelled"}

_HEADS: Final[LiteralString] = """
    copy {}.workflows (workflow_id, name, status, created_at, finished_at, source, parent, parent_no, digest, due_at,
                       order_key, order_no, behind, not_before, findable)
    from stdin
"""
# Of each key the first goes: the one that has begun; else the one with the lowest number. It was the first before.
_FIRSTS: Final[LiteralString] = """
    update {table} w
       set behind = false, due_at = case when w.status = 'pending' then greatest(w.created_at, w.not_before) end
      from (select distinct on (o.order_key) o.workflow_id
              from {table} o
             where o.order_key is not null and o.behind
             order by o.order_key,
                      exists (select from refold.events e
                               where e.workflow_id = o.workflow_id and e.seq >= 1
                                 and e.type not in ('Parked', 'Retried')) desc,
                      o.order_no, o.workflow_id) f
     where w.workflow_id = f.workflow_id
"""
_HELD_UP: Final[LiteralString] = """
    update {table} w set status = 'waiting'
     where w.behind and w.status <> 'parked'
       and exists (select from {table} p
                    where p.order_key = w.order_key and p.order_key is not null and p.status = 'parked'
                      and (not p.behind or (p.order_no, p.workflow_id) < (w.order_no, w.workflow_id)))
"""
_POSITIONS: Final[LiteralString] = (
    "copy {}.positions (source, stream, next_seq, position, label, at) from stdin"
)


class Rebuilt(msgspec.Struct, frozen=True):
    """What a rebuild made."""

    workflows: int
    positions: int
    events: int


def rebuild(url: str) -> Rebuilt:
    """Drop the projections in the database at `url` and make them again from the events.

    Raises WorkersAlive while a worker beats; DatabaseUnreachable.
    """
    with connect_sync(url) as connection:
        migrate_on(connection)
        _refuse_with_workers(connection)
        with connection.transaction():
            connection.execute(
                "drop table if exists refold.workflows, refold.workers, refold.positions, refold.waiters"
            )
            connection.execute(schema_sql())
            connection.execute("update refold.meta set schema_version = %s", (SCHEMA_VERSION,))
            rebuilt = fill(connection, "refold")
        connection.execute("analyze refold.workflows")
    return rebuilt


def fill(connection: Connection, schema: str) -> Rebuilt:
    """Fill the empty tables `workflows` and `positions` of `schema` from refold.events. In the caller's transaction."""
    workflows = 0
    positions: dict[str, tuple[int, tuple[object, ...]]] = {}
    heads = sql.SQL(_HEADS).format(sql.Identifier(schema))
    with psycopg.ServerCursor(connection, "refold_rebuild") as rows:
        rows.execute(_ENDS_OF_STREAMS)
        # In batches: a COPY and a cursor can't be open on one connection at once, and memory has an end.
        while batch := rows.fetchmany(10_000):
            found = []
            for workflow_id, at, body, seq, last_at, last_body in batch:
                last = decode_event(last_body)
                if (told := source_of(workflow_id)) is not None:
                    source, generation = told
                    known = positions.get(source)
                    if isinstance(last, PositionAdvanced) and (known is None or known[0] < generation):
                        row = (source, workflow_id, seq + 1, bytes(last.position), last.label, last_at)
                        positions[source] = (generation, row)
                elif (head := _head(workflow_id, at, decode_event(body), last, last_at)) is not None:
                    found.append(head)
            workflows += len(found)
            _copy(connection, heads, found)
    table = sql.Identifier(schema, "workflows")
    for statement in (_FIRSTS, _HELD_UP):
        connection.execute(sql.SQL(statement).format(table=table))
    _copy(
        connection, sql.SQL(_POSITIONS).format(sql.Identifier(schema)), [row for _, row in positions.values()]
    )
    count = connection.execute("select count(*) from refold.events").fetchone()
    assert count is not None
    return Rebuilt(workflows, len(positions), count[0])


def _head(workflow_id: str, at: Any, first: Event, last: Event, last_at: Any) -> tuple[object, ...] | None:
    """Return the head of a stream from its first and last event; None for a stream that is no workflow's."""
    if isinstance(first, IdentitySealed):
        head = (workflow_id, first.name, "deleted", at, at, None, None, None, first.digest, None)
        return (*head, None, None, False, None, False)
    if not isinstance(first, WorkflowStarted):
        return None
    ending = _ENDINGS.get(type(last))
    status = ending or ("parked" if isinstance(last, Parked) else "pending")
    not_before = None if first.not_before is None else from_micros(first.not_before)
    # All that are open are behind at first: there can be one only that is not.
    behind = first.order_key is not None and ending is None
    due = max(at, not_before or at) if status == "pending" and not behind else None
    return (
        *(workflow_id, first.name, status, at, last_at if ending else None),
        *(first.source, first.parent, first.parent_no, first.digest, due),
        *(first.order_key, first.order_no, behind, not_before, first.findable),
    )


def _copy(connection: Connection, statement: sql.Composed, rows: Sequence[Sequence[object]]) -> None:
    with connection.cursor() as cursor, cursor.copy(statement) as copy:
        for row in rows:
            copy.write_row(row)


def _refuse_with_workers(connection: Connection) -> None:
    """Raise WorkersAlive if any worker's heartbeat moves. One that was killed stands still, and doesn't count."""
    before = _beats(connection)
    deadline = time.monotonic() + DEAD_AFTER
    while before and time.monotonic() < deadline:
        time.sleep(min(BEAT_EVERY, 0.5))
        now = _beats(connection)
        moved = [worker for worker, beat in now.items() if before.get(worker) != beat]
        if moved:
            raise WorkersAlive(moved)
        before = {worker: beat for worker, beat in before.items() if worker in now}


def _beats(connection: Connection) -> dict[str, int]:
    if connection.execute("select to_regclass('refold.workers')").fetchone() == (None,):
        return {}  # lost with the other tables
    rows = connection.execute(
        "select worker, beat from refold.workers where lane = 'beat' and dead_at is null"
    )
    return dict(rows.fetchall())
