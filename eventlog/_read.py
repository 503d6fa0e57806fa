"""Reading and tending what is stored: heads, histories, mail, ends. Nothing here writes to a running stream."""

import asyncio
from collections.abc import Sequence
from typing import Any, Final, LiteralString

import msgspec
import psycopg

from refold.eventlog._arrays import Blobs, Texts
from refold.eventlog._connect import AsyncConnection, Line
from refold.eventlog._events import (
    CancelRequested,
    Event,
    GapFound,
    IdentitySealed,
    MessageReceived,
    Noted,
    Parked,
    Recorded,
    RecordedError,
    WorkflowStarted,
    decode_event,
    encode_event,
)
from refold.eventlog._log import READ_STREAM, READ_STREAMS, Message, is_transient, recorded

# Seconds between tries of a read that a time-out, a cancel or a full server ended.
_PAUSES: Final = (0.05, 0.2, 1.0)


class Head(msgspec.Struct, frozen=True):
    """The row that indexes a workflow's stream. Times are microseconds since 1970 UTC."""

    workflow_id: str
    name: str
    status: str
    created_at: int
    finished_at: int | None
    source: str | None
    parent: str | None
    parent_no: int | None
    digest: str
    owner: str | None
    due_at: int | None
    fingerprint: str | None

    @property
    def ended(self) -> bool:
        return self.finished_at is not None or self.status == "deleted"


def first_stream(source: str) -> str:
    """Return the name of a source's stream, of its first generation. A schedule's is its own name."""
    return f"{source}/0" if source.startswith("schedule:") else f"source:{source}/0"


def source_of(stream: str) -> tuple[str, int] | None:
    """Return the source that a stream tells of, and which generation it is; None for a workflow's."""
    if not stream.startswith(("source:", "schedule:")):
        return None
    name, _, generation = stream.rpartition("/")
    return name.removeprefix("source:"), int(generation)


class SourcePosition(msgspec.Struct, frozen=True):
    """How far a source was handed over: `position` is the connector's own JSON, None for a source never read.

    `stream` and `next_seq` are where the next PositionAdvanced goes; `label` is the name of the consumer.
    """

    source: str
    stream: str
    next_seq: int
    position: bytes | None
    label: str = ""
    at: int = 0


class SourceFact(msgspec.Struct, frozen=True):
    """What happened to a source itself at `at`: a gap (`kind` is "Gap"), or what its connector noted."""

    source: str
    label: str
    at: int
    kind: str
    text: str


class ParkedWorkflow(msgspec.Struct, frozen=True):
    """A workflow of an order that was set aside, by event `seq` at `at`; `waiting` others of it are behind."""

    id: str
    name: str
    label: str
    order_key: str
    order_no: int
    seq: int
    at: int
    reason: str
    error: RecordedError | None
    waiting: int


_HEAD: Final[LiteralString] = """
    select workflow_id, name, status, created_at, finished_at, source, parent, parent_no, digest, owner, due_at,
           fingerprint
      from refold.workflows
     where workflow_id = any(%s)
"""

# Newest first; the cursor is the last row of the page before.
_LIST: Final[LiteralString] = """
    select workflow_id, name, status, created_at, finished_at, source, parent, parent_no, digest, owner, due_at,
           fingerprint
      from refold.workflows
     where status <> 'deleted'
       and (%(status)s::text is null or status = %(status)s)
       and (%(name)s::text is null or name = %(name)s)
       and (%(at)s::bigint is null or (created_at, workflow_id) <
            ('epoch'::timestamptz + %(at)s::bigint * interval '1 microsecond', %(id)s))
     order by created_at desc, workflow_id desc
     limit %(limit)s
"""

_MAIL: Final[LiteralString] = """
    select workflow_id, message_id, body from refold.inbox where workflow_id = any(%s) order by id
"""

# All mail of one worker's workflows.
_OWN_MAIL: Final[LiteralString] = """
    select i.workflow_id, i.message_id, i.body
      from refold.inbox i join refold.workflows w on w.workflow_id = i.workflow_id
     where w.owner = %s
     order by i.id limit 10000
"""

_ENDS: Final[LiteralString] = """
    select e.workflow_id, e.body
      from refold.workflows w join lateral (
           select workflow_id, body from refold.events
            where workflow_id = w.workflow_id order by seq desc limit 1) e on true
     where w.workflow_id = any(%s) and (w.finished_at is not null or w.status = 'deleted')
"""

_OWNED: Final[LiteralString] = "select workflow_id, name from refold.workflows where owner = %s"

_WAIT: Final[LiteralString] = """
    insert into refold.waiters (workflow_id, channel) select unnest(%s), %s on conflict do nothing
"""
_WAIT_NO_MORE: Final[LiteralString] = (
    "delete from refold.waiters where workflow_id = any(%s) and channel = %s"
)

_POSITIONS: Final[LiteralString] = """
    select source, stream, next_seq, position, label, at from refold.positions where source = any(%s)
"""
_ALL_POSITIONS: Final[LiteralString] = """
    select source, stream, next_seq, position, label, at from refold.positions
     where starts_with(source, %s) order by source
"""

_FACTS: Final[LiteralString] = """
    select p.source, p.label, e.at, e.body
      from refold.positions p join refold.events e on e.workflow_id = p.stream
     where starts_with(p.source, %s) and e.type in ('GapFound', 'Noted')
     order by e.at desc limit %s
"""

# For people: not worth an index.
_IN_FLIGHT: Final[LiteralString] = """
    select source, status, count(*) from refold.workflows
     where finished_at is null and starts_with(source, %s) group by source, status order by source, status
"""

# Unfinished and not waiting; counted only as far as anybody wants to know.
_RUNNABLE: Final[LiteralString] = """
    select count(*) from (
        select from refold.workflows where source = %s and status in ('pending', 'running') limit %s) w
"""

_RUNNABLE_IDS: Final[LiteralString] = """
    select workflow_id from refold.workflows where source = %s and status in ('pending', 'running') limit %s
"""

# Those of an order that were set aside, in order, after one; each with the last event that parked it. How many are
# behind it is counted from one of a page to the next, and added up: else each of a thousand would count all to the end.
_PARKED: Final[LiteralString] = """
    with page as (
        select w.*, lead(w.order_no) over line as next_no, lead(w.workflow_id) over line as next_id
          from (select workflow_id, name, source, order_key, order_no from refold.workflows
                 where order_key is not null and status = 'parked' and order_key >= %s and order_key < %s
                   and (order_key, order_no, workflow_id) > (%s, %s, %s)
                 order by order_key, order_no, workflow_id limit %s) w
        window line as (partition by w.order_key order by w.order_no, w.workflow_id)
    )
    select w.workflow_id, w.name, coalesce(w.source, ''), w.order_key, w.order_no, p.seq, p.at, p.body,
           (sum(b.waiting) over (partition by w.order_key order by w.order_no desc, w.workflow_id desc))::bigint
      from page w, lateral (
           select e.seq, e.at, e.body from refold.events e
            where e.workflow_id = w.workflow_id and e.type = 'Parked' order by e.seq desc limit 1) p, lateral (
           select count(*) as waiting from refold.workflows n
            where n.order_key = w.order_key and n.order_key is not null and n.behind
              and (n.order_no, n.workflow_id) > (w.order_no, w.workflow_id)
              and (n.order_no, n.workflow_id) <= (coalesce(w.next_no, 9223372036854775807), coalesce(w.next_id, ''))) b
     order by w.order_key, w.order_no, w.workflow_id
"""

_DELETE: Final[LiteralString] = """
    select name, status, digest from refold.workflows
     where workflow_id = %s and finished_at is not null and status <> 'deleted' for update
"""

_NEAREST: Final[LiteralString] = """
    select workflow_id from refold.workflows where status <> 'deleted' order by created_at desc limit 10000
"""

_ALIKE: Final[LiteralString] = """
    select a.id, w.workflow_id
      from unnest(%s, %s, %s) as a(source, digest, id), lateral (
           select o.workflow_id from refold.workflows o
            where o.source = a.source and o.digest = a.digest and o.findable and o.workflow_id <> a.id
            order by o.created_at, o.workflow_id limit 1) w
"""

_IN_INBOX: Final[LiteralString] = """
    select i.workflow_id, i.message_id
      from unnest(%s, %s) as a(id, message)
      join refold.inbox i on i.workflow_id = a.id and i.message_id = a.message
"""
_IN_STREAM: Final[LiteralString] = """
    select e.workflow_id, e.body
      from unnest(%s, %s) as a(id, needle)
      join refold.events e on e.workflow_id = a.id
     where e.type in ('MessageReceived', 'CancelRequested') and position(a.needle in e.body) > 0
"""

# Due work whose name no live worker of this program serves is the caller's to judge; this names all that waits.
_UNOWNED: Final[LiteralString] = """
    select name, count(*) from refold.workflows
     where owner is null and due_at is not null and due_at <= refold.log_now() group by name
"""
# What is overdue too: between a claim and this question more has come due. Not what a claim would leave where it is.
_NEXT_DUE: Final[LiteralString] = """
    select min(w.due_at)
      from unnest(%s::text[]) as c(name), lateral (
           select h.due_at from refold.workflows h
            where h.name = c.name and h.owner is null and h.due_at is not null
              and h.status <> 'stuck' and h.suspicion < 3
            order by h.due_at limit 1) w
"""


class Reader:
    """Questions to the log, over one line that is opened again when it breaks. Any task of the loop may ask."""

    def __init__(self, url: str) -> None:
        self._line = Line(url)

    async def rows(self, statement: LiteralString, *arguments: Any) -> list[tuple[Any, ...]]:
        """Run one statement that is safe to repeat and return its rows."""

        async def once(connection: AsyncConnection) -> list[tuple[Any, ...]]:
            cursor = await connection.execute(statement, arguments, binary=True)
            return await cursor.fetchall() if cursor.description else []

        for pause in _PAUSES:
            try:
                return await self._line.run(once)
            except psycopg.Error as error:
                if not is_transient(error):
                    raise
                await asyncio.sleep(pause)
        return await self._line.run(once)

    async def heads(self, ids: Sequence[str]) -> dict[str, Head]:
        """Return the heads of those of `ids` that exist."""
        return {row[0]: Head(*row) for row in await self.rows(_HEAD, Texts(ids))}

    async def list_heads(
        self, *, status: str | None, name: str | None, limit: int, after: tuple[int, str] | None
    ) -> list[Head]:
        """Return heads, newest first, after the (created_at, workflow_id) of a previous page's last."""

        async def once(connection: AsyncConnection) -> list[tuple[Any, ...]]:
            at, last = after or (None, None)
            parameters = {"status": status, "name": name, "limit": limit, "at": at, "id": last}
            return await (await connection.execute(_LIST, parameters, binary=True)).fetchall()

        return [Head(*row) for row in await self._line.run(once)]

    async def history(self, workflow_id: str) -> list[Recorded]:
        """Return a whole stream, in order."""
        return recorded(await self.rows(READ_STREAM, workflow_id))

    async def histories(self, ids: Sequence[str], unreadable: dict[str, str]) -> dict[str, list[Recorded]]:
        """Return many whole streams, in one statement; of one that can't be decoded, why, in `unreadable`.

        That is a release's that is newer than this code: its workflow is not ours to go on with.
        """
        found: dict[str, list[Recorded]] = {}
        for workflow_id, seq, at, body in await self.rows(READ_STREAMS, Texts(ids)):
            try:
                event = decode_event(body)
            except msgspec.MsgspecError as error:
                unreadable[workflow_id] = f"event {seq}: {error}"
            else:
                found.setdefault(workflow_id, []).append(Recorded(seq, at, event))
        return {
            workflow_id: history for workflow_id, history in found.items() if workflow_id not in unreadable
        }

    async def mail(self, ids: Sequence[str], unreadable: dict[str, str]) -> list[tuple[str, str, Event]]:
        """Return the unfolded messages of these workflows, in the order of sending; see `histories`."""
        return _decoded(await self.rows(_MAIL, Texts(ids)), unreadable)

    async def own_mail(self, worker: str, unreadable: dict[str, str]) -> list[tuple[str, str, Event]]:
        """Return the unfolded messages of all workflows that `worker` owns; see `histories`."""
        return _decoded(await self.rows(_OWN_MAIL, worker), unreadable)

    async def owned(self, worker: str) -> list[tuple[str, str]]:
        """Return (ID, name) of the workflows that `worker` owns."""
        return [(row[0], row[1]) for row in await self.rows(_OWNED, worker)]

    async def ends(self, ids: Sequence[str]) -> dict[str, Event]:
        """Return the last event of those of `ids` that have ended."""
        return {workflow_id: decode_event(body) for workflow_id, body in await self.rows(_ENDS, Texts(ids))}

    async def wait(self, ids: Sequence[str], channel: str) -> None:
        """Ask that the ends of `ids` be notified on `channel`."""
        await self.rows(_WAIT, Texts(ids), channel)

    async def wait_no_more(self, ids: Sequence[str], channel: str) -> None:
        """Take back what `wait` asked for."""
        await self.rows(_WAIT_NO_MORE, Texts(ids), channel)

    async def positions(self, sources: Sequence[str]) -> dict[str, SourcePosition]:
        """Return how far each of `sources` was handed over; one never read has no position yet."""
        known = {row[0]: SourcePosition(*row) for row in await self.rows(_POSITIONS, Texts(sources))}
        return {
            source: known.get(source) or SourcePosition(source, first_stream(source), 0, None)
            for source in sources
        }

    async def all_positions(self, prefix: str) -> list[SourcePosition]:
        """Return the positions of all sources whose name begins with `prefix`."""
        return [SourcePosition(*row) for row in await self.rows(_ALL_POSITIONS, prefix)]

    async def source_facts(self, prefix: str, limit: int) -> list[SourceFact]:
        """Return what the streams of sources whose name begins with `prefix` say beside positions, newest first."""
        found = []
        for source, label, at, body in await self.rows(_FACTS, prefix, limit):
            event = decode_event(body)
            if isinstance(event, GapFound):
                found.append(SourceFact(source, label, at, "Gap", event.detail))
            elif isinstance(event, Noted):
                found.append(SourceFact(source, label, at, event.kind, event.text))
        return found

    async def runnable(self, source: str, limit: int) -> int:
        """Count the unfinished workflows of a source that do not wait, up to `limit`."""
        return int((await self.rows(_RUNNABLE, source, limit))[0][0])

    async def in_flight(self, prefix: str) -> dict[str, dict[str, int]]:
        """Count open workflows, by source and status, of the sources whose name begins with `prefix`."""
        found: dict[str, dict[str, int]] = {}
        for source, status, count in await self.rows(_IN_FLIGHT, prefix):
            found.setdefault(source, {})[status] = count
        return found

    async def runnable_ids(self, source: str, limit: int) -> list[str]:
        """Return the IDs of the unfinished workflows of a source that do not wait, up to `limit`."""
        return [row[0] for row in await self.rows(_RUNNABLE_IDS, source, limit)]

    async def parked(
        self, prefix: str, limit: int, after: "ParkedWorkflow | None" = None
    ) -> list["ParkedWorkflow"]:
        """Return the parked workflows of the orders whose key begins with `prefix`, by key and place, after one."""
        place = ("", -1, "") if after is None else (after.order_key, after.order_no, after.id)
        found = []
        for id, name, label, key, no, seq, at, body, waiting in await self.rows(
            _PARKED, prefix, f"{prefix}\U0010ffff", *place, limit
        ):
            event = decode_event(body)
            if isinstance(event, Parked):
                reason, error = event.reason, event.error
                found.append(ParkedWorkflow(id, name, label, key, no, seq, at, reason, error, waiting))
        return found

    async def recent_ids(self) -> list[str]:
        """Return the newest workflow IDs, for "did you mean"."""
        return [row[0] for row in await self.rows(_NEAREST)]

    async def unowned(self) -> dict[str, int]:
        """Return how much work is due and in nobody's hands, by workflow name."""
        return dict(await self.rows(_UNOWNED))

    async def next_due(self, names: Sequence[str]) -> int | None:
        """Return when the next workflow of these names that nobody has comes due, or came."""
        due: int | None = (await self.rows(_NEXT_DUE, list(names)))[0][0]
        return due

    async def alike(self, of: Sequence[tuple[str, str, str]]) -> dict[str, str]:
        """For each (source, digest, ID) that has one, return the earliest other workflow of that source and digest."""
        sources, digests, ids = (
            Texts([a for a, _, _ in of]),
            Texts([b for _, b, _ in of]),
            Texts([c for _, _, c in of]),
        )
        return dict(await self.rows(_ALIKE, sources, digests, ids))

    async def received(self, messages: Sequence[Message]) -> set[tuple[str, str]]:
        """Return (to, ID) of those messages that have arrived already, read or not."""
        to, ids = Texts([m.to for m in messages]), Texts([m.message_id for m in messages])
        needles = Blobs([msgspec.json.encode({"message_id": m.message_id})[1:-1] for m in messages])
        found = {(row[0], row[1]) for row in await self.rows(_IN_INBOX, to, ids)}
        for workflow_id, body in await self.rows(_IN_STREAM, to, needles):
            event = decode_event(body)
            if isinstance(event, MessageReceived | CancelRequested):
                found.add((workflow_id, event.message_id))
        return found

    async def delete(self, workflow_id: str) -> bool:
        """Delete the history of a workflow that has ended; its ID stays taken (IdentitySealed takes the place).

        Returns False when there is no such ended workflow.
        """

        async def once(connection: AsyncConnection) -> bool:
            async with connection.transaction():
                cursor = await connection.execute(_DELETE, (workflow_id,))
                row = await cursor.fetchone()
                if row is None:
                    return False
                sealed = IdentitySealed(name=row[0], status=row[1], digest=row[2])
                await connection.execute("delete from refold.events where workflow_id = %s", (workflow_id,))
                await connection.execute("delete from refold.inbox where workflow_id = %s", (workflow_id,))
                await connection.execute(
                    "insert into refold.events (workflow_id, seq, type, at, body)"
                    " values (%s, 0, 'IdentitySealed', refold.log_now(), %s)",
                    (workflow_id, encode_event(sealed)),
                )
                await connection.execute(
                    "update refold.workflows w set status = 'deleted', created_at = e.at, finished_at = e.at,"
                    " source = null, parent = null, parent_no = null,"
                    " order_key = null, order_no = null, not_before = null, findable = false"
                    "  from refold.events e where e.workflow_id = w.workflow_id and w.workflow_id = %s",
                    (workflow_id,),
                )
                return True

        return await self._line.run(once)

    async def first_event(self, workflow_id: str) -> WorkflowStarted | None:
        """Return event 0 of a workflow, None where it was deleted or never was."""
        rows = await self.rows(
            "select body from refold.events where workflow_id = %s and seq = 0", workflow_id
        )
        event = decode_event(rows[0][0]) if rows else None
        return event if isinstance(event, WorkflowStarted) else None

    async def close(self) -> None:
        """Close the line."""
        await self._line.drop()


def _decoded(rows: Sequence[Sequence[Any]], unreadable: dict[str, str]) -> list[tuple[str, str, Event]]:
    found = []
    for to, message_id, body in rows:
        try:
            found.append((to, message_id, decode_event(body)))
        except msgspec.MsgspecError as error:
            unreadable[to] = f"message {message_id}: {error}"
    return found
