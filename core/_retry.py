"""What a retry leaves out of a history: the failures that the code was told of last.

A parked workflow that is retried is replayed without them. So its code asks for the same steps again, which run again,
and all that was recorded before stays as it was. The event `Retried` names them, for every later replay.
"""

from collections.abc import Collection, Iterable, Sequence
from typing import Final

from refold.eventlog._events import (
    ChildFailed,
    Event,
    Parked,
    Recorded,
    Retried,
    StepFailed,
    WatcherAdded,
    WorkflowFailed,
)

NONE: Final[frozenset[int]] = frozenset()
# What the code is never told of stands in no failure's way.
_UNSEEN: Final = (Parked, Retried, WatcherAdded, WorkflowFailed)


def find_undelivered(history: Iterable[Recorded]) -> Collection[int]:
    """Return the seqs that a replay leaves out."""
    found = [event.undelivered for _, _, event in history if type(event) is Retried]
    return frozenset(seq for seqs in found for seq in seqs) if found else NONE


def find_failed_tail(history: Sequence[Recorded]) -> list[Recorded]:
    """Return the final failures of steps and children that nothing else was delivered after, in order."""
    gone = find_undelivered(history)
    tail: list[Recorded] = []
    for recorded in reversed(history):
        if recorded.seq in gone or _is_unseen(recorded.event):
            continue
        if not isinstance(recorded.event, StepFailed | ChildFailed):
            break
        tail.append(recorded)
    return tail[::-1]


def find_parked(history: Sequence[Recorded]) -> Parked | None:
    """Return what parked the workflow that this is the history of; None when it is not parked."""
    last = history[-1].event
    return last if isinstance(last, Parked) else None


def _is_unseen(event: Event) -> bool:
    return isinstance(event, _UNSEEN) or (isinstance(event, StepFailed) and event.retry_at is not None)
