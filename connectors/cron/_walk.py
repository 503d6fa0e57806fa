"""The wall-clock times of an expression, one after the other, as if no clock were ever changed. Pure.

Times are seconds since 1970 on a clock without zone. From one to the next it jumps: months, days, hours and minutes
that don't fit are not looked at one by one.
"""

from bisect import bisect_left
from collections.abc import Iterator
from datetime import date
from typing import Final

from refold.connectors.cron._fields import Fields

DAY: Final = 86_400
_EPOCH: Final = date(1970, 1, 1).toordinal()


def after(fields: Fields, wall: int, last: int) -> Iterator[int]:
    """Yield the wall-clock times later than `wall`, in order, up to the end of the month that holds `last`."""
    final = date.fromordinal(_EPOCH + last // DAY)
    first_day, first_second = divmod(wall + 1, DAY)
    began = date.fromordinal(_EPOCH + first_day)
    year, month, skip = began.year, began.month, began.day
    while (year, month) <= (final.year, final.month):
        before_month = date(year, month, 1).toordinal() - _EPOCH - 1
        for number in fields.days_in(year, month):
            day = before_month + number
            if number > skip:
                yield from _times(fields, day * DAY)
            elif number == skip:
                yield from _times_from(fields, day * DAY, first_second)
        skip = 0
        year, month = (year, month + 1) if month < 12 else (year + 1, 1)


def _times(fields: Fields, midnight: int) -> Iterator[int]:
    for hour in fields.hours:
        start = midnight + hour * 3600
        for minute in fields.minutes:
            for second in fields.seconds:
                yield start + minute * 60 + second


def _times_from(fields: Fields, midnight: int, from_second: int) -> Iterator[int]:
    """Yield the times of one day from a second of it on."""
    first_hour, rest = divmod(from_second, 3600)
    first_minute, first = divmod(rest, 60)
    for hour in fields.hours[bisect_left(fields.hours, first_hour) :]:
        minutes = fields.minutes
        if hour == first_hour:
            minutes = minutes[bisect_left(minutes, first_minute) :]
        for minute in minutes:
            seconds = fields.seconds
            if hour == first_hour and minute == first_minute:
                seconds = seconds[bisect_left(seconds, first) :]
            for second in seconds:
                yield midnight + hour * 3600 + minute * 60 + second
