"""How a connector hands over. The whole of core's side of it; what a connector is, is in `_connector`.

A connector reads messages from a system of its own and hands over, in one transaction, the workflows that they start
and how far it has read: *hand over these starts and this new position, if the position is still the one I read*.
"""

import asyncio
import concurrent.futures
import logging
from collections.abc import Callable, Coroutine, Sequence
from typing import TYPE_CHECKING, Any, Final, TypeVar

import msgspec
import psycopg
from msgspec import Raw
from psycopg import errors

from refold.core._definitions import Workflow
from refold.core._errors import DecodeFailed
from refold.core._failures import record_error
from refold.eventlog._errors import EventLogError, Fenced, PositionMoved
from refold.eventlog._events import (
    Event,
    GapFound,
    PositionAdvanced,
    RecordedError,
    WorkflowFailed,
    WorkflowStarted,
    encode_event,
)
from refold.eventlog._log import MAILED, UNKNOWN, Append, NewEvent, NewWorkflow, PositionMove
from refold.eventlog._log import Lane as LogLane
from refold.eventlog._read import SourcePosition

if TYPE_CHECKING:
    from refold.core._worker import Worker

log = logging.getLogger("refold.source")
T = TypeVar("T")

# A position's stream grows by one event a poll. When it is this long the next generation opens with the position,
# and the old one is deleted whole.
GENERATION: Final = 10_000


class Start(msgspec.Struct):
    """One message's workflow: its ID is the message's identity.

    `input` is the encoded input, JSON {parameter: value}. With `failure` the message can't be a workflow's input:
    it is recorded as started and failed at once, for people to see, and never run.
    """

    workflow: Workflow[..., Any]
    id: str
    input: bytes
    failure: RecordedError | None = None


class Move(msgspec.Struct):
    """What is handed over of one source: from the position that was read to the new one, with what it started.

    `label` is the consumer's name, which `list` shows and in-flight counts go by; `gap` says what was lost before
    it could be read.
    """

    expected: SourcePosition
    position: bytes
    label: str
    starts: list[Start] = []
    gap: GapFound | None = None


class HandedOver(msgspec.Struct):
    """What a hand-over did: the positions to hand over from next, and how many starts were new."""

    positions: dict[str, SourcePosition]
    started: int
    duplicates: int


class Lane:
    """A connector's own sequence of hand-overs, with a connection of its own. Its methods may be called from any
    thread and return futures of `concurrent.futures`."""

    def __init__(self, name: str, worker: "Callable[[], Worker]", submit: Callable[..., Any]) -> None:
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
        return self._soon(self._hand_over(list(moves)))

    def count_runnable(self, label: str, limit: int) -> "concurrent.futures.Future[int]":
        """Count the unfinished workflows of consumer `label` that do not wait for something, up to `limit`."""
        return self._soon(self._count_runnable(label, limit))

    def close(self) -> None:
        """Close the lane, after what was handed over before."""
        try:
            self._soon(self._close()).result(10)
        except (concurrent.futures.TimeoutError, concurrent.futures.CancelledError, RuntimeError):
            log.debug("lane %s was left open", self.name)

    def _soon(self, coroutine: Coroutine[Any, Any, T]) -> "concurrent.futures.Future[T]":
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

    async def _close(self) -> None:
        async with await self._locked():
            if self._lane is not None:
                await self._lane.close()
                self._lane = None

    async def _hand_over(self, moves: list[Move]) -> HandedOver:
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
        at = worker.clock.now()
        room = worker.room
        began: list[tuple[Start, NewWorkflow, WorkflowStarted]] = []
        appends: list[Append] = []
        positions: dict[str, SourcePosition] = {}
        seen: set[str] = set()
        for move in moves:
            moved, position = _advance(move, at)
            positions[position.source] = position
            appends += moved
            for start in move.starts:
                if start.id in seen:
                    continue
                seen.add(start.id)
                owner = worker.id if start.failure is None and len(began) < room else None
                new, event = _new_workflow(start, move.label, at, owner)
                moved[0].starts.append(new)
                if new.owner is not None:
                    began.append((start, new, event))
        try:
            log_time, existing = await self._lane.transact(appends)
        except errors.UniqueViolation as error:
            if error.diag.constraint_name == "one_event_per_seq":
                raise PositionMoved([move.expected.source for move in moves]) from error
            raise
        except psycopg.Error as error:
            if (error.sqlstate or "")[:2] in ("22", "23", "54"):
                return await self._hand_over_without_culprit(worker, moves, error)
            raise
        worker.handed_over(log_time, began, existing)
        for move in moves:
            await self._next_generation(move.expected, positions[move.expected.source])
        count = len(seen)
        duplicates = sum(not each.startswith((UNKNOWN, MAILED)) for each in existing)
        if duplicates:
            log.info("%s of %s starts of %s were there already", duplicates, count, moves[0].label)
        return HandedOver(positions, count - duplicates, duplicates)

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

    async def _next_generation(self, old: SourcePosition, new: SourcePosition) -> None:
        if old.stream != new.stream and old.next_seq > 0 and self._lane is not None:
            await self._lane.read(
                "with gone as (delete from refold.events where workflow_id = %s returning 1) select count(*) from gone",
                old.stream,
            )


def _advance(move: Move, at: int) -> tuple[list[Append], SourcePosition]:
    """Return the rows that move one position on, and where the next ones go."""
    expected = move.expected
    events: list[Event] = [] if move.gap is None else [move.gap]
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


def _new_workflow(
    start: Start, label: str, at: int, owner: str | None
) -> tuple[NewWorkflow, WorkflowStarted]:
    digest = ""
    if start.failure is None:
        try:
            digest = start.workflow.digest(start.input)
        except (
            DecodeFailed
        ) as error:  # no input of this workflow, ever: a visible failure, and the source goes on
            start.failure, owner = record_error(error), None
    event = WorkflowStarted(name=start.workflow.name, input=Raw(start.input), digest=digest, source=label)
    failed = encode_event(WorkflowFailed(error=start.failure)) if start.failure is not None else None
    new = NewWorkflow(
        start.id,
        start.workflow.name,
        digest,
        at,
        encode_event(event),
        owner=owner,
        source=label,
        failed=failed,
    )
    return new, event
