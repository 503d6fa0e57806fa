"""Accepting messages one by one, as webhooks bring them, and writing them many at a time.

Whoever has accepted something may tell its sender so: it is durable. Callers on any thread and loop leave a ticket; on
the engine's thread all that wait go out in one transaction, while the next ones gather. A ticket whose caller has given
up goes out no more.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Final, TypeAlias

from refold.core._clock import LogClock
from refold.core._errors import NotAccepted
from refold.core._source import Accepted, Cancel, Send, Start, message_of, new_workflow
from refold.eventlog._connect import LOST, AsyncConnection, Line
from refold.eventlog._errors import AppendRefused, DatabaseUnreachable, EventLogError, Fenced
from refold.eventlog._events import WorkflowStarted
from refold.eventlog._log import (
    UNKNOWN,
    Append,
    Flushed,
    Message,
    NewWorkflow,
    is_about_a_row,
    write_unfenced,
)
from refold.eventlog._log import Lane as LogLane
from refold.eventlog._read import Reader

if TYPE_CHECKING:
    from refold.core._worker import Worker

log = logging.getLogger("refold.source")

Item: TypeAlias = Start | Send | Cancel
MOST_ITEMS: Final = 1_000  # of one transaction
MOST_BYTES: Final = 32 << 20
CLOSE_WITHIN: Final = 2.0  # seconds that what waits gets when the app closes


class Ticket:
    """The items of one call, and whom to tell what became of them: one of `Accepted` each, or an error for all."""

    __slots__ = ("append", "given_up", "items", "label", "messages", "repeated", "starts", "tell")

    def __init__(
        self,
        items: Sequence[Item],
        label: str,
        tell: Callable[[list[Accepted] | None, Exception | None], object],
    ) -> None:
        self.items, self.label, self.tell = items, label, tell
        self.given_up = False
        self.append = Append("")
        self.starts: list[tuple[Start, NewWorkflow, WorkflowStarted]] = []
        self.messages: list[Message] = [message_of(item) for item in items if not isinstance(item, Start)]
        self.repeated: set[int] = (
            set()
        )  # which of `starts` another item of the same transaction starts already

    def give_up(self) -> None:
        """Nobody waits any more. What has not left goes out no more, and is not sent again if its line breaks."""
        self.given_up = True
        self.append.starts.clear()
        self.append.messages.clear()

    @property
    def size(self) -> int:
        return sum(len(item.input) for item in self.items if isinstance(item, Start))


_Write: TypeAlias = Callable[[list[Append]], Awaitable[Flushed]]


class Acceptor:
    """Writes what this process accepts. Made and used on the engine's thread."""

    def __init__(self, url: str, worker: "Worker | None", reader: Reader, clock: LogClock) -> None:
        self._url, self._worker, self._reader, self._clock = url, worker, reader, clock
        self._clock_known = worker is not None
        self._line = Line(url)
        self._lane: LogLane | None = None
        self._waiting: dict[Ticket, None] = {}
        self._running: asyncio.Task[None] | None = None
        self._answering: set[asyncio.Task[None]] = set()
        self._closed = False
        self._dead: str | None = None  # the name under which this process was declared dead last

    def take(self, ticket: Ticket) -> None:
        """Write the ticket's items with the next transaction."""
        if self._closed:
            ticket.tell(None, NotAccepted(ticket.label, len(ticket.items), "the app was closed"))
            return
        self._waiting[ticket] = None
        if self._running is None or self._running.done():
            self._running = asyncio.get_running_loop().create_task(self._run(), name="refold-accept")

    def take_back(self, ticket: Ticket) -> None:
        """Its caller has given up."""
        self._waiting.pop(ticket, None)
        ticket.give_up()

    async def close(self) -> None:
        """Write what waits, if that does not take long, and close the connections."""
        self._closed = True
        tasks = {*self._answering, *([self._running] if self._running is not None else [])}
        if tasks:
            await asyncio.wait(tasks, timeout=CLOSE_WITHIN)
        for task in tasks:
            task.cancel()
        for ticket in list(self._waiting):
            ticket.tell(None, NotAccepted(ticket.label, len(ticket.items), "the app was closed"))
        self._waiting.clear()
        await self._drop_lane()
        await self._line.drop()

    async def _drop_lane(self) -> None:
        lane, self._lane = self._lane, None
        if lane is not None:
            await lane.close()

    async def _run(self) -> None:
        pause = 0.05
        while self._waiting:
            try:
                await self._write_next()
                pause = 0.05
            except Fenced as error:
                self._dead = error.worker
            except (DatabaseUnreachable, *LOST) as error:
                log.warning("nothing can be accepted, and is tried again: %s", error)
                await asyncio.sleep(pause)
                pause = min(pause * 2, 1.0)
            except Exception as error:
                log.exception("accepting failed")
                for ticket in list(self._waiting):
                    ticket.tell(None, error)
                self._waiting.clear()

    async def _write_next(self) -> None:
        worker, write = await self._ready()
        # Only now: what waited for a line could still be taken back.
        batch = self._next_batch()
        try:
            there, ended = await self._messages_there(batch)
            at = self._clock.now() if worker is None else worker.clock.now()
            batch = self._prepare(batch, at, worker, there, ended)
            if not batch:
                return
            flushed = await write([ticket.append for ticket in batch])
        except (Fenced, DatabaseUnreachable, *LOST):
            # Nothing was written; fenced, this process goes on under another name, or as one that runs nothing.
            self._waiting = {ticket: None for ticket in batch if not ticket.given_up} | self._waiting
            raise
        except Exception as error:
            for ticket in batch:
                ticket.tell(None, error)
            return
        self._written(batch, flushed, at, worker, ended)

    async def _ready(self) -> "tuple[Worker | None, _Write]":
        """Return the worker that is to run what is started, if there is one now, and how to write, on a live line."""
        worker = self._worker
        if worker is not None and worker.serves and worker.id != self._dead:
            try:
                if self._lane is None or self._lane.worker != worker.id:
                    await self._drop_lane()
                    self._lane = lane = LogLane(worker.url, worker.id, "accept")
                    await lane.register()
                await self._lane.ready()
                return worker, self._lane.flush
            except Fenced as error:
                self._dead = error.worker
        if not self._clock_known:
            rows = await self._reader.rows("select refold.log_now()")
            self._clock.refresh(rows[0][0])
            self._clock_known = True
        await self._line.ready()
        return None, self._write_unfenced

    def _next_batch(self) -> list[Ticket]:
        batch: list[Ticket] = []
        items = size = 0
        while self._waiting and items < MOST_ITEMS and size < MOST_BYTES:
            ticket = next(iter(self._waiting))
            del self._waiting[ticket]
            batch.append(ticket)
            items += len(ticket.items)
            size += ticket.size
        return batch

    async def _messages_there(self, batch: Sequence[Ticket]) -> tuple[set[tuple[str, str]], set[str]]:
        """Return the messages that arrived before, and the targets that have ended."""
        messages = [message for ticket in batch for message in ticket.messages]
        if not messages:
            return set(), set()
        heads = await self._reader.heads([message.to for message in messages])
        ended = {head.workflow_id for head in heads.values() if head.ended}
        return await self._reader.received(messages), ended

    def _prepare(
        self,
        batch: Sequence[Ticket],
        at: int,
        worker: "Worker | None",
        there: set[tuple[str, str]],
        ended: set[str],
    ) -> list[Ticket]:
        """Make the rows of each ticket that is still wanted, as an append of its own: one refused harms no other."""
        room = 0 if worker is None else worker.room
        owner = None if worker is None else worker.id
        starting: set[str] = set()
        prepared: list[Ticket] = []
        for number, ticket in enumerate(batch):
            if ticket.given_up:
                continue
            ticket.append = Append(f"\0{number}")
            ticket.repeated.clear()
            try:
                ticket.starts = [
                    (item, *new_workflow(item, ticket.label, at, owner if len(starting) + i < room else None))
                    for i, item in enumerate(ticket.items)
                    if isinstance(item, Start)
                ]
            except Exception as error:  # of one item's making: no harm to the others
                ticket.tell(None, error)
                continue
            prepared.append(ticket)
            for place, (item, new, _) in enumerate(ticket.starts):
                if item.id in starting:
                    ticket.repeated.add(place)
                else:
                    starting.add(item.id)
                    ticket.append.starts.append(new)
            # One that another ticket brings as well is in both: that one may be taken back, or be refused, on the way.
            ticket.append.messages += [
                message
                for message in ticket.messages
                if (message.to, message.message_id) not in there and message.to not in ended
            ]
        return prepared

    def _written(
        self,
        batch: Sequence[Ticket],
        flushed: Flushed,
        at: int,
        worker: "Worker | None",
        ended: set[str],
    ) -> None:
        done = [ticket for ticket in batch if ticket.append.stream not in flushed.refused]
        if worker is None:
            self._clock.refresh(flushed.log_time)
        else:
            owned = [
                start
                for ticket in done
                if not ticket.given_up
                for place, start in enumerate(ticket.starts)
                if start[1].owner is not None and place not in ticket.repeated
            ]
            worker.handed_over(flushed.log_time, owned, flushed.existing)
            if any(ticket.given_up for ticket in batch):
                worker.find_lost()  # given up on the way: whether they left before or after, Postgres knows
            for ticket in done:
                for _, new, _ in ticket.starts:
                    if new.not_before is not None:
                        worker.wake_at(new.not_before)
        _leave_to_first(done)
        later: list[Ticket] = []
        for ticket in batch:
            refused = flushed.refused.get(ticket.append.stream)
            if refused is not None:
                ticket.tell(None, refused)
            elif self._asks_more(ticket, flushed.existing):
                later.append(ticket)
            else:
                ticket.tell(_answers(ticket, {}, {}, at, ended), None)
        if later:
            self._answering.add(task := asyncio.create_task(self._look_up(later, flushed, at, ended)))
            task.add_done_callback(self._answering.discard)

    def _asks_more(self, ticket: Ticket, existing: set[str]) -> bool:
        if not existing and not ticket.repeated and not any(start.find_same for start, _, _ in ticket.starts):
            return False
        return (
            UNKNOWN in existing
            or bool(ticket.repeated)
            or any(start.find_same or start.id in existing for start, _, _ in ticket.starts)
        )

    async def _look_up(
        self,
        tickets: Sequence[Ticket],
        flushed: Flushed,
        at: int,
        ended: set[str],
    ) -> None:
        """Tell of tickets whose answer is more than "new": what was there before, and what is alike."""
        starts = [(ticket, place, start) for ticket in tickets for place, start in enumerate(ticket.starts)]
        before = [
            start.id
            for ticket, place, (start, _, _) in starts
            if UNKNOWN in flushed.existing or start.id in flushed.existing or place in ticket.repeated
        ]
        asked = [
            (ticket.label, new.digest, start.id) for ticket, _, (start, new, _) in starts if start.find_same
        ]
        try:
            heads = await self._reader.heads(before) if before else {}
            same = await self._reader.alike(asked) if asked else {}
        except Exception as error:
            for ticket in tickets:
                ticket.tell(None, error)
            return
        digests = {head.workflow_id: (head.digest, head.created_at) for head in heads.values()}
        for ticket in tickets:
            if any(ticket.starts[place][0].id not in digests for place in ticket.repeated):
                self.take(ticket)  # the other one that was to start it did not, in the end
            else:
                ticket.tell(_answers(ticket, digests, same, at, ended), None)

    async def _write_unfenced(self, appends: list[Append]) -> Flushed:
        async def once(connection: AsyncConnection) -> tuple[int, set[str]]:
            return await write_unfenced(connection, appends)

        try:
            log_time, existing = await self._line.run(once)
            return Flushed(log_time, {}, existing)
        except Exception as error:
            if not is_about_a_row(error):
                raise
            if len(appends) == 1:
                stream = appends[0].stream
                refused: dict[str, EventLogError] = {stream: AppendRefused(stream, str(error))}
                return Flushed(self._clock.now(), refused, set())
            middle = len(appends) // 2
            first = await self._write_unfenced(appends[:middle])
            second = await self._write_unfenced(appends[middle:])
            return Flushed(
                second.log_time, {**first.refused, **second.refused}, first.existing | second.existing
            )


def _leave_to_first(tickets: Sequence[Ticket]) -> None:
    """Leave a message that several of `tickets` brought to the first of them: to the others it was there."""
    seen: set[tuple[str, str]] = set()
    for ticket in tickets:
        messages = [m for m in ticket.append.messages if (m.to, m.message_id) not in seen]
        seen |= {(m.to, m.message_id) for m in messages}
        ticket.append.messages = messages


def _answers(
    ticket: Ticket,
    digests: dict[str, tuple[str, int]],
    same: dict[str, str],
    at: int,
    ended: set[str],
) -> list[Accepted]:
    answers: list[Accepted] = []
    sent = {(message.to, message.message_id) for message in ticket.append.messages}
    place = 0
    for item in ticket.items:
        if isinstance(item, Start):
            found = digests.get(item.id)
            # The very moment that this transaction stamped: it is ours, and only the answer had got lost.
            new = place not in ticket.repeated and (found is None or found[1] == at)
            digest = None if new or found is None else found[0]
            answers.append(Accepted(item.id, new, digest, same.get(item.id)))
            place += 1
        else:
            new = (item.to, item.id) in sent
            sent.discard((item.to, item.id))  # the same once more in one call is there by then
            answers.append(Accepted(item.to, new, ended=item.to in ended))
    return answers
