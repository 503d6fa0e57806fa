"""What a retry leaves out of a history: failures that the code was told of, and that led to nothing recorded.

A parked workflow that is retried is replayed without them. So its code asks for the same steps again, which run again,
and all that was recorded before stays as it was. The event `Retried` names them, for every later replay.
"""

from collections.abc import Collection, Iterable, Sequence
from typing import Final

from refold.eventlog._events import Parked, Recorded, Retried

NONE: Final[frozenset[int]] = frozenset()


def find_undelivered(history: Iterable[Recorded]) -> Collection[int]:
    """Return the seqs that a replay leaves out."""
    found = [event.undelivered for _, _, event in history if type(event) is Retried]
    return frozenset(seq for seqs in found for seq in seqs) if found else NONE


def find_parked(history: Sequence[Recorded]) -> Parked | None:
    """Return what parked the workflow that this is the history of; None when it is not parked."""
    last = history[-1].event
    return last if isinstance(last, Parked) else None
