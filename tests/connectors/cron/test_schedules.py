"""Schedules on a real Postgres: what is declared, what is started, what is written down, what people change."""

import itertools
import json
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest
from psycopg import sql

from fixtures.workers import Log, wait_for
from refold import App, DefinitionRefused
from refold.connectors import cron
from refold.connectors.cron import _runner
from refold.core import Move
from refold.eventlog import rebuild

MINUTE = timedelta(minutes=1)
NEVER = datetime(2999, 1, 1, tzinfo=UTC)


# A Tuesday. The tests move the clock by hours; what they take themselves does not bring it to the next one.
BEGAN = datetime(2030, 1, 15, 12, 0, 5, tzinfo=UTC)


class Clock:
    """The log's clock: it begins at BEGAN, runs, and goes where the test moves it."""

    def __init__(self, log: Log) -> None:
        self._log = log
        self._ahead = BEGAN - datetime.now(UTC)
        self.move(timedelta(0))

    def now(self) -> datetime:
        found: datetime = self._log.one("select refold.log_now()")
        return found.astimezone(UTC)

    def move(self, by: timedelta) -> None:
        self._ahead += by
        statement = sql.SQL(
            "create or replace function refold.log_now() returns timestamptz language sql volatile as "
            "$$ select clock_timestamp() + {} * interval '1 second' $$"
        ).format(sql.Literal(self._ahead.total_seconds()))
        with psycopg.connect(self._log.url, autocommit=True) as connection:
            connection.execute(statement)


@pytest.fixture
def clock(log: Log) -> Clock:
    return Clock(log)


@pytest.fixture
def app(database_url: str) -> Iterator[App]:
    made = App("scheduled", database_url=database_url)
    yield made
    made.close()


def ticks(log: Log, name: str, kind: str = "") -> list[str]:
    """Return the instants of the ticks of a schedule that started a workflow, in order."""
    found = log.rows(
        "select workflow_id from refold.workflows where source = %s order by workflow_id", f"schedule:{name}"
    )
    return [row[0].split(":", 3)[3] for row in found if ("manual-" in row[0]) == (kind == "manual")]


def notes(log: Log, name: str) -> list[tuple[str, str]]:
    """Return the facts in the stream of a schedule."""
    return [(event["kind"], event["text"]) for event in log.events(f"schedule:{name}/0", "Noted")]


def position(log: Log, name: str) -> dict[str, Any]:
    raw: bytes = log.one("select position from refold.positions where source = %s", f"schedule:{name}")
    found: dict[str, Any] = json.loads(raw)
    return found


def test_a_tick_starts_its_workflow_by_its_instant_in_the_transaction_that_moves_the_schedule_on(
    app: App, log: Log, clock: Clock
) -> None:
    @cron.schedule("0 9 * * MON-FRI", timezone="Europe/Berlin", catch_up=timedelta(days=30))
    @app.workflow
    def report(tick: cron.Tick) -> str:
        return f"{tick.local.isoformat()} {tick.schedule}"

    with app:
        clock.move(timedelta(days=7))
        [tick] = wait_for(lambda: ticks(log, "report"), "the latest tick of the week")
        assert app.get(f"cron:report:1:{tick}").result(30) == (
            datetime.fromisoformat(tick).astimezone(_zone("Europe/Berlin")).isoformat() + " report"
        )
    assert tick == "2030-01-22T08:00:00Z"
    xids = {
        log.one(
            "select xid::text from refold.events where workflow_id = %s and type = %s order by seq desc limit 1",
            stream,
            kind,
        )
        for stream, kind in (
            (f"cron:report:1:{tick}", "WorkflowStarted"),
            ("schedule:report/0", "PositionAdvanced"),
        )
    }
    assert len(xids) == 1, "a crash between two transactions would lose the tick, or run it again"
    assert [kind for kind, _ in notes(log, "report")] == ["Created", "TicksMissed"]


def _zone(name: str) -> Any:
    from zoneinfo import ZoneInfo

    return ZoneInfo(name)


def test_a_second_worker_and_a_later_one_find_what_was_decided(
    app: App, log: Log, clock: Clock, database_url: str
) -> None:
    other = App("other", database_url=database_url)
    for each in (app, other):

        @cron.schedule("@daily", catch_up=timedelta(days=30), missed="all", overlap="allow")
        @each.workflow
        def daily(tick: cron.Tick) -> None: ...

    with app, other:
        clock.move(timedelta(days=3))
        wait_for(lambda: len(ticks(log, "daily")) == 3, "three days")
    first = ticks(log, "daily")
    clock.move(timedelta(days=2))
    with other:
        wait_for(lambda: len(ticks(log, "daily")) == 5, "five days")
    assert ticks(log, "daily")[:3] == first
    assert [kind for kind, _ in notes(log, "daily")] == ["Created"]
    days = [datetime.fromisoformat(tick) for tick in ticks(log, "daily")]
    assert {later - sooner for sooner, later in itertools.pairwise(days)} == {timedelta(days=1)}


def test_a_schedule_that_the_code_changes_goes_on_from_now(
    app: App, log: Log, clock: Clock, database_url: str
) -> None:
    @cron.schedule("0 0 1 * *", catch_up=timedelta(days=60))
    @app.workflow
    def bill(tick: cron.Tick) -> None: ...

    with app:
        pass
    clock.move(timedelta(days=40))
    changed = App("changed", database_url=database_url)

    @cron.schedule("@hourly", timezone="Asia/Kolkata", overlap="allow", catch_up=timedelta(days=60))
    @changed.workflow(name="bill")
    def bill_by_the_hour(tick: cron.Tick) -> None: ...

    with changed:
        assert ticks(log, "bill") == [], (
            "what the old expression would have run is not caught up by the new one"
        )
        clock.move(timedelta(hours=1))
        wait_for(lambda: ticks(log, "bill"), "an hour by the new expression")
    assert [text for kind, text in notes(log, "bill") if kind == "Changed"] == [
        "schedule 'bill' was 0 0 1 * * UTC and is @hourly Asia/Kolkata now (expression, timezone, overlap changed)"
    ]


def test_pause_and_resume_are_for_all_workers_and_leave_out_what_lies_between(
    app: App, log: Log, clock: Clock, database_url: str
) -> None:
    @cron.schedule(every=MINUTE, missed="all", catch_up=timedelta(days=1), overlap="allow")
    @app.workflow
    def beat(tick: cron.Tick) -> None: ...

    def after(time: datetime) -> list[str]:
        return [tick for tick in ticks(log, "beat") if datetime.fromisoformat(tick) > time]

    outside = App("outside", database_url=database_url)
    with app:
        assert cron.pause(outside, "beat", "month's end") is True
        paused = clock.now()
        assert cron.pause(outside, "beat") is False
        clock.move(timedelta(minutes=30))
        # The worker has not heard of it: its hand-over is refused, since the position is another.
        wait_for(lambda: _runner_of(app)._known["beat"].state.paused, "the worker learns of it")
        before = clock.now()
        assert cron.resume(app, "beat") is True
        clock.move(timedelta(minutes=2))
        wait_for(lambda: len(after(before)) >= 2, "ticks after the pause")
    assert [tick for tick in ticks(log, "beat") if paused < datetime.fromisoformat(tick) <= before] == []
    assert [text for _, text in notes(log, "beat")][1:] == [
        "schedule 'beat' was paused: month's end",
        "schedule 'beat' goes on",
    ]
    outside.close()


def _runner_of(app: App) -> _runner.Runner:
    served = cron.serve(app)
    assert served._runner is not None
    return served._runner


def test_paused_in_the_code_is_how_it_begins(app: App, log: Log, clock: Clock) -> None:
    @cron.schedule(every=MINUTE, paused=True)
    @app.workflow
    def beat(tick: cron.Tick) -> None: ...

    with app:
        assert position(log, "beat")["paused"] is True
        assert cron.serve(app).describe() == ["beat: every 1 min, paused"]
        cron.resume(app, "beat")
    with app:  # the code says what it said before: what a person did since stands
        assert "paused" not in position(log, "beat")


def test_a_schedule_made_by_code_is_run_by_any_worker_that_has_the_workflow(
    app: App, log: Log, clock: Clock, database_url: str
) -> None:
    @app.workflow
    def remind(tick: cron.Tick, customer: str, times: int) -> str:
        return f"{customer} {times}"

    cron.serve(app)
    web = App("web", database_url=database_url)

    @web.workflow(name="remind")
    def stub(tick: cron.Tick, customer: str, times: int) -> str:
        raise AssertionError

    with app:
        args = {"customer": "ada", "times": 2}
        cron.create(web, "remind/ada", "@hourly", workflow=stub, args=args)
        cron.create(web, "remind/ada", "@hourly", workflow=stub, args=args)
        cron.serve(app).look()
        wait_for(lambda: "remind/ada" in _runner_of(app)._known, "the worker has seen it")
        clock.move(timedelta(hours=1))
        [tick] = wait_for(lambda: ticks(log, "remind/ada"), "an hour")
        assert app.get(f"cron:remind%2Fada:1:{tick}").result(30) == "ada 2"
        cron.delete(web, "remind/ada")
        assert cron.list_schedules(web) == []
        cron.create(
            web, "remind/ada", "@hourly", workflow=stub, args=args, start=clock.now() + timedelta(hours=1)
        )
        cron.serve(app).look()
        clock.move(timedelta(hours=2))
        [again] = wait_for(
            lambda: [
                row[0]
                for row in log.rows(
                    "select workflow_id from refold.workflows where workflow_id like 'cron:%%:2:%%'"
                )
            ],
            "a tick of the schedule that was made again",
        )
        assert again.startswith("cron:remind%2Fada:2:")
    web.close()


def test_a_trigger_and_a_backfill_need_no_code_and_never_run_a_tick_twice(
    app: App, log: Log, clock: Clock, database_url: str
) -> None:
    @cron.schedule("@daily", overlap="skip", catch_up=timedelta(days=2), jitter=timedelta(hours=2))
    @app.workflow
    def daily(tick: cron.Tick) -> tuple[bool, bool]:
        return tick.manual, tick.backfill

    outside = App("outside", database_url=database_url)
    with app:
        began = clock.now()
        clock.move(timedelta(days=1))
        [ran] = wait_for(lambda: ticks(log, "daily"), "a day")
        id = cron.trigger(outside, "daily")
        clock.move(timedelta(hours=2))  # past the jitter of the day's tick, which the trigger is behind
        assert app.get(id).result(30) == (True, False)
        first = began - timedelta(days=5)
        assert cron.backfill(outside, "daily", first, clock.now()) == 5
        # What has not come yet is the schedule's own, at its time.
        assert cron.backfill(outside, "daily", first, clock.now() + timedelta(days=9)) == 0
        wait_for(
            lambda: log.one("select count(*) from refold.workflows where finished_at is null") == 0, "the end"
        )
    assert len(ticks(log, "daily")) == 6 and ran == ticks(log, "daily")[-1]
    assert [kind for kind, _ in notes(log, "daily")] == ["Created", "Triggered", "Backfilled", "Backfilled"]
    outside.close()


async def _from_async_code(app: App) -> list[str]:
    await cron.apause(app, "beat")
    return [info.name for info in await cron.alist_schedules(app) if info.paused]


def test_the_forms_for_async_code_do_the_same(app: App, log: Log) -> None:
    import asyncio

    @cron.schedule(every=MINUTE)
    @app.workflow
    def beat(tick: cron.Tick) -> None: ...

    with app:
        assert asyncio.run(_from_async_code(app)) == ["beat"]


def test_a_clock_that_ran_ahead_and_was_set_back_runs_each_tick_once(
    app: App, log: Log, clock: Clock
) -> None:
    @cron.schedule("@hourly", missed="all", catch_up=timedelta(days=2), overlap="allow")
    @app.workflow
    def hourly(tick: cron.Tick) -> None: ...

    with app:
        clock.move(timedelta(hours=3))
        wait_for(lambda: len(ticks(log, "hourly")) == 3, "three hours too early")
        early = ticks(log, "hourly")
        clock.move(timedelta(hours=-3))
        wait_for(lambda: "ClockSetBack" in dict(notes(log, "hourly")), "the clock was set back")
        clock.move(timedelta(hours=4))
        wait_for(lambda: len(ticks(log, "hourly")) == 4, "the hour after them")
    assert ticks(log, "hourly")[:3] == early


def test_a_machine_with_a_wrong_time_does_no_harm(
    app: App, log: Log, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The clock is Postgres's. This process believes that it is 1970."""

    @cron.schedule("@hourly", missed="all", catch_up=timedelta(days=2), overlap="allow")
    @app.workflow
    def hourly(tick: cron.Tick) -> None: ...

    monkeypatch.setattr("time.time", lambda: 5.0)
    monkeypatch.setattr("time.time_ns", lambda: 5_000_000_000)
    with app:
        clock.move(timedelta(hours=3))
        wait_for(lambda: len(ticks(log, "hourly")) == 3, "three hours")
    assert ticks(log, "hourly") == [f"2030-01-15T{hour}:00:00Z" for hour in (13, 14, 15)]


def test_many_schedules_that_are_due_together_are_handed_over_together(
    app: App, log: Log, clock: Clock
) -> None:
    for number in range(250):
        cron.schedule("@hourly", name=f"s{number}")(app.workflow(name=f"w{number}")(_nothing))

    with app:
        clock.move(timedelta(hours=1))
        wait_for(lambda: log.one("select count(*) from refold.workflows") == 250, "all of them")
        transactions = log.one("select count(distinct xid) from refold.events where type = 'WorkflowStarted'")
        assert transactions <= 4
        clock.move(timedelta(hours=1))
        wait_for(lambda: log.one("select count(*) from refold.workflows") == 500, "all of them again")


def _nothing(tick: cron.Tick) -> None: ...


def test_a_rebuild_from_the_events_gives_back_every_schedule_as_it_was(
    app: App, log: Log, clock: Clock
) -> None:
    @cron.schedule("@hourly", missed="all", catch_up=timedelta(days=2), overlap="buffer_all")
    @app.workflow
    def hourly(tick: cron.Tick) -> None: ...

    @cron.schedule("@daily", paused=True)
    @app.workflow
    def daily(tick: cron.Tick) -> None: ...

    with app:
        clock.move(timedelta(hours=3))
        wait_for(lambda: len(ticks(log, "hourly")) == 3, "three hours")
        cron.pause(app, "hourly", "for the rebuild")
    before = [position(log, name) for name in ("hourly", "daily")]
    rebuilt = rebuild(log.url)
    assert rebuilt.positions == 2
    assert [position(log, name) for name in ("hourly", "daily")] == before
    clock.move(timedelta(0))  # what log_now() is belongs to no event
    with app:
        cron.resume(app, "hourly")
        clock.move(timedelta(hours=1))
        wait_for(lambda: len(ticks(log, "hourly")) == 4, "the hour after")
        wait_for(
            lambda: log.one("select count(*) from refold.workflows where finished_at is null") == 0,
            "the end of all",
        )
    assert ticks(log, "hourly") == [f"2030-01-15T{hour}:00:00Z" for hour in (13, 14, 15, 16)]
    assert ticks(log, "daily") == []


def test_jitter_delays_the_start_and_not_the_tick(app: App, log: Log, clock: Clock) -> None:
    @cron.schedule("@daily", jitter=timedelta(hours=20), catch_up=timedelta(days=2))
    @app.workflow
    def daily(tick: cron.Tick) -> str:
        return tick.scheduled.isoformat()

    with app:
        clock.move(timedelta(days=1))
        [tick] = wait_for(lambda: ticks(log, "daily"), "a day")
        [started] = log.events(f"cron:daily:1:{tick}", "WorkflowStarted")
        delay = started["not_before"] / 1e6 - datetime.fromisoformat(tick).timestamp()
        assert 0 <= delay < 20 * 3600
        clock.move(timedelta(hours=20))
        assert app.get(f"cron:daily:1:{tick}").result(30) == tick.replace("Z", "+00:00")


def test_an_idle_worker_with_schedules_asks_nothing(app: App, log: Log, postgres: Any) -> None:
    """It looks at the positions twice a minute; between ticks there is nothing else."""
    for number in range(20):

        @cron.schedule("0 0 1 1 *", name=f"yearly-{number}", start=NEVER)
        @app.workflow(name=f"yearly-{number}")
        def yearly(tick: cron.Tick) -> None: ...

    with app:
        runner = _runner_of(app)
        asked: list[object] = []
        for name in ("_read", "_look", "_fire"):
            _count(runner, name, asked)
        woken = runner.wakes
        wait_for(lambda: runner.wakes > woken + 2, "it looks at the clock")
        assert asked == []


def _count(runner: _runner.Runner, name: str, asked: list[object]) -> None:
    real: Callable[..., Any] = getattr(runner, name)

    def counted(*args: Any) -> Any:
        asked.append(name)
        return real(*args)

    setattr(runner, name, counted)


@pytest.mark.raises_error("ScheduleNotFound")
def test_a_name_that_is_none_is_answered_with_the_nearest(app: App, log: Log) -> None:
    @cron.schedule(every=MINUTE)
    @app.workflow
    def report(tick: cron.Tick) -> None: ...

    with app:
        for call in (cron.pause, cron.resume, cron.trigger, cron.delete, cron.next_ticks):
            with pytest.raises(cron.ScheduleNotFound) as error:
                call(app, "repot")
            assert str(error.value) == "there is no schedule 'repot'. Did you mean report?"
        with pytest.raises(cron.ScheduleNotFound) as error:
            cron.pause(app, "qqq")
        assert str(error.value) == "there is no schedule 'qqq'. See the names:  refold schedule list"
        with pytest.raises(DefinitionRefused) as refused:
            cron.delete(app, "report")
        assert str(refused.value) == (
            "cron.delete('report'): the code declares this schedule, with @cron.schedule. "
            "Change it there, pause it, or take another name."
        )


def test_what_a_schedule_sits_on_is_checked_where_it_is_written(app: App) -> None:
    with pytest.raises(DefinitionRefused) as error:
        cron.schedule("@daily")(lambda tick: None)  # type: ignore[type-var]
    assert "which is no workflow. Put @app.workflow below it, directly above the function." in str(
        error.value
    )

    with pytest.raises(DefinitionRefused) as error:

        @cron.schedule("@daily")
        @app.workflow
        def nothing() -> None: ...

    assert str(error.value) == (
        "cron.schedule('@daily'): it calls workflow 'nothing' with one cron.Tick, but that takes (). "
        "Write `def nothing(tick: cron.Tick)`."
    )

    @cron.schedule("@daily")
    @app.workflow
    def twice(tick: cron.Tick) -> None: ...

    with pytest.raises(DefinitionRefused) as error:
        cron.schedule("@hourly")(twice)
    assert str(error.value) == (
        "cron.schedule('@hourly'): the app has a schedule called 'twice' already. "
        "Give one of them another name=: it is part of the IDs of the workflows."
    )
    cron.schedule("@hourly", name="oftener")(twice)

    @app.workflow
    def counted(tick: cron.Tick, n: int) -> None: ...

    with pytest.raises(DefinitionRefused, match="is nothing that workflow 'counted' takes"):
        cron.create(app, "counted", "@daily", workflow=counted, args={"n": "many"})


def test_the_summary_shows_the_next_three_ticks_in_the_schedules_own_zone(
    app: App, log: Log, clock: Clock
) -> None:
    @cron.schedule("30 1 * * *", timezone="America/New_York", start=datetime(2031, 11, 2, tzinfo=UTC))
    @app.workflow
    def nightly(tick: cron.Tick) -> None: ...

    with app:
        assert cron.serve(app).describe() == [
            "nightly: 30 1 * * * America/New_York, "
            "next Sun 2 Nov 2031 01:30, Mon 3 Nov 2031 01:30, Tue 4 Nov 2031 01:30"
        ]
        assert cron.serve(app).try_next() == ["refold schedule trigger nightly"]
        [report] = cron.serve(app).report()
        assert (report.source, report.label, report.paused) == ("schedule:nightly", "schedule:nightly", False)
        assert report.in_flight == 0


def test_a_schedule_in_a_zone_that_is_not_known_here_stops_no_other(app: App, log: Log) -> None:
    @cron.schedule(every=timedelta(milliseconds=100), overlap="allow")
    @app.workflow
    def beat(tick: cron.Tick) -> None: ...

    cron.create(app, "new-zone", "@daily", workflow=beat, timezone="Europe/Berlin")
    [at] = app.positions("schedule:new-zone")
    assert at.position is not None
    app.hand_over([Move(at, at.position.replace(b"Berlin", b"Nowhere"), "schedule:new-zone")])
    with app:
        wait_for(lambda: len(ticks(log, "beat")) > 2, "the other one goes on")
        assert "new-zone: @daily Europe/Nowhere, can't be read by this release" in cron.serve(app).describe()
        assert [info.next for info in cron.list_schedules(app) if info.name == "new-zone"] == [[]]
        assert len(cron.serve(app).report()) == 2


def test_a_worker_of_the_old_release_that_meets_an_error_brings_back_nothing_old(
    app: App, log: Log, database_url: str
) -> None:
    later = App("later", database_url=database_url)
    for release, expression in ((app, "0 9 * * *"), (later, "0 10 * * *")):

        @cron.schedule(expression, name="report")
        @release.workflow
        def report(tick: cron.Tick) -> None: ...

    with app, later:
        assert position(log, "report")["spec"]["expression"] == "0 10 * * *"
        runner = _runner_of(app)
        looked: list[object] = []
        real = runner._look

        def look() -> None:
            looked.append(None)
            if len(looked) == 1:
                raise RuntimeError("Postgres was away for a moment")
            real()

        runner._look = look  # type: ignore[method-assign]
        runner.look()
        wait_for(lambda: len(looked) > 1, "it begins again")
        assert position(log, "report")["spec"]["expression"] == "0 10 * * *"
    later.close()
