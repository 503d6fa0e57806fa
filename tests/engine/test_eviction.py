"""A workflow that waits leaves memory, and comes back when its timer, message or child does: here or elsewhere."""

import asyncio
import gc
import threading
import weakref
from datetime import timedelta
from typing import Any

import pytest

import refold
from fixtures.workers import Log, wait_for
from refold import App


@pytest.fixture
def quick_eviction(monkeypatch: pytest.MonkeyPatch) -> None:
    """Workflows that wait leave memory after 50 ms instead of a second, and timers far away are nearer."""
    from refold.core import _executor

    monkeypatch.setattr(_executor, "LINGER", 0.05)
    monkeypatch.setattr(_executor, "KEEP_IF_DUE_WITHIN", 200_000)


def residents(app: App) -> int:
    worker: Any = app._worker
    return len(worker._term.executor.residents)


def wait_evicted(app: App, log: Log, *ids: str) -> None:
    for each in ids:
        log.wait_status(each, "waiting")
        assert log.owner(each) is None
    wait_for(lambda: residents(app) == 0, "nothing is in memory")


def test_a_workflow_that_waits_for_a_message_leaves_memory_after_a_second(app: App, log: Log) -> None:
    class Heavy:
        pass

    kept: list[weakref.ref[Heavy]] = []

    @app.workflow
    def patient() -> str:
        heavy = Heavy()
        kept.append(weakref.ref(heavy))
        return refold.recv("t", str)

    @app.workflow
    async def apatient() -> str:
        heavy = Heavy()
        kept.append(weakref.ref(heavy))
        return await refold.arecv("t", str)

    with app:
        handles = [patient.start(id="s"), apatient.start(id="a")]
        wait_evicted(app, log, "s", "a")
        gc.collect()
        assert [ref() for ref in kept] == [None, None]
        for each in "sa":
            app.send(each, "hello", "t")
        assert [handle.result(10) for handle in handles] == ["hello", "hello"]
        assert len(kept) == 4, "it was replayed"


@pytest.mark.usefixtures("quick_eviction")
def test_eviction_runs_no_effect_of_a_finally_block(app: App, log: Log) -> None:
    ran: list[str] = []

    @refold.step
    def refund() -> str:
        ran.append("refund")
        return "refunded"

    @app.workflow
    def careful() -> str:
        try:
            return refold.recv("t", str)
        finally:
            ran.append("finally")
            refund()

    with app:
        handle = careful.start(id="c")
        wait_evicted(app, log, "c")
        assert ran == ["finally"]
        app.send("c", "go", "t")
        assert handle.result(10) == "go"
    assert ran == ["finally", "finally", "refund"]
    assert log.types("c") == ["WorkflowStarted", "MessageReceived", "StepCompleted", "WorkflowCompleted"]


@pytest.mark.usefixtures("quick_eviction")
def test_a_timer_wakes_an_evicted_workflow(app: App, log: Log) -> None:
    @app.workflow
    def sleeper() -> str:
        refold.sleep(0.9)
        return "awake"

    with app:
        handle = sleeper.start(id="s")
        wait_evicted(app, log, "s")
        assert handle.result(10) == "awake"
    started, fired, _ = log.events("s")
    assert fired["at"].timestamp() >= started["at"].timestamp() + 0.9


@pytest.mark.usefixtures("quick_eviction")
def test_a_retry_that_is_far_away_wakes_an_evicted_workflow_at_its_recorded_time(app: App, log: Log) -> None:
    @refold.step(retries=1, retry_delay=timedelta(seconds=1))
    def shaky() -> int:
        if refold.step_info().attempt == 1:
            raise OSError("once")
        return refold.step_info().attempt

    @app.workflow
    def patient() -> int:
        return shaky()

    with app:
        handle = patient.start(id="p")
        wait_evicted(app, log, "p")
        assert handle.result(10) == 2
    failed, done = log.events("p")[1:3]
    assert done["at"].timestamp() >= failed["retry_at"] / 1e6
    assert len(log.events("p", "StepFailed")) == 1


@pytest.mark.usefixtures("quick_eviction")
def test_a_retry_that_a_replay_finds_waits_for_its_recorded_time(app: App, log: Log) -> None:
    """A message wakes the workflow before its retry is due: the schedule is the recorded one, not a new one."""
    tried: list[int] = []

    @refold.step(retries=1, retry_delay=timedelta(seconds=1), jitter=0)
    async def shaky() -> int:
        tried.append(refold.step_info().attempt)
        if len(tried) == 1:
            raise OSError("once")
        return refold.step_info().attempt

    @app.workflow
    async def patient() -> int:
        attempt, _ = await asyncio.gather(shaky(), refold.arecv("t", str))
        return attempt

    with app:
        handle = patient.start(id="p")
        wait_evicted(app, log, "p")
        app.send("p", "awake", "t")
        assert handle.result(10) == 2
    started, failed, received, done, _ = log.events("p")
    assert received["type"] == "MessageReceived"
    assert received["at"].timestamp() < failed["retry_at"] / 1e6 <= done["at"].timestamp()
    assert tried == [1, 2]
    assert started["seq"] == 0


@pytest.mark.usefixtures("quick_eviction")
def test_a_childs_end_wakes_its_evicted_parent(app: App, log: Log) -> None:
    @app.workflow
    def child() -> str:
        return refold.recv("t", str)

    @app.workflow
    async def parent() -> str:
        one, two = await asyncio.gather(child.options(id="c").acall(), child.options(id="d").acall())
        return one + two

    with app:
        handle = parent.start(id="p")
        wait_evicted(app, log, "p", "c", "d")
        app.send("c", "1", "t")
        app.send("d", "2", "t")
        assert handle.result(10) == "12"


@pytest.mark.usefixtures("quick_eviction")
def test_a_message_wakes_it_in_another_worker(app: App, database_url: str, log: Log) -> None:
    other = App("other", database_url=database_url)
    for each in (app, other):

        @each.workflow
        def patient() -> str:
            return refold.recv("t", str) + refold.recv("t", str)

    with app:
        app.workflows["patient"].start(id="p")
        wait_evicted(app, log, "p")
        with other:
            app.stop_worker()
            app.send("p", "a", "t")
            wait_for(lambda: log.owner("p"), "the other has claimed it")
            wait_evicted(other, log, "p")
            other.send("p", "b", "t")
            assert other.get("p").result(10) == "ab"


@pytest.mark.usefixtures("quick_eviction")
def test_messages_sent_while_workflows_are_let_go_are_never_missed(app: App, log: Log) -> None:
    """Each round goes through waiting, eviction and waking, with the next message on its way at any moment of it."""
    rounds = 6

    @app.workflow
    def patient() -> int:
        return sum(refold.recv("t", int) for _ in range(rounds))

    with app:
        handles = [patient.start(id=f"p{n}") for n in range(30)]
        for n in range(rounds):
            for i in range(30):
                app.send(f"p{i}", n, "t")
        assert [handle.result(20) for handle in handles] == [sum(range(rounds))] * 30
    assert log.one("select count(*) from refold.inbox") == 0


def test_two_thousand_waiting_workflows_hold_no_threads(app: App, log: Log) -> None:
    @app.workflow
    def sleeper(n: int) -> None:
        refold.sleep(3600)

    @app.workflow
    async def asleeper(n: int) -> None:
        await asyncio.sleep(3600)

    async def start_all() -> None:
        async def start(n: int) -> None:
            await (sleeper if n % 2 else asleeper).astart(n, id=f"s{n}")

        await asyncio.gather(*(start(n) for n in range(2000)))

    before = threading.active_count()
    with app:
        asyncio.run(start_all())
        assert threading.active_count() <= before + 8
        wait_for(
            lambda: log.one("select count(*) from refold.workflows where status = 'waiting'") == 2000,
            "all are let go",
        )
        wait_for(lambda: residents(app) == 0, "memory is empty")
        assert threading.active_count() <= before + 8


def test_a_workflow_that_ends_with_branches_open_leaves_none_behind(app: App, log: Log) -> None:
    ran: list[str] = []
    gate = threading.Event()

    @refold.step
    def slow() -> None:
        gate.wait(20)

    @refold.step
    async def after() -> None:
        ran.append("after")

    async def branch() -> None:
        await slow.acall()
        await after()

    @app.workflow
    async def hasty() -> str:
        task = asyncio.ensure_future(branch())
        await asyncio.sleep(0)
        return str(task.done())

    with app:
        assert hasty.start(id="h").result(10) == "False"
        gate.set()
        wait_for(lambda: residents(app) == 0, "it is gone")
    assert ran == []
    assert log.types("h") == ["WorkflowStarted", "WorkflowCompleted"]
