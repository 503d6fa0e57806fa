"""Durable timers in memory: what is due when, by the log's clock."""

import asyncio
import heapq
import itertools
from collections.abc import Callable
from typing import Final

from refold.core._clock import LogClock

_SIFT_FROM: Final = 10_000


class Alarms:
    """Calls `due()` when the earliest alarm has come; it takes what is due with `pop`. Used on the engine's thread."""

    def __init__(
        self, clock: LogClock, due: Callable[[], None], counts: Callable[[int, str, int], bool]
    ) -> None:
        self._clock, self._due = clock, due
        self._counts = counts  # whether anybody still waits for (when, workflow, command)
        self._sift_at = _SIFT_FROM
        self._loop = asyncio.get_running_loop()
        self._heap: list[tuple[int, int, str, int]] = []
        self._tiebreak = itertools.count()
        self._handle: asyncio.TimerHandle | None = None
        self._at = 0

    def set(self, when: int, workflow_id: str, no: int) -> None:
        """Set an alarm for command `no`. There is no unset: who takes it looks whether it still counts."""
        heapq.heappush(self._heap, (when, next(self._tiebreak), workflow_id, no))
        if len(self._heap) >= self._sift_at:
            # Time-outs that were not needed and sleepers that left memory: they would stay for as long as they are set.
            self._heap = [alarm for alarm in self._heap if self._counts(alarm[0], alarm[2], alarm[3])]
            heapq.heapify(self._heap)
            self._sift_at = max(_SIFT_FROM, 2 * len(self._heap))
        self._arm()

    def pop(self) -> tuple[int, str, int] | None:
        """Take the earliest alarm that is due now: when, workflow, command."""
        if self._heap and self._heap[0][0] <= self._clock.now():
            when, _, workflow_id, no = heapq.heappop(self._heap)
            return when, workflow_id, no
        return None

    def clock_moved(self) -> None:
        """The log's clock was read anew: what is due may be due earlier or later than thought."""
        self.stop()
        self._due()
        self._arm()

    def stop(self) -> None:
        """Call no more."""
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None

    def _arm(self) -> None:
        if not self._heap:
            return
        when = self._heap[0][0]
        if self._handle is not None:
            if self._at <= when:
                return
            self._handle.cancel()
        self._at = when
        self._handle = self._loop.call_later(max(0, when - self._clock.now()) / 1e6, self._ring)

    def _ring(self) -> None:
        self._handle = None
        self._due()
        self._arm()
