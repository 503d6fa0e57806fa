"""Moments that come once in a million: an answer that is late, a name that looks like another, a worker between two.

Each is held open here until everything that has to meet in it is there.
"""

import asyncio
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import psycopg
import pytest

import refold
from fixtures.workers import Log, wait_for
from refold import App
from refold.core import Order, Start, _executor, _worker
from refold.core._executor import Executor
from refold.eventlog._log import Append, Flushed, Lane


@pytest.fixture
def quick_eviction(monkeypatch: pytest.MonkeyPatch) -> None:
    """Workflows that wait leave memory after 50 ms instead of a second."""
    monkeypatch.setattr(_executor, "LINGER", 0.05)


@contextmanager
def locked(log: Log, statement: str) -> Iterator[psycopg.Connection[Any]]:
    """Hold the locks of a statement, of somebody else's session, until the block ends."""
    with psycopg.connect(log.url) as connection:
        connection.execute(statement.encode())
        yield connection
        connection.rollback()


@contextmanager
def in_thread(work: Callable[[], object], within: float = 10.0) -> Iterator[threading.Thread]:
    """Run `work` beside the block, from when that starts the thread; it has to end soon after the block has."""
    thread = threading.Thread(target=work, daemon=True)
    yield thread
    thread.join(within)
    assert not thread.is_alive(), "it hangs"


def term_of(app: App) -> Any:
    worker: Any = app._worker
    return worker._term


def executor_of(app: App) -> Any:
    return term_of(app).executor


def worker_id(app: App) -> str | None:
    term = term_of(app)
    return None if term is None else str(term.id)


def wait_evicted(app: App, log: Log, workflow_id: str) -> None:
    log.wait_status(workflow_id, "waiting")
    wait_for(lambda: workflow_id not in executor_of(app).residents, f"{workflow_id} has left memory")


@pytest.mark.usefixtures("quick_eviction")
def test_a_workflow_that_is_claimed_before_its_evictions_answer_has_come_goes_on(
    app: App, database_url: str, log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Durable, it can be claimed by this very worker, which still has the copy that leaves."""
    evicted, claimed = threading.Event(), threading.Event()
    flush, load = Lane.flush, Executor.load

    async def flush_and_answer_late(self: Lane, appends: Sequence[Append]) -> Flushed:
        flushed = await flush(self, appends)
        if any(a.stream == "w" and a.head is not None and a.head.status == "waiting" for a in appends):
            evicted.set()
            await asyncio.to_thread(claimed.wait, 10)
        return flushed

    def load_and_say(self: Executor, workflow: Any, workflow_id: str, *rest: Any, **options: Any) -> None:
        load(self, workflow, workflow_id, *rest, **options)
        claimed.set()

    monkeypatch.setattr(Lane, "flush", flush_and_answer_late)
    monkeypatch.setattr(Executor, "load", load_and_say)

    @app.workflow
    def patient() -> str:
        return refold.recv("", str)

    other = App("other", database_url=database_url)
    with app:
        handle = patient.start(id="w")
        assert evicted.wait(10)
        other.send("w", "hello")
        other.close()
        assert handle.result(10) == "hello"
    assert claimed.is_set()


def test_a_start_and_a_workflow_whose_ids_differ_by_a_plus_share_a_flush(app: App, log: Log) -> None:
    gate = threading.Event()

    @refold.step
    def work() -> str:
        assert gate.wait(20)
        return "done"

    @app.workflow
    def one() -> str:
        return work()

    @app.workflow
    def none() -> None: ...

    with app:
        executor = executor_of(app)
        handle = one.start(id="+x")
        wait_for(lambda: executor.residents["+x"].running, "it is in its step")
        with (
            in_thread(lambda: none.start(id="before")) as first,
            in_thread(lambda: none.start(id="x")) as second,
            locked(log, "lock table refold.events in exclusive mode"),
        ):
            first.start()
            wait_for(lambda: executor._pump._on_the_wire, "a flush is on the wire")
            gate.set()
            wait_for(lambda: executor.residents["+x"].part, "the outcome of the step waits")
            second.start()
            wait_for(lambda: "x" in executor._starting, "the start waits")
        assert handle.result(5) == "done"
        app.get("x").result(5)


@pytest.mark.usefixtures("quick_eviction")
def test_a_message_sent_while_its_worker_is_declared_dead_arrives(app: App, log: Log) -> None:
    @app.workflow
    def patient() -> str:
        return refold.recv("", str)

    with app:
        dead = worker_id(app)
        handle = patient.start(id="w")
        wait_evicted(app, log, "w")
        with in_thread(lambda: app.send("w", "hello")) as sender, psycopg.connect(log.url) as peer:
            peer.execute("select 1 from refold.workers where worker = %s for update", (dead,))
            executor = executor_of(app)
            sender.start()
            wait_for(lambda: executor._senders and executor._pump._on_the_wire, "it is on the wire")
            peer.execute("select refold.give_up(%s, null)", (dead,))
        assert handle.result(10) == "hello"
        assert worker_id(app) != dead


@pytest.mark.usefixtures("quick_eviction")
def test_a_step_may_call_its_app_while_that_stops(app: App, log: Log) -> None:
    entered, leave = threading.Event(), threading.Event()
    app.shutdown_grace = timedelta(seconds=15)

    @refold.step
    def tell() -> None:
        entered.set()
        assert leave.wait(20)
        app.send("w", "hello")

    @app.workflow
    def teller() -> None:
        tell()

    @app.workflow
    def patient() -> str:
        return refold.recv("", str)

    app.start_worker()
    patient.start(id="w")
    wait_evicted(app, log, "w")
    teller.start(id="t")
    assert entered.wait(10)
    executor: Any = executor_of(app)
    with in_thread(app.close, within=5) as closer:
        closer.start()
        wait_for(lambda: not executor.accepting_steps, "the worker stops")
        leave.set()
    assert log.types("t")[1:2] == ["StepCompleted"], "the step was not waited for"
    with app:
        assert app.get("w").result(10) == "hello"


def test_a_step_that_outlasts_its_app_does_not_open_it_again(app: App, log: Log) -> None:
    entered, leave = threading.Event(), threading.Event()
    app.shutdown_grace = timedelta(seconds=0.1)
    errors: list[str] = []

    @refold.step
    def tell() -> None:
        entered.set()
        assert leave.wait(20)
        try:
            app.send("w", "hello")
        except Exception as error:
            errors.append(type(error).__name__)
        else:
            errors.append("none")

    @app.workflow
    def teller() -> None:
        tell()

    app.start_worker()
    teller.start(id="t")
    assert entered.wait(10)
    app.close()
    leave.set()
    wait_for(lambda: errors, "the step has called")
    assert errors == ["WrongCall"]
    assert log.one("select count(*) from refold.inbox") == 0
    assert app._engine is None


def test_a_transactional_branch_whose_workflow_ends_by_another_lets_go_of_its_transaction(
    database_url: str, log: Log
) -> None:
    app = App("two threads", database_url=database_url, threads=2)
    both = threading.Barrier(3)

    @refold.step(transaction=True)
    def branch(connection: psycopg.Connection[Any], n: int) -> int:
        both.wait(10)
        return n

    @refold.step
    def plain() -> str:
        return "ran"

    @app.workflow
    async def race() -> None:
        tasks = [asyncio.ensure_future(branch.acall(n)) for n in range(2)]
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)

    @app.workflow
    async def after() -> list[str]:
        return list(await asyncio.gather(plain.acall(), plain.acall()))

    with app:
        handle = race.start(id="r")
        wait_for(lambda: len(executor_of(app).residents["r"].running) == 2, "both branches run")
        with locked(log, "lock table refold.events in exclusive mode"):
            both.wait(10)
            wait_for(lambda: executor_of(app).residents["r"].held, "the second waits for the first's commit")
        handle.result(10)
        wait_for(
            lambda: (
                not log.rows(
                    "select 1 from pg_stat_activity where datname = current_database() and state like 'idle in%%'"
                )
            ),
            "no transaction is open",
            timeout=5,
        )
        assert after.start().result(5) == ["ran", "ran"]
    app.close()


@pytest.mark.usefixtures("quick_eviction")
def test_a_worker_that_emptied_its_hands_for_a_suspect_that_another_took_works_on(
    app: App, log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_worker, "EXCLUSIVE_AFTER", 0.1)
    gate = threading.Event()

    @refold.step
    def work() -> None:
        assert gate.wait(30)

    @app.workflow
    def busy() -> None:
        work()

    @app.workflow
    def patient() -> str:
        return refold.recv("", str)

    @app.workflow
    def quick() -> str:
        return "quick"

    with app:
        handle = busy.start()
        patient.start(id="w")
        wait_evicted(app, log, "w")
        log.rows(
            "update refold.workflows set status = 'pending', due_at = now(), suspicion = 3"
            " where workflow_id = 'w'"
        )
        wait_for(lambda: not executor_of(app).accepting, "it takes in nothing")
        log.rows("update refold.workflows set owner = 'other', status = 'running' where workflow_id = 'w'")
        wait_for(lambda: term_of(app)._suspects_since is None, "it has seen that the suspect is gone")
        gate.set()
        handle.result(10)
        assert quick.start().result(10) == "quick"
        assert executor_of(app).accepting


def test_an_id_that_the_log_could_not_keep_is_refused_where_workflow_code_names_it(
    app: App, log: Log
) -> None:
    """It can be caught, and nothing of what was asked for along with it is refused."""

    @app.workflow
    async def child() -> str:
        return "child"

    @app.workflow
    async def parent() -> str:
        kid = child.options(id="kid").start()
        with pytest.raises(refold.InvalidId):
            refold.send("bad\0id", "x")
        with pytest.raises(refold.InvalidId):
            child.options(id="bad\0id").start()
        return await kid.aresult()

    @app.workflow
    def careless() -> None:
        refold.send("source:x", "x")

    with app:
        assert parent.start(id="p").result(10) == "child"
        with pytest.raises(refold.InvalidId):
            careless.start(id="c").result(10)
    assert log.types("p") == ["WorkflowStarted", "ChildStarted", "ChildCompleted", "WorkflowCompleted"]
    assert log.types("c") == ["WorkflowStarted", "WorkflowFailed"]


def test_mail_is_read_on_after_a_statement_was_cancelled(app: App, database_url: str, log: Log) -> None:
    """By a statement's time-out, or an administrator."""
    gate = threading.Event()

    @refold.step
    def work() -> None:
        assert gate.wait(30)

    @app.workflow
    async def one() -> str:
        value, _ = await asyncio.gather(refold.arecv("", str), work.acall())
        return value

    def reading() -> list[tuple[Any, ...]]:
        return log.rows(
            "select pid, query_start from pg_stat_activity where datname = current_database()"
            " and wait_event_type = 'Lock' and query like '%%i.message_id, i.body%%'"
        )

    other = App("other", database_url=database_url)
    with app:
        handle = one.start(id="w")
        with locked(log, "lock table refold.inbox in access exclusive mode"):
            worker: Any = app._worker
            worker.engine.post(term_of(app)._mail.set)
            found = wait_for(reading, "mail is being read")
            log.rows("select pg_cancel_backend(%s)", found[0][0])
            wait_for(lambda: found[0] not in reading(), "that is cancelled")
        other.send("w", "hello")
        other.close()
        wait_for(lambda: "MessageReceived" in log.types("w"), "the message has come", timeout=10)
        gate.set()
        assert handle.result(10) == "hello"


@pytest.mark.usefixtures("quick_eviction")
def test_mail_of_a_newer_release_stops_one_workflow_and_not_its_worker(app: App, log: Log) -> None:
    @app.workflow
    def patient() -> str:
        return refold.recv("", str)

    with app:
        before = worker_id(app)
        patient.start(id="w")
        handle = patient.start(id="v")
        wait_evicted(app, log, "w")
        log.rows(
            "insert into refold.inbox (workflow_id, message_id, type, body)"
            """ values ('w', 'm', 'FromTheFuture', '{"type":"FromTheFuture","message_id":"m"}')"""
        )
        log.wait_status("w", "stuck", timeout=10)
        app.send("v", "hello")
        assert handle.result(10) == "hello"
        assert worker_id(app) == before


@pytest.mark.usefixtures("quick_eviction")
def test_a_retry_of_a_step_that_was_cancelled_is_not_waited_for_after_a_replay(app: App, log: Log) -> None:
    @refold.step(retries=5, retry_delay=timedelta(hours=1))
    async def bad() -> None:
        raise ValueError("bad")

    @app.workflow
    async def impatient() -> None:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.3):
                await bad()
        for _ in range(2):
            await refold.arecv("", str)

    def due() -> Any:
        return log.one("select due_at from refold.workflows where workflow_id = 'w'")

    with app:
        impatient.start(id="w")
        wait_evicted(app, log, "w")
        assert due() is None
        app.send("w", "awake")
        wait_for(lambda: "MessageReceived" in log.types("w"), "it was replayed")
        wait_evicted(app, log, "w")
        assert due() is None


def test_a_parked_workflow_that_is_retried_before_its_workers_answer_has_come_goes_on(
    app: App, database_url: str, log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Durable, it can be claimed by this very worker, which still has the copy that was parked."""
    parked, claimed = threading.Event(), threading.Event()
    flush, load = Lane.flush, Executor.load
    broken = True

    async def flush_and_answer_late(self: Lane, appends: Sequence[Append]) -> Flushed:
        flushed = await flush(self, appends)
        if any(a.stream == "w" and a.head is not None and a.head.status == "parked" for a in appends):
            parked.set()
            await asyncio.to_thread(claimed.wait, 10)
        return flushed

    def load_and_say(self: Executor, workflow: Any, workflow_id: str, *rest: Any, **options: Any) -> None:
        load(self, workflow, workflow_id, *rest, **options)
        if parked.is_set():
            claimed.set()

    monkeypatch.setattr(Lane, "flush", flush_and_answer_late)
    monkeypatch.setattr(Executor, "load", load_and_say)

    @refold.step
    def work() -> str:
        if broken:
            raise ValueError("no")
        return "done"

    @app.workflow
    def fragile() -> str:
        return work()

    other = App("other", database_url=database_url)
    app.accept([Start(fragile, "w", b"{}", order=Order("k", 1))], label="feed", timeout=20)
    with app:
        assert parked.wait(20)
        broken = False
        other.retry("w")
        other.close()
        assert app.get("w").result(20) == "done"
    assert claimed.is_set()
