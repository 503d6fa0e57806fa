"""A worker that stops hands over what it can; what it can't, it leaves to take-over; it never hangs."""

import signal
import sys
import threading
from datetime import timedelta
from pathlib import Path

import pytest
from engine.programs import stopping

import refold
from fixtures.proxy import CutProxy
from fixtures.workers import Log, Programs, wait_for
from refold import App

PROGRAM = Path(stopping.__file__)


def test_a_step_that_outlasts_the_grace_is_taken_over_as_a_second_attempt(
    log: Log, programs: Programs, database_url: str
) -> None:
    log.rows(stopping.TABLES)
    first = programs.start(PROGRAM)
    wait_for(lambda: log.rows("select 1 from refold.workers where lane = 'beat'"), "it is there")
    stopping.app.database_url = database_url
    stopping.one.start(id="one")
    stopping.app.close()
    wait_for(lambda: log.rows("select pid from tries"), "it is in the step")
    first.signal(signal.SIGTERM)
    assert first.wait() == 0, first.output  # without waiting for the thread
    assert log.types("one") == ["WorkflowStarted"]
    log.rows("insert into gates values ('open')")
    second = programs.start(PROGRAM)
    log.wait_status("one", "completed")
    assert log.rows("select attempt, pid from tries order by attempt") == [(1, first.pid), (2, second.pid)]
    assert log.events("one", "StepCompleted")[0]["attempt"] == 2
    second.signal(signal.SIGINT)
    assert second.wait() == 0, second.output


def test_a_second_signal_ends_the_process_at_once(log: Log, programs: Programs, database_url: str) -> None:
    log.rows(stopping.TABLES)
    program = programs.start_command(
        [
            sys.executable,
            "-c",
            "from datetime import timedelta; from engine.programs import stopping;"
            " stopping.app.shutdown_grace = timedelta(seconds=60); stopping.app.run()",
        ]
    )
    wait_for(lambda: log.rows("select 1 from refold.workers where lane = 'beat'"), "it is there")
    stopping.app.database_url = database_url
    stopping.one.start(id="one")
    stopping.app.close()
    wait_for(lambda: log.rows("select pid from tries"), "it is in the step")
    program.signal(signal.SIGTERM)
    wait_for(lambda: not _catches_sigterm(program.pid), "it has begun to stop")
    program.signal(signal.SIGTERM)
    assert program.wait(10) == -signal.SIGTERM


def _catches_sigterm(pid: int) -> bool:
    caught = next(
        line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("SigCgt:")
    )
    return bool(int(caught.split()[1], 16) >> (signal.SIGTERM - 1) & 1)


def test_stopping_waits_for_the_step_in_hand_and_records_it(app: App, log: Log) -> None:
    entered, leave = threading.Event(), threading.Event()

    @refold.step
    def slow() -> str:
        entered.set()
        leave.wait(20)
        return "slow"

    @refold.step
    def never() -> str:
        return "never"

    @app.workflow
    def one() -> str:
        return slow() + never()

    app.start_worker()
    one.start(id="one")
    assert entered.wait(10)
    stopper = threading.Thread(target=app.stop_worker)
    stopper.start()
    leave.set()
    stopper.join(10)
    assert not stopper.is_alive()
    assert log.types("one") == ["WorkflowStarted", "StepCompleted"], (
        "the next step was begun, or the first lost"
    )
    assert log.rows("select owner, status from refold.workflows") == [(None, "pending")]
    assert log.rows("select worker from refold.workers") == []
    with app:
        assert app.get("one").result(10) == "slownever"


def test_an_app_can_be_run_again_and_again(app: App, log: Log) -> None:
    @refold.step
    def note(n: int) -> int:
        return n

    @app.workflow
    def one(n: int) -> int:
        return note(n)

    before = threading.active_count()
    for n in range(5):
        with app:
            assert one.start(n).result(10) == n
    # Threads of the pool are not joined; they end as they come to rest.
    wait_for(lambda: threading.active_count() <= before + 1, "no thread is left")
    assert log.rows("select worker from refold.workers") == []


def test_starting_while_the_worker_stops_is_durable_or_an_error(app: App, log: Log) -> None:
    @app.workflow
    def one(n: int) -> None: ...

    started: list[int] = []
    stop = threading.Event()

    def start() -> None:
        n = 0
        while not stop.is_set():
            try:
                one.start(n, id=f"w{n}")
            except BaseException as error:
                if isinstance(error, refold.RefoldError) or "Cancelled" in type(error).__name__:
                    n += 1
                    continue
                raise
            started.append(n)
            n += 1

    app.start_worker()
    starter = threading.Thread(target=start)
    starter.start()
    wait_for(lambda: len(started) > 20, "it starts")
    app.stop_worker()
    count = len(started)
    wait_for(lambda: len(started) > count + 5 or not starter.is_alive(), "it starts without a worker")
    stop.set()
    starter.join(10)
    assert log.one("select count(*) from refold.events where type = 'WorkflowStarted'") >= len(started)
    ids = {row[0] for row in log.rows("select workflow_id from refold.workflows")}
    assert {f"w{n}" for n in started} <= ids


def test_waiting_for_a_result_survives_the_stop_of_the_worker(app: App, database_url: str, log: Log) -> None:
    other, third = App("other", database_url=database_url), App("third", database_url=database_url)
    for each in (app, other):

        @each.workflow
        def one() -> str:
            return refold.recv("t", str)

    results: list[str] = []
    with other:
        other.workflows["one"].start(id="one")
        waiter = threading.Thread(target=lambda: results.append(third.get("one").result(20)))
        waiter.start()
        wait_for(lambda: log.rows("select 1 from refold.waiters"), "somebody waits")
    with app:
        app.send("one", "hello", "t")
        waiter.join(20)
    third.close()
    assert results == ["hello"]


@pytest.mark.timeout(60)
def test_a_worker_cut_off_from_postgres_stops_in_its_grace(cut_proxy: CutProxy, log: Log) -> None:
    app = App("cut", database_url=cut_proxy.url)

    @app.workflow
    def one() -> str:
        return refold.recv("t", str)

    app.start_worker()
    one.start(id="one")
    cut_proxy.refuse()
    cut_proxy.cut()
    app.stop_worker(grace=timedelta(seconds=0.5))
    cut_proxy.refuse(False)
    app.close()
    assert log.types("one") == ["WorkflowStarted"]
