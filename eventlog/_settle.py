"""Deciding about workflows that no worker has: parked ones retried or skipped, and those cancelled that never ran.

Whoever decides holds their heads locked, reads what there is, and writes in the same transaction. A worker that claims
meanwhile passes them by; a second person waits for the first, and finds what that one has decided.
"""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, LiteralString

import msgspec
import psycopg

from refold.eventlog._arrays import Texts
from refold.eventlog._connect import AsyncConnection
from refold.eventlog._events import Recorded, WatcherAdded, decode_event
from refold.eventlog._log import READ_STREAM, Append, is_transient, recorded, write_in

_PAUSE: Final = 0.05  # seconds, after a deadlock or the like

# What is the first of its key stays so: whoever ends it makes the next the first, which may be the one in question.
_FIRSTS: Final[LiteralString] = """
    select f.workflow_id
      from refold.workflows w join refold.workflows f on f.order_key = w.order_key
     where w.workflow_id = any(%s) and w.order_key is not null and f.finished_at is null and not f.behind
     order by f.workflow_id
       for update of f
"""
# In the order of the key, as all who lock heads take them.
_LOCK: Final[LiteralString] = """
    select workflow_id, name, status, owner, finished_at is not null, claimed_seq, parent, parent_no, order_key
      from refold.workflows
     where workflow_id = any(%s)
     order by workflow_id
       for update
"""
_MAIL: Final[LiteralString] = "select body from refold.inbox where workflow_id = %s and type = 'WatcherAdded'"
# The next of a key from which the first has gone.
_MOVE_UP: Final[LiteralString] = "select refold.move_up(%s)"
_NOW: Final[LiteralString] = "select refold.log_now()"
# Who is stopped (Ctrl-Z) between two of these statements holds a key, and whoever hands over records of it waits.
_LIMIT: Final[LiteralString] = "select set_config('idle_in_transaction_session_timeout', '3s', true)"


class Held(msgspec.Struct, frozen=True):
    """A workflow as it stands while its head is locked: `owner` is the worker that has it now."""

    workflow_id: str
    name: str
    status: str
    owner: str | None
    ended: bool
    claimed_seq: int
    parent: str | None
    parent_no: int | None
    order_key: str | None
    history: list[Recorded]
    watchers: list[WatcherAdded]  # in the inbox still

    @property
    def ran(self) -> bool:
        """Whether a worker ever had it in hand."""
        return self.claimed_seq > 0


Decide = Callable[[int, Mapping[str, Held]], Sequence[Append]]


async def settle(connection: AsyncConnection, ids: Sequence[str], decide: Decide) -> None:
    """Lock the heads of `ids`, ask `decide(now, found)` for what is to be appended, and commit that.

    `found` has those of `ids` that exist. What `decide` raises goes through, and nothing is written. The appends are to
    be of workflows that have no owner, but for their messages. After a broken connection it may have been committed:
    asked again, `decide` sees that.
    """
    while True:
        try:
            async with connection.transaction():
                await connection.execute(_LIMIT)
                found = {held.workflow_id: held for held in [*await _lock(connection, ids)]}
                row = await (await connection.execute(_NOW, binary=True)).fetchone()
                assert row is not None
                appends = decide(row[0], found)
                if appends:
                    await write_in(connection, appends)
                    keys = {held.order_key for held in found.values() if held.order_key is not None}
                    if keys:
                        await connection.execute(_MOVE_UP, (Texts(sorted(keys)),))
                return
        except psycopg.Error as error:
            if not is_transient(error):
                raise
            await asyncio.sleep(_PAUSE)


async def _lock(connection: AsyncConnection, ids: Sequence[str]) -> list[Held]:
    # Twice: the first of a key may have ended while it was waited for, and the next one is the first then.
    for _ in range(2):
        await connection.execute(_FIRSTS, (Texts(ids),))
    cursor = await connection.execute(_LOCK, (Texts(ids),), binary=True)
    found = []
    for row in await cursor.fetchall():
        history = await (await connection.execute(READ_STREAM, (row[0],), binary=True)).fetchall()
        mail = await (await connection.execute(_MAIL, (row[0],), binary=True)).fetchall()
        events = [decode_event(body) for (body,) in mail]
        watchers = [event for event in events if isinstance(event, WatcherAdded)]
        one: tuple[Any, ...] = (*row, recorded(history), watchers)
        found.append(Held(*one))
    return found
