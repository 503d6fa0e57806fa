"""When schedules tick: known cases of changed clocks, of calendars, and of what is no schedule at all."""

from datetime import UTC, datetime, timedelta
from itertools import islice
from zoneinfo import ZoneInfo

import pytest
from croniter import croniter
from hypothesis import given, settings
from hypothesis import strategies as st

from fixtures.cron_reference import utc
from refold.connectors.cron import _walk
from refold.connectors.cron._fields import parse
from refold.connectors.cron._timing import At, Cron, Every, Timing
from refold.connectors.cron._zone import check_zone
from refold.core import DefinitionRefused


def _us(at: datetime) -> int:
    return (at - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1)


def _ticks(expression: str, zone: str, after: str, count: int, hash_id: str = "") -> list[str]:
    cron = Cron(parse(expression, where="test", hash_id=hash_id), zone)
    begin = _us(datetime.fromisoformat(after).replace(tzinfo=UTC))
    return [
        datetime.fromtimestamp(tick / 1e6, ZoneInfo(zone)).isoformat()
        for tick in islice(cron.after(begin), count)
    ]


NEW_YORK, LONDON, LORD_HOWE = "America/New_York", "Europe/London", "Australia/Lord_Howe"


@pytest.mark.parametrize(
    ("expression", "zone", "after", "expected"),
    [
        ("30 2 * * *", NEW_YORK, "2026-03-07T12:00", "03-08T03:00-04:00 03-09T02:30-04:00 03-10T02:30-04:00"),
        ("0,30 2 * * *", NEW_YORK, "2026-03-07T12:00", "03-08T03:00-04:00 03-09T02:00-04:00 03-09T02:30-04:00"),
        ("0 */2 * * *", NEW_YORK, "2026-03-08T04:00", "03-08T00:00-05:00 03-08T04:00-04:00 03-08T06:00-04:00"),
        ("30 1 * * *", NEW_YORK, "2026-10-31T12:00", "11-01T01:30-04:00 11-02T01:30-05:00"),
        (
            "*/30 1 * * *",
            NEW_YORK,
            "2026-10-31T12:00",
            "11-01T01:00-04:00 11-01T01:30-04:00 11-01T01:00-05:00 11-01T01:30-05:00 11-02T01:00-05:00",
        ),
        (
            "0 * * * *",
            NEW_YORK,
            "2026-11-01T04:30",
            "11-01T01:00-04:00 11-01T01:00-05:00 11-01T02:00-05:00 11-01T03:00-05:00",
        ),
        ("30 1 * * *", LONDON, "2026-03-28T12:00", "03-29T02:00+01:00 03-30T01:30+01:00"),
        ("30 1 * * *", LONDON, "2026-10-24T12:00", "10-25T01:30+01:00 10-26T01:30+00:00"),
        ("15 2 * * *", LORD_HOWE, "2026-10-03T00:00", "10-04T02:30+11:00 10-05T02:15+11:00"),
        ("45 1 * * *", LORD_HOWE, "2026-04-03T20:00", "04-05T01:45+11:00 04-06T01:45+10:30"),
        ("*/15 * * * *", LORD_HOWE, "2026-10-03T15:14", "10-04T01:45+10:30 10-04T02:30+11:00 10-04T02:45+11:00"),
        ("0 9 * * *", "Asia/Kolkata", "2026-01-01T00:00", "01-01T09:00+05:30 01-02T09:00+05:30"),
        ("0 0 * * *", "America/Sao_Paulo", "2018-11-03T12:00", "11-04T01:00-02:00 11-05T00:00-02:00"),
        (
            "0 12 * * *",
            "Pacific/Apia",
            "2011-12-29T12:00",
            "12-29T12:00-10:00 12-31T00:00+14:00 12-31T12:00+14:00",
        ),
    ],
)  # fmt: skip
def test_a_changed_clock_does_what_vixie_cron_does(
    expression: str, zone: str, after: str, expected: str
) -> None:
    wanted = expected.split()
    found = _ticks(expression, zone, after, len(wanted))
    assert [tick[5:16] + tick[19:] for tick in found] == wanted


@pytest.mark.parametrize(
    ("expression", "after", "expected"),
    [
        ("0 0 29 2 *", "2026-01-01", "2028-02-29 2032-02-29"),
        ("0 0 31 * *", "2026-01-31", "2026-03-31 2026-05-31 2026-07-31"),
        ("0 0 13 * 5", "2026-02-01", "2026-02-06 2026-02-13 2026-02-20 2026-02-27 2026-03-06 2026-03-13"),
        ("0 0 29 2 1", "2026-01-01", "2026-02-02 2026-02-09 2026-02-16"),
        ("0 0 */2 * 1", "2026-02-01", "2026-02-09 2026-02-23 2026-03-09"),
        ("0 0 L * *", "2028-02-01", "2028-02-29 2028-03-31"),
        ("0 0 * * 5#3", "2026-01-01", "2026-01-16 2026-02-20 2026-03-20"),
        ("0 0 * * 1#5", "2026-01-01", "2026-03-30 2026-06-29 2026-08-31"),
        ("0 0 * * L5", "2026-01-01", "2026-01-30 2026-02-27 2026-03-27"),
        ("0 0 13 * 5#3", "2026-01-01", "2026-01-13 2026-01-16 2026-02-13 2026-02-20"),
        ("0 0 15W * *", "2026-02-01", "2026-02-16 2026-03-16 2026-04-15"),
        ("0 0 ? * MON-FRI", "2026-11-20", "2026-11-23 2026-11-24"),
        ("@weekly", "2026-11-20", "2026-11-22 2026-11-29"),
        ("@Monthly", "2026-11-20", "2026-12-01 2027-01-01"),
        ("@yearly", "2026-11-20", "2027-01-01"),
        ("0 0 1 JAN,jul SUN", "2026-06-28", "2026-07-01 2026-07-05"),
    ],
)
def test_calendars(expression: str, after: str, expected: str) -> None:
    wanted = expected.split()
    found = _ticks(expression, "UTC", after, len(wanted))
    assert found == [f"{day}T00:00:00+00:00" for day in wanted]


def test_steps_begin_again_with_each_hour() -> None:
    found = _ticks("*/7 * * * *", "UTC", "2026-01-01T00:50", 3)
    assert [tick[11:16] for tick in found] == ["00:56", "01:00", "01:07"]


def test_a_tick_is_later_than_the_instant_that_it_is_asked_from() -> None:
    assert _ticks("0 * * * *", "UTC", "2026-01-01T05:00:00", 1) == ["2026-01-01T06:00:00+00:00"]


def test_the_second_comes_first_of_six_fields() -> None:
    assert _ticks("15 30 9 * * *", "UTC", "2026-01-01", 1) == ["2026-01-01T09:30:15+00:00"]
    found = _ticks("*/20 * * * * *", "UTC", "2026-01-01T00:00:10", 3)
    assert [tick[14:19] for tick in found] == ["00:20", "00:40", "01:00"]
    # Seconds of an hour that is jumped over: they are all due in the same instant, which is one tick.
    found = _ticks("*/10 30 2 * * *", NEW_YORK, "2026-03-08T00:00", 2)
    assert [tick[5:19] for tick in found] == ["03-08T03:00:00", "03-09T02:30:00"]


def test_hashed_fields_are_another_time_for_each_schedule_and_always_the_same() -> None:
    assert _ticks("H H * * *", "UTC", "2026-01-01", 1, "jobA") == ["2026-01-01T02:53:00+00:00"]
    assert _ticks("H H * * *", "UTC", "2026-01-01", 1, "jobB") == ["2026-01-01T07:15:00+00:00"]
    # An alias is what it says it is, not a hashed form of it.
    assert _ticks("@daily", "UTC", "2026-01-01", 1, "jobA") == ["2026-01-02T00:00:00+00:00"]


@pytest.mark.parametrize(
    ("expression", "text"),
    [
        (
            "0 0 30 2 *",
            "here: '0 0 30 2 *' names no time: day '30' of month '2' with weekday '*' never comes. "
            "Write it as in crontab(5); see docs/cron.md.",
        ),
        (
            "*/90 * * * *",
            "here: the minute '*/90' of '*/90 * * * *' has a step of 90, and the field only 60 values. "
            "A step begins again with each field; for a distance of its own write every=timedelta(...).",
        ),
        (
            "0 0 * *",
            "here: '0 0 * *' has 4 fields. "
            "Write five (minute, hour, day of month, month, weekday), or six with the second in front.",
        ),
        (
            "@reboot",
            "here: there is no '@reboot'. "
            "Use one of @annually, @daily, @hourly, @midnight, @monthly, @weekly, @yearly.",
        ),
        ("@every 5m", "here: '@every 5m' is no cron expression. Write every=timedelta(...) in its place."),
        (
            "R * * * *",
            "here: 'R * * * *' names no time: the minute 'R' is drawn anew at each start; H stays the same. "
            "Write it as in crontab(5); see docs/cron.md.",
        ),
    ],
)
def test_what_cannot_be_meant_is_refused_where_it_is_written(expression: str, text: str) -> None:
    with pytest.raises(DefinitionRefused) as error:
        parse(expression, where="here", hash_id="")
    assert str(error.value) == text


@pytest.mark.parametrize(
    "expression",
    ["60 * * * *", "* 24 * * *", "* * 0 * *", "* * 32 * *", "* * * 13 *", "* * * * 8", "a * * * *", "*/0 * * * *",
     "* * * * 1#6", "* * * * 1#0", "0 0 31 4,6 *", "0 0 */31 2 *", "１ * * * *", "1,,2 * * * *", "-1 * * * *", ""],
)  # fmt: skip
def test_no_expression_of_these_is_taken(expression: str) -> None:
    if expression == "0 0 */31 2 *":  # the 1st of February
        parse(expression, where="here", hash_id="")
        return
    with pytest.raises(DefinitionRefused, match=r"^here: "):
        parse(expression, where="here", hash_id="")


@pytest.mark.parametrize(
    ("zone", "text"),
    [
        ("EST", "here: timezone='EST' is an abbreviation: it does not say whose rules of summer time hold. "
         "Name a place, like 'America/New_York', or \"UTC\"."),
        ("CEST", "here: timezone='CEST' is an abbreviation: it does not say whose rules of summer time hold. "
         "Name a place, like 'Europe/Berlin', or \"UTC\"."),
        ("Etc/GMT+5", "here: timezone='Etc/GMT+5' is a fixed offset, and its sign is the other way round than it "
         "looks. Name a place, like \"America/Bogota\", or \"UTC\"."),
        ("Europe/Berln", "here: there is no time zone 'Europe/Berln'. Did you mean 'Europe/Berlin'?"),
        ("../etc/passwd", "here: there is no time zone '../etc/passwd'. Write it as in \"Europe/Berlin\"."),
        ("+02:00", "here: there is no time zone '+02:00'. Write it as in \"Europe/Berlin\"."),
    ],
)  # fmt: skip
def test_a_zone_is_a_place(zone: str, text: str) -> None:
    with pytest.raises(DefinitionRefused) as error:
        check_zone("here", zone)
    assert str(error.value) == text


def test_fixed_distances_are_counted_from_1970() -> None:
    every = Every(90 * 60 * 1_000_000)
    begin = _us(utc(2026))
    found = list(islice(every.after(begin), 3))
    assert [tick % every.distance for tick in found] == [0, 0, 0]
    assert found[0] - begin <= every.distance and found[1] - found[0] == every.distance
    assert next(every.after(found[0])) == found[1]


def test_start_and_end_are_both_included() -> None:
    day = _us(utc(2026))
    hour = 3_600_000_000
    timing = Timing(Every(hour), start=day, end=day + 2 * hour)
    assert list(timing.after(0)) == [day, day + hour, day + 2 * hour]
    assert list(timing.up_to(day, day + hour)) == [day + hour]
    assert timing.next(day + 2 * hour) is None
    assert Timing(At((day, day + 5))).next(day) == day + 5


_part = st.one_of(
    st.just("*"),
    st.integers(1, 5).map(lambda step: f"*/{step}"),
    st.integers(1, 6).map(str),
    st.lists(st.integers(1, 6), min_size=2, max_size=3).map(lambda each: ",".join(map(str, each))),
    st.tuples(st.integers(1, 3), st.integers(4, 6), st.integers(1, 3)).map(lambda r: f"{r[0]}-{r[1]}/{r[2]}"),
)


@settings(max_examples=300, deadline=None)
@given(
    st.tuples(_part, _part, _part | st.sampled_from(["L", "1,L", "31", "29-31"]), _part, _part),
    st.datetimes(datetime(1975, 1, 1), datetime(2090, 1, 1)),
)
def test_without_changed_clocks_it_is_what_croniter_says(parts: tuple[str, ...], begin: datetime) -> None:
    """But for one rule: croniter runs on either day where both are given, Vixie's on both if one begins with `*`."""
    expression = " ".join(parts)
    begin = begin.replace(microsecond=0)
    both = parts[2].startswith("*") or parts[4].startswith("*")
    raw = croniter(expression, begin.replace(tzinfo=UTC), ret_type=datetime, day_or=not both)
    wall = _us(begin.replace(tzinfo=UTC)) // 1_000_000
    try:
        fields = parse(expression, where="test", hash_id="")
    except DefinitionRefused:  # 31 in a month without one
        return
    found = islice(_walk.after(fields, wall, wall + 400 * 366 * 86_400), 5)
    for second in found:
        assert datetime.fromtimestamp(second, UTC) == raw.get_next()
