"""The event types: what can be a fact in refold's log, and how each is written.

A type is read for ever. New fields get defaults; a tag and its meaning never change; a new meaning is a new
type. Payloads (inputs, arguments, results) are kept as the JSON bytes that were encoded once (`msgspec.Raw`),
so that what a replay reads is, byte for byte, what the first run saw. An event's time is not in its body:
it is the row's `at`, stamped by the one writer of the stream, in whole microseconds since 1970 UTC.
"""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any, Final, NamedTuple

import msgspec
from msgspec import Raw

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND: Final = timedelta(microseconds=1)


def to_micros(moment: datetime) -> int:
    """Return an aware `datetime` as whole microseconds since 1970 UTC."""
    return (moment - _EPOCH) // _MICROSECOND


def from_micros(micros: int) -> datetime:
    """Return the aware UTC `datetime` of whole microseconds since 1970 UTC."""
    return _EPOCH + timedelta(microseconds=micros)


class RecordedError(msgspec.Struct, frozen=True, omit_defaults=True):
    """An exception as the log keeps it: enough to raise the same type again, and to read it without the code.

    `state` is the list, of JSON's types only, of the arguments that `__reduce__` gave, or None when they could
    not be encoded; then the code sees a `StepError` that carries the original name, in the first run already.
    """

    module: str
    qualname: str
    message: str
    state: list[Any] | None = None  # no Raw here: msgspec cannot decode `Raw | None`
    attributes: dict[str, Any] | None = None
    cause: "RecordedError | None" = None
    notes: tuple[str, ...] = ()
    traceback: str = ""


class _Event(msgspec.Struct, frozen=True, omit_defaults=True, tag=True, tag_field="type"):
    """Base of all events: frozen, tagged by the class name."""


class WorkflowStarted(_Event, frozen=True):
    """Event 0 of every workflow: what runs, with which input, and who asked.

    `input` is a JSON object {parameter: value}. `digest` is over the deterministic encoding of it (rule: a
    person's reuse of an ID for another input is refused; a source's never is). `source` names the consumer,
    hook or schedule; `parent` and `parent_no` the workflow and its command that started this one as a child.

    With `order_key` it runs only when no workflow of the same key that came before it is open; `order_no` is its
    place among them, and with `parks` an error out of it parks it, so that the ones behind it wait for a person.
    It is not run before `not_before` (microseconds of the log's clock). `findable`: its source asks for others with
    the same digest.
    """

    name: str
    input: Raw
    digest: str
    source: str | None = None
    parent: str | None = None
    parent_no: int | None = None
    order_key: str | None = None
    order_no: int | None = None
    parks: bool = True
    not_before: int | None = None
    findable: bool = False


class StepCompleted(_Event, frozen=True):
    """Command `no`, a call of step `name` with `args`, gave `result` on its `attempt`-th try."""

    no: int
    name: str
    args: Raw
    result: Raw
    attempt: int = 1


class StepFailed(_Event, frozen=True):
    """Try `attempt` of command `no` failed. With `retry_at` (microseconds) the step is tried again then and
    the code is told nothing; without, the code gets `error`."""

    no: int
    name: str
    args: Raw
    error: RecordedError
    attempt: int = 1
    retry_at: int | None = None


class TimerFired(_Event, frozen=True):
    """The timer of command `no`, set for `until` (microseconds), came due."""

    no: int
    until: int


class ChildStarted(_Event, frozen=True):
    """Command `no` asked for the child workflow `child`; whether that ID was free comes back by the inbox."""

    no: int
    name: str
    child: str
    input: Raw


class ChildCompleted(_Event, frozen=True):
    """The child of command `no` ended with `result`."""

    no: int
    child: str
    result: Raw
    message_id: str = ""


class ChildFailed(_Event, frozen=True):
    """The child of command `no` ended with `error`, or could not be started under its ID."""

    no: int
    child: str
    error: RecordedError
    message_id: str = ""


class MessageSent(_Event, frozen=True):
    """Command `no` sent `value` to workflow `to`; the inbox row was written in the same transaction."""

    no: int
    to: str
    topic: str
    value: Raw
    message_id: str


class MessageReceived(_Event, frozen=True):
    """A message from outside the workflow's writer, folded into its stream."""

    message_id: str
    topic: str
    value: Raw


class WatcherAdded(_Event, frozen=True):
    """Another workflow asked for this one as its child, found it running, and waits for its end too."""

    parent: str
    parent_no: int
    message_id: str = ""


class WorkflowCompleted(_Event, frozen=True):
    """The workflow returned `result`. Nothing follows in the stream."""

    result: Raw


class WorkflowFailed(_Event, frozen=True):
    """The workflow raised `error`. Nothing follows in the stream, unless it was a child's, and its parent is retried:
    then `Retried` does, and the child goes on. `failed`: see `Parked`; of children only."""

    error: RecordedError
    failed: list[int] = []


class WorkflowCancelled(_Event, frozen=True):
    """The workflow was cancelled. Nothing follows in the stream."""

    reason: str = ""


class Parked(_Event, frozen=True):
    """The workflow waits for a person: it killed its worker `deaths` times while alone in it, or, being one of an
    order that parks, it raised `error`. At the seqs `failed` are the final failures of steps and children that nothing
    recorded since was asked for in answer to: what a retry runs again."""

    reason: str
    deaths: int = 0
    error: RecordedError | None = None
    failed: list[int] = []


class Retried(_Event, frozen=True):
    """A person set a parked workflow going again. The events at the seqs `undelivered` are never delivered to the
    code again: what they say failed is run once more. In a child of one that was parked, `WorkflowFailed` is among
    them."""

    undelivered: list[int] = []


class CancelRequested(_Event, frozen=True):
    """Somebody asked, by message `message_id`, that the workflow be cancelled. Its code is told in its next wait."""

    message_id: str
    reason: str = ""


class IdentitySealed(_Event, frozen=True):
    """The history of this ID was deleted; this is what remains, so that the ID can't start again."""

    name: str
    digest: str
    status: str


class PositionAdvanced(_Event, frozen=True):
    """A source was handed over up to `position` (the connector's own JSON) by the consumer `label`; `started`
    messages were in it."""

    position: Raw
    started: int = 0
    label: str = ""


class GapFound(_Event, frozen=True):
    """A source lost messages before they could be read (retention, a deleted topic): `detail` says which."""

    detail: str
    lost_from: int | None = None
    lost_to: int | None = None


class Noted(_Event, frozen=True):
    """A fact of a source itself, such as a tick that was skipped: `kind` names it for programs, `text` says it to
    people, `data` is the source's own JSON."""

    kind: str
    text: str
    data: Raw = Raw(b"null")


Event = (
    WorkflowStarted
    | StepCompleted
    | StepFailed
    | TimerFired
    | ChildStarted
    | ChildCompleted
    | ChildFailed
    | MessageSent
    | MessageReceived
    | WatcherAdded
    | WorkflowCompleted
    | WorkflowFailed
    | WorkflowCancelled
    | Parked
    | Retried
    | CancelRequested
    | IdentitySealed
    | PositionAdvanced
    | GapFound
    | Noted
)


class Recorded(NamedTuple):
    """An event in its place: its seq in the stream, its time (microseconds since 1970 UTC), the event."""

    seq: int
    at: int
    event: Event


encode_event: Final[Callable[[Event], bytes]] = msgspec.json.Encoder().encode
decode_event: Final[Callable[[bytes], Event]] = msgspec.json.Decoder(Event).decode
