"""When a zone's clock is set forward or back. What `zoneinfo` knows, in the form in which schedules need it.

`zoneinfo` gives the offset at an instant and keeps the list of changes to itself, so they are searched for: sampled
four times a day, then halved down to the second. No zone has been changed and changed back within six hours since
1970 (tests/connectors/cron compares with the tables of every zone).
"""

import difflib
import zoneinfo
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Final, NamedTuple

from refold.core import DefinitionRefused

_SAMPLE: Final = 6 * 3600
_DAY: Final = 86_400
_LAST_YEAR: Final = 9_000
# Names of zones that never change their clock, or follow the rules of a country that the name does not say.
_ABBREVIATIONS: Final = {
    "EST": "America/New_York", "EST5EDT": "America/New_York", "CST6CDT": "America/Chicago",
    "MST": "America/Denver", "MST7MDT": "America/Denver", "PST8PDT": "America/Los_Angeles",
    "HST": "Pacific/Honolulu", "WET": "Europe/Lisbon", "CET": "Europe/Berlin", "MET": "Europe/Berlin",
    "EET": "Europe/Helsinki",
}  # fmt: skip
_ABBREVIATIONS_OF_PEOPLE: Final = {
    "PST": "America/Los_Angeles", "PDT": "America/Los_Angeles", "CST": "America/Chicago", "CDT": "America/Chicago",
    "EDT": "America/New_York", "MDT": "America/Denver", "CEST": "Europe/Berlin", "BST": "Europe/London",
    "IST": "Asia/Kolkata", "JST": "Asia/Tokyo", "MSK": "Europe/Moscow", "AEST": "Australia/Sydney",
}  # fmt: skip


class Span(NamedTuple):
    """From `start` up to before `end` (seconds since 1970 UTC) a zone's clock is `offset` seconds ahead of UTC.

    `reached` is the latest wall-clock second that its clock has shown before `start`.
    """

    start: int
    end: int
    offset: int
    reached: int


def check_zone(where: str, name: str) -> None:
    """Raise DefinitionRefused when `name` is no zone, or one that is not what it seems."""
    city = _ABBREVIATIONS.get(name) or _ABBREVIATIONS_OF_PEOPLE.get(name)
    if city is not None:
        raise DefinitionRefused(
            where,
            f"timezone={name!r} is an abbreviation: it does not say whose rules of summer time hold",
            f'Name a place, like {city!r}, or "UTC".',
        )
    if name.startswith("Etc/GMT") and name not in ("Etc/GMT", "Etc/GMT0", "Etc/GMT+0", "Etc/GMT-0"):
        raise DefinitionRefused(
            where,
            f"timezone={name!r} is a fixed offset, and its sign is the other way round than it looks",
            'Name a place, like "America/Bogota", or "UTC".',
        )
    try:
        zoneinfo.ZoneInfo(name)
    except (zoneinfo.ZoneInfoNotFoundError, ValueError, TypeError, OSError):
        near = difflib.get_close_matches(str(name), zoneinfo.available_timezones(), n=1, cutoff=0.5)
        hint = f"Did you mean {near[0]!r}?" if near else 'Write it as in "Europe/Berlin".'
        raise DefinitionRefused(where, f"there is no time zone {name!r}", hint) from None


def spans(name: str, instant: int) -> Iterator[Span]:
    """Yield the spans of zone `name` from `instant` on, in order, cut at the ends of years UTC."""
    start, offset = instant, _offset(name, instant)
    reached = _reached_before(name, instant)
    for year in range(datetime.fromtimestamp(instant, UTC).year, _LAST_YEAR):
        for change, before, after in (*_changes(name, year), (_new_year(year + 1), offset, offset)):
            if change <= start:
                offset = after if change == start else offset
                continue
            yield Span(start, change, offset, reached)
            reached = max(reached, change - 1 + offset)
            start = change
            if before != after:
                offset = after


def _reached_before(name: str, instant: int) -> int:
    """Return the latest wall-clock second shown before `instant`. Only changes of the last days can matter: no
    clock is a day away from UTC."""
    year = datetime.fromtimestamp(instant, UTC).year
    reached = instant - 1 + _offset(name, instant - 1)
    for change, before, _ in (*_changes(name, year - 1), *_changes(name, year)):
        if instant - 3 * _DAY < change <= instant:
            reached = max(reached, change - 1 + before)
    return reached


@lru_cache(maxsize=8192)
def _changes(name: str, year: int) -> tuple[tuple[int, int, int], ...]:
    """Return the changes of a year UTC: (instant, offset before, offset after)."""
    at, end = _new_year(year), _new_year(year + 1)
    found = []
    before = _offset(name, at - 1)
    low = at - 1
    while low < end - 1:
        high = min(low + _SAMPLE, end - 1)
        after = _offset(name, high)
        if after != before:
            found.append(_find_change(name, low, high, before))
            low, before = found[-1][0], found[-1][2]
        else:
            low = high
    return tuple(found)


def _find_change(name: str, low: int, high: int, before: int) -> tuple[int, int, int]:
    while high - low > 1:
        middle = (low + high) // 2
        if _offset(name, middle) == before:
            low = middle
        else:
            high = middle
    return high, before, _offset(name, high)


def _new_year(year: int) -> int:
    return int(datetime(year, 1, 1, tzinfo=UTC).timestamp())


def _offset(name: str, instant: int) -> int:
    found = datetime.fromtimestamp(instant, zoneinfo.ZoneInfo(name)).utcoffset()
    return int((found or timedelta()).total_seconds())
