"""The offsets that Kafka is told: monitors of lag look at them, nobody else does."""

import time
from collections.abc import Callable, Mapping
from typing import Any, Final

from refold.connectors.kafka._places import Key

# Fresh enough for a monitor; a hundred hand-overs a second would otherwise be as many commits.
_TELL_EVERY: Final = 0.2


class LagHint:
    """Tells Kafka how far a consumer has come: the newest offsets, one commit under way at a time.

    A commit for each hand-over, sent without waiting, is more than a group's coordinator may answer. What it has
    not answered queues up in front of the heartbeats, until the member counts as dead and loses its partitions.
    """

    def __init__(self, commit: Callable[[Mapping[Key, int]], None]) -> None:
        """Use `commit` to begin a commit of offsets; `answered` is to be called when it has ended."""
        self._commit = commit
        self._news: dict[Key, int] = {}
        self._is_under_way = False
        self._next_at = 0.0

    def note(self, key: Key, next_offset: int) -> None:
        """Remember what is to be told of a partition."""
        self._news[key] = next_offset

    def forget(self, key: Key) -> None:
        """Tell nothing more of a partition: it is somebody else's, or its offsets are no longer known."""
        self._news.pop(key, None)

    def answered(self, *_: Any) -> None:
        """Take note that the commit has ended, whichever way: the next one tells more."""
        self._is_under_way = False

    def tell(self, *, at_once: bool = False) -> None:
        """Begin a commit if there is news and none is under way; `at_once` for a last word."""
        now = time.monotonic()
        if not self._news or (not at_once and (self._is_under_way or now < self._next_at)):
            return
        news, self._news = self._news, {}
        self._next_at = now + _TELL_EVERY
        self._is_under_way = True
        self._commit(news)
