"""The executor: read, decide, do, append. All of it on one thread, the engine's.

Something happens (a step ended, a timer is due, mail came): it becomes an event, gets its seq, and is delivered to the
workflow's driver; what the code asks for next becomes rows of the next flush. While one flush is on the wire, the
next one fills. What reaches the outside (a step, an answer to a caller) waits until the events before it are durable.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, Final, Protocol, TypeAlias

from msgspec import Raw

from refold.core._alarms import Alarms
from refold.core._clock import LogClock
from refold.core._commands import (
    Cancel,
    CancelChild,
    CancelCommand,
    Command,
    Complete,
    Fail,
    RunStep,
    SendMessage,
    StartChild,
    StartTimer,
)
from refold.core._definitions import Workflow
from refold.core._driver import Instance
from refold.core._errors import HistoryMismatch, WorkflowIdReused
from refold.core._errors import WorkflowCancelled as Cancellation
from refold.core._failures import record_error
from refold.core._flush import Batch, Pump
from refold.core._resident import Resident, StepCall
from refold.core._retry import find_parked, find_undelivered
from refold.eventlog._errors import EventLogError, Fenced, StaleWriter
from refold.eventlog._events import (
    CancelRequested,
    ChildCompleted,
    ChildFailed,
    ChildStarted,
    Event,
    MessageReceived,
    MessageSent,
    Parked,
    Recorded,
    RecordedError,
    StepCompleted,
    StepFailed,
    TimerFired,
    WatcherAdded,
    WorkflowCancelled,
    WorkflowCompleted,
    WorkflowFailed,
    WorkflowStarted,
    decode_event,
    encode_event,
)
from refold.eventlog._log import (
    MAILED,
    TAKEN,
    UNKNOWN,
    Append,
    Flushed,
    HeadChange,
    Lane,
    Message,
    NewEvent,
    NewWorkflow,
)

log = logging.getLogger("refold.worker")
Ending: TypeAlias = WorkflowCompleted | WorkflowFailed | WorkflowCancelled

LINGER: Final = 1.0  # seconds that a waiting workflow stays in memory
KEEP_IF_DUE_WITHIN: Final = 2_000_000  # microseconds: not worth an eviction
REHEARSE_AT_MOST: Final = 300  # events, in always-replay mode: each costs a replay of all before it
MOST_RESIDENT: Final = 5_000  # beyond it waiting workflows are dropped at once


class Outside(Protocol):
    """What the executor asks of the worker that it is part of. Called on the engine's thread."""

    def run_steps(self, calls: Sequence[StepCall]) -> None:
        """Run these attempts; each comes back through `step_done` or `step_failed`."""

    def drop_step(self, call: StepCall) -> None:
        """Nobody waits for this attempt any more: cancel it where that is possible."""

    def reload(self, workflow_id: str) -> None:
        """Look whether this worker still owns it; if so, load it anew."""

    def adopt_child(self, parent: str, no: int, child: str, workflow: str, input: bytes) -> None:
        """The child's ID may have existed already: find out what that means for the parent."""

    def look_for_work(self) -> None:
        """Claim what is due or has mail."""

    def take_next(self, taken: Sequence[tuple[str, str]]) -> None:
        """These (ID, name) were behind others that have ended here, and are this worker's now: load them."""

    def find_lost(self) -> None:
        """Load what the heads say is ours and memory does not have."""

    def committed(self, workflow_id: str, news: Sequence[Recorded]) -> None:
        """These events are durable."""

    def ended(self, workflow_id: str, event: Event) -> None:
        """The workflow's end is durable."""

    def left(self, workflow_id: str, due: int | None) -> None:
        """The workflow was let go; it is due for whoever has room at `due`, None: when mail comes."""

    def fenced(self) -> None:
        """This worker was declared dead."""

    def broken(self, error: Exception) -> None:
        """A flush failed in a way that no rule knows: nothing of it was written."""


class Start:
    """A start that waits for its flush: a new workflow, and whom to tell whether its ID was free."""

    __slots__ = ("event", "new", "tell", "workflow")

    def __init__(
        self,
        workflow: Workflow[..., Any],
        new: NewWorkflow,
        event: WorkflowStarted,
        tell: Callable[[bool | None, Exception | None], None],
    ) -> None:
        self.workflow, self.new, self.event = workflow, new, event
        self.tell = tell  # (existed already; None: the answer was lost, ask the head), or the error


class Executor:
    """Drives the workflows of one worker. Every method is called on the engine's thread."""

    def __init__(
        self,
        worker: str,
        lane: Lane,
        clock: LogClock,
        outside: Outside,
        *,
        capacity: int,
        always_replay: bool = False,
    ) -> None:
        self.worker = worker
        self._always_replay = always_replay
        self.clock = clock
        self.residents: dict[str, Resident] = {}
        self.abandoned = False  # nothing more is written or run under this name
        self.accepting = True  # False: starts go to whoever has room
        self.accepting_steps = True  # False: shutting down, what only waits is let go
        self._lane = lane
        self._outside = outside
        self._capacity = capacity
        self._loop = asyncio.get_running_loop()
        self._starting: dict[str, list[Start]] = {}
        self._senders: dict[str, list[Callable[[Exception | None], None]]] = {}
        self._waiting_durable: dict[str, list[Callable[[], None]]] = {}
        # Being read from the log, with the mail that came meanwhile.
        self.loading: dict[str, list[tuple[str, Event]]] = {}
        self.claiming = 0  # workflows that a claim on the wire may give us
        self._idle: dict[str, Resident] = {}
        self._alarms = Alarms(clock, self._fire_due, self._waits_for)
        self._sweep: asyncio.TimerHandle | None = None
        self._pump = Pump(lane, sending=self._sending, flushed=self._flushed, failed=self._unable)
        self.driving_since: float | None = None  # monotonic; for the watchdog
        self.driving: str | None = None

    # What comes in.

    @property
    def room(self) -> int:
        """How many more workflows this worker takes in."""
        if not self.accepting:
            return 0
        busy = len(self.residents) - len(self._idle) + len(self._starting) + len(self.loading) + self.claiming
        return max(0, self._capacity - busy)

    @property
    def empty_handed(self) -> bool:
        return not self.residents and not self._starting

    def start(self, start: Start) -> None:
        """Start a workflow in the next flush, owned by this worker if it has room."""
        if self.abandoned:
            start.tell(None, Fenced(self.worker))
            return
        waiting = self._starting.get(start.new.workflow_id)
        if waiting is not None:
            waiting.append(start)
            return
        self._starting[start.new.workflow_id] = [start]
        key = "\0+" + start.new.workflow_id  # no workflow's ID can look like that
        self._pump.add(key, Append(key, starts=[start.new]))

    def send(self, message: Message, tell: Callable[[Exception | None], None]) -> None:
        """Put a message into an inbox with the next flush."""
        if self.abandoned:
            tell(Fenced(self.worker))
            return
        key = f"\0@{message.to}/{message.message_id}"
        self._pump.add(key, Append(key, messages=[message]))
        self._senders.setdefault(key, []).append(tell)

    def begin(self, workflow: Workflow[..., Any], new: NewWorkflow, event: WorkflowStarted) -> None:
        """Take up a workflow whose start, owned by this worker, has just become durable."""
        if new.workflow_id in self.residents or self.abandoned:
            return
        resident = Resident(
            new.workflow_id,
            workflow,
            Instance(workflow, new.workflow_id),
            source=new.source,
            parent=new.parent,
            parent_no=new.parent_no,
            parks=event.order_key is not None and event.parks,
            ordered=event.order_key is not None,
            next_seq=1,
            durable_seq=1,
            last_at=new.at,
        )
        self.residents[new.workflow_id] = resident
        self._outside.committed(new.workflow_id, [Recorded(0, new.at, event)])
        self._drive(resident, [Recorded(0, new.at, event)])
        self._settle(resident)

    def load(
        self,
        workflow: Workflow[..., Any],
        workflow_id: str,
        history: Sequence[Recorded],
        mail: Iterable[tuple[str, Event]],
        *,
        deaths: int = 0,
        alone: bool = False,
        park: bool = False,
        unrun: bool = False,
    ) -> None:
        """Replay a workflow that this worker claimed, and go on with what its code asks for now.

        One that never ran (`unrun`), is parked or is to be (`park`), and has a cancel in its mail, ends without that.
        """
        here = self.residents.get(workflow_id)
        if here is not None:
            # An eviction that is durable, and whose answer is still under way, can have been claimed again already.
            here.claimed_again = here.evicting or here.parked
            return
        if self.abandoned:
            return
        first = history[0].event
        assert isinstance(first, WorkflowStarted), f"{workflow_id}: event 0 is {type(first).__name__}"
        resident = Resident(
            workflow_id,
            workflow,
            Instance(workflow, workflow_id),
            source=first.source,
            parent=first.parent,
            parent_no=first.parent_no,
            parks=first.order_key is not None and first.parks,
            ordered=first.order_key is not None,
            undelivered=find_undelivered(history),
            next_seq=len(history),
            durable_seq=len(history),
            last_at=history[-1].at,
            deaths=deaths,
            alone=alone,
        )
        self.residents[workflow_id] = resident
        mail = list(mail)
        resident.cancel_mail = next(((id, e) for id, e in mail if isinstance(e, CancelRequested)), None)
        if resident.cancel_mail is not None and (unrun or park or find_parked(history) is not None):
            self._remember(resident, history)
            for message_id, event in mail:
                if isinstance(event, WatcherAdded):
                    self._fold(resident, message_id, event)
            self._cancel_at_once(resident, *resident.cancel_mail)
            return
        if park:
            self._park_poison(resident)
            return
        self._remember(resident, history)
        resident.instance.replaying = True
        self._drive(resident, history)
        resident.instance.replaying = False
        resident.cancel_mail = None
        for no in [no for no, (_, command) in resident.retries.items() if command is None]:
            del resident.retries[no]  # the code has cancelled that step since
        for message_id, event in mail:
            self._fold(resident, message_id, event)
        self._check_children(resident)
        self._settle(resident)

    def mail(self, workflow_id: str, message_id: str, event: Event) -> None:
        """Fold a message from the inbox into its workflow's stream, if that is in memory here."""
        resident = self.residents.get(workflow_id)
        if resident is not None:
            self._stimulus(resident, lambda: self._fold(resident, message_id, event))
        elif workflow_id in self.loading:
            self.loading[workflow_id].append((message_id, event))

    def answer_child(self, parent: str, event: ChildCompleted | ChildFailed) -> None:
        """Give a parent what became of a child whose ID existed already."""
        resident = self.residents.get(parent)
        if resident is not None and event.no in resident.children:
            self._stimulus(resident, lambda: self._append(resident, event))

    def wants(self, call: StepCall) -> bool:
        """Whether the workflow still waits for the outcome of this very attempt."""
        resident = self.residents.get(call.workflow_id)
        return resident is not None and not call.over and resident.running.get(call.command.no) is call

    def step_done(self, call: StepCall, result: bytes) -> None:
        """Record that an attempt gave `result` (encoded)."""
        self._step_ended(
            call,
            lambda no: StepCompleted(
                no=no,
                name=call.command.step.name,
                args=Raw(call.command.args),
                result=Raw(result),
                attempt=call.attempt,
            ),
        )

    def step_failed(
        self, call: StepCall, error: RecordedError, retry_in: int | None, *, not_before: int = 0
    ) -> None:
        """Record that an attempt failed; try again `retry_in` microseconds from now, or tell the code if None."""

        def failed(no: int) -> StepFailed:
            retry_at = None if retry_in is None else max(self.clock.now() + retry_in, not_before)
            return StepFailed(
                no=no,
                name=call.command.step.name,
                args=Raw(call.command.args),
                error=error,
                attempt=call.attempt,
                retry_at=retry_at,
            )

        self._step_ended(call, failed)

    def _step_ended(self, call: StepCall, event: Callable[[int], StepCompleted | StepFailed]) -> None:
        if not self.wants(call):
            return
        resident = self.residents[call.workflow_id]

        def record() -> None:
            if not self.wants(call):  # cancelled while it was kept back
                return
            del resident.running[call.command.no]
            outcome = event(call.command.no)
            if isinstance(outcome, StepFailed) and outcome.retry_at is not None:
                resident.unstarted[call.command.no] = call.command
            self._append(resident, outcome)

        self._stimulus(resident, record)

    # Transactional steps (rule 15).

    def reserve(
        self,
        call: StepCall,
        result: bytes,
        give: Callable[[tuple[str, NewEvent, StepCompleted] | None], None],
    ) -> None:
        """Keep the stream's next seq for the event of a transactional step, once all before it is durable.

        Until `release`, nothing else is appended to that workflow; `give` gets the event, or None when nobody waits
        for the step any more.
        """
        if not self.wants(call):
            give(None)
            return
        resident = self.residents[call.workflow_id]
        if resident.held is not None:

            def again() -> None:
                resident.gives.remove(give)
                self.reserve(call, result, give)

            resident.gives.append(give)
            resident.held.append(again)
            return
        resident.held = []
        self._idle.pop(resident.id, None)
        event = StepCompleted(
            no=call.command.no,
            name=call.command.step.name,
            args=Raw(call.command.args),
            result=Raw(result),
            attempt=call.attempt,
        )

        def hand_out() -> None:
            if resident.dead:
                give(None)
                return
            at = max(self.clock.now(), resident.last_at)
            give((resident.id, NewEvent(resident.next_seq, "StepCompleted", at, encode_event(event)), event))

        self._when_durable(resident, hand_out)

    def _when_durable(self, resident: Resident, action: Callable[[], None]) -> None:
        if resident.part is None and resident.in_flight is None:
            action()
        else:
            self._waiting_durable.setdefault(resident.id, []).append(action)

    def release(self, call: StepCall, written: tuple[NewEvent, StepCompleted] | None) -> None:
        """End a reservation: the step's own transaction wrote the event, or (None) wrote nothing."""
        resident = self.residents.get(call.workflow_id)
        if resident is None or resident.held is None:
            return
        held, resident.held = resident.held, None
        if written is not None:
            new, event = written
            resident.running.pop(call.command.no, None)
            resident.next_seq = resident.durable_seq = new.seq + 1
            resident.last_at = new.at
            self._outside.committed(resident.id, [Recorded(new.seq, new.at, event)])
            self._drive(resident, [Recorded(new.seq, new.at, event)])
        for stimulus in held:
            self._stimulus(resident, stimulus)
        self._settle(resident)

    def lost_race(self, call: StepCall) -> None:
        """Another writer was first with the seq that a transactional step had reserved."""
        resident = self.residents.get(call.workflow_id)
        if resident is not None:
            self._drop(resident)
            self._outside.reload(call.workflow_id)

    # Driving.

    def _stimulus(self, resident: Resident, act: Callable[[], None]) -> None:
        if resident.evicting:
            resident.mail_missed = True  # its row is in the inbox, and it is claimable in a moment
            return
        if resident.ended or resident.dead:
            return
        if resident.held is not None:
            resident.held.append(act)
            return
        act()
        self._settle(resident)

    def _append(self, resident: Resident, event: Event) -> None:
        """Give `event` its place at the end of the stream, deliver it, and carry out what the code asks for then."""
        if resident.ended:
            return
        at = max(self.clock.now(), resident.last_at)
        recorded = Recorded(resident.next_seq, at, event)
        part = self._part(resident)
        part.events.append(NewEvent(recorded.seq, type(event).__name__, at, encode_event(event)))
        resident.next_seq += 1
        resident.last_at = at
        resident.deaths = 0
        resident.news.append(recorded)
        self._remember(resident, (recorded,))
        self._drive(resident, (recorded,))

    def _drive(self, resident: Resident, history: Sequence[Recorded]) -> None:
        """Deliver events to the code, then carry out the commands that are left over."""
        self.driving, self.driving_since = resident.id, time.monotonic()
        seq = 0
        try:
            if self._always_replay:
                self._rehearse(resident, history)
            for seq, at, event in history:
                if seq in resident.undelivered:
                    resident.instance.pass_over()
                else:
                    resident.instance.deliver(at, event)
            commands = resident.instance.take_commands()
        except HistoryMismatch as mismatch:
            self._stuck(resident, mismatch, seq)
            return
        except Exception as error:
            # Not the user's code (its errors end the workflow) but ours. One workflow stands still, the others go on.
            log.exception("workflow %s: the driver failed", resident.id, extra={"stream": resident.id})
            self._stuck(resident, error, seq)
            return
        finally:
            self.driving_since = None
        for command in commands:
            _HANDLERS[type(command)](self, resident, command)

    def _rehearse(self, resident: Resident, following: Sequence[Recorded]) -> None:
        """Replay from the beginning before each event, so that code that isn't deterministic is found on the desk.

        Raises HistoryMismatch.
        """
        if 0 < len(resident.history) <= REHEARSE_AT_MOST:
            before, again = resident.instance, Instance(resident.workflow, resident.id)
            again.replaying = True
            for seq, at, event in resident.history:
                if seq in resident.undelivered:
                    again.pass_over()
                else:
                    again.deliver(at, event)
            again.take_commands()  # asked for before, and on their way
            again.replaying = False
            resident.instance = again
            before.evict()
        resident.history.extend(following)

    def _remember(self, resident: Resident, history: Sequence[Recorded]) -> None:
        """Keep what the executor itself needs to know of events: failed attempts, open children, folded mail."""
        for seq, _, event in history:
            if seq in resident.undelivered:
                if isinstance(event, StepFailed):
                    # Its attempts are counted on; its schedule of retries begins anew.
                    resident.failures[event.no] = event.attempt
                    resident.forgiven = {**(resident.forgiven or {}), event.no: event.attempt}
                    resident.retries.pop(event.no, None)
                continue
            match event:
                case StepFailed(no=no, attempt=attempt, retry_at=retry_at):
                    if retry_at is None:
                        resident.failures.pop(no, None)
                        resident.retries.pop(no, None)
                    else:
                        resident.failures[no] = attempt
                        command = resident.unstarted.pop(no, None)
                        resident.retries[no] = (retry_at, command)
                        if command is not None:
                            self._set_alarm(resident, retry_at, no)
                case StepCompleted(no=no):
                    resident.failures.pop(no, None)
                    resident.retries.pop(no, None)
                case ChildStarted(no=no, name=name, child=child, input=input):
                    resident.children[no] = (name, child, bytes(input))
                case ChildCompleted(no=no, message_id=message_id) | ChildFailed(no=no, message_id=message_id):
                    resident.children.pop(no, None)
                    resident.folded.add(message_id)
                case MessageReceived(message_id=message_id):
                    resident.folded.add(message_id)
                case WatcherAdded(parent=parent, parent_no=parent_no, message_id=message_id):
                    resident.watchers.append((parent, parent_no))
                    resident.folded.add(message_id)
                case CancelRequested(message_id=message_id):
                    resident.cancelling = True
                    resident.folded.add(message_id)
                case _:
                    pass

    def _fold(self, resident: Resident, message_id: str, event: Event) -> None:
        """Append a message's event, and delete its inbox row in the same flush. One folded before is only deleted."""
        if resident.ended:
            return
        part = self._part(resident)
        part.folded.append(message_id)
        if message_id not in resident.folded:
            resident.folded.add(message_id)
            if resident.cancelling and isinstance(event, CancelRequested):
                return  # a second one says nothing new
            self._append(resident, event)

    # Commands.

    def _run_step(self, resident: Resident, command: RunStep) -> None:
        waiting = resident.retries.get(command.no)
        if waiting is not None:  # found by replay: an attempt failed, the next one is due at a recorded time
            resident.retries[command.no] = (waiting[0], command)
            self._set_alarm(resident, waiting[0], command.no)
            return
        resident.unstarted[command.no] = command
        resident.allowed_after.append((resident.next_seq, command))

    def _start_timer(self, resident: Resident, command: StartTimer) -> None:
        resident.timers[command.no] = command.until
        self._set_alarm(resident, command.until, command.no)

    def _cancel(self, resident: Resident, command: CancelCommand) -> None:
        no = command.no
        resident.timers.pop(no, None)
        resident.retries.pop(no, None)
        resident.unstarted.pop(no, None)
        resident.allowed_after = [item for item in resident.allowed_after if item[1].no != no]
        call = resident.running.pop(no, None)
        if call is not None:
            call.over = True
            self._outside.drop_step(call)

    def _cancel_child(self, resident: Resident, command: CancelChild) -> None:
        # No event of its own: replayed, the same message is sent again, and the child drops what it has had.
        message_id = f"cancel:{resident.id}/{command.no}"
        asked = CancelRequested(message_id=message_id, reason=command.reason)
        self._part(resident).messages.append(
            Message(command.child_id, message_id, "CancelRequested", encode_event(asked))
        )

    def _start_child(self, resident: Resident, command: StartChild) -> None:
        started = WorkflowStarted(
            name=command.workflow.name,
            input=Raw(command.input),
            digest=command.digest,
            parent=resident.id,
            parent_no=command.no,
        )
        self._append(
            resident,
            ChildStarted(
                no=command.no, name=command.workflow.name, child=command.child_id, input=Raw(command.input)
            ),
        )
        if resident.ended:
            return
        owner = self.worker if self.room > 0 else None
        new = NewWorkflow(
            command.child_id,
            command.workflow.name,
            command.digest,
            resident.last_at,
            encode_event(started),
            owner=owner,
            parent=resident.id,
            parent_no=command.no,
        )
        parent, no = resident.id, command.no

        def tell(existed: bool | None, error: Exception | None) -> None:
            # With an error the rows that recorded the child were refused too: then nobody has asked for it.
            if error is None and existed is not False:
                self._outside.adopt_child(parent, no, command.child_id, command.workflow.name, command.input)

        start = Start(command.workflow, new, started, tell)
        waiting = self._starting.get(command.child_id)
        if waiting is not None:  # somebody else's start of the same ID is on its way: that one decides
            waiting.append(start)
            return
        self._starting[command.child_id] = [start]
        self._part(resident).starts.append(new)

    def _send_message(self, resident: Resident, command: SendMessage) -> None:
        self._append(
            resident,
            MessageSent(
                no=command.no,
                to=command.to,
                topic=command.topic,
                value=Raw(command.value),
                message_id=command.message_id,
            ),
        )
        received = MessageReceived(
            message_id=command.message_id, topic=command.topic, value=Raw(command.value)
        )
        self._part(resident).messages.append(
            Message(command.to, command.message_id, "MessageReceived", encode_event(received))
        )

    def _complete(self, resident: Resident, command: Complete) -> None:
        self._end(resident, WorkflowCompleted(result=Raw(command.result)), "completed")

    def _fail(self, resident: Resident, command: Fail) -> None:
        if resident.parks:
            self._park(resident, parked_by(command.error, command.failed))
        else:
            failed = command.failed if resident.parent is not None else []
            self._end(resident, WorkflowFailed(error=command.error, failed=failed), "failed")

    def _cancelled(self, resident: Resident, command: Cancel) -> None:
        self._end(resident, WorkflowCancelled(reason=command.reason), "cancelled")

    def _cancel_at_once(self, resident: Resident, message_id: str, asked: CancelRequested) -> None:
        """End a workflow by a cancel in its mail without its code: it never ran, is parked, or can't go on."""
        self._part(resident).folded.append(message_id)
        self._append(resident, asked)
        self._end(resident, WorkflowCancelled(reason=asked.reason), "cancelled")

    def _end(self, resident: Resident, event: Ending, status: str) -> None:
        self._append(resident, event)
        part = self._part(resident)
        part.head = HeadChange(
            status, None, finished_at=resident.last_at, takes_next=resident.ordered and self.accepting
        )
        asked = list(resident.watchers)
        if resident.parent is not None and resident.parent_no is not None:
            asked.append((resident.parent, resident.parent_no))
        for parent, no in asked:
            part.messages.append(child_answer(parent, no, resident.id, event))
        self._close(resident)

    def _close(self, resident: Resident) -> None:
        """Nothing more is appended to this stream by this copy: let go of all that still runs for it."""
        resident.ended = True
        resident.timers.clear()
        resident.retries.clear()
        resident.unstarted.clear()
        resident.allowed_after.clear()
        for call in resident.running.values():
            call.over = True
            self._outside.drop_step(call)
        resident.running.clear()
        for give in resident.gives:
            give(None)  # their threads wait, with a transaction open
        resident.gives.clear()

    def _stuck(self, resident: Resident, mismatch: Exception, seq: int) -> None:
        """History and code differ: mark the head, for code with another fingerprint to take it up. Never an event."""
        if resident.cancel_mail is not None and resident.part is None:
            resident.instance.evict()
            resident.history.clear()
            self._cancel_at_once(resident, *resident.cancel_mail)
            return
        log.error(
            "workflow %s is stuck: %s", resident.id, mismatch, extra={"stream": resident.id, "seq": seq}
        )
        if resident.part is not None and resident.part.events:
            self._unsend(resident)  # events that the code did not accept must not become durable
        self._part(resident).head = HeadChange(
            "stuck", None, due_at=self.clock.now(), fingerprint=resident.workflow.fingerprint
        )
        self._close(resident)

    def leave_stuck(self, workflow_id: str, workflow: Workflow[..., Any], reason: str) -> None:
        """Mark a workflow stuck whose history or mail this release can't read: a newer one takes it up."""
        log.error("workflow %s is stuck: this release can't read its %s", workflow_id, reason)
        head = HeadChange("stuck", None, due_at=self.clock.now(), fingerprint=workflow.fingerprint)
        self._pump.add(workflow_id, Append(workflow_id, head=head))

    def _park_poison(self, resident: Resident) -> None:
        reason = (
            f"its worker died {resident.deaths} times while running it, the last times with nothing else in hand; "
            "look at the steps it was in"
        )
        self._park(resident, Parked(reason=reason, deaths=resident.deaths))

    def _park(self, resident: Resident, parked: Parked) -> None:
        log.error(
            "workflow %s is parked: %s", resident.id, show_parked(parked), extra={"stream": resident.id}
        )
        resident.parked = True
        self._append(resident, parked)
        self._part(resident).head = HeadChange("parked", None)
        self._close(resident)

    def _check_children(self, resident: Resident) -> None:
        """After a replay: a child under an ID of the user's choosing may be somebody else's; ask again."""
        for no, (workflow, child, input) in resident.children.items():
            if child != f"{resident.id}/{no}":
                self._outside.adopt_child(resident.id, no, child, workflow, input)

    # Flushing.

    def _part(self, resident: Resident) -> Append:
        """Return the rows of this workflow that wait for the next flush."""
        if resident.part is None:
            resident.part = Append(resident.id)
            self._pump.add(resident.id, resident.part)
        return resident.part

    def _sending(self, batch: Batch) -> None:
        for append in batch.values():
            resident = self.residents.get(append.stream)
            if resident is not None and resident.part is append:
                resident.part, resident.in_flight = None, append

    def _unable(self, error: Exception) -> None:
        if isinstance(error, Fenced):
            self._outside.fenced()
        else:
            self._outside.broken(error)

    def _flushed(self, batch: Batch, flushed: Flushed) -> None:
        self.clock.refresh(flushed.log_time)
        if UNKNOWN in flushed.existing:
            self._outside.find_lost()
        taken = [each.split(TAKEN)[1:] for each in flushed.existing if each.startswith(TAKEN)]
        if taken:
            self._outside.take_next([(workflow_id, name) for workflow_id, name in taken])
        ready: list[StepCall] = []
        for key, append in batch.items():
            error = flushed.refused.get(append.stream)
            if append.starts:
                self._started(append, flushed, error)
            resident = self.residents.get(append.stream)
            if resident is not None and resident.in_flight is append:
                resident.in_flight = None
                if error is not None:
                    self._refused(resident, error)
                else:
                    self._durable(resident, append, ready)
            for tell in self._senders.pop(key, ()):
                tell(error)
            if error is None:
                for message in append.messages:
                    if message.to in self.residents or message.to in self.loading:
                        self.mail(message.to, message.message_id, decode_event(message.body))
        if ready:
            self._outside.run_steps(ready)
        self._fire_due()

    def _started(self, append: Append, flushed: Flushed, error: EventLogError | None) -> None:
        for new in append.starts:
            waiting = self._starting.pop(new.workflow_id, [])
            if not waiting:
                continue
            first, *others = waiting
            existed: bool | None = new.workflow_id in flushed.existing
            if not existed and UNKNOWN in flushed.existing:
                existed = None
            if error is None and existed is False and new.owner == self.worker and new.failed is None:
                if MAILED + new.workflow_id in flushed.existing:
                    self._outside.committed(new.workflow_id, [Recorded(0, new.at, first.event)])
                    self._outside.reload(new.workflow_id)
                else:
                    self.begin(first.workflow, first.new, first.event)
            first.tell(existed, error)
            for other in others:
                if error is None:
                    other.tell(True, None)
                else:  # what they waited for never happened: they ask for themselves
                    self._again(other)

    def _again(self, start: Start) -> None:
        if start.new.parent is None:
            self.start(start)
        else:
            start.tell(True, None)

    def _unsend(self, resident: Resident) -> None:
        """Take back the rows that wait for the next flush: nothing of them is to be written."""
        part, resident.part = resident.part, None
        if part is None:
            return
        self._pump.discard(resident.id, part)
        for new in part.starts:
            waiting = self._starting.get(new.workflow_id)
            if waiting and waiting[0].new is new:
                del self._starting[new.workflow_id]
                for other in waiting[1:]:
                    self._again(other)

    def _durable(self, resident: Resident, append: Append, ready: list[StepCall]) -> None:
        """Let out what waited for these rows."""
        resident.durable_seq += len(append.events)
        if resident.news:
            count = resident.durable_seq - resident.news[0].seq
            news, resident.news = resident.news[:count], resident.news[count:]
            self._outside.committed(resident.id, news)
        else:
            news = []
        if append.head is not None:
            missed = resident.mail_missed
            self._drop(resident)
            if append.head.finished_at is not None:
                self._outside.ended(resident.id, news[-1].event)
            else:
                self._outside.left(resident.id, append.head.due_at)
                if resident.claimed_again:
                    self._outside.reload(resident.id)
                if missed:
                    self._outside.look_for_work()
            return
        for action in self._waiting_durable.pop(resident.id, ()) if resident.part is None else ():
            action()
        self._dispatch(resident, ready)
        self._settle(resident)

    def _refused(self, resident: Resident, error: EventLogError) -> None:
        workflow_id = resident.id
        self._drop(resident)
        if isinstance(error, StaleWriter):
            log.warning("workflow %s: %s", workflow_id, error, extra={"stream": workflow_id})
            self._outside.reload(workflow_id)
            return
        log.error("workflow %s fails: %s", workflow_id, error, extra={"stream": workflow_id})
        again = Resident(
            workflow_id,
            resident.workflow,
            resident.instance,
            parent=resident.parent,
            parent_no=resident.parent_no,
            parks=resident.parks,
            next_seq=resident.durable_seq,
            durable_seq=resident.durable_seq,
            last_at=resident.last_at,
            watchers=resident.watchers,
        )
        self.residents[workflow_id] = again
        refusal = record_error(error)
        event = parked_by(refusal, []) if again.parks else WorkflowFailed(error=refusal)
        part = self._part(again)
        part.events.append(NewEvent(again.next_seq, type(event).__name__, again.last_at, encode_event(event)))
        again.news.append(Recorded(again.next_seq, again.last_at, event))
        again.next_seq += 1
        again.ended = True
        if isinstance(event, Parked):
            again.parked = True
            part.head = HeadChange("parked", None)
            return
        part.head = HeadChange("failed", None, finished_at=again.last_at)
        asked = list(again.watchers)
        if again.parent is not None and again.parent_no is not None:
            asked.append((again.parent, again.parent_no))
        part.messages += [child_answer(parent, no, workflow_id, event) for parent, no in asked]

    def _dispatch(self, resident: Resident, ready: list[StepCall]) -> None:
        """Release the steps whose every preceding event is durable now."""
        if not resident.allowed_after or not self.accepting_steps:
            return
        later = []
        for item in resident.allowed_after:
            after, command = item
            if after > resident.durable_seq:
                later.append(item)
                continue
            resident.unstarted.pop(command.no, None)
            failures = resident.failures.get(command.no, 0)
            forgiven = resident.forgiven.get(command.no, 0) if resident.forgiven else 0
            call = StepCall(
                resident.id,
                resident.workflow.name,
                command,
                failures + 1 + resident.deaths,
                failures - forgiven,
            )
            resident.running[command.no] = call
            ready.append(call)
        resident.allowed_after = later

    # Time.

    def _set_alarm(self, resident: Resident, when: int, no: int) -> None:
        self._alarms.set(when, resident.id, no)

    def time_moved(self) -> None:
        """The log's clock was read anew."""
        self._alarms.clock_moved()

    def _fire_due(self) -> None:
        ready: list[StepCall] = []
        while (alarm := self._alarms.pop()) is not None:
            when, workflow_id, no = alarm
            resident = self.residents.get(workflow_id)
            if resident is None:
                continue
            if resident.timers.get(no) == when:
                self._stimulus(resident, partial(self._timer_fired, resident, no, when))
            elif no in resident.retries and resident.retries[no][0] == when:
                self._retry(resident, no, ready)
        if ready:
            self._outside.run_steps(ready)

    def _waits_for(self, when: int, workflow_id: str, no: int) -> bool:
        resident = self.residents.get(workflow_id)
        if resident is None:
            return False
        retry = resident.retries.get(no)
        return resident.timers.get(no) == when or (retry is not None and retry[0] == when)

    def _retry(self, resident: Resident, no: int, ready: list[StepCall]) -> None:
        command = resident.retries[no][1]
        if resident.evicting:
            resident.mail_missed = True
        elif command is not None and not resident.ended:
            del resident.retries[no]
            resident.unstarted[no] = command
            resident.allowed_after.append((resident.next_seq, command))
            self._idle.pop(resident.id, None)
            self._dispatch(resident, ready)

    def _timer_fired(self, resident: Resident, no: int, until: int) -> None:
        if resident.timers.pop(no, None) is not None:
            self._append(resident, TimerFired(no=no, until=until))

    # Leaving memory.

    def _settle(self, resident: Resident) -> None:
        """After something happened to it: dispatch what needs no flush; note whether it only waits now."""
        if resident.dead:
            return
        if not self.accepting_steps:
            resident.allowed_after.clear()
        if (
            resident.allowed_after
            and resident.part is None
            and resident.in_flight is None
            and resident.held is None
        ):
            ready: list[StepCall] = []
            self._dispatch(resident, ready)
            if ready:
                self._outside.run_steps(ready)
        if not resident.idle:
            self._idle.pop(resident.id, None)
        elif not self.accepting_steps:
            self._let_go(resident, "pending")
        elif resident.id not in self._idle:
            resident.idle_since = time.monotonic()
            self._idle[resident.id] = resident
            if self._sweep is None:
                self._sweep = self._loop.call_later(LINGER / 2, self._sweep_idle)

    def _sweep_idle(self) -> None:
        self._sweep = None
        cut = time.monotonic() - (LINGER if len(self.residents) < MOST_RESIDENT and self.accepting else 0)
        soon = self.clock.now() + KEEP_IF_DUE_WITHIN
        for resident in list(self._idle.values()):
            if resident.idle_since > cut:
                break
            wake = resident.next_wake()
            if wake is None or wake > soon:
                self._let_go(resident, "waiting")
        if self._idle:
            self._sweep = self._loop.call_later(LINGER / 2, self._sweep_idle)

    def _let_go(self, resident: Resident, status: str) -> None:
        """Write its wait into the head; with that durable it leaves memory and anybody may claim it when due."""
        self._idle.pop(resident.id, None)
        resident.evicting = resident.ended = True
        due = self.clock.now() if status == "pending" else resident.next_wake()
        self._part(resident).head = HeadChange(status, None, due_at=due)

    def _drop(self, resident: Resident) -> None:
        """Forget a workflow: its code is ended where it stands, explicitly, without effects (rule 4)."""
        resident.dead = True
        self._close(resident)
        self._idle.pop(resident.id, None)
        self._unsend(resident)
        if self.residents.get(resident.id) is resident:
            del self.residents[resident.id]
        for action in self._waiting_durable.pop(resident.id, ()):
            action()
        resident.instance.evict()

    # The end of the executor.

    async def drain(self, grace: float) -> bool:
        """Release all workflows: those with no step in hand at once, the others as their steps end.

        Returns whether all could be released within `grace` seconds.
        """
        self.let_go()
        deadline = time.monotonic() + grace
        while self.residents or self._starting or self._pump.busy:
            left = deadline - time.monotonic()
            if left <= 0:
                return False
            await self._pump.rest(min(left, 0.5))
        return True

    def let_go(self) -> None:
        """Take in nothing more; release what has no step in hand now, the rest as its steps end."""
        self.accepting = self.accepting_steps = False
        self._loop.call_soon(self._release_idle)

    def _release_idle(self) -> None:
        for resident in list(self.residents.values()):
            resident.allowed_after.clear()
            if resident.idle:
                self._let_go(resident, "pending")

    def abandon(self) -> None:
        """Drop everything without another write: this worker was declared dead, or its grace is over."""
        self.abandoned = True
        self._pump.stop()
        self._alarms.stop()
        if self._sweep is not None:
            self._sweep.cancel()
        for resident in list(self.residents.values()):
            self._drop(resident)
        starting, self._starting = self._starting, {}
        for starts in starting.values():
            for start in starts:
                start.tell(None, Fenced(self.worker))
        senders, self._senders = self._senders, {}
        for tells in senders.values():
            for tell in tells:
                tell(Fenced(self.worker))


def parked_by(error: RecordedError, failed: list[int]) -> Parked:
    """Return the event that parks a workflow for an error that came out of it."""
    return Parked(reason="it raised an error", error=error, failed=failed)


def show_parked(parked: Parked) -> str:
    """Say why it is parked."""
    error = parked.error
    return parked.reason if error is None else f"{parked.reason}: {error.qualname}: {error.message}"


def child_answer(parent: str, no: int, child: str, event: Ending) -> Message:
    """Return the message that tells a parent how its child ended."""
    message_id = f"child:{no}:{child}"  # a parent may have asked for one child more than once
    answer: ChildCompleted | ChildFailed
    if isinstance(event, WorkflowCompleted):
        answer = ChildCompleted(no=no, child=child, result=event.result, message_id=message_id)
    else:
        error = (
            event.error
            if isinstance(event, WorkflowFailed)
            else record_error(Cancellation(child, event.reason))
        )
        answer = ChildFailed(no=no, child=child, error=error, message_id=message_id)
    return Message(parent, message_id, type(answer).__name__, encode_event(answer))


def reused(child: str, found: str, expected: str) -> RecordedError:
    """Return the error of a child whose ID belongs to another workflow or input."""
    return record_error(WorkflowIdReused(child, found, expected))


_HANDLERS: Final[dict[type[Command], Callable[[Executor, Resident, Any], None]]] = {
    RunStep: Executor._run_step,
    StartTimer: Executor._start_timer,
    CancelCommand: Executor._cancel,
    CancelChild: Executor._cancel_child,
    StartChild: Executor._start_child,
    SendMessage: Executor._send_message,
    Complete: Executor._complete,
    Fail: Executor._fail,
    Cancel: Executor._cancelled,
}
