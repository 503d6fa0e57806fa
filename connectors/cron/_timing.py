"""When a schedule ticks: by an expression in a zone, by a fixed distance, or at given times. Pure; in microseconds.

The rule for clocks that are changed is that of Vixie's cron (cron(8)), with one exception: there is no limit of three
hours, because a zone's own change is never the correction of a wrong clock. A *wildcard* schedule, whose minute or hour
begins with `*`, simply follows the wall clock: what is shown twice ticks twice, what is never shown never ticks. A
*fixed* one ticks once for each time that it names, the first time that the clock shows it or passes it.
"""

from bisect import bisect_right
from collections.abc import Iterator
from typing import Final

import msgspec

from refold.connectors.cron import _walk
from refold.connectors.cron._fields import Fields
from refold.connectors.cron._zone import spans

SECOND: Final = 1_000_000


class Cron(msgspec.Struct, frozen=True):
    """An expression, in a zone."""

    fields: Fields
    timezone: str

    def after(self, instant: int) -> Iterator[int]:
        """Yield the ticks later than `instant`, in order."""
        return (second * SECOND for second in _after(self.fields, self.timezone, instant // SECOND))


class Every(msgspec.Struct, frozen=True):
    """All multiples of a distance since 1970 UTC."""

    distance: int

    def after(self, instant: int) -> Iterator[int]:
        """Yield the ticks later than `instant`, in order, without end."""
        number = instant // self.distance
        while True:
            number += 1
            yield number * self.distance


class At(msgspec.Struct, frozen=True):
    """Given instants, in order."""

    instants: tuple[int, ...]

    def after(self, instant: int) -> Iterator[int]:
        """Yield the ticks later than `instant`, in order."""
        yield from self.instants[bisect_right(self.instants, instant) :]


class Timing(msgspec.Struct, frozen=True):
    """When a schedule ticks, between `start` and `end` (both included)."""

    rule: Cron | Every | At
    start: int | None = None
    end: int | None = None

    def after(self, instant: int) -> Iterator[int]:
        """Yield the ticks later than `instant`, in order."""
        if self.start is not None:
            instant = max(instant, self.start - 1)
        for tick in self.rule.after(instant):
            if self.end is not None and tick > self.end:
                return
            yield tick

    def next(self, instant: int) -> int | None:
        """Return the first tick later than `instant`; None when there is none."""
        return next(self.after(instant), None)

    def up_to(self, instant: int, last: int) -> Iterator[int]:
        """Yield the ticks later than `instant` and not later than `last`."""
        for tick in self.after(instant):
            if tick > last:
                return
            yield tick


def _after(fields: Fields, timezone: str, instant: int) -> Iterator[int]:
    """Yield the instants later than `instant` at which the schedule ticks, in seconds since 1970 UTC."""
    done = instant
    for span in spans(timezone, instant + 1):
        since = span.start - 1 + span.offset
        # A fixed time that the clock has shown or passed is over, shown again or not; one that was jumped over is
        # due as the span begins.
        for wall in _walk.after(fields, since if fields.wildcard else span.reached, span.end + span.offset):
            tick = max(wall - span.offset, span.start)
            if tick >= span.end:
                break
            if tick > done:
                done = tick
                yield tick
