"""The deterministic driver: events in, workflow code advanced, commands out. Pure: no I/O, clock or thread.

`Instance` is one workflow's running code. It keeps the books: which commands the code asked for, which of them
the log has answered, which messages wait to be received. How the code is advanced is its body's business: a
tiny event loop for `async def` (`_loop`), greenlets for `def` (`_greenlets`). Events are delivered one at a
time in log order, and the code runs until it waits between two of them; so the same history always leads to
the same calls in the same order, in any process and in any year.
"""

import asyncio
import contextlib
import hashlib
import logging
import random
import uuid
from collections import deque
from collections.abc import Callable, Coroutine
from datetime import timedelta
from typing import Any, Final, Generic, Protocol, TypeVar, cast

import msgspec
from msgspec import Raw

from refold.core._codec import show_difference
from refold.core._commands import (
    Cancel,
    CancelChild,
    CancelCommand,
    Command,
    Complete,
    End,
    Fail,
    RunStep,
    SendMessage,
    StartChild,
    StartTimer,
)
from refold.core._definitions import Handle, Later, Step, Workflow
from refold.core._errors import (
    Cancelled,
    DecodeFailed,
    Evicted,
    HistoryMismatch,
    TimedOut,
    WrongCall,
    show_span,
)
from refold.core._failures import ErrorClassNotFound, rebuild_error_exactly, record_error
from refold.core._greenlets import GreenletBody
from refold.core._home import Home, find_instance
from refold.core._ids import check_id
from refold.core._loop import LoopBody
from refold.eventlog import RefoldError
from refold.eventlog._events import (
    CancelRequested,
    ChildCompleted,
    ChildFailed,
    ChildStarted,
    Event,
    MessageReceived,
    MessageSent,
    Parked,
    RecordedError,
    Retried,
    StepCompleted,
    StepFailed,
    TimerFired,
    WatcherAdded,
    WorkflowCancelled,
    WorkflowCompleted,
    WorkflowFailed,
    WorkflowStarted,
)

R = TypeVar("R")

_log: Final = logging.getLogger("refold.workflow")


class Waiter(Protocol):
    """What the code waits on until a command is answered: a future, an answer, a timer of the loop."""

    def done(self) -> bool: ...
    def set_result(self, value: Any, /) -> object: ...
    def set_exception(self, error: BaseException, /) -> object: ...


class _Asked(msgspec.Struct):
    """A command that the log has not answered. `waiter` is None once the code no longer wants the answer."""

    command: Command
    waiter: Waiter | None


class Instance:
    """One workflow's running code. It lives and dies on one thread.

    `replaying` belongs to the executor; while it is True, `refold.logger` is silent. `finished` is True once
    the code has ended, or the history says so. `now` is the time of the last event delivered, `args` what the code
    was called with.
    """

    __slots__ = (
        "__weakref__",
        "_asked",
        "_body",
        "_buffers",
        "_cancel_reason",
        "_cancelled_taken",
        "_end",
        "_failed",
        "_next_no",
        "_parked",
        "_random",
        "_receivers",
        "_refused_input",
        "_seq",
        "_untaken",
        "_uuids",
        "args",
        "finished",
        "home",
        "is_async",
        "now",
        "replaying",
        "workflow",
        "workflow_id",
    )

    def __init__(self, workflow: Workflow[..., Any], workflow_id: str) -> None:
        self.workflow = workflow
        self.workflow_id = workflow_id
        self.is_async = workflow.is_async
        self.home = Home(workflow_id)
        self.replaying = False
        self.finished = False
        self.now = 0
        self.args: tuple[Any, ...] = ()
        self._seq = -1
        self._next_no = 0
        self._asked: dict[int, _Asked] = {}
        self._untaken: dict[int, Command] = {}
        self._cancelled_taken: list[CancelCommand | CancelChild] = []
        self._cancel_reason: str | None = None  # once somebody has asked for it
        self._parked = False
        # (seq, the number of the next command then) of failures whose telling has led to nothing that is recorded.
        self._failed: list[tuple[int, int]] = []
        self._end: End | None = None
        self._refused_input = ""
        self._buffers: dict[str, deque[Raw]] | None = None
        self._receivers: dict[str, deque[Waiter]] | None = None
        self._random: random.Random | None = None
        self._uuids = 0
        self._body: LoopBody | GreenletBody | None = None

    # What the executor calls.

    def deliver(self, at: int, event: Event) -> None:
        """Take in the next event of the stream, and run the code until it waits for something else.

        Raises HistoryMismatch when the event does not fit what the code asked for; the instance is of no use
        then, and is to be evicted.
        """
        self._seq += 1
        if at > self.now:
            self.now = at
        if self._failed and (no := getattr(event, "no", None)) is not None:
            self._failed = [failed for failed in self._failed if no < failed[1]]
        _TAKE_IN[type(event)](self, event)
        body = self._body
        if body is not None and body.ready and not self.finished:
            body.drain()
            if body.outcome is not None:
                self._finish(body)

    def pass_over(self) -> None:
        """Leave out the next event of the stream: a failure that the code is not told of, since it was retried."""
        self._seq += 1

    def take_commands(self) -> list[Command]:
        """Return what the code asked for since the last call and still wants, in the order in which it asked."""
        untaken = self._untaken
        if not untaken and not self._cancelled_taken:
            return []
        commands: list[Command] = [*untaken.values()]
        if self._cancelled_taken:
            # A child that has answered since, found by replay, needs to be asked nothing.
            commands[:0] = [
                c for c in self._cancelled_taken if type(c) is CancelCommand or c.no in self._asked
            ]
            self._cancelled_taken.clear()
        untaken.clear()
        return commands

    def evict(self) -> None:
        """Drop the code: close every branch of it, in its own context, without a single refold call taking effect.

        Afterwards nothing of it is alive, and what is left to the garbage collector runs no workflow code.
        """
        body, self._body = self._body, None
        if body is not None:
            self._close(body)
        self.home.dead = True
        self._asked.clear()
        self._untaken.clear()
        self._cancelled_taken.clear()

    # What workflow code calls, through definitions and context.

    def run_step(self, step: Step[..., Any], args: bytes) -> Any:
        """Ask for a step and wait, in a greenlet."""
        no = self._next_no
        try:
            return self._greenlets.wait(self.ask_step(step, args))
        except Cancelled:
            self.cancel(no)
            raise

    async def arun_step(self, step: Step[..., Any], args: bytes) -> Any:
        """Ask for a step and wait, in a coroutine."""
        if self.home.instance is not self:
            raise self._not_driven(f"the coroutine of {step.name}(...)")
        no = self._next_no
        waiter = cast("asyncio.Future[Any]", self.ask_step(step, args))
        try:
            return await waiter
        except BaseException:
            if waiter.cancelled():
                self.cancel(no)
            raise

    def ask_step(self, step: Step[..., Any], args: bytes) -> Waiter:
        no = self._next_no
        waiter = self._new_waiter()
        self._ask(RunStep(no, step, args), waiter)
        return waiter

    def sleep_until(self, until: int) -> None:
        """Wait for a time, in a greenlet; a time that is past is no timer."""
        if until > self.now:
            no = self._next_no
            try:
                self._greenlets.wait(self.ask_timer(until, self._new_waiter()))
            except Cancelled:
                self.cancel(no)
                raise

    async def asleep_until(self, until: int) -> None:
        """Wait for a time, in a coroutine; a time that is past is no timer."""
        if until > self.now:
            no = self._next_no
            waiter = cast("asyncio.Future[None]", self.ask_timer(until, self._new_waiter()))
            try:
                await waiter
            except BaseException:
                if waiter.cancelled():
                    self.cancel(no)
                raise

    def ask_timer(self, until: int, waiter: Waiter) -> Waiter:
        self._ask(StartTimer(self._next_no, until), waiter)
        return waiter

    def start_child(self, workflow: Workflow[..., R], input: bytes, digest: str, id: str | None) -> Handle[R]:
        """Ask for a child and return its handle, without waiting."""
        no = self._next_no
        waiter, child_id = self.ask_child(workflow, input, digest, id)
        return ChildHandle(self, child_id, no, waiter)

    def ask_child(
        self, workflow: Workflow[..., Any], input: bytes, digest: str, id: str | None
    ) -> tuple[Waiter, str]:
        no = self._next_no
        child_id = id if id is not None else f"{self.workflow_id}/{no}"
        check_id(child_id)
        command = StartChild(no, workflow, child_id, input, digest)
        waiter = self._new_waiter()
        self._ask(command, waiter)
        return waiter, child_id

    def send(self, to: str, topic: str, value: bytes) -> None:
        """Ask for a message to be sent; never waits."""
        check_id(to)
        no = self._next_no
        self._ask(SendMessage(no, to, topic, value, f"{self.workflow_id}/{no}"), None)

    def recv(self, topic: str, timeout: int | None) -> Raw:
        """Wait for the next message of `topic`, in a greenlet; `timeout` in microseconds."""
        if (message := self._find_message(topic)) is not None:
            return message
        waiter, timer = self._ask_message(topic, timeout)
        try:
            return cast(Raw, self._greenlets.wait(waiter))
        finally:
            self._drop_receiver(topic, waiter)  # still there when it was cancelled, or has timed out
            if timer is not None:
                self.cancel(timer)

    async def arecv(self, topic: str, timeout: int | None) -> Raw:
        """Wait for the next message of `topic`, in a coroutine; `timeout` in microseconds."""
        if (message := self._find_message(topic)) is not None:
            return message
        waiter, timer = self._ask_message(topic, timeout)
        future = cast("Coroutine[Any, Any, Raw]", waiter)
        try:
            value = await future
        except BaseException:
            self._give_back(topic, waiter)
            if timer is not None:
                self.cancel(timer)
            raise
        if timer is not None:
            self.cancel(timer)
        return value

    def gather(self, laters: tuple[Later[Any], ...], *, return_exceptions: bool) -> tuple[Any, ...]:
        """Begin all of `laters` in their order and wait for them; the first error in log order is raised at once."""
        numbers: dict[Waiter, int] = {}
        waiters = []
        for later in laters:
            no = self._next_no
            waiters.append(waiter := later._begin(self))
            if no < self._next_no:
                numbers[waiter] = no

        def stop(waiter: Waiter) -> bool:
            no = numbers[waiter]
            self.cancel(no)
            return self.cancel_child(no)

        return self._greenlets.wait_all(waiters, stop, return_exceptions=return_exceptions)

    def begin_branch(self, fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Waiter:
        """Begin `fn` as a branch of its own beside the code that calls."""
        return self._greenlets.begin_branch(fn, args, kwargs)

    def cancel(self, no: int) -> None:
        """The code no longer wants the answer of step or timer `no`; a late answer is compared and ignored."""
        asked = self._asked.get(no)
        if asked is None or asked.waiter is None or type(asked.command) not in (RunStep, StartTimer):
            return
        asked.waiter = None
        if self._untaken.pop(no, None) is None:
            self._cancelled_taken.append(CancelCommand(no))

    def cancel_child(self, no: int, reason: str | None = None) -> bool:
        """Ask the child of command `no` to cancel; without a `reason`, because its parent is cancelled.

        Returns False when `no` is no child that is still to end.
        """
        asked = self._asked.get(no)
        if asked is None or type(asked.command) is not StartChild:
            return False
        if reason is None:
            why = f": {self._cancel_reason}" if self._cancel_reason else ""
            reason = f"its parent {self.workflow_id} was cancelled{why}"
        self._cancelled_taken.append(CancelChild(no, asked.command.child_id, reason))
        return True

    @property
    def is_cancelling(self) -> bool:
        """Whether cancelling, of this `async def` workflow, is on its way out through the code."""
        return (
            self._cancel_reason is not None and isinstance(self._body, LoopBody) and self._body.is_cancelling
        )

    def uuid(self) -> uuid.UUID:
        """Return the next of the workflow's own UUIDs: version 4 in form, drawn from the workflow's ID."""
        no = self._uuids
        self._uuids += 1
        return uuid.UUID(
            bytes=hashlib.sha256(f"uuid/{no}/{self.workflow_id}".encode()).digest()[:16], version=4
        )

    def random(self) -> random.Random:
        """Return the workflow's own generator, seeded by the workflow's ID."""
        if self._random is None:
            self._random = random.Random(f"random/{self.workflow_id}")
        return self._random

    # The books.

    @property
    def _greenlets(self) -> GreenletBody:
        return cast(GreenletBody, self._body)

    def _new_waiter(self) -> Waiter:
        return cast("LoopBody | GreenletBody", self._body).new_waiter()

    def _ask(self, command: Command, waiter: Waiter | None) -> None:
        no = self._next_no
        self._next_no = no + 1
        self._asked[no] = _Asked(command, waiter)
        self._untaken[no] = command

    def _not_driven(self, what: str) -> BaseException:
        if self.home.dead:
            return Evicted()
        return WrongCall(
            f"{what} was made in workflow {self.workflow_id!r} and awaited outside of it",
            "Await it where it was made.",
        )

    def _find_message(self, topic: str) -> Raw | None:
        buffer = self._buffers.get(topic) if self._buffers else None
        return buffer.popleft() if buffer else None

    def _ask_message(self, topic: str, timeout: int | None) -> tuple[Waiter, int | None]:
        what = f"recv({topic!r})" if topic else "recv()"
        if timeout is not None and timeout <= 0:
            raise TimedOut(f"{what} in workflow {self.workflow_id!r}", "no time at all")
        waiter = self._new_waiter()
        if self._receivers is None:
            self._receivers = {}
        self._receivers.setdefault(topic, deque()).append(waiter)
        if timeout is None:
            return waiter, None
        timer = self._next_no
        self.ask_timer(self.now + timeout, _Deadline(self, waiter, topic, what, timeout))
        return waiter, timer

    def _drop_receiver(self, topic: str, waiter: Waiter) -> None:
        receivers = self._receivers.get(topic) if self._receivers else None
        if receivers and waiter in receivers:
            receivers.remove(waiter)

    def _give_back(self, topic: str, waiter: Any) -> None:
        """The receiver was cancelled: a message that it was given in the same moment waits for the next one."""
        if waiter.done() and not waiter.cancelled() and waiter.exception() is None:
            self._hold(topic, waiter.result(), first=True)
        else:
            self._drop_receiver(topic, waiter)

    def _hold(self, topic: str, value: Raw, *, first: bool = False) -> None:
        if self._buffers is None:
            self._buffers = {}
        buffer = self._buffers.setdefault(topic, deque())
        (buffer.appendleft if first else buffer.append)(value)

    def _finish(self, body: "LoopBody | GreenletBody") -> None:
        """The code has ended: ask for the end, and drop the branches that it left behind."""
        value, error = cast(tuple[Any, BaseException | None], body.outcome)
        body.outcome = None
        end: End
        if error is None:
            try:
                end = Complete(self.workflow.encode_result(value))
            except RefoldError as refused:
                end = Fail(record_error(refused))
        elif isinstance(error, asyncio.CancelledError) and self._cancel_reason is not None:
            end = Cancel(self._cancel_reason)
        else:
            asked = [
                no for no, command in self._untaken.items() if type(command) in (SendMessage, StartChild)
            ]
            last = max(asked, default=-1)  # about to be recorded
            end = Fail(record_error(error), [seq for seq, no in self._failed if last < no])
        self._body = None
        self.finished = True
        left_open = body.has_branches()
        body.tell_unheard()
        for no in self._asked:
            self.cancel(no)
        self._close(body)
        self._end = end
        self._untaken[self._next_no] = end
        if left_open and not self.replaying:
            _log.warning(
                "workflow ended with branches still open: they were dropped, and what they waited for is ignored",
                extra={"workflow": self.workflow_id},
            )

    def _close(self, body: "LoopBody | GreenletBody") -> None:
        """Close `body` while the home says dead, so that no refold call in a `finally` takes effect."""
        self.home.dead = True
        self._receivers = None
        body.close()
        for asked in self._asked.values():
            asked.waiter = None

    # Events.

    def _on_started(self, event: WorkflowStarted) -> None:
        if self._seq != 0 or self._body is not None:
            raise self._mismatch("the workflow started here", "has started before")
        if event.name != self.workflow.name:
            raise self._mismatch(
                f"workflow {event.name!r} started here", f"is that of workflow {self.workflow.name!r}"
            )
        try:
            args, kwargs = self.workflow.decode_args(event.input)
        except DecodeFailed as exc:
            self._refused_input = str(exc)
            self.finished = True
            self._end = Fail(record_error(exc))
            self._untaken[0] = self._end
            return
        # mypy and pyright don't see that the methods which the loop refuses are filled in below its class.
        body = LoopBody(self) if self.is_async else GreenletBody(self)  # type: ignore[abstract]  # pyright: ignore[reportAbstractUsage]
        self._body = body
        self.args = (*args, *kwargs.values())
        body.start(self.workflow.fn, args, kwargs)

    def _on_step_completed(self, event: StepCompleted) -> None:
        waiter, step = self._match_step(event, "finished")
        self._untaken.pop(event.no, None)
        del self._asked[event.no]
        if waiter is not None and not waiter.done():
            waiter.set_result(self._decode(step.decode_result, event.result, step))

    def _on_step_failed(self, event: StepFailed) -> None:
        waiter, _ = self._match_step(event, "failed")
        if event.retry_at is not None:
            return  # nothing that the code can see: the command stays open, and is handed out again after a replay
        self._untaken.pop(event.no, None)
        del self._asked[event.no]
        self._failed.append((self._seq, self._next_no))
        self._fail(waiter, event.error)

    def _on_timer_fired(self, event: TimerFired) -> None:
        asked = self._asked.get(event.no)
        command = asked.command if asked is not None else None
        if asked is None or type(command) is not StartTimer or command.until != event.until:
            raise self._mismatch(
                f"the timer of command {event.no} set for {event.until} fired here", self._describe(event.no)
            )
        del self._asked[event.no]
        self._untaken.pop(event.no, None)
        if asked.waiter is not None and not asked.waiter.done():
            asked.waiter.set_result(None)

    def _on_child_started(self, event: ChildStarted) -> None:
        asked = self._asked.get(event.no)
        command = asked.command if asked is not None else None
        if type(command) is not StartChild or (command.workflow.name, command.child_id) != (
            event.name,
            event.child,
        ):
            raise self._mismatch(
                f"workflow {event.name!r} was started as child {event.child!r} (command {event.no})",
                self._describe(event.no),
            )
        self._compare(
            command.input, event.input, command.workflow.canonical_args, f"the input of child {event.child!r}"
        )
        self._untaken.pop(event.no, None)

    def _on_child_completed(self, event: ChildCompleted) -> None:
        asked, workflow = self._match_child(event)
        if asked.waiter is not None and not asked.waiter.done():
            asked.waiter.set_result(self._decode(workflow.decode_result, event.result, workflow))

    def _on_child_failed(self, event: ChildFailed) -> None:
        waiter = self._match_child(event)[0].waiter
        self._failed.append((self._seq, self._next_no))
        self._fail(waiter, event.error)

    def _on_message_sent(self, event: MessageSent) -> None:
        asked = self._asked.get(event.no)
        command = asked.command if asked is not None else None
        if type(command) is not SendMessage or (command.to, command.topic) != (event.to, event.topic):
            raise self._mismatch(
                f"a message was sent to {event.to!r} (command {event.no})", self._describe(event.no)
            )
        self._compare(command.value, event.value, None, f"the message to {event.to!r}")
        del self._asked[event.no]
        self._untaken.pop(event.no, None)

    def _on_message_received(self, event: MessageReceived) -> None:
        receivers = self._receivers.get(event.topic) if self._receivers else None
        while receivers:
            waiter = receivers.popleft()
            if not waiter.done():
                waiter.set_result(event.value)
                self._failed.clear()  # told of it since, the code is where the failure has led it
                return
        self._hold(event.topic, event.value)

    def _on_completed(self, event: WorkflowCompleted) -> None:
        end = self._end
        if type(end) is not Complete:
            raise self._mismatch("the workflow returned here", self._describe_end())
        self._compare(end.result, event.result, self.workflow.canonical_result, "the result")
        self._untaken.clear()

    def _on_failed(self, event: WorkflowFailed) -> None:
        if self._parked:  # a person's decision, not the code's
            self._on_ended_from_outside(event)
            return
        end = self._end
        recorded, asked = _kind_of(event.error), _kind_of(end.error) if type(end) is Fail else ""
        if recorded != asked and not self._refused_input:  # a source may have said why in words of its own
            raise self._mismatch(f"the workflow failed here with {recorded}", self._describe_end())
        self._untaken.clear()

    def _on_ended_from_outside(self, event: WorkflowCancelled | WorkflowFailed) -> None:
        """It ended here, whatever the code had done: a workflow that never ran, or is parked, is ended without it."""
        self.finished = True
        self.evict()

    def _on_cancel_requested(self, event: CancelRequested) -> None:
        if self._cancel_reason is None:
            self._failed.clear()
            self._cancel_reason = event.reason
            if self._body is not None:
                self._body.cancel(event.reason)

    def _on_parked(self, event: Parked) -> None:
        self._parked = True

    def _on_retried(self, event: Retried) -> None:
        self._parked = False

    def _on_note(self, event: WatcherAdded) -> None:
        """A fact about the workflow that its code never knows."""

    def _match_step(
        self, event: StepCompleted | StepFailed, verb: str
    ) -> tuple[Waiter | None, Step[..., Any]]:
        asked = self._asked.get(event.no)
        command = asked.command if asked is not None else None
        if asked is None or type(command) is not RunStep or command.step.name != event.name:
            raise self._mismatch(
                f"step {event.name!r} {verb} here (command {event.no})", self._describe(event.no)
            )
        step = command.step
        if command.args != bytes(event.args) and step.options.compare == "args":
            self._compare(
                command.args, event.args, step.canonical_args, f"the arguments of step {event.name!r}"
            )
        return asked.waiter, step

    def _match_child(self, event: ChildCompleted | ChildFailed) -> tuple[_Asked, Workflow[..., Any]]:
        asked = self._asked.get(event.no)
        command = asked.command if asked is not None else None
        if asked is None or type(command) is not StartChild or command.child_id != event.child:
            raise self._mismatch(
                f"child {event.child!r} ended here (command {event.no})", self._describe(event.no)
            )
        del self._asked[event.no]
        self._untaken.pop(event.no, None)
        return asked, command.workflow

    def _compare(
        self, live: bytes, recorded: Raw, canonical: Callable[[Any], bytes] | None, what: str
    ) -> None:
        """Raise HistoryMismatch unless both say the same to today's types; equal bytes are the common case."""
        if live == bytes(recorded):
            return
        if canonical is not None:
            try:
                if canonical(live) == canonical(recorded):
                    return
            except DecodeFailed:
                pass
        raise self._mismatch(f"{what} were others", "gives these", show_difference(recorded, live))

    def _decode(self, decode: Callable[[Any], Any], raw: Raw, of: Step[..., Any] | Workflow[..., Any]) -> Any:
        try:
            return decode(raw)
        except DecodeFailed as exc:
            kind = "step" if isinstance(of, Step) else "child workflow"
            raise self._mismatch(
                f"{kind} {of.name!r} gave {_cut(raw)} here", f"declares another type for it ({exc.problem})"
            ) from exc

    def _fail(self, waiter: Waiter | None, error: RecordedError) -> None:
        if waiter is None or waiter.done():
            return
        try:
            exc = rebuild_error_exactly(error)
        except ErrorClassNotFound as problem:
            raise self._mismatch(
                f"{_kind_of(error)} was raised here", f"has no such error class ({problem})"
            ) from problem
        waiter.set_exception(exc)

    def _mismatch(self, expected: str, got: str, diff: str = "") -> HistoryMismatch:
        if self._refused_input:
            got = f"cannot read the workflow's input ({self._refused_input})"
        return HistoryMismatch(self.workflow_id, self._seq, expected, got, diff)

    def _describe(self, no: int) -> str:
        """Say what the code did instead of asking for what the event of command `no` answers."""
        asked = self._asked.get(no)
        if asked is not None:
            command = asked.command
            return f"asks for {_describe_command(command)} as command {no}"
        if no < self._next_no:
            return f"has had the answer to command {no} before"
        return (
            self._describe_end()
            if self._end is not None
            else f"has asked for {self._next_no} commands only, and waits"
        )

    def _describe_end(self) -> str:
        end = self._end
        if end is None:
            open_ = [_describe_command(a.command) for a in self._asked.values() if a.waiter is not None]
            return f"waits for {', '.join(open_[:3])}" if open_ else "waits"
        if type(end) is Fail:
            return f"fails with {_kind_of(end.error)}"
        return "returns" if type(end) is Complete else "lets itself be cancelled"


class _Deadline:
    """The waiter of a `recv`'s timer: when it fires, the receiver is told."""

    __slots__ = ("instance", "receiver", "timeout", "topic", "what")

    def __init__(self, instance: Instance, receiver: Waiter, topic: str, what: str, timeout: int) -> None:
        self.instance, self.receiver, self.topic, self.what, self.timeout = (
            instance,
            receiver,
            topic,
            what,
            timeout,
        )

    def done(self) -> bool:
        return self.receiver.done()

    def set_result(self, value: Any, /) -> None:
        self.instance._drop_receiver(self.topic, self.receiver)
        where = f"{self.what} in workflow {self.instance.workflow_id!r}"
        self.receiver.set_exception(TimedOut(where, show_span(timedelta(microseconds=self.timeout))))

    def set_exception(self, error: BaseException, /) -> None:
        self.receiver.set_exception(error)


class ChildHandle(Generic[R]):
    """A child's handle inside the workflow that started it: waiting on it is durable."""

    __slots__ = ("_instance", "_no", "_waiter", "id")

    def __init__(self, instance: Instance, id: str, no: int, waiter: Waiter) -> None:
        self._instance = instance
        self._no = no
        self._waiter = waiter
        self.id = id

    def result(self, timeout: float | None = None) -> R:
        """Wait for the child in a `def` workflow and return its result; raises its error, or TimedOut."""
        instance = self._check("result")
        if instance.is_async:
            raise WrongCall(
                "handle.result() was called in an async def workflow", "Write await handle.aresult() there."
            )
        body = instance._greenlets
        try:
            return cast(R, body.wait_for(self._waiter, self._until(timeout), f"child {self.id!r}"))
        except Cancelled:
            if instance.cancel_child(self._no):
                body.wait_end(self._waiter)
            raise

    async def aresult(self, timeout: float | None = None) -> R:
        """Wait for the child in an `async def` workflow and return its result; raises its error, or TimedOut."""
        instance = self._check("aresult")
        if not instance.is_async:
            raise WrongCall("handle.aresult() was called in a def workflow", "Write handle.result() there.")
        waiter = cast("asyncio.Future[R]", self._waiter)
        try:
            if timeout is None:
                return await asyncio.shield(waiter)
            try:
                async with asyncio.timeout(timeout):
                    return await asyncio.shield(waiter)
            except TimeoutError:
                if waiter.done():
                    raise
                raise TimedOut(f"child {self.id!r}", show_span(timedelta(seconds=timeout))) from None
        except asyncio.CancelledError:
            # Of the whole workflow: the child is to end too, and is waited for. Of this wait alone: it goes on.
            if instance.is_cancelling and instance.cancel_child(self._no):
                with contextlib.suppress(Exception):
                    await asyncio.shield(waiter)
            raise

    def status(self) -> str:
        """A child's state is not known inside its parent's code: only its end is, as an event."""
        raise WrongCall(
            "handle.status() was called inside a workflow",
            "Wait for handle.result(), or ask app.get(id) from outside.",
        )

    async def astatus(self) -> str:
        """Refuse, as `status` does."""
        return self.status()

    def cancel(self, reason: str = "") -> None:
        """Ask the child to cancel, from a workflow of either colour; never waits, and does nothing if it has ended."""
        instance = self._check("cancel")
        instance.cancel_child(self._no, reason or f"its parent {instance.workflow_id} asked for it")

    async def acancel(self, reason: str = "") -> None:
        """Do what `cancel` does."""
        self.cancel(reason)

    def _check(self, call: str) -> Instance:
        if find_instance() is not self._instance:
            raise WrongCall(
                f"handle.{call}() of child {self.id!r} was called outside of the workflow that started it",
                "Pass handle.id on, and use app.get(id) there.",
            )
        return self._instance

    def _until(self, timeout: float | None) -> int | None:
        return None if timeout is None else self._instance.now + round(timeout * 1_000_000)


def _describe_command(command: Command) -> str:
    match command:
        case RunStep():
            return f"step {command.step.name!r}"
        case StartTimer():
            return f"a timer for {command.until}"
        case StartChild():
            return f"workflow {command.workflow.name!r} as child {command.child_id!r}"
        case SendMessage():
            return f"a message to {command.to!r}"
        case _:
            return type(command).__name__


def _kind_of(error: RecordedError) -> str:
    return f"{error.module}.{error.qualname}"


def _cut(raw: Raw) -> str:
    text = bytes(raw).decode("utf-8", "replace")
    return text if len(text) <= 80 else text[:77] + "..."


_TAKE_IN: Final[dict[type[Any], Callable[[Instance, Any], None]]] = {
    WorkflowStarted: Instance._on_started,
    StepCompleted: Instance._on_step_completed,
    StepFailed: Instance._on_step_failed,
    TimerFired: Instance._on_timer_fired,
    ChildStarted: Instance._on_child_started,
    ChildCompleted: Instance._on_child_completed,
    ChildFailed: Instance._on_child_failed,
    MessageSent: Instance._on_message_sent,
    MessageReceived: Instance._on_message_received,
    WorkflowCompleted: Instance._on_completed,
    WorkflowFailed: Instance._on_failed,
    WorkflowCancelled: Instance._on_ended_from_outside,
    CancelRequested: Instance._on_cancel_requested,
    Parked: Instance._on_parked,
    Retried: Instance._on_retried,
    WatcherAdded: Instance._on_note,
}
