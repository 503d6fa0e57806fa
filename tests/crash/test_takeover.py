"""Workers that die, freeze or leave while they have work in hand, and those that go on with it; default settings."""

import signal
import sys
from collections.abc import Iterator
from datetime import datetime
from itertools import pairwise
from pathlib import Path

import psycopg
import pytest
from engine.programs import held
from engine.programs.held import TABLES

from fixtures.postgres import OwnPostgres
from fixtures.workers import Log, Program, Programs, wait_for
from refold import App

PROGRAM = Path(held.__file__)
COMMAND = [str(Path(sys.executable).with_name("refold")), "worker", str(PROGRAM)]


@pytest.fixture
def own_database(own_postgres: OwnPostgres) -> str:
    """The URL of a database on a server that the test may restart."""
    return own_postgres.url_of(own_postgres.create_database(own_postgres.template()))


@pytest.fixture
def client(database_url: str) -> Iterator[App]:
    """The program's app, in this process and without a worker: it starts and looks."""
    held.app.database_url = database_url
    yield held.app
    held.app.close()


def pids(log: Log, key: str) -> list[int]:
    """Return the processes that tried a step, in order."""
    return [row[0] for row in log.rows("select pid from tries where key = %s order by at", key)]


def workers(log: Log, pid: int) -> list[str]:
    """Return the names under which a process is or was known as a worker."""
    rows = log.rows("select worker from refold.workers where lane = 'beat' and worker like %s", f"%-{pid}-%")
    return [row[0] for row in rows]


def owners(log: Log) -> set[int]:
    """Return the processes that have workflows."""
    rows = log.rows(
        "select distinct split_part(owner, '-', -2)::int from refold.workflows where owner is not null"
    )
    return {row[0] for row in rows}


def beats(log: Log) -> dict[str, int]:
    return dict(log.rows("select worker, beat from refold.workers where lane = 'beat' and dead_at is null"))


@pytest.mark.timeout(110)
def test_only_a_dead_workers_steps_are_run_by_another_and_they_are_within_15_seconds(
    own_postgres: OwnPostgres, own_database: str, tmp_path: Path
) -> None:
    log = Log(own_database)
    log.rows(TABLES)
    programs = Programs(own_database, tmp_path)
    held.app.database_url = own_database
    try:
        # Two workers, the same command line. Neither has room for all: both get some.
        two = [programs.start_command(COMMAND) for _ in range(2)]
        for program in two:
            program.wait_output("worker of held")
        wait_for(lambda: len(beats(log)) == 2, "both are there")
        ids = [f"h{n}" for n in range(60)]
        for each in ids:
            held.held.start("first", "second", id=each)
        held.app.close()
        wait_for(lambda: log.one("select count(*) from tries") >= 32 and len(owners(log)) == 2, "both work")

        # Postgres goes away and comes back: nobody is declared dead for it, nothing runs twice.
        log.close()
        own_postgres.restart()
        again = wait_for(lambda: _reconnected(own_database), "Postgres is back")
        wait_for(lambda: len(moved(beats(log), again)) == 2, "both beat again")
        # The log's clock jumps 30 days.
        log.rows(
            "create or replace function refold.log_now() returns timestamptz language sql volatile as"
            " $$ select clock_timestamp() + interval '30 days' $$"
        )
        before = beats(log)
        wait_for(lambda: all(beats(log)[name] >= beat + 2 for name, beat in before.items()), "two beats more")
        assert log.one("select count(*) from refold.workers where dead_at is not null") == 0
        assert log.rows("select key from tries group by 1 having count(*) > 1") == []

        # Now one of them dies. Its steps, and no others, are tried by the other.
        victim = two[0] if two[0].pid in owners(log) else two[1]
        survivor = next(program for program in two if program is not victim)
        lost = {
            row[0]
            for row in log.rows(
                "select t.key from tries t where t.pid = %s and not exists (select from refold.events e"
                " where e.type = 'StepCompleted' and e.workflow_id = split_part(t.key, '/', 1))",
                victim.pid,
            )
        }
        assert lost
        victim.kill()
        died = log.one("select clock_timestamp()")
        wait_for(
            lambda: (
                log.one("select count(*) from refold.workflows where owner like %s", f"%-{victim.pid}-%") == 0
            ),
            "its workflows are free",
        )
        log.rows("insert into gates values ('first'), ('second')")
        for each in ids:
            log.wait_status(each, "completed", 40)
        taken = log.rows(
            "select key, min(at) from tries where pid = %s and key = any(%s) group by 1",
            survivor.pid,
            list(lost),
        )
        assert {key for key, _ in taken} == lost
        assert (min(at for _, at in taken) - died).total_seconds() < 15
        twice = {row[0] for row in log.rows("select key from tries group by 1 having count(*) > 1")}
        assert twice == lost, "steps of a live worker were run by another"
        log.check()
        survivor.signal(signal.SIGTERM)
        assert survivor.wait() == 0, survivor.output
    finally:
        programs.close()
        held.app.close()
        log.close()


def _reconnected(url: str) -> dict[str, int]:
    try:
        log = Log(url)
        found = beats(log)
        log.close()
        return found
    except psycopg.OperationalError:
        return {}


def moved(now: dict[str, int], before: dict[str, int]) -> set[str]:
    return {name for name, beat in now.items() if beat > before.get(name, beat)}


@pytest.mark.timeout(110)
def test_a_frozen_workers_work_is_done_by_others_and_it_comes_back_as_a_new_worker(
    log: Log, programs: Programs, client: App
) -> None:
    log.rows(TABLES)
    sleeper = programs.start_command(COMMAND)
    wait_for(lambda: len(beats(log)) == 1, "it is there")
    held.held.start("step", "step", id="plain")
    held.booking.start("ann", "booking", id="booking")
    held.ticker.start(60, id="ticker")
    wait_for(lambda: log.one("select count(*) from tries") == 2, "it is in both steps, the seat's row locked")
    wait_for(lambda: len(log.types("ticker")) > 5, "it ticks")
    sleeper.signal(signal.SIGSTOP)
    frozen_name = workers(log, sleeper.pid)
    other = programs.start_command(COMMAND)

    # Longer than it takes to be declared dead. The sleeper still holds the lock on the seat's row.
    wait_for(lambda: pids(log, "booking/0")[1:] == [other.pid], "the other got the sleeper's locks", 40)
    wait_for(lambda: pids(log, "plain/0")[1:] == [other.pid], "the other is in the step")
    log.rows("insert into gates values ('step'), ('booking')")
    for each in ("plain", "booking", "ticker"):
        log.wait_status(each, "completed")

    events = log.one("select count(*) from refold.events")
    sleeper.signal(signal.SIGCONT)
    sleeper.wait_output("was declared dead")
    names = wait_for(lambda: set(workers(log, sleeper.pid)) - set(frozen_name), "it has a new name")
    assert len(names) == 1
    # What its steps brought home when they thawed came to nothing.
    assert log.rows("select who, pid from bookings") == [("ann", other.pid)]
    assert log.one("select taken from seats") == 1
    assert log.one("select count(*) from refold.events") == events
    assert log.events("plain", "WorkflowCompleted")[0]["result"] == [other.pid, other.pid]

    other.signal(signal.SIGTERM)
    assert other.wait() == 0, other.output
    held.booking.start("bob", "booking", id="bob")
    log.wait_status("bob", "completed")
    assert log.events("bob", "WorkflowCompleted")[0]["result"] == sleeper.pid
    sleeper.signal(signal.SIGTERM)
    assert sleeper.wait() == 0, sleeper.output


def longest_pause(log: Log, workflow_id: str) -> float:
    times: list[datetime] = [event["at"] for event in log.events(workflow_id, "StepCompleted")]
    return max((b - a).total_seconds() for a, b in pairwise(times))


def in_hand(log: Log, program: Program, ids: list[str]) -> bool:
    names = {log.owner(each) for each in ids}
    return all(name is not None and f"-{program.pid}-" in name for name in names)


@pytest.mark.timeout(110)
def test_a_worker_that_is_told_to_end_hands_over_at_once_and_finishes_the_steps_in_hand(
    log: Log, programs: Programs, client: App
) -> None:
    log.rows(TABLES)
    first = programs.start_command(COMMAND)
    wait_for(lambda: len(beats(log)) == 1, "it is there")
    tickers = [f"ticker{n}" for n in range(5)]
    for each in tickers:
        held.ticker.start(60, id=each)
    held.held.start("slow", "slow", id="slow")
    held.letter.start(id="letter")
    wait_for(lambda: pids(log, "slow/0") == [first.pid], "it is in the slow step")
    wait_for(lambda: all(len(log.types(each)) > 3 for each in tickers), "they tick")
    assert in_hand(log, first, tickers)
    second = programs.start_command(COMMAND)
    wait_for(lambda: len(beats(log)) == 2, "the second is there")

    first.signal(signal.SIGTERM)
    wait_for(lambda: in_hand(log, second, tickers), "the tickers have moved")
    # The slow step is the first worker's until it ends: nobody else runs it.
    assert pids(log, "slow/0") == [first.pid]
    assert first.running
    log.rows("insert into gates values ('slow')")
    assert first.wait() == 0, first.output
    client.send("letter", "hello", "t")
    for each in (*tickers, "slow", "letter"):
        log.wait_status(each, "completed")

    for each in tickers:
        assert [event["result"] for event in log.events(each, "WorkflowCompleted")] == [2]
        assert longest_pause(log, each) < 1, "the other worker waited before it went on"
    result = log.events("slow", "WorkflowCompleted")[0]["result"]
    assert result == [first.pid, second.pid], (
        "the step in hand ended in the first, the next ran in the second"
    )
    done = log.events("slow", "StepCompleted")
    assert (done[1]["at"] - done[0]["at"]).total_seconds() < 1
    assert log.rows("select key from tries group by 1 having count(*) > 1") == []
    assert workers(log, first.pid) == [], "it has left"


@pytest.mark.timeout(110)
def test_a_flush_that_commits_after_its_worker_was_killed_counts_once(
    log: Log, programs: Programs, client: App
) -> None:
    """The commit waits for a lock while its sender dies: Postgres may finish it, and the next worker must see it."""
    log.rows(TABLES)
    victim = programs.start_command(COMMAND)
    wait_for(lambda: len(beats(log)) == 1, "it is there")
    held.held.start("first", "second", id="h")
    wait_for(lambda: pids(log, "h/0") == [victim.pid], "it is in the step")
    with psycopg.connect(log.url) as blocker:
        blocker.execute("lock table refold.events in share row exclusive mode")
        log.rows("insert into gates values ('first')")
        wait_for(
            lambda: log.rows(
                "select pid from pg_stat_activity where wait_event_type = 'Lock' and query like '%%refold.flush%%'"
                " and datname = current_database() and pid <> pg_backend_pid()"
            ),
            "the flush with the result waits for the lock",
        )
        victim.kill()
        heir = programs.start_command(COMMAND)
        wait_for(lambda: len(beats(log)) == 2 or heir.pid in owners(log), "the heir is there")
    log.rows("insert into gates values ('second')")
    log.wait_status("h", "completed", 40)
    completed = log.events("h", "StepCompleted")
    assert [event["no"] for event in completed] == [0, 1]
    # Whoever's first step it is in the log, it is there once, and the code saw that one.
    assert log.events("h", "WorkflowCompleted")[0]["result"] == [event["result"] for event in completed]
    assert completed[1]["result"] == heir.pid


@pytest.mark.timeout(110)
def test_a_transactional_step_whose_worker_is_killed_in_its_commit_books_once(
    log: Log, programs: Programs, client: App
) -> None:
    """Rows and event are written, the commit waits; the worker dies, and the heir has to get past its locks."""
    log.rows(TABLES)
    log.rows(
        "create function hold() returns trigger language plpgsql as"
        " 'begin perform pg_advisory_xact_lock(42); return null; end'"
    )
    log.rows(
        "create constraint trigger held_at_commit after insert on bookings deferrable initially deferred"
        " for each row execute function hold()"
    )
    log.rows("insert into gates values ('open')")
    victim = programs.start_command(COMMAND)
    wait_for(lambda: len(beats(log)) == 1, "it is there")
    with psycopg.connect(log.url) as blocker:
        blocker.execute("select pg_advisory_xact_lock(42)")
        held.booking.start("ann", "open", id="b")
        wait_for(
            lambda: log.rows("select 1 from pg_stat_activity where wait_event = 'advisory'"),
            "the commit waits",
        )
        victim.kill()
        heir = programs.start_command(COMMAND)
        wait_for(lambda: pids(log, "b/0")[1:] == [heir.pid], "the heir runs the step")
        wait_for(
            lambda: log.rows("select 1 from pg_stat_activity where wait_event = 'advisory'"),
            "the heir's commit waits, the victim's is gone",
        )
    log.wait_status("b", "completed")
    assert log.rows("select who, pid from bookings") == [("ann", heir.pid)]
    assert log.one("select taken from seats") == 1
    assert log.types("b") == ["WorkflowStarted", "StepCompleted", "WorkflowCompleted"]
