"""A worker: what runs an app's workflows in this process, from its registration to its last release.

It is known to others under a name (`id`). Declared dead by them, because it was frozen or cut off for too long, it
drops all that it holds and starts again under a new name; whoever talks to the worker does not notice more than a
pause. `_Term` is the time under one name.
"""

import asyncio
import concurrent.futures
import contextlib
import logging
import os
import secrets
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any, Final, LiteralString, NamedTuple

import msgspec
from msgspec import Raw

from refold.core._clock import LogClock
from refold.core._definitions import Workflow
from refold.core._ends import Ends
from refold.core._engine import Engine
from refold.core._errors import DecodeFailed, WorkflowDeleted
from refold.core._executor import Executor, Start, child_answer, reused
from refold.core._failures import record_error
from refold.core._resident import StepCall
from refold.core._source import Start as SourceStart
from refold.core._steps import StepRunner
from refold.core._transactional import TransactionalSteps
from refold.eventlog._arrays import Texts
from refold.eventlog._connect import connect_sync
from refold.eventlog._errors import Fenced
from refold.eventlog._events import (
    ChildCompleted,
    ChildFailed,
    Event,
    Recorded,
    WatcherAdded,
    WorkflowCancelled,
    WorkflowCompleted,
    WorkflowFailed,
    WorkflowStarted,
    decode_event,
    encode_event,
)
from refold.eventlog._listen import Listener
from refold.eventlog._log import BEHIND, MAILED, UNKNOWN, Lane, Message, NewWorkflow
from refold.eventlog._read import Head, Reader
from refold.eventlog._workers import Heartbeat, Tick

log = logging.getLogger("refold.worker")

CAPACITY: Final = 1_000  # workflows in hand at once, those that wait not counted
CLAIM_AT_MOST: Final = 200
GATHER_DUE: Final = 100_000  # microseconds: what comes due within them is claimed at once
SHUTDOWN_GRACE: Final = 20.0  # seconds that running steps get to end
BLOCKED_WARN: Final = 1.0  # seconds that workflow code may run without waiting, before it is named
BLOCKED_GIVE_UP: Final = 10.0  # and before the worker gives up what it holds
EXCLUSIVE_AFTER: Final = 5.0  # seconds that a suspect waits before this worker empties its hands for it
WATCH_CHILD_FOR: Final = (
    10.0  # seconds, after a parent asked to be told of the end of a child that is not its own
)
SUSPECT_DEATHS: Final = 3  # deaths while alone that park a workflow

_CLAIM: Final[LiteralString] = (
    "select workflow_id, name, suspicion, alone_deaths, unrun from refold.claim(%s, %s, %s, %s, %s, %s, %s, %s)"
)
_GIVE_UP: Final[LiteralString] = "select refold.give_up(%s, %s)"
_LEAVE: Final[LiteralString] = "select refold.leave(%s)"

Observer = Callable[[str, Recorded], None]


def new_worker_id() -> str:
    """Return a name that no worker had before; short enough for a channel's name (63 bytes)."""
    return f"{socket.gethostname()[:24]}-{os.getpid()}-{secrets.token_hex(4)}"


class Claimed(NamedTuple):
    """What the head of a claimed workflow says of the workers before: deaths on it, alone, and whether none had it."""

    deaths: int = 0
    alone_deaths: int = 0
    unrun: bool = False


class Worker:
    """Runs workflows in this process. Made and used on the engine's thread, but where it says otherwise."""

    def __init__(
        self,
        url: str,
        engine: Engine,
        workflows: Mapping[str, Workflow[..., Any]],
        *,
        threads: int,
        steps_loop: Callable[[], asyncio.AbstractEventLoop],
        observers: Sequence[Observer] = (),
        capacity: int = CAPACITY,
        shutdown_grace: float = SHUTDOWN_GRACE,
        always_replay: bool = False,
    ) -> None:
        self.always_replay = always_replay
        self.url = url
        self.engine = engine
        self.workflows = workflows
        self.clock = LogClock()
        self.reader = Reader(url)
        self.observers = observers
        self.threads, self.capacity, self.shutdown_grace = threads, capacity, shutdown_grace
        self.steps_loop = steps_loop
        self.stopping = False
        self.ends: Ends
        self._term: _Term | None = None
        self._up = asyncio.Event()
        self._tasks: set[asyncio.Task[Any]] = set()

    # What the app and connectors ask.

    @property
    def id(self) -> str:
        assert self._term is not None
        return self._term.id

    @property
    def room(self) -> int:
        """How many more workflows it takes in now."""
        return self._term.executor.room if self._term is not None else 0

    @property
    def serves(self) -> bool:
        """Whether it is known under a name now, and not about to leave."""
        return self._term is not None and not self.stopping

    def wake_at(self, when: int) -> None:
        """Look for work at `when` (log time): something that this process has started is due then."""
        if self._term is not None:
            self._term.wake_at(when)

    def find_lost(self) -> None:
        """Load what the heads say is ours and memory does not have."""
        if self._term is not None:
            self._term.find_lost()

    async def start(self) -> None:
        """Register and begin to work.

        Raises DatabaseUnreachable.
        """
        await self._begin_term()

    async def start_workflow(
        self, workflow: Workflow[..., Any], new: NewWorkflow, event: WorkflowStarted
    ) -> bool | None:
        """Start a workflow; on return that is durable. True: its ID existed. None: it may have (ask its head)."""
        while True:
            term = await self._current()
            done: asyncio.Future[bool | None] = asyncio.get_running_loop().create_future()

            def tell(
                existed: bool | None, error: Exception | None, done: asyncio.Future[bool | None] = done
            ) -> None:
                if done.done():
                    return
                if error is not None:
                    done.set_exception(error)
                else:
                    done.set_result(existed)

            owner = term.id if term.executor.room > 0 else None
            term.executor.start(Start(workflow, _with_owner(new, owner, self.clock.now()), event, tell))
            try:
                return await done
            except Fenced:
                await self.renewed()

    async def send(self, message: Message) -> None:
        """Put a message into an inbox; on return that is durable."""
        while True:
            term = await self._current()
            done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

            def tell(error: Exception | None, done: asyncio.Future[None] = done) -> None:
                if done.done():
                    return
                if error is not None:
                    done.set_exception(error)
                else:
                    done.set_result(None)

            term.executor.send(message, tell)
            try:
                return await done
            except Fenced:
                await self.renewed()

    def holds(self, workflow_id: str) -> bool:
        """Whether this worker has the workflow in memory."""
        return self._term is not None and workflow_id in self._term.executor.residents

    def handed_over(
        self,
        log_time: int,
        began: Sequence[tuple[SourceStart, NewWorkflow, WorkflowStarted]],
        existing: set[str],
    ) -> None:
        """A lane's flush made these starts durable, owned by this worker."""
        self.clock.refresh(log_time)
        term = self._term
        if term is None:
            return
        if UNKNOWN in existing:
            term.find_lost()
            return
        mine = [
            (s, new, event)
            for s, new, event in began
            if new.workflow_id not in existing
            and BEHIND + new.workflow_id not in existing
            and new.owner == term.id
        ]
        self.engine.loop.call_soon(self._take_up, term, mine, existing)

    def _take_up(
        self,
        term: "_Term",
        mine: Sequence[tuple[SourceStart, NewWorkflow, WorkflowStarted]],
        existing: set[str],
    ) -> None:
        for start, new, event in mine:
            if MAILED + new.workflow_id in existing:
                term.committed(new.workflow_id, [Recorded(0, new.at, event)])
                term.reload(new.workflow_id)
            else:
                term.executor.begin(start.workflow, new, event)

    async def renewed(self) -> None:
        """Return once a worker that was fenced works again, under its new name."""
        await asyncio.sleep(0.01 if self.stopping else 0)
        await self._current()

    async def let_go(self) -> None:
        """Take in nothing more, and release what waits, at once: another worker goes on with it."""
        if self._term is not None:
            self._term.executor.let_go()

    async def stop(self) -> None:
        """Release everything and leave: what waits at once, what is in a step when that ends, or after the grace."""
        self.stopping = True
        # Until it is drained the term serves: steps that end meanwhile may start and send.
        if (term := self._term) is not None:
            await term.stop(self.shutdown_grace)
        self._term = None
        self.ends.close()
        for task in list(self._tasks):
            task.cancel()
        await self.reader.close()

    # Terms.

    async def _current(self) -> "_Term":
        while self._term is None:
            if self.stopping:
                raise concurrent.futures.CancelledError("the worker is stopping")
            await self._up.wait()
        return self._term

    async def _begin_term(self) -> None:
        term = _Term(self)
        self.ends = getattr(self, "ends", None) or Ends(self.reader, term.channel, self._hears)
        self.ends.channel = term.channel
        await term.start()
        self._term = term
        self._up.set()

    def _hears(self) -> bool:
        return self._term is not None and self._term.listener.listening.is_set()

    def over(self, term: "_Term", why: str) -> None:
        """A term ended against our will: begin the next."""
        if self._term is not term:
            return
        log.warning("%s", why)
        self._term = None
        self._up.clear()
        self.spawn(self._next_term(term))

    async def _next_term(self, old: "_Term") -> None:
        await old.abandon()
        delay = 0.1
        while not self.stopping:
            try:
                await self._begin_term()
                return
            except Exception as error:
                log.warning("can't register a new worker yet: %s", error)
                await asyncio.sleep(delay)
                delay = min(delay * 2, 2.0)

    def spawn(self, coroutine: Any) -> None:
        """Run a coroutine in the background, kept alive until it ends."""
        task = asyncio.get_running_loop().create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._spawned_done)

    def spawn_until_done(self, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Run `work` in the background, again after an error: a workflow would be orphaned without it."""

        async def persist() -> None:
            while not self.stopping:
                try:
                    await work()
                    break
                except Exception:
                    log.exception("a background task of the worker failed, and is tried again")
                    await asyncio.sleep(1)

        self.spawn(persist())

    def _spawned_done(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("a background task of the worker failed", exc_info=error)


class _Term:
    """A worker's time under one name; what its executor needs of the outside."""

    def __init__(self, worker: Worker) -> None:
        self.worker = worker
        self.id = new_worker_id()
        self.channel = f"refold_{self.id}"
        url = worker.url
        self._lane = Lane(url, self.id, "executor")
        self._claims = Lane(url, self.id, "claims")
        self._loop = asyncio.get_running_loop()
        self._work = asyncio.Event()
        self._mail = asyncio.Event()
        self._starved = False
        self._retry_claims: asyncio.TimerHandle | None = None
        self._suspects_since: float | None = None
        self._exclusive = False
        self._due_alarm: asyncio.TimerHandle | None = None
        self._rang = False
        self._lost = False
        self._named_blocked: tuple[str | None, float] | None = None
        self.heartbeat = Heartbeat(
            url,
            self.id,
            can_run=self._can_run,
            on_tick=lambda tick: worker.engine.post(self._ticked, tick),
            on_fenced=lambda: worker.engine.post(self.fenced),
            alive=self._is_not_blocked,
        )
        self.executor: Executor
        self.listener: Listener
        self._loops: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        worker = self.worker
        await asyncio.to_thread(self.heartbeat.register)
        await self._lane.register()
        await self._claims.register()
        self.executor = Executor(
            self.id,
            self._lane,
            worker.clock,
            self,
            capacity=worker.capacity,
            always_replay=worker.always_replay,
        )
        flushed = await self._lane.flush([])
        worker.clock.refresh(flushed.log_time)
        self.transactional = TransactionalSteps(self.id, worker.url, worker.engine, self.executor, self)
        self.runner = StepRunner(
            self.executor, self._loop, worker.steps_loop, worker.engine.mailbox_of,
            self.transactional.run, self.transactional.arun, threads=worker.threads,
        )  # fmt: skip
        self.listener = Listener(worker.url, ["refold_work", self.channel], self._heard, self._reconnected)
        self._loops = [
            asyncio.create_task(self._claim_loop(), name="refold-claim"),
            asyncio.create_task(self._mail_loop(), name="refold-mail"),
        ]
        self.heartbeat.start()
        self.look_for_work()
        worker.spawn(self._name_unserved())

    async def stop(self, grace: float) -> None:
        released = False
        try:
            for task in self._loops:
                task.cancel()
            await asyncio.gather(*self._loops, return_exceptions=True)
            # A claim that was on the wire may have been granted: what it gave us goes with the rest.
            self.executor.let_go()
            with contextlib.suppress(Exception):
                await asyncio.wait_for(self._find_lost(), min(grace, 2.0))
            released = await self.executor.drain(grace)
        finally:
            await self._close()
        if released:
            await asyncio.to_thread(self._say, _LEAVE, self.id)

    async def abandon(self) -> None:
        for task in self._loops:
            task.cancel()
        await self._close()

    async def _close(self) -> None:
        self.executor.abandon()
        self.runner.close()
        self.transactional.close()
        await self.listener.close()
        await asyncio.to_thread(self.heartbeat.stop)
        await self._lane.close()
        await self._claims.close()

    def _say(self, statement: LiteralString, *arguments: Any) -> None:
        with contextlib.suppress(Exception), connect_sync(self.worker.url) as connection:
            connection.execute(statement, arguments)

    # Hints and ticks.

    def _can_run(self) -> tuple[list[str], list[str]]:
        workflows = list(self.worker.workflows.values())
        return [workflow.name for workflow in workflows], [workflow.fingerprint for workflow in workflows]

    def _heard(self, channel: str, payload: str) -> None:
        if channel == "refold_work" and payload:
            self.wake_at(int(payload))  # something comes due then, perhaps earlier than all that was known
        elif channel == "refold_work":
            self._work.set()
        elif payload:
            self.worker.ends.told(payload)
        else:
            self._mail.set()

    def _reconnected(self) -> None:
        self._work.set()
        self._mail.set()

    def _ticked(self, tick: Tick) -> None:
        self.worker.clock.refresh(tick.log_time)
        self.executor.time_moved()
        if tick.work:
            self._work.set()
        if tick.mail:
            self._mail.set()
        if tick.outage or self._lost:
            self.find_lost()
        if tick.suspects:
            self._work.set()
            if self._suspects_since is None:
                self._suspects_since = time.monotonic()
        elif not self._exclusive and self._suspects_since is not None:
            self._be_normal()  # another worker took it
        if tick.next_due is not None:
            self.wake_at(tick.next_due)

    def wake_at(self, when: int) -> None:
        """Look for work at `when` (log time): a waiting workflow in nobody's memory is due then."""
        delay = max(0.0, (when - self.worker.clock.now()) / 1e6)
        if delay > 10 or (
            self._due_alarm is not None and self._due_alarm.when() <= self._loop.time() + delay
        ):
            return
        if self._due_alarm is not None:
            self._due_alarm.cancel()

        def ring() -> None:
            self._due_alarm = None
            self._rang = True
            self._work.set()

        self._due_alarm = self._loop.call_later(delay + 0.001, ring)

    def _is_not_blocked(self) -> bool:
        """Called on the heartbeat's thread before each beat: is the engine's thread stuck in workflow code?"""
        executor = self.executor
        since = executor.driving_since
        if since is None:
            return True
        blocked = time.monotonic() - since
        culprit = executor.driving
        if blocked > BLOCKED_WARN and self._named_blocked != (culprit, since):
            self._named_blocked = (culprit, since)
            frame = sys._current_frames().get(self.worker.engine.thread_id or 0)
            stack = "".join(traceback.format_stack(frame)[-6:]) if frame is not None else "(no stack)"
            log.warning(
                "workflow %s has kept its worker busy for %.1f s without waiting; no other workflow moves meanwhile. "
                "Put what takes long or waits into a step. It is here:\n%s",
                culprit, blocked, stack, extra={"stream": culprit},
            )  # fmt: skip
        if blocked > BLOCKED_GIVE_UP:
            self._say(_GIVE_UP, self.id, culprit)
            return True  # the beat now finds that this name is over
        return True

    # Claiming.

    def look_for_work(self) -> None:
        self._work.set()

    async def _claim_loop(self) -> None:
        while True:
            await self._work.wait()
            self._work.clear()
            try:
                await self._claim_what_fits()
                if self._rang:
                    await self._see_next_due()
            except Fenced:
                self._loop.call_soon(self.fenced)
                return
            except Exception as error:
                log.exception("claiming failed")
                self._loop.call_soon(self.broken, error)
                return

    async def _claim_what_fits(self) -> None:
        if self._suspects_since is not None and await self._claim_suspect():
            return
        if self._exclusive:
            return
        while (room := min(self.executor.room, CLAIM_AT_MOST)) > 0:
            claimed = await self._claim(room, alone=False)
            if claimed < room:
                self._starved = False
                return
        self._starved = True

    async def _see_next_due(self) -> None:
        """After a claim for what came due: when is the next? The heartbeat would say so too, up to 2 s late."""
        self._rang = False
        names, _ = self._can_run()
        if names and not self._starved and (due := await self.worker.reader.next_due(names)) is not None:
            # Not a claim for each: those of the next moments gather.
            self.wake_at(max(due, self.worker.clock.now() + GATHER_DUE))

    async def _claim_suspect(self) -> bool:
        """Take one workflow that may kill its worker, with nothing else in hand. True while that goes on."""
        executor = self.executor
        if executor.empty_handed and not executor.loading:
            if await self._claim(1, alone=True):
                self._exclusive = True
                executor.accepting = False
                return True
            self._be_normal()
            return False
        assert self._suspects_since is not None
        if time.monotonic() - self._suspects_since > EXCLUSIVE_AFTER:
            executor.accepting = False  # empties our hands: what waits is let go, what runs ends
            return True
        return False

    def _be_normal(self) -> None:
        self._exclusive = False
        self._suspects_since = None
        self.executor.accepting = self.executor.accepting_steps  # a worker that leaves takes in nothing again
        self._work.set()

    async def _claim(self, room: int, *, alone: bool) -> int:
        names, fingerprints = self._can_run()
        if not names:
            return 0
        self.executor.claiming = (
            room  # kept for what it gives us: a start meanwhile is not to take the same place
        )
        try:
            rows = await self._claims.run(_CLAIM, Texts(names), Texts(fingerprints), room, alone)
        finally:
            self.executor.claiming = 0
        if rows is None:
            await self._find_lost()
            return 0
        await self._load(
            [(row[0], row[1]) for row in rows], {row[0]: Claimed(*row[2:]) for row in rows}, alone=alone
        )
        return len(rows)

    async def _load(
        self, claimed: Sequence[tuple[str, str]], states: Mapping[str, Claimed], *, alone: bool
    ) -> None:
        if not claimed:
            return
        executor, reader = self.executor, self.worker.reader
        ids = [workflow_id for workflow_id, _ in claimed]
        for workflow_id in ids:
            executor.loading.setdefault(workflow_id, [])
        try:
            unreadable: dict[str, str] = {}
            histories = await reader.histories(ids, unreadable)
            mail: dict[str, list[tuple[str, Event]]] = {}
            for to, message_id, event in await reader.mail(ids, unreadable):
                mail.setdefault(to, []).append((message_id, event))
        except BaseException:
            for workflow_id in ids:
                executor.loading.pop(workflow_id, None)
            raise
        for workflow_id, name in claimed:
            if workflow_id in unreadable:
                executor.loading.pop(workflow_id, None)
                executor.leave_stuck(workflow_id, self.worker.workflows[name], unreadable[workflow_id])
                continue
            loaded = self._loop.create_future()
            # A plain callback each: one long replay does not hold up the flush of another.
            self._loop.call_soon(
                self._replay, workflow_id, name, histories.get(workflow_id), mail.get(workflow_id, []),
                states.get(workflow_id, Claimed()), alone, loaded,
            )  # fmt: skip
            await loaded

    def _replay(
        self, workflow_id: str, name: str, history: list[Recorded] | None, mail: list[tuple[str, Event]],
        state: Claimed, alone: bool, loaded: asyncio.Future[None],
    ) -> None:  # fmt: skip
        loaded.set_result(None)
        mail += self.executor.loading.pop(workflow_id, ())
        if history and isinstance(history[0].event, WorkflowStarted):
            self.executor.load(
                self.worker.workflows[name], workflow_id, history, mail,
                deaths=state.deaths, alone=alone, park=alone and state.alone_deaths >= SUSPECT_DEATHS,
                unrun=state.unrun,
            )  # fmt: skip

    async def _name_unserved(self) -> None:
        """Say once which workflows wait for a program that this one is not."""
        for name, count in (await self.worker.reader.unowned()).items():
            if name not in self.worker.workflows:
                log.warning(
                    "%s due workflow(s) are called %r, which this program does not have; a worker of the program that "
                    "declares it will take them (refold list --name %s)",
                    count, name, name,
                )  # fmt: skip

    def reload(self, workflow_id: str) -> None:
        self.worker.spawn_until_done(lambda: self._reload(workflow_id))

    async def _reload(self, workflow_id: str) -> None:
        head = (await self.worker.reader.heads([workflow_id])).get(workflow_id)
        if (
            head is not None
            and head.owner == self.id
            and not head.ended
            and head.name in self.worker.workflows
        ):
            await self._load([(workflow_id, head.name)], {}, alone=False)

    def take_next(self, taken: Sequence[tuple[str, str]]) -> None:
        self.worker.spawn_until_done(lambda: self._load(taken, {}, alone=False))

    def find_lost(self) -> None:
        self._lost = False
        self.worker.spawn_until_done(self._find_lost)

    async def _find_lost(self) -> None:
        """Load what the heads say is ours and memory does not have: an answer of Postgres got lost."""
        executor = self.executor
        before = set(executor.residents) | set(executor.loading)
        lost = [
            (workflow_id, name)
            for workflow_id, name in await self.worker.reader.owned(self.id)
            if workflow_id not in before
            and workflow_id not in executor.residents
            and workflow_id not in executor.loading
            and name in self.worker.workflows
        ]
        await self._load(lost, {}, alone=False)

    async def _mail_loop(self) -> None:
        while True:
            await self._mail.wait()
            self._mail.clear()
            unreadable: dict[str, str] = {}
            try:
                found = await self.worker.reader.own_mail(self.id, unreadable)
            except Exception as error:
                log.warning("mail could not be read, and is read again: %s", error)
                await asyncio.sleep(1)
                self._mail.set()
                continue
            for to, message_id, event in found:
                self._loop.call_soon(self.executor.mail, to, message_id, event)
            for to, reason in unreadable.items():
                log.error("workflow %s has mail that this release can't read: %s", to, reason)

    # What the executor asks.

    def run_steps(self, calls: Sequence[StepCall]) -> None:
        self.runner.run(calls)

    def drop_step(self, call: StepCall) -> None:
        self.runner.drop(call)

    def adopt_child(self, parent: str, no: int, child: str, workflow: str, input: bytes) -> None:
        self.worker.spawn_until_done(lambda: self._adopt_child(parent, no, child, workflow, input))

    async def _adopt_child(self, parent: str, no: int, child: str, workflow: str, input: bytes) -> None:
        """A child's ID existed: it is our own from before, or somebody's with the same input, or another's."""
        head = (await self.worker.reader.heads([child])).get(child)
        if head is None:
            self._start_missing_child(parent, no, child, workflow, input)
            return
        ours = head.parent == parent and head.parent_no == no
        if not ours and (found := await self._other_than(head, workflow, input)) is not None:
            error = reused(child, found, f"workflow {workflow!r}")
            self._loop.call_soon(
                self.executor.answer_child, parent, ChildFailed(no=no, child=child, error=error)
            )
            return
        if head.ended:
            end = (await self.worker.reader.ends([child])).get(child)
            if end is not None:
                self._loop.call_soon(self.executor.answer_child, parent, _child_event(parent, no, child, end))
            return
        if ours:
            return
        message_id = f"watch:{parent}/{no}"
        watcher = WatcherAdded(parent=parent, parent_no=no, message_id=message_id)
        await self.worker.send(Message(child, message_id, "WatcherAdded", encode_event(watcher)))
        # The child may end before its worker has read that. Then the message goes with the rest of its inbox, and
        # we are the ones who have to tell; by the inbox too, since the parent may have left our memory meanwhile.
        with contextlib.suppress(TimeoutError):
            end = await asyncio.wait_for(
                self.worker.ends.wait(child, here=self.worker.holds(child)), WATCH_CHILD_FOR
            )
            event = _child_event(parent, no, child, end)
            answer = Message(parent, event.message_id, type(event).__name__, encode_event(event))
            await self.worker.send(answer)

    async def _other_than(self, head: Head, workflow: str, input: bytes) -> str | None:
        """Say what `head` is if it is not the workflow with this input; None: it is."""
        if head.name != workflow:
            return f"workflow {head.name!r}"
        code = self.worker.workflows.get(workflow)
        first = await self.worker.reader.first_event(head.workflow_id)
        if code is None or head.digest == code.digest(input):
            return None
        # As for a start by hand: an optional field that was added since is no difference.
        with contextlib.suppress(DecodeFailed):
            if first is not None and code.canonical_args(first.input) == code.canonical_args(Raw(input)):
                return None
        return f"workflow {head.name!r} with another input"

    def _start_missing_child(self, parent: str, no: int, child: str, workflow: str, input: bytes) -> None:
        """The parent's event is in the log, but whoever was about to start a workflow of that ID did not."""
        code = self.worker.workflows.get(workflow)
        if code is None:
            return
        digest = code.digest(input)
        started = WorkflowStarted(name=workflow, input=Raw(input), digest=digest, parent=parent, parent_no=no)
        new = NewWorkflow(
            child,
            workflow,
            digest,
            self.worker.clock.now(),
            encode_event(started),
            parent=parent,
            parent_no=no,
        )

        def tell(existed: bool | None, error: Exception | None) -> None:
            if existed is not False and error is None:
                self.adopt_child(parent, no, child, workflow, input)

        self._loop.call_soon(self.executor.start, Start(code, new, started, tell))

    def committed(self, workflow_id: str, news: Sequence[Recorded]) -> None:
        for observer in self.worker.observers:
            for recorded in news:
                try:
                    observer(workflow_id, recorded)
                except Exception:
                    log.exception("an observer failed")

    def ended(self, workflow_id: str, event: Event) -> None:
        self.worker.ends.ended(workflow_id, event)
        self._room_freed()

    def left(self, workflow_id: str, due: int | None) -> None:
        self.worker.ends.left(workflow_id)
        if due is not None:
            self.wake_at(due)
        self._room_freed()

    def _room_freed(self) -> None:
        executor = self.executor
        if self._exclusive:
            if executor.empty_handed:
                self._be_normal()
            return
        if self._suspects_since is not None and executor.empty_handed:
            self._work.set()
        if not self._starved:
            return
        if executor.room >= self.worker.capacity // 8:
            self._work.set()
        elif self._retry_claims is None:
            # Not a claim for each place that gets free: they gather for a moment.
            def again() -> None:
                self._retry_claims = None
                self._work.set()

            self._retry_claims = self._loop.call_later(0.02, again)

    def fenced(self) -> None:
        self.worker.over(self, str(Fenced(self.id)))

    def broken(self, error: Exception) -> None:
        log.error("worker %s can't write: %s", self.id, error, exc_info=error)
        threading.Thread(target=self._say, args=(_GIVE_UP, self.id, None), daemon=True).start()
        self.worker.over(self, f"worker {self.id} gives its workflows back and starts again")


def _child_event(parent: str, no: int, child: str, end: Event) -> ChildCompleted | ChildFailed:
    """Return what a parent is told of a child that ended with `end`."""
    if not isinstance(end, WorkflowCompleted | WorkflowFailed | WorkflowCancelled):  # its history was deleted
        end = WorkflowFailed(error=record_error(WorkflowDeleted(child)))
    event = decode_event(child_answer(parent, no, child, end).body)
    assert isinstance(event, ChildCompleted | ChildFailed)
    return event


def _with_owner(new: NewWorkflow, owner: str | None, at: int) -> NewWorkflow:
    return msgspec.structs.replace(new, owner=owner, at=at)
