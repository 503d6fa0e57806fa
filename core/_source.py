"""How a connector hands over. The whole of core's side of it; what a connector is, is in `_connector`.

A connector reads messages from a system of its own and hands over, in one transaction, the workflows that they start
and how far it has read: *hand over these starts and this new position, if the position is still the one I read*.
"""

import asyncio
import concurrent.futures
import logging
from collections.abc import Callable, Collection, Coroutine, Sequence
from typing import TYPE_CHECKING, Any, Final, LiteralString, TypeVar
from urllib.parse import quote

import msgspec
import psycopg
from msgspec import Raw
from psycopg import errors

from refold.core._codec import is_too_deep
from refold.core._definitions import Workflow
from refold.core._errors import DecodeFailed
from refold.core._failures import record_error
from refold.core._ids import check_id
from refold.eventlog._errors import EventLogError, Fenced, PositionMoved
from refold.eventlog._events import (
    CancelRequested,
    Event,
    GapFound,
    MessageReceived,
    Noted,
    Parked,
    PositionAdvanced,
    RecordedError,
    WorkflowFailed,
    WorkflowStarted,
    encode_event,
)
from refold.eventlog._log import (
    BEHIND,
    MAILED,
    UNKNOWN,
    Append,
    Message,
    NewEvent,
    NewWorkflow,
    PositionMove,
    is_about_a_row,
)
from refold.eventlog._log import Lane as LogLane
from refold.eventlog._read import Reader, SourcePosition

if TYPE_CHECKING:
    from refold.core._worker import Worker

log = logging.getLogger("refold.source")
T = TypeVar("T")

# A position's stream grows by one event a poll. When it is this long the next generation opens with the position,
# and the old one is deleted whole.
GENERATION: Final = 10_000
_NAMED: Final = 20  # dropped messages that a note names


def join_id(*parts: str) -> str:
    """Return the parts of an identity as one ID: other parts, another ID, whatever characters are in them.

    Each is percent-encoded, so that the colons between them are the only ones.
    """
    return ":".join([quote(part, safe="") for part in parts])


class Order(msgspec.Struct, frozen=True):
    """The place of a start among the others of the same key: they run one after the other, the lowest `no` first.

    `key` is one for all sources and consumers, so their names belong into it. With `parks` an error out of the
    workflow parks it, and those behind it wait until a person has retried or skipped it; without, it fails and the
    next one goes on.
    """

    key: str
    no: int
    parks: bool = True


class Start(msgspec.Struct):
    """One message's workflow: its ID is the message's identity.

    `input` is the encoded input, JSON {parameter: value}. With `failure` the message can't be a workflow's input:
    it is recorded as started and failed at once, for people to see, and not run; in an order that parks, it is
    parked. `digest` is the connector's own fingerprint of the message, where it is not that of the input. It runs in
    its place of `order`, and not before `not_before` (microseconds of the log's clock, see `Lane.now`). With
    `find_same`, `accept` reports another workflow of the same label with the same digest.
    """

    workflow: Workflow[..., Any]
    id: str
    input: bytes
    failure: RecordedError | None = None
    digest: str | None = None
    order: Order | None = None
    not_before: int | None = None
    find_same: bool = False


class Send(msgspec.Struct):
    """A message into the inbox of workflow `to`, started or not yet; `value` is JSON. Kept once for each (to, id)."""

    to: str
    id: str
    topic: str
    value: bytes


class Cancel(msgspec.Struct):
    """Asks workflow `to` to cancel, by message `id`; nothing happens if it has ended."""

    to: str
    id: str
    reason: str = ""


class Note(msgspec.Struct):
    """A fact of the source itself, for its stream: `kind` for programs, `text` for people, `data` any JSON."""

    kind: str
    text: str
    data: bytes = b"null"


class Accepted(msgspec.Struct, frozen=True):
    """What became of an item that was accepted. It is durable.

    `id` is the workflow. Not `new`: it (for a Send: this message) was there before, and `digest` is that of the
    workflow that is there, so another one than yours means another body under the same ID. `same` is the earliest
    other workflow of the label with the same digest, if the start asked for it. `ended`: a Send's target has ended,
    the message was dropped.
    """

    id: str
    new: bool
    digest: str | None = None
    same: str | None = None
    ended: bool = False


class Move(msgspec.Struct):
    """What is handed over of one source: from the position that was read to the new one, with what it started.

    `label` is the consumer's name, which `list` shows and in-flight counts go by; `gap` says what was lost before
    it could be read; `sends` and `cancels` go to workflows that run, `notes` into the source's own stream. All of it
    happens in one transaction, or nothing. A send to a workflow that has ended is dropped; a note of ours says so.
    """

    expected: SourcePosition
    position: bytes
    label: str
    starts: list[Start] = []
    gap: GapFound | None = None
    sends: list[Send] = []
    cancels: list[Cancel] = []
    notes: list[Note] = []


class HandedOver(msgspec.Struct):
    """What a hand-over did: the positions to hand over from next, and how many starts were new."""

    positions: dict[str, SourcePosition]
    started: int
    duplicates: int


class Lane:
    """A connector's own sequence of hand-overs, with a connection of its own. Its methods may be called from any
    thread and return futures of `concurrent.futures`."""

    def __init__(self, name: str, worker: "Callable[[], Worker]", submit: Callable[..., Any] | None) -> None:
        self.name = name
        self._worker = worker
        self._submit = submit
        self._turn: asyncio.Lock | None = None
        self._lane: LogLane | None = None

    def read_positions(
        self, sources: Sequence[str]
    ) -> "concurrent.futures.Future[dict[str, SourcePosition]]":
        """Return how far each of `sources` was handed over. Waits for hand-overs of this lane before it."""
        return self._soon(self._read_positions(list(sources)))

    def hand_over(self, moves: Sequence[Move]) -> "concurrent.futures.Future[HandedOver]":
        """Start the workflows of `moves` and move the positions on, in one transaction.

        The future raises PositionMoved, and nothing was written, when a position is not the expected one any more.
        A start whose ID exists is a duplicate and does nothing. Waits as long as Postgres is away.
        """
        return self._soon(self.hand_over_here(list(moves)))

    def now(self) -> int:
        """Return this process's estimate of the log's clock, Postgres's, in microseconds since 1970 UTC."""
        return self._worker().clock.now()

    def count_runnable(self, label: str, limit: int) -> "concurrent.futures.Future[int]":
        """Count the unfinished workflows of consumer `label` that do not wait for something, up to `limit`."""
        return self._soon(self._count_runnable(label, limit))

    def close(self) -> None:
        """Close the lane, after what was handed over before."""
        try:
            self._soon(self.close_here()).result(10)
        except (concurrent.futures.TimeoutError, concurrent.futures.CancelledError, RuntimeError):
            log.debug("lane %s was left open", self.name)

    def _soon(self, coroutine: Coroutine[Any, Any, T]) -> "concurrent.futures.Future[T]":
        assert self._submit is not None, "a lane of the engine's own"
        return self._submit(coroutine)  # type: ignore[no-any-return]

    async def _locked(self) -> asyncio.Lock:
        if self._turn is None:
            self._turn = asyncio.Lock()
        return self._turn

    async def _read_positions(self, sources: list[str]) -> dict[str, SourcePosition]:
        async with await self._locked():
            return await self._worker().reader.positions(sources)

    async def _count_runnable(self, label: str, limit: int) -> int:
        return await self._worker().reader.runnable(label, limit)

    async def close_here(self) -> None:
        """Do what `close` does, on the engine's loop."""
        async with await self._locked():
            if self._lane is not None:
                await self._lane.close()
                self._lane = None

    async def hand_over_here(self, moves: list[Move]) -> HandedOver:
        """Do what `hand_over` does, on the engine's loop."""
        async with await self._locked():
            while True:
                worker = self._worker()
                await worker.renewed()
                try:
                    return await self._hand_over_once(worker, moves)
                except Fenced:
                    # The whole process was declared dead (it was frozen, say). Nothing was written. It starts again
                    # under a new name; whether the position still stands, the next try will tell.
                    await worker.renewed()

    async def _hand_over_once(self, worker: "Worker", moves: list[Move]) -> HandedOver:
        if self._lane is None or self._lane.worker != worker.id:
            if self._lane is not None:
                await self._lane.close()
            self._lane = LogLane(worker.url, worker.id, self.name)
            await self._lane.register()
        ended = await find_ended(worker.reader, moves)
        rows = rows_of(moves, worker.clock.now(), worker.id, worker.room, ended)
        try:
            log_time, existing = await self._lane.transact(rows.appends)
        except errors.UniqueViolation as error:
            if error.diag.constraint_name == "one_event_per_seq":
                raise PositionMoved([move.expected.source for move in moves]) from error
            raise
        except psycopg.Error as error:
            if is_about_a_row(error):
                return await self._hand_over_without_culprit(worker, moves, error)
            raise
        worker.handed_over(log_time, rows.owned, existing)
        for append in rows.appends:
            for new in append.starts:
                if new.not_before is not None:
                    worker.wake_at(new.not_before)
        for move in moves:
            if (gone := outgrown(move.expected, rows.positions[move.expected.source])) is not None:
                await self._lane.read(DELETE_STREAM, gone)
        return rows.done(existing, moves)

    async def _hand_over_without_culprit(
        self, worker: "Worker", moves: list[Move], error: psycopg.Error
    ) -> HandedOver:
        """Postgres refuses a row for its own sake (too large, say): that one message must not stop its partition."""
        starts = [(move, start) for move in moves for start in move.starts if start.failure is None]
        if not starts:
            raise error
        for _, start in starts:
            size = len(start.input)
            if size == max(len(other.input) for _, other in starts):
                note = EventLogError(f"Postgres refused this message ({size:,} bytes): {error}")
                start.failure = record_error(note)
                start.input = msgspec.json.encode({"refused": {"bytes": size}})
                break
        return await self._hand_over_once(worker, moves)


class Rows(msgspec.Struct):
    """The rows of a hand-over, and what it says when they are written."""

    appends: list[Append]
    positions: dict[str, SourcePosition]
    owned: list[tuple[Start, NewWorkflow, WorkflowStarted]]  # by this process's worker, if they are new
    starts: int
    dropped: list[tuple[str, Note]]  # label, and what its source's stream says of messages that nobody gets

    def done(self, existing: set[str], moves: Sequence[Move]) -> HandedOver:
        duplicates = sum(not each.startswith((UNKNOWN, MAILED, BEHIND)) for each in existing)
        if duplicates:
            log.info("%s of %s starts of %s were there already", duplicates, self.starts, moves[0].label)
        for label, note in self.dropped:
            log.warning("%s: %s", label, note.text)
        return HandedOver(self.positions, self.starts - duplicates, duplicates)


async def find_ended(reader: Reader, moves: Sequence[Move]) -> set[str]:
    """Return those workflows that messages of `moves` are for and that have ended.

    One that ends between this look and the transaction takes the message with it unread, as it does with what came
    a moment before its end.
    """
    targets = {send.to for move in moves for send in move.sends}
    heads = await reader.heads(sorted(targets)) if targets else {}
    return {head.workflow_id for head in heads.values() if head.ended}


def rows_of(
    moves: Sequence[Move], at: int, worker: str | None, room: int, ended: Collection[str] = ()
) -> Rows:
    """Return the rows that hand `moves` over; `worker` has `room` for that many of their workflows.

    What is sent to workflows that have `ended` is left out, and the sources' streams say so.
    """
    rows = Rows([], {}, [], 0, [])
    seen: set[str] = set()
    for move in moves:
        dropped = _note_dropped([send for send in move.sends if send.to in ended])
        rows.dropped += [(move.label, note) for note in dropped]
        moved, position = _advance(move, [*move.notes, *dropped], at)
        rows.positions[position.source] = position
        rows.appends += moved
        sends = [send for send in move.sends if send.to not in ended]
        messages: list[Send | Cancel] = [*sends, *move.cancels]
        moved[0].messages += [message_of(message) for message in messages]
        for start in move.starts:
            if start.id in seen:
                continue
            seen.add(start.id)
            owner = worker if len(rows.owned) < room else None
            new, event = new_workflow(start, move.label, at, owner)
            moved[0].starts.append(new)
            if new.owner is not None:
                rows.owned.append((start, new, event))
    rows.starts = len(seen)
    return rows


def _note_dropped(sends: Sequence[Send]) -> list[Note]:
    """Return one note of all of them: each is an event of the source's stream, which is to stay short."""
    if not sends:
        return []
    named = ", ".join(f"{send.id} for {send.to}" for send in sends[:_NAMED])
    more = f", and {len(sends) - _NAMED} more" if len(sends) > _NAMED else ""
    text = f"{len(sends)} message{'' if len(sends) == 1 else 's'} dropped, for workflows that have ended: {named}{more}"
    data = {"count": len(sends), "messages": [{"id": send.id, "to": send.to} for send in sends[:_NAMED]]}
    return [Note("MessagesDropped", text, msgspec.json.encode(data))]


def message_of(message: Send | Cancel) -> Message:
    """Return the inbox row of a message."""
    check_id(message.to)
    event: MessageReceived | CancelRequested
    if isinstance(message, Send):
        event = MessageReceived(message_id=message.id, topic=message.topic, value=Raw(message.value))
    else:
        event = CancelRequested(message_id=message.id, reason=message.reason)
    return Message(message.to, message.id, type(event).__name__, encode_event(event))


# Returns a row, as every statement of a lane does.
DELETE_STREAM: Final[LiteralString] = (
    "with gone as (delete from refold.events where workflow_id = %s returning 1) select count(*) from gone"
)


def outgrown(old: SourcePosition, new: SourcePosition) -> str | None:
    """Return the stream of a position's generation that is over; to be deleted, whole."""
    return old.stream if old.stream != new.stream and old.next_seq > 0 else None


def _advance(move: Move, notes: Sequence[Note], at: int) -> tuple[list[Append], SourcePosition]:
    """Return the rows that move one position on, and where the next ones go."""
    expected = move.expected
    events: list[Event] = [] if move.gap is None else [move.gap]
    events += [Noted(kind=note.kind, text=note.text, data=Raw(note.data)) for note in notes]
    events.append(PositionAdvanced(position=Raw(move.position), started=len(move.starts), label=move.label))
    stream, seq = expected.stream, expected.next_seq
    append = Append(
        stream,
        events=[
            NewEvent(seq + i, type(event).__name__, at, encode_event(event)) for i, event in enumerate(events)
        ],
    )
    appends = [append]
    seq += len(events)
    if seq >= GENERATION:
        base, _, number = stream.rpartition("/")
        stream, seq = f"{base}/{int(number) + 1}", 1
        opening = PositionAdvanced(position=Raw(move.position), label=move.label)
        appends.append(Append(stream, events=[NewEvent(0, "PositionAdvanced", at, encode_event(opening))]))
    position = SourcePosition(expected.source, stream, seq, move.position, move.label, at)
    append.position = PositionMove(expected.source, stream, seq, move.position, move.label, at)
    return appends, position


def new_workflow(start: Start, label: str, at: int, owner: str | None) -> tuple[NewWorkflow, WorkflowStarted]:
    """Return the head and event 0 of a start; in `owner`'s hands, if it can run at once."""
    order, digest = start.order, start.digest
    if is_too_deep(start.input):
        # Whatever the connector takes: one message must not keep the whole log from being rebuilt.
        start.failure = record_error(
            DecodeFailed(f"the input of workflow {start.id!r}", "it is nested too deeply")
        )
        start.input = msgspec.json.encode({"refused": {"bytes": len(start.input)}})
    if start.failure is None and (digest is None or order is not None):
        try:
            computed = start.workflow.digest(start.input)
            digest = computed if digest is None else digest
        except (
            DecodeFailed
        ) as error:  # no input of this workflow, ever: for people to see, and the source goes on
            start.failure = record_error(error)
    if start.failure is not None or (start.not_before is not None and start.not_before > at):
        owner = None
    parks = order is None or order.parks
    event = WorkflowStarted(
        name=start.workflow.name,
        input=Raw(start.input),
        digest=digest or "",
        source=label,
        order_key=None if order is None else order.key,
        order_no=None if order is None else order.no,
        parks=parks,
        not_before=start.not_before,
        findable=start.find_same,
    )
    failed = parked = None
    if start.failure is not None and order is not None and parks:
        parked = encode_event(
            Parked(reason="its message can't be an input of the workflow", error=start.failure)
        )
    elif start.failure is not None:
        failed = encode_event(WorkflowFailed(error=start.failure))
    new = NewWorkflow(
        start.id,
        start.workflow.name,
        digest or "",
        at,
        encode_event(event),
        owner=owner,
        source=label,
        failed=failed,
        parked=parked,
        order_key=event.order_key,
        order_no=event.order_no,
        not_before=start.not_before,
        findable=start.find_same,
    )
    return new, event
