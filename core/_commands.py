"""What workflow code can ask for. The driver makes commands, the executor carries them out.

`no` numbers the steps, timers, children and sends of one workflow in the order in which the code asked for
them, from 0. The same code over the same history gives the same numbers, which is what ties an event in the
log to the call that it answers.
"""

from typing import Any, TypeAlias

import msgspec

from refold.core._definitions import Step, Workflow
from refold.eventlog._events import RecordedError


class RunStep(msgspec.Struct, frozen=True):
    """Run `step` with `args` (JSON object {parameter: value}) and append how it ended."""

    no: int
    step: Step[..., Any]
    args: bytes


class StartTimer(msgspec.Struct, frozen=True):
    """Append `TimerFired` once the log's clock has reached `until` (microseconds since 1970 UTC)."""

    no: int
    until: int


class CancelCommand(msgspec.Struct, frozen=True):
    """The step or timer of command `no`, taken before, is no longer wanted; an answer that still comes does no harm."""

    no: int


class CancelChild(msgspec.Struct, frozen=True):
    """Ask the child of command `no` to cancel. It does no harm again: the child drops what it was told before."""

    no: int
    child_id: str
    reason: str


class StartChild(msgspec.Struct, frozen=True):
    """Start `workflow` under `child_id`, in the transaction that records `ChildStarted`."""

    no: int
    workflow: Workflow[..., Any]
    child_id: str
    input: bytes
    digest: str


class SendMessage(msgspec.Struct, frozen=True):
    """Put `value` into the inbox of workflow `to`, in the transaction that records `MessageSent`."""

    no: int
    to: str
    topic: str
    value: bytes
    message_id: str


class Complete(msgspec.Struct, frozen=True):
    """The workflow returned `result`. No command follows."""

    result: bytes


class Fail(msgspec.Struct, frozen=True):
    """The workflow raised `error`. No command follows. At the seqs `failed` are failures that the code was told of, and
    has asked for nothing since that is recorded: left out of a replay, they leave the rest as it was."""

    error: RecordedError
    failed: list[int] = []


class Cancel(msgspec.Struct, frozen=True):
    """The workflow was asked to cancel, and has let it happen. No command follows."""

    reason: str


End: TypeAlias = Complete | Fail | Cancel
Command: TypeAlias = RunStep | StartTimer | CancelCommand | CancelChild | StartChild | SendMessage | End
