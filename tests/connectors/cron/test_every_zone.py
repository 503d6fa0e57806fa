"""Every change of every zone's clock in ten years, minute by minute, against a cron that shares no code with ours.

Zones whose clocks were changed in the same way at the same instants are looked at once.
"""

import zoneinfo
from datetime import UTC, date, datetime, timedelta
from itertools import takewhile

import pytest

from fixtures.cron_reference import Wall, Window, changes, utc
from refold.connectors.cron._fields import parse
from refold.connectors.cron._timing import Cron

FIRST, LAST = utc(2020), utc(2030)
SIDE = timedelta(hours=36)
MINUTE = 60_000_000

EXPRESSIONS = [
    "* * * * *",
    "*/7 * * * *",
    "0 * * * *",
    "*/30 1 * * *",
    "* 0-3 * * *",
    "15,45 */2 * * *",
    "0 */3 * * *",
    "30 0 * * *",
    "0 0 * * *",
    "30 1 * * *",
    "30 2 * * *",
    "0,30 2 * * *",
    "5,20,59 0-4 * * *",
    "0-59/15 1,2,3 * * *",
    "59 23 * * *",
    "10-50/20 22-2 * * *",
    "0 0-23/2 * * *",
    "30 2 * * SUN",
    "0 3 * MAR,OCT,NOV 7",
    "15 2 L * *",
    "0 1 L,1-7 * 6",
    "30 1 * * 0#1",
    "30 2 * 3 SUN#2",
    "0 2 * * L0",
    "0 0 25-31 3,10 0",
    "45 1 */2 * 0",
    "0 2 13 * 5",
    "20 1 * * 6-1",
    "40 0-1 8-14 * */6",
    "0 12 1 1 *",
]


def _zones() -> dict[tuple[int, tuple[tuple[int, int, int], ...]], str]:
    """Return one zone of each list of changes."""
    found: dict[tuple[int, tuple[tuple[int, int, int], ...]], str] = {}
    for zone in sorted(zoneinfo.available_timezones()):
        offset = FIRST.astimezone(zoneinfo.ZoneInfo(zone)).utcoffset()
        assert offset is not None
        found.setdefault((int(offset.total_seconds()), tuple(changes(zone, FIRST, LAST))), zone)
    return found


@pytest.mark.timeout(600)
def test_every_change_of_every_zone_is_what_vixies_rule_says() -> None:
    zones = _zones()
    days = (FIRST - timedelta(days=5)).date(), (LAST + timedelta(days=5)).date()
    walls = {expression: Wall(expression, *days) for expression in EXPRESSIONS}
    rules = {expression: parse(expression, where="test", hash_id="") for expression in EXPRESSIONS}
    looked_at = ticks = 0
    for (_, every), zone in zones.items():
        # A zone whose clock is never changed is looked at once as well.
        for instant in [change[0] for change in every] or [int(utc(2024, 2, 29).timestamp())]:
            at = datetime.fromtimestamp(instant, UTC)
            window = Window(zone, at - SIDE, at + SIDE)
            looked_at += bool(every)
            for expression in EXPRESSIONS:
                expected = window.runs(walls[expression])
                found = list(_ticks(Cron(rules[expression], zone), at - SIDE, at + SIDE))
                assert found == expected, f"{expression} in {zone} around {at}"
                ticks += len(found)
    assert looked_at > 600 and ticks > 1_000_000 and len(EXPRESSIONS) >= 24


def _ticks(cron: Cron, first: datetime, last: datetime) -> list[int]:
    begin, end = int(first.timestamp()) * 1_000_000, int(last.timestamp()) * 1_000_000
    return [tick // MINUTE for tick in takewhile(lambda tick: tick < end, cron.after(begin - 1))]


@pytest.mark.parametrize("zone", ["America/New_York", "Australia/Lord_Howe", "Africa/Casablanca"])
@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_wherever_one_begins_the_next_tick_is_the_same(zone: str, expression: str) -> None:
    """Each tick is asked for from the one before, and from halfway: a restart in between changes nothing."""
    cron = Cron(parse(expression, where="test", hash_id=""), zone)
    for change, _, _ in list(changes(zone, utc(2026), utc(2027))):
        begin, end = (change - 86_400) * 1_000_000, (change + 86_400) * 1_000_000
        ticks = list(takewhile(lambda tick: tick < end, cron.after(begin)))  # noqa: B023 - used at once
        for before, tick in zip([begin, *ticks], ticks, strict=False):
            assert next(cron.after(before)) == tick
            assert next(cron.after((before + tick) // 2)) == tick
            assert next(cron.after(tick - 1)) == tick


def test_the_reference_knows_its_calendar() -> None:
    from fixtures.cron_reference import runs_on

    assert runs_on("0 0 13 * 5", date(2026, 2, 6)) and runs_on("0 0 13 * 5", date(2026, 3, 13))
    assert not runs_on("0 0 */2 * 1", date(2026, 2, 3)) and runs_on("0 0 */2 * 1", date(2026, 2, 9))
    assert runs_on("0 0 * * 5#3", date(2026, 1, 16)) and runs_on("0 0 * * L5", date(2026, 1, 30))
