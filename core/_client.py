"""What a process does with workflows from outside: start, send, look, wait. With a worker in it or without.

A process that only starts and sends has no row among the workers and needs none: its writes are safe to repeat, by
workflow ID and by a message ID that is made before the first try (rule 1).
"""

import asyncio
import contextlib
import difflib
import secrets
import uuid
from collections.abc import Coroutine, Sequence
from typing import Any, TypeVar

import msgspec
from msgspec import Raw
from psycopg import errors

from refold.core import _operator
from refold.core._accept import Acceptor
from refold.core._clock import LogClock
from refold.core._definitions import Workflow
from refold.core._ends import Ends
from refold.core._errors import (
    DecodeFailed,
    WorkflowDeleted,
    WorkflowEnded,
    WorkflowIdReused,
    WorkflowNotFound,
    WrongCall,
)
from refold.core._ids import check_id, new_id
from refold.core._operator import NoSuchWorkflow
from refold.core._source import (
    DELETE_STREAM,
    HandedOver,
    Lane,
    Move,
    Rows,
    find_ended,
    outgrown,
    rows_of,
)
from refold.core._worker import Worker
from refold.eventlog._connect import AsyncConnection, Line
from refold.eventlog._errors import AppendRefused, PositionMoved
from refold.eventlog._events import (
    Event,
    MessageReceived,
    Recorded,
    WorkflowStarted,
    encode_event,
    from_micros,
)
from refold.eventlog._listen import Listener
from refold.eventlog._log import Append, Message, NewWorkflow, is_about_a_row, write_unfenced
from refold.eventlog._read import Head, ParkedWorkflow, Reader, SourceFact, SourcePosition

T = TypeVar("T")


class WorkflowInfo(msgspec.Struct, frozen=True):
    """What is known of a workflow without its history. Times are aware UTC datetimes; `due_at` is when it wakes."""

    id: str
    name: str
    status: str
    started_at: Any
    finished_at: Any = None
    source: str | None = None
    parent: str | None = None
    due_at: Any = None
    worker: str | None = None
    note: str = ""


class Page(msgspec.Struct, frozen=True):
    """Some workflows, and the cursor of the next ones (None: there are no more)."""

    items: list[WorkflowInfo]
    next_cursor: str | None = None


class Client:
    """Made and used on the engine's loop."""

    def __init__(self, url: str, worker: Worker | None) -> None:
        self._url = url
        self._worker = worker
        self.reader = worker.reader if worker is not None else Reader(url)
        self._line = Line(url)
        self._clock = LogClock()
        self._clock_known = False
        self._channel = f"refold_client-{secrets.token_hex(6)}"
        self._listener: Listener | None = None
        self._ends: Ends | None = None
        self._waiting: dict[str, tuple[Append, list[asyncio.Future[set[str]]]]] = {}
        self._writing: asyncio.Task[None] | None = None
        self._acceptor: Acceptor | None = None
        self._lane: Lane | None = None

    # Starting and sending.

    async def start(
        self, workflow: Workflow[..., Any], input: bytes, digest: str, workflow_id: str | None
    ) -> str:
        """Start a workflow, and return its ID once it is durable.

        Raises WorkflowIdReused when the ID belongs to another workflow or another input.
        """
        given = workflow_id is not None
        workflow_id = new_id() if workflow_id is None else workflow_id
        check_id(workflow_id)
        event = WorkflowStarted(name=workflow.name, input=Raw(input), digest=digest)
        body = encode_event(event)
        existed: bool | None
        if self._worker is not None:
            new = NewWorkflow(workflow_id, workflow.name, digest, self._worker.clock.now(), body)
            existed = await self._worker.start_workflow(workflow, new, event)
        else:
            new = NewWorkflow(workflow_id, workflow.name, digest, await self._now(), body)
            existing = await self._write("+" + workflow_id, Append("+" + workflow_id, starts=[new]))
            existed = workflow_id in existing
        if existed is not False and given:
            await self._check_same(workflow, workflow_id, input, digest)
        return workflow_id

    async def _check_same(
        self, workflow: Workflow[..., Any], workflow_id: str, input: bytes, digest: str
    ) -> None:
        """Make sure that the workflow that has this ID already is the one that was asked for."""
        head = (await self.reader.heads([workflow_id])).get(workflow_id)
        if head is None or (head.name == workflow.name and head.digest == digest):
            return
        asked = f"workflow {workflow.name!r} with input {_short(input)}"
        if head.name != workflow.name:
            raise WorkflowIdReused(workflow_id, f"workflow {head.name!r}", asked)
        first = await self.reader.first_event(workflow_id)
        if first is None:
            raise WorkflowIdReused(
                workflow_id, f"a deleted run of workflow {head.name!r} with another input", asked
            )
        # The digest was taken by the code of that day; an optional field that was added since is no difference.
        try:
            if workflow.canonical_args(first.input) == workflow.canonical_args(Raw(input)):
                return
        except DecodeFailed:
            pass
        raise WorkflowIdReused(
            workflow_id, f"workflow {head.name!r} with input {_short(bytes(first.input))}", asked
        )

    async def send(self, workflow_id: str, value: bytes, topic: str, message_id: str | None = None) -> None:
        """Send a message to a workflow, started or not yet; on return it is durable.

        Raises WorkflowEnded when the workflow can't receive any more.
        """
        check_id(workflow_id)
        head = (await self.reader.heads([workflow_id])).get(workflow_id)
        if head is not None and head.ended:
            raise WorkflowEnded(workflow_id, head.status, "nobody will receive a message to it")
        message_id = message_id or f"sent:{uuid.uuid4()}"
        received = MessageReceived(message_id=message_id, topic=topic, value=Raw(value))
        message = Message(workflow_id, message_id, "MessageReceived", encode_event(received))
        if self._worker is not None:
            await self._worker.send(message)
        else:
            key = f"@{workflow_id}/{message_id}"
            await self._write(key, Append(key, messages=[message]))

    # What a person decides.

    async def retry(self, workflow_id: str) -> list[str]:
        """Set a parked workflow going again; return the names of the steps that run again.

        Raises WorkflowNotParked, WorkflowNotFound.
        """
        return await self._decided(_operator.retry(self._line, workflow_id), workflow_id)

    async def skip(self, workflow_id: str, reason: str) -> None:
        """End a parked workflow as failed. Raises WorkflowNotParked, WorkflowNotFound."""
        await self._decided(_operator.skip(self._line, workflow_id, reason), workflow_id)

    async def cancel(self, workflow_id: str, reason: str) -> None:
        """Ask a workflow to cancel; on return that is durable. Raises WorkflowEnded, WorkflowNotFound."""
        await self._decided(_operator.cancel(self._line, workflow_id, reason), workflow_id)

    async def _decided(self, decision: Coroutine[Any, Any, T], workflow_id: str) -> T:
        try:
            return await decision
        except NoSuchWorkflow:
            await self.head(workflow_id)
            raise

    async def in_flight(self, prefix: str) -> dict[str, dict[str, int]]:
        """Count the open workflows of each source label that begins with `prefix`, by status."""
        return await self.reader.in_flight(prefix)

    async def _now(self) -> int:
        if not self._clock_known:
            await self._refresh_clock()
        return self._clock.now()

    async def log_now(self) -> int:
        """Return the log's clock: what Postgres says now, or a worker's estimate of it."""
        if self._worker is not None:
            return self._worker.clock.now()
        await self._refresh_clock()
        return self._clock.now()

    async def _refresh_clock(self) -> None:
        rows = await self.reader.rows("select refold.log_now()")
        self._clock.refresh(rows[0][0])
        self._clock_known = True

    async def _write(self, key: str, append: Append) -> set[str]:
        """Write with whatever else this process writes now: one transaction for all that wait."""
        future: asyncio.Future[set[str]] = asyncio.get_running_loop().create_future()
        if key in self._waiting:
            self._waiting[key][1].append(future)
        else:
            self._waiting[key] = (append, [future])
        if self._writing is None or self._writing.done():
            self._writing = asyncio.create_task(self._write_all())
        return await future

    async def _write_all(self) -> None:
        while self._waiting:
            batch, self._waiting = self._waiting, {}
            await self._write_or_tell(batch)

    async def _write_or_tell(self, batch: dict[str, tuple[Append, list[asyncio.Future[set[str]]]]]) -> None:
        try:
            await self._write_batch(batch)
        except BaseException as error:
            for _, futures in batch.values():
                for future in futures:
                    if not future.done():
                        future.set_exception(error)
            if not isinstance(error, Exception):
                raise

    async def _write_batch(self, batch: dict[str, tuple[Append, list[asyncio.Future[set[str]]]]]) -> None:
        async def once(connection: AsyncConnection) -> tuple[int, set[str]]:
            return await write_unfenced(connection, [append for append, _ in batch.values()])

        try:
            log_time, existing = await self._line.run(once)
        except Exception as error:
            if len(batch) == 1 or not is_about_a_row(error):
                raise
            # One of them is to blame: the others have nothing to do with it but their moment.
            keys = list(batch)
            for half in (keys[: len(keys) // 2], keys[len(keys) // 2 :]):
                await self._write_or_tell({key: batch[key] for key in half})
            return
        self._clock.refresh(log_time)
        for key, (_, futures) in batch.items():
            for number, future in enumerate(futures):
                if not future.done():
                    # The second of two starts of one ID in one batch met the first.
                    future.set_result(existing if number == 0 else {key[1:]})

    # For connectors.

    @property
    def acceptor(self) -> Acceptor:
        """What accepts messages."""
        if self._acceptor is None:
            self._acceptor = Acceptor(self._url, self._worker, self.reader, self._clock)
        return self._acceptor

    async def hand_over(self, moves: Sequence[Move]) -> HandedOver:
        """Start the workflows of `moves` and move the positions on, in one transaction. Raises PositionMoved."""
        worker = self._worker
        if worker is not None and worker.serves:
            if self._lane is None:
                self._lane = Lane("hand-over", lambda: worker, None)
            return await self._lane.hand_over_here(list(moves))
        rows = rows_of(moves, await self._now(), None, 0, await find_ended(self.reader, moves))

        async def once(connection: AsyncConnection) -> tuple[int, set[str]]:
            return await write_unfenced(connection, rows.appends)

        sources = [move.expected.source for move in moves]
        try:
            log_time, existing = await self._line.run(once)
        except errors.UniqueViolation as error:
            if error.diag.constraint_name != "one_event_per_seq":
                raise
            if not await self._are_ours(rows):
                raise PositionMoved(sources) from error
            log_time, existing = self._clock.now(), set()  # by our first try, whose answer got lost
        except Exception as error:
            if not is_about_a_row(error):
                raise
            raise AppendRefused(", ".join(sources), str(error)) from error
        self._clock.refresh(log_time)
        for move in moves:
            if (gone := outgrown(move.expected, rows.positions[move.expected.source])) is not None:
                await self.reader.rows(DELETE_STREAM, gone)
        return rows.done(existing, moves)

    async def _are_ours(self, rows: Rows) -> bool:
        """Whether the streams hold what these rows would write, stamped with the very same microsecond."""
        for append in rows.appends:
            event = append.events[0]
            there = {r.seq: r for r in await self.reader.history(append.stream)}.get(event.seq)
            if there is None or there.at != event.at or encode_event(there.event) != event.body:
                return False
        return True

    # Looking.

    async def head(self, workflow_id: str) -> Head:
        """Return the head of a workflow; raises WorkflowNotFound with the nearest IDs, WorkflowDeleted."""
        head = (await self.reader.heads([workflow_id])).get(workflow_id)
        if head is None:
            near = difflib.get_close_matches(workflow_id, await self.reader.recent_ids(), n=3, cutoff=0.4)
            raise WorkflowNotFound(workflow_id, tuple(near))
        return head

    async def info(self, workflow_id: str) -> WorkflowInfo:
        """Return what is known of a workflow."""
        return _info(await self.head(workflow_id))

    async def history(self, workflow_id: str) -> list[Recorded]:
        """Return the whole stream of a workflow; raises WorkflowNotFound."""
        history = await self.reader.history(workflow_id)
        if not history:
            await self.head(workflow_id)
        return history

    async def list(self, status: str | None, name: str | None, limit: int, cursor: str | None) -> Page:
        """Return a page of workflows, newest first."""
        after: tuple[int, str] | None = None
        if cursor is not None:
            at, _, last = cursor.partition("~")
            if not (at.isascii() and at.isdigit()):
                raise WrongCall(f"{cursor!r} is no cursor", "Pass the next_cursor of a page, as it is.")
            after = (int(at), last)
        heads = await self.reader.list_heads(status=status, name=name, limit=limit + 1, after=after)
        more = len(heads) > limit
        heads = heads[:limit]
        cursor = f"{heads[-1].created_at}~{heads[-1].workflow_id}" if more else None
        return Page([_info(head) for head in heads], cursor)

    async def delete(self, workflow_id: str) -> None:
        """Delete the history of a workflow that has ended; its ID stays taken.

        Raises WorkflowNotFound, WorkflowEnded when it has not ended.
        """
        if await self.reader.delete(workflow_id):
            if self._worker is not None:
                self._worker.ends.forget(workflow_id)
            return
        head = await self.head(workflow_id)
        if head.status == "deleted":
            raise WorkflowDeleted(workflow_id)
        raise WorkflowEnded(workflow_id, head.status, "only a workflow that has ended can be deleted")

    async def parked(self, prefix: str, limit: int, after: ParkedWorkflow | None) -> Sequence[ParkedWorkflow]:
        """Return the parked workflows of orders whose key begins with `prefix`, after one."""
        return await self.reader.parked(prefix, limit, after)

    async def runnable_ids(self, label: str, limit: int) -> Sequence[str]:
        """Return the IDs of the unfinished workflows of `label` that do not wait, up to `limit`."""
        return await self.reader.runnable_ids(label, limit)

    async def positions(self, prefix: str) -> Sequence[SourcePosition]:
        """Return how far sources were handed over."""
        return await self.reader.all_positions(prefix)

    async def source_facts(self, prefix: str, limit: int) -> Sequence[SourceFact]:
        """Return what the streams of sources say beside their positions, newest first."""
        return await self.reader.source_facts(prefix, limit)

    # Waiting.

    async def wait_end(self, workflow_id: str, timeout: float | None) -> Event | None:
        """Return the last event of a workflow once it has ended; None after `timeout` seconds.

        Raises WorkflowNotFound.
        """
        ends, here = self._ends_now(workflow_id)
        if not here:
            await self.head(workflow_id)
            if self._listener is not None and timeout != 0:
                with contextlib.suppress(TimeoutError):  # behind a pooler nothing is heard: a poll does it
                    await asyncio.wait_for(self._listener.listening.wait(), 0.5)
        try:
            return await asyncio.wait_for(ends.wait(workflow_id, here=here), timeout)
        except TimeoutError:
            return None

    def _ends_now(self, workflow_id: str) -> tuple[Ends, bool]:
        if self._worker is not None:
            ends = self._worker.ends
            return ends, ends.is_recent(workflow_id) or self._worker.holds(workflow_id)
        if self._ends is None:
            listener = self._listener = Listener(self._url, [self._channel], self._heard, self._look_again)
            self._ends = Ends(self.reader, self._channel, listener.listening.is_set)
        return self._ends, False

    def _heard(self, channel: str, payload: str) -> None:
        if self._ends is not None:
            self._ends.told(payload)

    def _look_again(self) -> None:
        if self._ends is not None:
            self._ends.look_again()

    async def close(self) -> None:
        """Close all connections; who still waits is let go."""
        if self._ends is not None:
            self._ends.close()
        if self._listener is not None:
            await self._listener.close()
        if self._acceptor is not None:
            await self._acceptor.close()
        if self._lane is not None:
            await self._lane.close_here()
        await self._line.drop()
        if self._worker is None:
            await self.reader.close()


def _info(head: Head) -> WorkflowInfo:
    note = ""
    if head.status == "stuck":
        note = "history and code differ; it goes on when other code arrives (docs/changing-workflows.md)"
    elif head.status == "parked":
        note = f"waits for a person: refold retry {head.workflow_id}, or: refold skip {head.workflow_id}"
    return WorkflowInfo(
        id=head.workflow_id,
        name=head.name,
        status=head.status,
        started_at=from_micros(head.created_at),
        finished_at=None if head.finished_at is None else from_micros(head.finished_at),
        source=head.source,
        parent=head.parent,
        due_at=None if head.due_at is None or head.finished_at is not None else from_micros(head.due_at),
        worker=head.owner,
        note=note,
    )


def _short(data: bytes) -> str:
    text = data.decode("utf-8", "replace")
    return text if len(text) <= 200 else text[:197] + "..."
