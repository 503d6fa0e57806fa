"""A cron expression, taken apart: which seconds, minutes, hours and days it names. croniter parses it.

Five fields as in crontab(5): minute, hour, day of month, month, day of week. Six have the second in front (as in
Quartz and Temporal; croniter's own order is another). What croniter takes and nobody can mean is refused here: steps
wider than their field, days that never come, `R`, which is another time after each restart.
"""

import calendar
import re
from collections.abc import Sequence
from typing import Final, NoReturn

import msgspec
from croniter import croniter

from refold.core import DefinitionRefused

_ALIASES: Final = {
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
    "@monthly": "0 0 1 * *",
    "@weekly": "0 0 * * 0",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@hourly": "0 * * * *",
}
# What each field is called, and how many values it can have: croniter takes steps that are wider.
_FIELDS: Final = (
    ("second", 60),
    ("minute", 60),
    ("hour", 24),
    ("day of month", 31),
    ("month", 12),
    ("weekday", 7),
)
_SPLIT: Final = re.compile(r"\S+", re.ASCII)
_STEP: Final = re.compile(r"/(\d+)", re.ASCII)
_EVERY: Final = re.compile(r"@every\b", re.IGNORECASE)
# The calendar comes round after 400 years, weekdays included: what is not in them never comes.
_CYCLE: Final = range(2000, 2400)


class Fields(msgspec.Struct, frozen=True):
    """The wall-clock times that an expression names.

    `days` and `weekdays` (Sunday is 0) are None where the field is `*`; `nth` are pairs like (5, 3) for `5#3`, with
    -1 for the last; `nearest` the working days nearest to a day (`15W`). `both` says that a day must fit both the
    day of month and the weekday, not one of them; `wildcard` that the minute or the hour begins with `*`.
    """

    seconds: tuple[int, ...]
    minutes: tuple[int, ...]
    hours: tuple[int, ...]
    months: frozenset[int]
    days: frozenset[int] | None
    last_day: bool
    nearest: frozenset[int]
    weekdays: frozenset[int] | None
    nth: frozenset[tuple[int, int]]
    both: bool
    wildcard: bool

    def days_in(self, year: int, month: int) -> list[int]:
        """Return the days of a month that fit, in order."""
        if month not in self.months:
            return []
        first, length = calendar.monthrange(year, month)
        by_date = self._by_date(first, length)
        by_weekday = self._by_weekday(first, length)
        if by_date is None:
            return list(range(1, length + 1)) if by_weekday is None else sorted(by_weekday)
        if by_weekday is None:
            return sorted(by_date)
        return sorted(by_date & by_weekday if self.both else by_date | by_weekday)

    def _by_date(self, first: int, length: int) -> set[int] | None:
        if self.days is None:
            return None
        found = {day for day in self.days if day <= length}
        if self.last_day:
            found.add(length)
        for day in self.nearest:
            found.add(_nearest_working_day(first, length, min(day, length)))
        return found

    def _by_weekday(self, first: int, length: int) -> set[int] | None:
        if self.weekdays is None:
            return None
        # calendar's Monday is 0, cron's Sunday is.
        found = {day for day in range(1, length + 1) if (first + day) % 7 in self.weekdays}
        for weekday, number in self.nth:
            of_kind = [day for day in range(1, length + 1) if (first + day) % 7 == weekday]
            if number == -1:
                found.add(of_kind[-1])
            elif number <= len(of_kind):
                found.add(of_kind[number - 1])
        return found


def _nearest_working_day(first: int, length: int, day: int) -> int:
    """Return the working day nearest to `day` in the same month."""
    weekday = (first + day - 1) % 7
    if weekday == 5:
        return day - 1 if day > 1 else day + 2
    if weekday == 6:
        return day + 1 if day < length else day - 2
    return day


def parse(expression: str, *, where: str, hash_id: str) -> Fields:
    """Return what `expression` names; `H` in it is drawn from `hash_id`.

    Raises DefinitionRefused, with `where` in front, for what is no expression or names no time at all.
    """
    texts = _texts(expression, where)
    _check_texts(expression, texts, where)
    try:
        parsed = croniter(" ".join(texts), 0.0, hash_id=hash_id, second_at_beginning=True)
    except (ValueError, KeyError, TypeError) as error:
        _refuse(where, expression, f"croniter can't read it: {str(error).splitlines()[-1]}")
    expanded, nth = parsed.expanded, parsed.nth_weekday_of_month
    minute, hour, day, month, weekday = texts[-5:]
    days = _numbers(expanded[2])
    weekdays = _numbers(expanded[4])
    fields = Fields(
        seconds=_all(expanded[5], range(60)) if len(texts) == 6 else (0,),
        minutes=_all(expanded[0], range(60)),
        hours=_all(expanded[1], range(24)),
        months=frozenset(_all(expanded[3], range(1, 13))),
        days=None if days is None else days - parsed.nearest_weekday,
        last_day="l" in expanded[2],
        nearest=frozenset(parsed.nearest_weekday),
        weekdays=None if weekdays is None else weekdays - nth.keys(),
        nth=frozenset((int(of), -1 if n == "l" else int(n)) for of, every in nth.items() for n in every),
        # Vixie's rule, to the letter: one field that begins with a star, `*/2` too, and both have to fit.
        both=day[0] in "*?" or weekday[0] in "*?",
        wildcard=minute[0] == "*" or hour[0] == "*",
    )
    if not any(fields.days_in(year, number) for year in _CYCLE for number in fields.months):
        _refuse(where, expression, f"day {day!r} of month {month!r} with weekday {weekday!r} never comes")
    return fields


def _texts(expression: str, where: str) -> list[str]:
    if not isinstance(expression, str):
        raise DefinitionRefused(
            where, f"{expression!r} is no cron expression", 'Write a string: "0 9 * * MON-FRI".'
        )
    text = expression.strip()
    if text.startswith("@"):
        if _EVERY.match(text):
            raise DefinitionRefused(
                where, f"{expression!r} is no cron expression", "Write every=timedelta(...) in its place."
            )
        if text.lower() not in _ALIASES:
            raise DefinitionRefused(
                where, f"there is no {expression!r}", f"Use one of {', '.join(sorted(_ALIASES))}."
            )
        text = _ALIASES[text.lower()]
    return _SPLIT.findall(text)


def _check_texts(expression: str, texts: list[str], where: str) -> None:
    if len(texts) not in (5, 6):
        raise DefinitionRefused(
            where,
            f"{expression!r} has {len(texts)} fields",
            "Write five (minute, hour, day of month, month, weekday), or six with the second in front.",
        )
    for text, (name, size) in zip(texts, _FIELDS[-len(texts) :], strict=True):
        if "r" in re.sub("mar|apr|fri|thur", "", text.lower()):
            _refuse(where, expression, f"the {name} {text!r} is drawn anew at each start; H stays the same")
        for step in _STEP.findall(text):
            if not 0 < int(step) <= size:
                raise DefinitionRefused(
                    where,
                    f"the {name} {text!r} of {expression!r} has a step of {step}, and the field only {size} values",
                    "A step begins again with each field; for a distance of its own write every=timedelta(...).",
                )


def _numbers(expanded: Sequence[int | str]) -> frozenset[int] | None:
    """Return the numbers of an expanded field; None when it is every one."""
    if "*" in expanded:
        return None
    return frozenset(value for value in expanded if isinstance(value, int))


def _all(expanded: Sequence[int | str], every: range) -> tuple[int, ...]:
    numbers = _numbers(expanded)
    return tuple(every) if numbers is None else tuple(sorted(numbers))


def _refuse(where: str, expression: str, found: str) -> NoReturn:
    raise DefinitionRefused(
        where, f"{expression!r} names no time: {found}", "Write it as in crontab(5); see docs/cron.md."
    )
