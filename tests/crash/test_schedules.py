"""Schedules under workers that are killed and frozen: each tick is decided once, and what was decided happens once."""

import json
import random
import signal
from collections import Counter
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from crash import schedule_app
from crash.schedule_app import RULES, TABLES, WINDOWS

from fixtures.workers import Log, Program, Programs, wait_for
from refold import App
from refold.connectors import cron

PROGRAM = Path(schedule_app.__file__)
EVERY_MS = 50
US = timedelta(microseconds=1)


class Schedule:
    """One schedule, as its stream tells of it: which ticks there were, and what was decided about each."""

    def __init__(self, log: Log, name: str) -> None:
        self.name = name
        stream = f"schedule:{name}/0"
        self.moves = [
            {**event["position"], "started": event.get("started", 0), "seq": event["seq"]}
            for event in log.events(stream, "PositionAdvanced")
        ]
        self.notes = log.events(stream, "Noted")
        self.started = sorted(
            _instant(row[0].rpartition("Z")[0].split(":", 3)[3] + "Z")
            for row in log.rows(
                "select workflow_id from refold.workflows where source = %s", f"schedule:{name}"
            )
        )
        self.skipped = sorted(_instant(note["data"]["tick"]) for note in self.facts("TickSkipped"))
        self.missed = sorted(
            tick
            for note in self.facts("TicksMissed")
            for tick in _grid(_instant(note["data"]["first"]) - 1, _instant(note["data"]["last"]))
        )

    def facts(self, kind: str) -> list[dict[str, Any]]:
        return [note for note in self.notes if note["kind"] == kind]

    def due(self) -> list[int]:
        """All ticks from the schedule's beginning to the last that was decided."""
        return list(_grid(self.moves[0]["last"], self.moves[-1]["last"]))

    def check(self) -> None:
        """Each tick was run, skipped or counted as missed: one of them, and once."""
        assert sorted([*self.started, *self.skipped, *self.missed]) == self.due(), self.name


def _grid(after: int, last: int) -> range:
    every = EVERY_MS * 1000
    return range((after // every + 1) * every, last + 1, every)


def _instant(text: str) -> int:
    return (datetime.fromisoformat(text) - datetime(1970, 1, 1, tzinfo=UTC)) // US


class Fleet:
    """Workers of the program, and a look at what they do."""

    def __init__(self, programs: Programs, log: Log, chosen: str, count: int) -> None:
        log.rows(TABLES)
        self.log = log
        self._programs, self._chosen = programs, chosen
        self.workers = [self._start() for _ in range(count)]
        for worker in self.workers:
            worker.wait_output("up", 90)

    def _start(self) -> Program:
        return self._programs.start(PROGRAM, SCHEDULES=self._chosen, EVERY_MS=str(EVERY_MS))

    def replace(self, number: int) -> None:
        """Kill a worker, and start another in its place."""
        self.workers[number].kill()
        self.workers[number] = self._start()

    def last(self, name: str) -> int:
        """The last tick that was decided."""
        raw: bytes = self.log.one(
            "select position from refold.positions where source = %s", f"schedule:{name}"
        )
        return int(json.loads(raw)["last"])

    def wait_ticks(self, name: str, count: int, timeout: float = 60) -> None:
        """Wait until as many more ticks have been decided."""
        until = self.last(name) + count * EVERY_MS * 1000
        wait_for(lambda: self.last(name) >= until, f"{count} more ticks of {name}", timeout)

    def settle(self, *schedules: str) -> None:
        """Pause the schedules, and wait until all that they have started has ended."""
        outside = App("outside", database_url=self.log.url)
        try:
            for name in schedules:
                cron.pause(outside, name)
        finally:
            outside.close()
        wait_for(
            lambda: self.log.one("select count(*) from refold.workflows where finished_at is null") == 0,
            "the end of every workflow",
            110,
        )


@pytest.fixture
def fleet(programs: Programs, log: Log, request: pytest.FixtureRequest) -> Fleet:
    chosen, count = request.param
    return Fleet(programs, log, chosen, count)


def _kill_while_it_ticks(fleet: Fleet, ticks: int, every: int) -> int:
    """Kill and freeze workers until there have been so many ticks, one each `every` ticks; returns how many."""
    drawn = random.Random(7)
    begin, hit = fleet.last("every"), 0
    until = begin + ticks * EVERY_MS * 1000
    while fleet.last("every") < until:
        fleet.wait_ticks("every", every)
        number = drawn.randrange(len(fleet.workers))
        if hit % 3 == 2:
            frozen = fleet.workers[number]
            frozen.signal(signal.SIGSTOP)
            fleet.wait_ticks("every", 30)
            frozen.signal(signal.SIGCONT)
        else:
            fleet.replace(number)
        hit += 1
    return hit


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("fleet", "ticks", "every"),
    [
        pytest.param(("every", 3), 250, 60, id="short"),
        pytest.param(("every", 10), 1000, 60, id="long", marks=pytest.mark.long),
    ],
    indirect=["fleet"],
)
def test_each_tick_is_one_workflow_whoever_dies(fleet: Fleet, ticks: int, every: int) -> None:
    hit = _kill_while_it_ticks(fleet, ticks, every)
    assert hit >= 3
    fleet.settle("every")
    found = Schedule(fleet.log, "every")
    found.check()
    assert len(found.due()) >= ticks and found.started == found.due()
    done = Counter(row[0] for row in fleet.log.rows("select tick from ticks"))
    assert len(done) == len(found.due()) and set(done.values()) == {1}


@pytest.mark.timeout(110)
@pytest.mark.parametrize("fleet", [("missed", 1)], indirect=True)
def test_what_a_worker_missed_while_it_was_frozen_is_what_each_rule_says(fleet: Fleet) -> None:
    [worker] = fleet.workers
    every = [f"{rule}-{window}" for rule in ("latest", "all") for window in WINDOWS]
    for name in every:
        fleet.wait_ticks(name, 5)
    worker.signal(signal.SIGSTOP)
    frozen = {name: fleet.last(name) for name in every}
    now = "select (extract(epoch from refold.log_now()) * 1e6)::bigint"
    wait_for(
        lambda: fleet.log.one(now) > max(frozen.values()) + 45 * EVERY_MS * 1000,
        "it sleeps over more than 30 ticks",
    )
    worker.signal(signal.SIGCONT)
    for name in every:
        wait_for(lambda name=name: fleet.last(name) > frozen[name], f"{name} goes on")  # type: ignore[misc]
    fleet.settle(*every)
    for name in every:
        _check_catching_up(Schedule(fleet.log, name), frozen[name])


def _check_catching_up(found: Schedule, frozen: int) -> None:
    """Look at the one decision about all that lay in the time of the freeze."""
    found.check()
    # What was on its way to Postgres when the worker froze may still have been handed over alone.
    before, after = max(pairwise(found.moves), key=lambda pair: pair[1]["last"] - pair[0]["last"])
    assert after["last"] > frozen
    due = _grid(before["last"], after["last"])
    assert len(due) > 30, found.name
    run = [tick for tick in found.started if before["last"] < tick <= after["last"]]
    rule, _, window = found.name.partition("-")
    if rule == "latest" or window == "none":
        assert run == [due[-1]], found.name
    elif window == "hour":
        assert run == [*due], found.name
        assert found.missed == []
    else:  # those of the window, the newest of them
        assert run == [*due][-len(run) :] and 1 <= len(run) <= 16, found.name


@pytest.mark.timeout(280)
@pytest.mark.parametrize(
    ("fleet", "kills"),
    [
        pytest.param(("overlap", 2), 0, id="short"),
        pytest.param(("overlap", 4), 8, id="long", marks=pytest.mark.long),
    ],
    indirect=["fleet"],
)
def test_overlapping_ticks_do_what_the_rule_says(fleet: Fleet, kills: int) -> None:
    drawn = random.Random(11)
    for _ in range(kills):
        fleet.wait_ticks("allow", 15)
        fleet.replace(drawn.randrange(len(fleet.workers)))
    fleet.wait_ticks("allow", 60)
    fleet.settle(*RULES)
    for name in RULES:
        found = Schedule(fleet.log, name)
        found.check()
        assert len(found.due()) >= 60
        runs = Runs(fleet.log, name)
        if name == "allow":
            assert runs.overlapping and sorted(runs.done) == found.due() and not found.skipped
            continue
        assert not runs.overlapping, f"{name}: two at once"
        assert runs.done == sorted(runs.done), f"{name}: out of order"
        if name == "buffer_all":
            assert runs.done == found.due() and not found.skipped
        if name in ("skip", "buffer_one"):
            assert runs.done == found.started and found.skipped
        statuses = {row[0] for row in fleet.log.rows(
            "select distinct status from refold.workflows where source = %s", f"schedule:{name}")}  # fmt: skip
        assert statuses == ({"completed", "cancelled"} if name == "cancel_other" else {"completed"}), name


class Runs:
    """When the workflows of a schedule began to work, and when they had ended, by Postgres's clock.

    The end is stamped by a worker's estimate of that clock, which lags behind it and never runs ahead.
    """

    def __init__(self, log: Log, name: str) -> None:
        began = dict(log.rows("select tick, at from runs where schedule = %s and moment = 'began'", name))
        ends = {
            datetime.fromisoformat(id.split(":", 3)[3]): end
            for id, end in log.rows(
                "select workflow_id, finished_at from refold.workflows where source = %s", f"schedule:{name}"
            )
        }
        self.done = [
            (tick - datetime(1970, 1, 1, tzinfo=UTC)) // US for tick in sorted(began, key=began.__getitem__)
        ]
        self.overlapping = any(
            began[tick] < ends[earlier] for tick in began for earlier in ends if earlier < tick
        )
