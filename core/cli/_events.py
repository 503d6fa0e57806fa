"""How an event reads in a terminal: one line each, and as plain fields for JSON."""

from datetime import timedelta
from typing import Any, assert_never

import msgspec

from refold.core.cli._output import short_time
from refold.eventlog import (
    CancelRequested,
    ChildCompleted,
    ChildFailed,
    ChildStarted,
    Event,
    GapFound,
    IdentitySealed,
    MessageReceived,
    MessageSent,
    Noted,
    Parked,
    PositionAdvanced,
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
    encode_event,
    from_micros,
)


def event_fields(event: Event) -> dict[str, Any]:
    """Return an event as its JSON object, payloads included as they were written."""
    fields: dict[str, Any] = msgspec.json.decode(encode_event(event))
    return fields


def describe_event(event: Event) -> str:
    """Return what the event says beside its type, in one line."""
    match event:
        case WorkflowStarted():
            return f"{event.name}({_arguments(event.input)})" + (
                f" by {event.source}" if event.source else ""
            )
        case StepCompleted():
            again = f"  (attempt {event.attempt})" if event.attempt > 1 else ""
            return f"{event.name}({_arguments(event.args)}) -> {_text(event.result)}{again}"
        case StepFailed():
            then = f", again at {from_micros(event.retry_at).astimezone():%H:%M:%S}" if event.retry_at else ""
            return (
                f"{event.name}({_arguments(event.args)}) attempt {event.attempt}: {_error(event.error)}{then}"
            )
        case TimerFired():
            return f"set for {from_micros(event.until).astimezone():%Y-%m-%d %H:%M:%S}"
        case ChildStarted():
            return f"{event.name}({_arguments(event.input)}) as {event.child}"
        case ChildCompleted():
            return f"{event.child} -> {_text(event.result)}"
        case ChildFailed():
            return f"{event.child}: {_error(event.error)}"
        case MessageSent():
            return f"{_topic(event.topic)}{_text(event.value)} to {event.to}"
        case MessageReceived():
            return f"{_topic(event.topic)}{_text(event.value)}"
        case WatcherAdded():
            return f"{event.parent} asked for this workflow as its child, and waits for its end too"
        case WorkflowCompleted():
            return f"-> {_text(event.result)}"
        case WorkflowFailed():
            return _error(event.error)
        case WorkflowCancelled():
            return event.reason
        case Parked():
            return event.reason if event.error is None else f"{event.reason}: {_error(event.error)}"
        case Retried():
            again = ", ".join(map(str, event.undelivered))
            return "a person set it going again" + (f"; what failed at {again} is run again" if again else "")
        case CancelRequested():
            return event.reason
        case IdentitySealed():
            return f"history of a {event.status} {event.name} was deleted; the ID stays taken"
        case PositionAdvanced():
            return f"{_text(event.position)}, {event.started} started"
        case GapFound():
            return event.detail
        case Noted():
            return event.text
        case _:
            assert_never(event)


def _text(raw: msgspec.Raw) -> str:
    return bytes(raw).decode("utf-8", "replace")


def _arguments(raw: msgspec.Raw) -> str:
    try:
        fields = msgspec.json.decode(bytes(raw), type=dict[str, msgspec.Raw])
    except msgspec.DecodeError:
        return _text(raw)
    return ", ".join(_text(value) for value in fields.values())


def _topic(topic: str) -> str:
    return f"{topic}: " if topic else ""


def _error(error: RecordedError) -> str:
    return f"{error.qualname}: {error.message}" if error.message else error.qualname


def describe_live(event: Event, took: timedelta | None) -> str:
    """Return the line that `refold dev` prints for an event: what happened, then how long it took."""
    span = f"  ({short_time(took)})" if took is not None else ""
    match event:
        case WorkflowStarted():
            return f"started {describe_event(event)}"
        case StepCompleted():
            return f"step {describe_event(event)}{span}"
        case StepFailed():
            return f"step failed {describe_event(event)}{span}"
        case TimerFired():
            return f"slept{span}"
        case ChildStarted():
            return f"child started {describe_event(event)}"
        case ChildCompleted():
            return f"child completed {describe_event(event)}{span}"
        case ChildFailed():
            return f"child failed {describe_event(event)}{span}"
        case MessageSent():
            return f"sent {describe_event(event)}"
        case MessageReceived():
            return f"received {describe_event(event)}{span}"
        case WorkflowCompleted():
            return f"completed {describe_event(event)}"
        case WorkflowFailed():
            return f"failed {describe_event(event)}"
        case _:
            return f"{type(event).__name__} {describe_event(event)}"
