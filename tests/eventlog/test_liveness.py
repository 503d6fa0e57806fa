"""Who is dead: whose counter stands still on the watcher's own clock, or whose session is gone (rules 12, 13)."""

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import psycopg
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from fixtures.lanes import FakeWorker, MakeWorker, message, step_done
from fixtures.proxy import CutProxy
from fixtures.workers import Log, wait_for
from refold.eventlog._connect import named_after
from refold.eventlog._log import Append, HeadChange
from refold.eventlog._transactions import TransactionLane, is_worth_another_try
from refold.eventlog._workers import DeathWatch, Heartbeat, Tick

Session = Callable[[], psycopg.Connection[Any]]
DEAD_AFTER = 6.0


@dataclass(frozen=True)
class Read:
    """One look at another worker: how long after the last one, and what it showed."""

    after: float
    beats: bool
    lock_free: bool
    outage: bool = False  # the look before it failed
    absent: bool = False


_READS = st.lists(
    st.builds(
        Read,
        after=st.sampled_from([0.2, 1.0, 2.0, 2.5, 7.0, 100.0]),
        beats=st.booleans(),
        lock_free=st.booleans(),
        outage=st.sampled_from([False, False, False, True]),
        absent=st.sampled_from([False, False, False, True]),
    ),
    max_size=12,
)


def _watched(reads: list[Read]) -> list[bool]:
    """Return after which of `reads` a watch says that the worker is dead."""
    watch = DeathWatch(DEAD_AFTER)
    now, beat, said = 1000.0, 1, []
    for read in reads:
        now += read.after
        beat += read.beats
        if read.outage:
            watch.forget()
        peers = {} if read.absent else {"other": (beat, read.lock_free)}
        dead = watch.observe(peers, now)
        assert dead in ([], [("other", beat)])
        said.append(bool(dead))
    return said


def _standing_still(reads: list[Read]) -> list[list[tuple[float, bool]]]:
    """Return for each of `reads` the (time, lock free) of those up to it that saw the same beat without a break."""
    now = 1000.0
    run: list[tuple[float, bool]] = []
    found = []
    for read in reads:
        now += read.after
        if read.beats or read.outage or read.absent:
            run = []
        if not read.absent:
            run = [*run, (now, read.lock_free)]
        found.append(run)
    return found


@given(_READS)
@example([Read(2, False, False)] * 4)
@example([Read(100, False, False)] * 2)
@example([Read(2, False, True)] * 2)
def test_a_worker_is_dead_exactly_if_it_stood_still_long_enough_or_its_lock_was_free_twice(
    reads: list[Read],
) -> None:
    for said, run in zip(_watched(reads), _standing_still(reads), strict=True):
        stood_still = len(run) >= 3 and run[-1][0] - run[0][0] >= DEAD_AFTER
        lock_free_twice = len(run) >= 2 and run[-1][1] and run[-2][1]
        assert said is (stood_still or lock_free_twice)


def test_the_first_read_after_a_long_outage_kills_nobody() -> None:
    """All beats stood still, because Postgres did."""
    assert _watched([Read(2, False, False)] * 3 + [Read(100, False, False, outage=True)]) == [False] * 4


def test_a_watcher_that_was_frozen_itself_kills_nobody_at_once() -> None:
    assert _watched([Read(2, False, False), Read(100, False, False)]) == [False, False]


def test_a_lock_that_was_free_once_is_no_death() -> None:
    """A live worker whose line broke takes its lock again with the next beat, if not before."""
    reads = [Read(2, False, False), Read(2, False, True), Read(0.2, False, False), Read(2, False, True)]
    assert _watched(reads)[:3] == [False] * 3


def test_a_worker_that_is_not_there_any_more_is_forgotten() -> None:
    still, gone = Read(2, False, False), Read(2, False, False, absent=True)
    assert _watched([still, still, gone, still, still]) == [False] * 5


# Declaring dead, in the tables.


def test_a_worker_that_beat_since_is_not_declared_dead(
    worker: FakeWorker, make_worker: MakeWorker, log: Log
) -> None:
    worker.start("o-1")
    other = make_worker("w2")
    watched = worker.beat
    worker.tick()
    assert other.declare_dead(worker, watched) is None
    assert log.owner("o-1") == "w1"
    worker.flush(Append("o-1", events=[step_done(1)]))


def test_a_worker_is_declared_dead_once(worker: FakeWorker, make_worker: MakeWorker, log: Log) -> None:
    worker.start("o-1")
    first, second = make_worker("w2"), make_worker("w3")
    assert first.declare_dead(worker) == 1
    epochs = log.rows("select lane, epoch from refold.workers where worker = 'w1' order by 1")
    assert second.declare_dead(worker) is None
    assert log.rows("select lane, epoch from refold.workers where worker = 'w1' order by 1") == epochs


def test_a_dead_worker_declares_nobody_dead(worker: FakeWorker, make_worker: MakeWorker, log: Log) -> None:
    other = make_worker("w2")
    other.declare_dead(worker)
    with pytest.raises(psycopg.Error, match="worker w1 was declared dead"):
        worker.declare_dead(other)
    other.tick()


def test_the_tick_shows_the_other_workers_and_not_the_dead(
    worker: FakeWorker, make_worker: MakeWorker
) -> None:
    assert worker.tick() == {"now"}
    other = make_worker("w2")
    assert worker.tick() == {"now", "peer"}
    worker.declare_dead(other)
    assert worker.tick() == {"now"}


# Heartbeats: threads that beat and watch.


@dataclass
class Beating:
    """A heartbeat and what it has reported."""

    heartbeat: Heartbeat
    ticks: list[Tick]
    fenced: threading.Event


MakeHeartbeat = Callable[..., Beating]


@pytest.fixture
def beat(database_url: str) -> Iterator[MakeHeartbeat]:
    """Starts heartbeats that beat fifty times as fast as real ones, and forgive a stall of the machine."""
    made: list[Beating] = []

    def make(name: str, url: str | None = None, *, every: float = 0.04, dead_after: float = 2.0) -> Beating:
        ticks: list[Tick] = []
        fenced = threading.Event()
        heartbeat = Heartbeat(
            url or database_url,
            name,
            can_run=lambda: (["order"], ["v1"]),
            on_tick=ticks.append,
            on_fenced=fenced.set,
            every=every,
            dead_after=dead_after,
        )
        heartbeat.register()
        heartbeat.start()
        made.append(Beating(heartbeat, ticks, fenced))
        return made[-1]

    yield make
    for beating in made:
        beating.heartbeat.stop()


def _is_dead(log: Log, worker: str) -> bool:
    return bool(log.rows("select 1 from refold.workers where worker = %s and dead_at is not null", worker))


def test_a_worker_that_stands_still_is_declared_dead_and_its_workflows_are_free(
    worker: FakeWorker, beat: MakeHeartbeat, log: Log
) -> None:
    worker.start("o-1")
    watcher = beat("w2")
    wait_for(lambda: _is_dead(log, "w1"), "w1 is declared dead")
    assert (log.owner("o-1"), log.status("o-1")) == (None, "pending")
    wait_for(lambda: watcher.ticks[-1].work, "the watcher sees that there is work")


def test_workers_that_beat_live_on(beat: MakeHeartbeat, log: Log) -> None:
    both = [beat("w1"), beat("w2")]
    wait_for(lambda: all(len(beating.ticks) > 25 for beating in both), "both have beaten for a while")
    assert not _is_dead(log, "w1")
    assert not _is_dead(log, "w2")


def test_a_worker_whose_process_is_gone_is_known_by_its_lock_long_before_its_beat(
    beat: MakeHeartbeat, log: Log
) -> None:
    watcher = beat("w2", dead_after=1000)
    dying = beat("w1")
    wait_for(lambda: len(watcher.ticks) > 3, "it is watched")
    dying.heartbeat._stop.set()  # no farewell: the row stays, the connection ends
    dying.heartbeat._thread.join()
    wait_for(lambda: _is_dead(log, "w1"), "it is declared dead")


def test_a_fenced_worker_is_told_by_its_own_heartbeat(
    make_worker: MakeWorker, beat: MakeHeartbeat, log: Log
) -> None:
    beating = beat("w1")
    other = make_worker("w2")
    # Between two beats of its: refused when it has moved.
    declare = (
        "select refold.declare_dead('w2', %s, 'w1', (select beat from refold.workers where worker = 'w1'))"
    )
    wait_for(lambda: other.sql.execute(declare, (other.epoch,)).fetchone() != (None,), "it is declared dead")
    assert beating.fenced.wait(20)


def test_the_log_s_clock_decides_what_is_due_and_says_nothing_about_who_is_alive(
    worker: FakeWorker, beat: MakeHeartbeat, log: Log
) -> None:
    """A test, or an operator's mistake, sets the clock a month ahead: nobody dies of it, and timers ring."""
    first, second = beat("w2"), beat("w3")
    worker.start("o-1")
    now = log.one("select (extract(epoch from now()) * 1000000)::bigint")
    day = 86_400_000_000
    worker.flush(Append("o-1", head=HeadChange("waiting", None, due_at=now + 29 * day)))
    wait_for(lambda: _is_dead(log, "w1"), "only the one that never beat dies")
    log.rows(
        "create or replace function refold.log_now() returns timestamptz language sql volatile as"
        " $$ select clock_timestamp() + interval '30 days' $$"
    )
    for beating in (first, second):
        beating.ticks.clear()
    wait_for(lambda: all(len(beating.ticks) > 25 for beating in (first, second)), "both beat on")
    assert not _is_dead(log, "w2")
    assert not _is_dead(log, "w3")
    assert first.ticks[-1].work
    assert first.ticks[-1].log_time > now + 29 * day


def test_a_heartbeat_does_not_wait_for_the_lock_of_its_own_broken_line(
    beat: MakeHeartbeat, cut_proxy: CutProxy, log: Log
) -> None:
    """Where Postgres has not noticed that the line broke, the old session still holds the worker's lock."""
    watcher = beat("w2")
    beating = beat("w1", cut_proxy.url)
    wait_for(lambda: len(beating.ticks) > 2, "it beats")
    cut_proxy.cut(server_learns=False)
    wait_for(lambda: any(tick.outage for tick in beating.ticks), "it beats again on a new line")
    beating.ticks.clear()
    wait_for(lambda: len(beating.ticks) > 25, "and goes on")
    assert not _is_dead(log, "w1")
    # The old session ends at last: the lock is free for a moment, and then taken again.
    log.rows(
        "select pg_terminate_backend(pid) from pg_locks where locktype = 'advisory' and granted"
        " and ((classid::bigint << 32) | objid::bigint) ="
        " (select lock_key from refold.workers where worker = 'w1' and lane = 'beat')"
    )
    wait_for(
        lambda: log.rows(
            "select 1 from pg_locks where locktype = 'advisory' and granted and objsubid = 1"
            " and ((classid::bigint << 32) | objid::bigint) ="
            " (select lock_key from refold.workers where worker = 'w1' and lane = 'beat')"
        ),
        "the new session takes the lock",
    )
    watcher.ticks.clear()
    wait_for(lambda: len(watcher.ticks) > 10, "it is watched")
    assert not _is_dead(log, "w1")
    beating.heartbeat.stop()


def test_nobody_dies_of_postgres_having_been_away(beat: MakeHeartbeat, cut_proxy: CutProxy, log: Log) -> None:
    """All beats stood still for longer than it takes to die, and the first one back sees that."""
    both = [beat("w1", cut_proxy.url), beat("w2", cut_proxy.url)]
    wait_for(lambda: all(len(beating.ticks) > 3 for beating in both), "they watch one another")
    cut_proxy.refuse()
    cut_proxy.cut()
    over = time.monotonic() + 0.5
    wait_for(lambda: time.monotonic() > over, "long enough to be dead")
    cut_proxy.refuse(False)
    wait_for(lambda: all(any(tick.outage for tick in b.ticks) for b in both), "both are back")
    for beating in both:
        beating.ticks.clear()
    wait_for(lambda: all(len(beating.ticks) > 10 for beating in both), "and go on")
    assert not any(beating.fenced.is_set() for beating in both)
    assert not _is_dead(log, "w1")
    assert not _is_dead(log, "w2")
    for beating in both:
        beating.heartbeat.stop()


# Frozen workers hold locks.


def test_a_frozen_worker_s_locks_do_not_hold_the_take_over(
    worker: FakeWorker, beat: MakeHeartbeat, log: Log
) -> None:
    """It stopped between its fence and its COMMIT: its row is locked, and the stream's next event half written."""
    worker.start("o-1")
    frozen = psycopg.connect(named_after(worker.url, "w1"))
    frozen.execute(
        "select refold.record('w1', 'executor', %s, 100, 'o-1', 1, 'StepCompleted', now(), %s)",
        (worker.lane.epoch, step_done(1).body),
    )
    began = time.monotonic()
    beat("w2")
    wait_for(lambda: _is_dead(log, "w1"), "it is declared dead all the same", 10)
    assert time.monotonic() - began < 5
    with pytest.raises(psycopg.OperationalError):
        frozen.execute("select 1")
    frozen.close()
    assert log.types("o-1") == ["WorkflowStarted"]
    assert log.owner("o-1") is None


def test_rows_of_the_user_s_that_a_frozen_step_has_locked_are_free_once_its_worker_is_dead(
    worker: FakeWorker, make_worker: MakeWorker, beat: MakeHeartbeat, log: Log
) -> None:
    """Whoever goes on with the workflow runs the same step, and wants the same rows."""
    log.rows("create table seats (id int primary key, taken_by text)")
    log.rows("insert into seats values (1)")
    worker.start("o-1")
    lane = TransactionLane(worker.url, "w1", "transaction-1", 600_000)
    thawed = threading.Event()
    failed: list[BaseException] = []

    def book(connection: psycopg.Connection[Any]) -> Any:
        connection.execute("update seats set taken_by = 'o-1'")
        thawed.wait(30)  # frozen here, with the row locked
        return "o-1", step_done(1)

    def run_step() -> None:
        try:
            lane.commit(book)
        except Exception as error:
            failed.append(error)

    step = threading.Thread(target=run_step)
    step.start()
    beat("w2")
    wait_for(lambda: _is_dead(log, "w1"), "it is declared dead")
    log.rows("set lock_timeout = '10s'")
    log.rows("update seats set taken_by = 'somebody else'")  # need not wait for the thaw
    thawed.set()
    step.join()
    lane.close()
    assert len(failed) == 1
    assert is_worth_another_try(failed[0]) or "declared dead" in str(failed[0])
    assert log.rows("select taken_by from seats") == [("somebody else",)]
    assert log.types("o-1") == ["WorkflowStarted"]


def test_a_dead_worker_s_sessions_are_ended_and_nobody_else_s(
    make_worker: MakeWorker, beat: MakeHeartbeat, log: Log
) -> None:
    dead, alive = make_worker("w1"), make_worker("other-w1")  # a name that ends in the same way
    user = psycopg.connect(named_after(log.url + "&application_name=shop", "w2"))
    dead.start("o-1")
    beat("other-w1")  # else it could be declared dead itself
    beat("w2")

    wait_for(lambda: _is_dead(log, "w1"), "w1 is dead")
    wait_for(
        lambda: not log.rows("select 1 from pg_stat_activity where application_name = 'refold w1'"),
        "its sessions are ended",
    )
    assert user.execute("select current_setting('application_name')").fetchone() == ("shop w2",)
    assert alive.flush(Append("@", messages=[message("x", "m")])).refused == {}
    user.close()
