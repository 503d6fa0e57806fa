"""Appending: the rows of a flush, and the lane that commits one flush after the other.

A flush is all or nothing in Postgres: one statement, one transaction, one round trip, for the appends of many
workflows. That one stale or refused workflow does no harm to the others in it is our doing: it is taken out with
all its rows of every table, and the rest is sent again (rule 2). What became of a flush whose connection broke is
read from the lane's row, never guessed (rule 11).
"""

import asyncio
import struct
from collections.abc import Iterable, Sequence
from typing import Any, Final, LiteralString

import msgspec
import psycopg
from psycopg import errors

from refold.eventlog._arrays import Blobs, Flags, Ints, Longs, Texts, Times
from refold.eventlog._connect import AsyncConnection, Line, named_after
from refold.eventlog._errors import AppendRefused, EventLogError, Fenced, HeadsMissing, StaleWriter
from refold.eventlog._events import Recorded, decode_event

# SQLSTATEs that refold.fence raises: not this worker any more; not this number again.
FENCED: Final = "RF001"
COMMITTED_BEFORE: Final = "RF003"
# Nothing is wrong with the flush itself: send it again as it is. Serialization failure, deadlock, lock timeout,
# cancelled by a statement_timeout or a person, too many connections, out of disk or memory (Postgres recovers from
# those; a half-written flush does not exist).
_TRANSIENT: Final = ("40001", "40P01", "55P03", "57014", "53000", "53100", "53200", "53300")
# What a member of a flush can be that no column takes: text that is no UTF-8, a number or time out of range.
_UNENCODABLE: Final = (UnicodeEncodeError, struct.error, OverflowError)


class NewWorkflow(msgspec.Struct, frozen=True):
    """Event 0 and head of a workflow that is to be started if its ID is free.

    With an `order_key` it runs when no other of that key is open that came before it, and is in nobody's hands until
    then, whatever `owner` says (see `BEHIND`). `findable`: others of its source with the same digest can find it.
    """

    workflow_id: str
    name: str
    digest: str
    at: int
    body: bytes
    owner: str | None = None
    source: str | None = None
    parent: str | None = None
    parent_no: int | None = None
    failed: bytes | None = None  # encoded WorkflowFailed: started and ended at once, never run
    parked: bytes | None = None  # encoded Parked: started and set aside at once
    order_key: str | None = None
    order_no: int | None = None
    not_before: int | None = None
    findable: bool = False

    @property
    def status(self) -> str:
        if self.failed is not None:
            return "failed"
        if self.parked is not None:
            return "parked"
        return "pending" if self.owner is None else "running"


class NewEvent(msgspec.Struct, frozen=True):
    """An event in its place, encoded."""

    seq: int
    type: str
    at: int
    body: bytes


class HeadChange(msgspec.Struct, frozen=True):
    """What the head of a workflow of this worker becomes.

    Ended, with `takes_next`, it has the next one of its order put into the same worker's hands (see `TAKEN`).
    """

    status: str
    owner: str | None
    due_at: int | None = None
    finished_at: int | None = None
    fingerprint: str | None = None
    takes_next: bool = False


class Message(msgspec.Struct, frozen=True):
    """An inbox row: `body` is the encoded event that folding will append to `to`'s stream."""

    to: str
    message_id: str
    type: str
    body: bytes


class PositionMove(msgspec.Struct, frozen=True):
    """How far a source has been handed over: the projection of the PositionAdvanced in the same append."""

    source: str
    stream: str
    next_seq: int
    position: bytes
    label: str
    at: int


class Append(msgspec.Struct):
    """All rows of one stream in one flush, of every table: they are written together or not at all."""

    stream: str
    events: list[NewEvent] = []
    head: HeadChange | None = None
    starts: list[NewWorkflow] = []
    messages: list[Message] = []
    folded: list[str] = []  # message IDs whose inbox rows these events replace
    position: PositionMove | None = None


class Flushed(msgspec.Struct):
    """What became of a flush: the log's time after it, what fell out of it, and starts whose ID existed."""

    log_time: int
    refused: dict[str, EventLogError]  # stream -> StaleWriter or AppendRefused
    existing: set[str]


def is_transient(error: psycopg.Error) -> bool:
    """Whether the same statement may well succeed when it is sent again."""
    return error.sqlstate in _TRANSIENT


_PAUSE: Final = 0.01  # seconds; a full disk is not emptied by asking faster

# 4 of the fence, 15 of starts, 7 of heads, 5 of events, 6 of positions, 2 of folded and 4 of new messages, 1 wake.
_FLUSH: Final[LiteralString] = (
    "select log_time, existing from refold.flush("
    "%s, %s, %s, %s, "
    "%s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, "
    "%s, %s, %s, %s, "
    "%s, %s, %s, %s, %s, %s, %s, "
    "%s, %s, %s, %s, %s, "
    "%s, %s, %s, %s, %s, %s, "
    "%s, %s, %s, %s, %s, %s, %s)"
)

# The lock waits for a transaction of this lane that may still be committing on a connection that broke.
_LAST_FLUSH: Final[LiteralString] = (
    "select flush_no, epoch from refold.workers where worker = %s and lane = %s for update"
)

_NEXT_SEQS: Final[LiteralString] = (
    "select workflow_id, max(seq) + 1 from refold.events where workflow_id = any(%s) group by 1"
)

_HEADLESS: Final[LiteralString] = """
    select e.workflow_id from refold.events e
     where e.workflow_id = any(%s) and e.seq = 0
       and not exists (select from refold.workflows w where w.workflow_id = e.workflow_id)
"""

_LOG_NOW: Final[LiteralString] = "select refold.log_now()"


def is_about_a_row(error: Exception) -> bool:
    """Whether a flush was refused for the sake of a row in it: it would be again, in whatever company."""
    if isinstance(error, psycopg.Error):
        # A full queue of notifications is 54000 as well, and nobody's row.
        return (error.sqlstate or "")[:2] in ("22", "23", "54") and "NOTIFY" not in str(error)
    return isinstance(error, _UNENCODABLE)


def _columns(appends: Sequence[Append]) -> list[Any]:
    """Turn appends into the arrays of refold.flush, sorted so that two flushes never wait for each other in a ring."""
    ordered = sorted(appends, key=_stream_of)
    starts = sorted((start for append in ordered for start in append.starts), key=_id_of)
    # Of an order: the first of a key waits for whoever else begins that key. All have to come to it by the same way.
    ordering = any(start.order_key is not None for start in starts)
    if ordering:
        starts.sort(key=_place_of)
    delayed = any(start.not_before is not None for start in starts)
    findable = any(start.findable for start in starts)
    heads = [(append.stream, append.head) for append in ordered if append.head is not None]
    events = [(append.stream, event) for append in ordered for event in append.events]
    moves = [append.position for append in ordered if append.position is not None]
    folded = [(append.stream, message_id) for append in ordered for message_id in append.folded]
    # Not sorted: the order of sending is the order of the inbox.
    messages = [message for append in appends for message in append.messages]
    work_for_others = any(s.owner is None and s.status == "pending" for s in starts) or any(
        head.status in ("pending", "stuck") for _, head in heads
    )
    return [
        Texts([s.workflow_id for s in starts]),
        Texts([s.name for s in starts]),
        Texts([s.status for s in starts]),
        Texts([s.owner for s in starts]),
        Texts([s.source for s in starts]),
        Texts([s.parent for s in starts]),
        Ints([s.parent_no for s in starts]),
        Texts([s.digest for s in starts]),
        Times([s.at for s in starts]),
        Blobs([s.body for s in starts]),
        Blobs([s.failed or s.parked for s in starts]),
        Texts([s.order_key for s in starts] if ordering else ()),
        Longs([s.order_no for s in starts] if ordering else ()),
        Times([s.not_before for s in starts] if delayed else ()),
        Flags([s.findable for s in starts] if findable else ()),
        Texts([stream for stream, _ in heads]),
        Texts([head.status for _, head in heads]),
        Texts([head.owner for _, head in heads]),
        Times([head.due_at for _, head in heads]),
        Times([head.finished_at for _, head in heads]),
        Texts([head.fingerprint for _, head in heads]),
        Flags([head.takes_next for _, head in heads] if any(head.takes_next for _, head in heads) else ()),
        Texts([stream for stream, _ in events]),
        Ints([event.seq for _, event in events]),
        Texts([event.type for _, event in events]),
        Times([event.at for _, event in events]),
        Blobs([event.body for _, event in events]),
        Texts([m.source for m in moves]),
        Texts([m.stream for m in moves]),
        Ints([m.next_seq for m in moves]),
        Blobs([m.position for m in moves]),
        Texts([m.label for m in moves]),
        Times([m.at for m in moves]),
        Texts([stream for stream, _ in folded]),
        Texts([message_id for _, message_id in folded]),
        Texts([m.to for m in messages]),
        Texts([m.message_id for m in messages]),
        Texts([m.type for m in messages]),
        Blobs([m.body for m in messages]),
        work_for_others,
    ]


def _stream_of(append: Append) -> str:
    return append.stream


def _id_of(start: NewWorkflow) -> str:
    return start.workflow_id


def _place_of(start: NewWorkflow) -> tuple[str, int, str]:
    return start.order_key or "", start.order_no or 0, start.workflow_id


async def _send(
    connection: AsyncConnection, fence: Sequence[Any], appends: Sequence[Append]
) -> tuple[int, set[str]]:
    cursor = await connection.execute(_FLUSH, (*fence, *_columns(appends)), binary=True)
    row = await cursor.fetchone()
    assert row is not None
    return row[0], set(row[1] or ())


async def write_in(connection: AsyncConnection, appends: Sequence[Append]) -> None:
    """Write `appends`, of workflows that no worker owns, in the transaction that is open on `connection`."""
    await _send(connection, (None, None, None, None), appends)


async def write_unfenced(connection: AsyncConnection, appends: Sequence[Append]) -> tuple[int, set[str]]:
    """Commit starts and messages of a process that owns no workflow; safe to repeat, by their IDs.

    Returns the log's time and the starts whose ID existed. After a repeat those of the first try are among them.
    """
    while True:
        try:
            return await _send(connection, (None, None, None, None), appends)
        except psycopg.Error as error:
            if error.sqlstate not in _TRANSIENT:
                raise
            await asyncio.sleep(_PAUSE)


class Lane:
    """One writer's sequence of flushes, each with a number; one on the wire at a time.

    Not to be shared between tasks: whoever owns the lane awaits one `flush` before the next.
    """

    def __init__(self, url: str, worker: str, name: str) -> None:
        self.worker, self.name = worker, name
        self._line = Line(named_after(url, worker))
        self._epoch = 0
        self._flush_no = 0

    @property
    def epoch(self) -> int:
        return self._epoch

    async def register(self, lock_key: int | None = None) -> None:
        """Enter this lane into the workers table. The worker's first lane is "beat".

        Raises Fenced when the worker was declared dead, DatabaseUnreachable.
        """
        connection = await self._line.open()
        try:
            cursor = await connection.execute(
                "select refold.register(%s, %s, %s)", (self.worker, self.name, lock_key)
            )
            row = await cursor.fetchone()
        except psycopg.Error as error:
            raise self._translated(error) from error
        assert row is not None
        self._epoch, self._flush_no = row[0], 0

    async def ready(self) -> None:
        """Return once the lane has a live connection, however long that takes."""
        await self._line.ready()

    async def flush(self, appends: Sequence[Append]) -> Flushed:
        """Commit `appends`, all that can be; on return they are durable, none of them twice.

        Those that another writer came before (StaleWriter), or that Postgres refuses for their own sake
        (AppendRefused), are left out with all their rows and named in the answer. Waits as long as Postgres is away.

        Raises Fenced; then nothing was written.
        """
        rest = list(appends)
        refused: dict[str, EventLogError] = {}
        while True:
            try:
                log_time, existing = await self.transact(rest)
                return Flushed(log_time, refused, existing)
            except errors.UniqueViolation as error:
                if error.diag.constraint_name != "one_event_per_seq":
                    raise
                stale = await self._stale(rest)
                if not stale:
                    await self._refuse_headless(rest)
                    # Whoever was first is not visible any more (its stream was deleted). The next try tells.
                    continue
                refused.update(stale)
                rest = [append for append in rest if append.stream not in stale]
            except Exception as error:
                if not is_about_a_row(error):
                    raise
                log_time, bad, found = await self._halve(rest, error)
                return Flushed(log_time, {**refused, **bad}, found)

    async def transact(self, appends: Sequence[Append]) -> tuple[int, set[str]]:
        """Commit `appends` as one transaction, once, whatever happens to the connection meanwhile."""
        self._flush_no += 1
        fence = (self.worker, self.name, self._epoch, self._flush_no)
        sent = False

        async def once(connection: AsyncConnection) -> tuple[int, set[str]]:
            nonlocal sent
            if sent and (done := await self._outcome(connection)):
                return done
            sent = True
            try:
                return await _send(connection, fence, appends)
            except psycopg.Error as error:
                if error.sqlstate == FENCED:
                    raise Fenced(self.worker) from error
                if error.sqlstate == COMMITTED_BEFORE and (done := await self._outcome(connection)):
                    return done
                raise

        while True:
            try:
                return await self._line.run(once)
            except psycopg.Error as error:
                if error.sqlstate not in _TRANSIENT:
                    raise
                await asyncio.sleep(_PAUSE)

    async def _outcome(self, connection: AsyncConnection) -> tuple[int, set[str]] | None:
        """Find out whether the last flush was committed after all. None: it was not, and never will be."""
        cursor = await connection.execute(_LAST_FLUSH, (self.worker, self.name), binary=True)
        row = await cursor.fetchone()
        if row is None or row[1] != self._epoch:
            raise Fenced(self.worker)
        if row[0] != self._flush_no:
            return None
        now = await (await connection.execute(_LOG_NOW, binary=True)).fetchone()
        assert now is not None
        # Which starts existed already was in the answer that got lost. Unknown means: ask before believing.
        return now[0], {UNKNOWN}

    async def _stale(self, appends: Sequence[Append]) -> dict[str, EventLogError]:
        expected = {append.stream: append.events[0].seq for append in appends if append.events}

        async def read(connection: AsyncConnection) -> dict[str, int]:
            cursor = await connection.execute(_NEXT_SEQS, (Texts(expected),), binary=True)
            return dict(await cursor.fetchall())

        actual = await self._line.run(read)
        return {
            stream: StaleWriter(stream, seq, actual.get(stream, 0))
            for stream, seq in expected.items()
            if actual.get(stream, 0) != seq
        }

    async def _refuse_headless(self, appends: Sequence[Append]) -> None:
        """Raise HeadsMissing if a start met events of a workflow that has no head: it would for ever."""
        starts = Texts([start.workflow_id for append in appends for start in append.starts])
        headless = await self.read(_HEADLESS, starts)
        if headless:
            raise HeadsMissing([row[0] for row in headless])

    async def _halve(
        self, appends: list[Append], error: Exception
    ) -> tuple[int, dict[str, EventLogError], set[str]]:
        """Send the halves of a flush that Postgres refused, until the culprit stands alone."""
        if len(appends) == 1:
            refused: dict[str, EventLogError] = {
                appends[0].stream: AppendRefused(appends[0].stream, str(error))
            }
            log_time, _ = await self.transact([])
            return log_time, refused, set()
        middle = len(appends) // 2
        first = await self.flush(appends[:middle])
        second = await self.flush(appends[middle:])
        return second.log_time, {**first.refused, **second.refused}, first.existing | second.existing

    async def run(self, statement: LiteralString, *arguments: Any) -> list[tuple[Any, ...]] | None:
        """Run a fenced function of this lane, `statement` with the fence's four arguments first, and return its rows.

        Like a flush it is done once. Found done after a broken connection it returns None, its rows being lost; the
        caller finds what it did in the tables.

        Raises Fenced.
        """
        self._flush_no += 1
        sent = False

        async def once(connection: AsyncConnection) -> list[tuple[Any, ...]] | None:
            nonlocal sent
            if sent and await self._outcome(connection):
                return None
            sent = True
            fence = (self.worker, self.name, self._epoch, self._flush_no)
            try:
                cursor = await connection.execute(statement, (*fence, *arguments), binary=True)
                return await cursor.fetchall()
            except psycopg.Error as error:
                if error.sqlstate == COMMITTED_BEFORE and await self._outcome(connection):
                    return None
                raise

        while True:
            try:
                return await self._line.run(once)
            except psycopg.Error as error:
                if error.sqlstate not in _TRANSIENT:
                    raise self._translated(error) from error
                await asyncio.sleep(_PAUSE)

    async def read(self, statement: LiteralString, *arguments: Any) -> list[tuple[Any, ...]]:
        """Run a statement that only reads, again after a broken connection."""

        async def once(connection: AsyncConnection) -> list[tuple[Any, ...]]:
            return await (await connection.execute(statement, arguments, binary=True)).fetchall()

        return await self._line.run(once)

    async def close(self) -> None:
        """Close the connection."""
        await self._line.drop()

    def _translated(self, error: psycopg.Error) -> Exception:
        return Fenced(self.worker) if error.sqlstate == FENCED else error


# Stands in `Flushed.existing` when a flush's answer was lost although it was committed.
UNKNOWN: Final = "\0unknown"
# Stands there before the ID of a start that is new and had mail waiting.
MAILED: Final = "\x01"
# And before that of a new one that is behind another of its order: it has no owner, though one was given.
BEHIND: Final = "\x02"
# And before the ID and the name, with the same between them, of one that was behind and is in this worker's hands now.
TAKEN: Final = "\x03"

READ_STREAM: Final[LiteralString] = (
    "select seq, at, body from refold.events where workflow_id = %s order by seq"
)

# One statement for many: a worker that claims a hundred workflows loads them in one round trip.
READ_STREAMS: Final[LiteralString] = (
    "select workflow_id, seq, at, body from refold.events where workflow_id = any(%s) order by workflow_id, seq"
)


def recorded(rows: Iterable[Sequence[Any]]) -> list[Recorded]:
    """Decode rows of (seq, at in microseconds, body)."""
    return [Recorded(seq, at, decode_event(body)) for seq, at, body in rows]
