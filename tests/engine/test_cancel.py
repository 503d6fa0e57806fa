"""Cancelling through Postgres: at each point, wherever the workflow is, once, and with all that hangs on it."""

import asyncio
import threading
from datetime import timedelta
from typing import Any

import psycopg
import pytest

import refold
from fixtures.workers import Log, wait_for
from refold import App
from refold.core import Order, Start, _executor


@pytest.fixture
def quick_eviction(monkeypatch: pytest.MonkeyPatch) -> None:
    """Workflows that wait leave memory after 50 ms instead of a second."""
    monkeypatch.setattr(_executor, "LINGER", 0.05)


class Desk:
    """What steps of these tests have done, in order; a step called "held" waits until it is let go."""

    def __init__(self) -> None:
        self.done: list[str] = []
        self.gate = threading.Event()
        self.held = threading.Event()

    def do(self, name: str) -> str:
        if name == "held":
            self.held.set()
            assert self.gate.wait(30)
        self.done.append(name)
        return name


@pytest.fixture
def desk(app: App) -> Desk:
    """An app with a workflow of each colour that undoes what it has done."""
    desk = Desk()

    @refold.step
    def do(name: str) -> str:
        return desk.do(name)

    @refold.step
    def undo(name: str) -> None:
        desk.done.append(f"undo {name}")

    @app.workflow
    def plain(names: list[str]) -> list[str]:
        done: list[str] = []
        try:
            for name in names:
                done.append(name)
                do(name)
                if name == "recv":
                    refold.recv("go")
                if name == "sleep":
                    refold.sleep(timedelta(days=1))
        except refold.Cancelled:
            for name in reversed(done):
                undo(name)
            raise
        return done

    @app.workflow
    async def coloured(names: list[str]) -> list[str]:
        done: list[str] = []
        try:
            async with asyncio.TaskGroup() as group:
                for name in names:
                    done.append(name)
                    await group.create_task(do.acall(name))
                    if name == "recv":
                        await refold.arecv("go")
                    if name == "sleep":
                        await asyncio.sleep(86_400)
        except asyncio.CancelledError:
            for name in reversed(done):
                await undo.acall(name)
            raise
        return done

    return desk


BOTH = pytest.mark.parametrize("name", ["plain", "coloured"])


@BOTH
def test_a_workflow_that_sleeps_is_cancelled_and_undoes_what_it_did(
    name: str, app: App, desk: Desk, log: Log
) -> None:
    with app:
        handle = app.workflows[name].start(["a", "sleep"], id="w")
        wait_for(lambda: "sleep" in desk.done, "it sleeps")
        handle.cancel("the customer called")
        with pytest.raises(refold.WorkflowCancelled, match="the customer called"):
            handle.result(20)
        assert handle.status() == "cancelled"
    assert desk.done == ["a", "sleep", "undo sleep", "undo a"]
    assert log.types("w")[-4:] == ["CancelRequested", "StepCompleted", "StepCompleted", "WorkflowCancelled"]
    assert log.one("select count(*) from refold.inbox") == 0


@pytest.mark.usefixtures("quick_eviction")
@BOTH
@pytest.mark.parametrize("waits", ["recv", "sleep"])
def test_one_that_was_evicted_wakes_to_undo(
    name: str, waits: str, app: App, desk: Desk, log: Log, database_url: str
) -> None:
    outside = App("outside", database_url=database_url)
    with app:
        app.workflows[name].start([waits], id="w")
        log.wait_status("w", "waiting")
        outside.cancel("w")
        log.wait_status("w", "cancelled")
    outside.close()
    assert desk.done == [waits, f"undo {waits}"]


@BOTH
def test_the_late_result_of_a_step_that_runs_is_dropped(name: str, app: App, desk: Desk, log: Log) -> None:
    with app:
        handle = app.workflows[name].start(["held"], id="w")
        assert desk.held.wait(20)
        app.cancel("w")
        log.wait_status("w", "cancelled")
        desk.gate.set()
        wait_for(lambda: "held" in desk.done, "the step has ended")
        with pytest.raises(refold.WorkflowCancelled):
            handle.result(20)
    assert desk.done == ["undo held", "held"]
    completed = [event["name"] for event in log.events("w", "StepCompleted")]
    assert completed == ["undo"]


def test_one_that_never_ran_ends_without_its_code_and_without_a_worker(
    app: App, desk: Desk, log: Log
) -> None:
    app.workflows["plain"].start(["a"], id="w")
    app.cancel("w", "not wanted")
    assert app.get("w").status() == "cancelled"
    assert log.types("w") == ["WorkflowStarted", "CancelRequested", "WorkflowCancelled"]
    with app:
        assert app.workflows["plain"].start(["b"]).result(20) == ["b"]
        with pytest.raises(refold.WorkflowCancelled, match="not wanted"):
            app.get("w").result(20)
    assert desk.done == ["b"]


def test_a_second_cancel_and_one_of_a_cancelled_workflow_do_nothing(app: App, desk: Desk, log: Log) -> None:
    gate, here = threading.Event(), threading.Event()

    @refold.step
    def slow_undo() -> None:
        here.set()
        assert gate.wait(30)

    @app.workflow
    def careful() -> None:
        try:
            refold.recv("never")
        finally:
            slow_undo()

    with app:
        careful.start(id="w")
        wait_for(lambda: app.info("w").status in ("running", "waiting"), "it runs")
        app.cancel("w", "first")
        assert here.wait(20)
        app.cancel("w", "second")
        wait_for(lambda: log.one("select count(*) from refold.inbox") == 0, "it was told")
        gate.set()
        log.wait_status("w", "cancelled")
        app.cancel("w", "third")
    assert [event["reason"] for event in log.events("w", "CancelRequested")] == ["first"]
    assert log.events("w", "WorkflowCancelled")[0]["reason"] == "first"


def test_what_has_ended_or_never_was_can_not_be_cancelled(app: App, desk: Desk) -> None:
    with app:
        app.workflows["plain"].start([], id="w").result(20)
        with pytest.raises(refold.WorkflowEnded, match="completed: there is nothing left to cancel"):
            app.cancel("w")
        with pytest.raises(refold.WorkflowNotFound):
            app.cancel("v")


def test_code_that_goes_on_completes(app: App, log: Log) -> None:
    @app.workflow
    def stubborn() -> str:
        try:
            refold.recv("never")
        except refold.Cancelled as cancelled:
            return f"no: {cancelled}"
        return ""

    with app:
        handle = stubborn.start(id="w")
        wait_for(lambda: app.info("w").status in ("running", "waiting"), "it runs")
        app.cancel("w", "please")
        assert handle.result(20) == "no: please"


def test_the_child_that_it_waits_for_is_cancelled_first(app: App, log: Log) -> None:
    order: list[str] = []

    @refold.step
    def note(what: str) -> None:
        order.append(what)

    @app.workflow
    def grandchild() -> None:
        try:
            refold.recv("never")
        finally:
            note("grandchild")

    @app.workflow
    async def child() -> None:
        try:
            await grandchild.acall()
        finally:
            await note.acall("child")

    @app.workflow
    def parent() -> None:
        try:
            child.call()
        finally:
            note("parent")

    with app:
        handle = parent.start(id="p")
        log.wait_status("p/0/0", "running")
        handle.cancel("over")
        with pytest.raises(refold.WorkflowCancelled):
            handle.result(20)
    assert order == ["grandchild", "child", "parent"]
    for each in ("p", "p/0", "p/0/0"):
        assert log.status(each) == "cancelled"
    assert log.events("p/0", "WorkflowCancelled")[0]["reason"] == "its parent p was cancelled: over"
    assert log.events("p", "ChildFailed")[0]["error"]["qualname"] == "WorkflowCancelled"


def test_a_transactional_step_that_was_cancelled_leaves_nothing_behind(app: App, log: Log) -> None:
    log.rows("create table bookings (n int)")
    gate, here = threading.Event(), threading.Event()

    @refold.step(transaction=True)
    def book(connection: psycopg.Connection[Any], n: int) -> None:
        connection.execute("insert into bookings values (%s)", (n,))
        here.set()
        assert gate.wait(30)

    @app.workflow
    def booking() -> None:
        book(1)

    with app:
        handle = booking.start(id="w")
        assert here.wait(20)
        app.cancel("w")
        with pytest.raises(refold.WorkflowCancelled):
            handle.result(20)
        gate.set()
        assert booking.options(id="v").start().result(20) is None
    assert log.rows("select n from bookings") == [(1,)]
    assert "StepCompleted" not in log.types("w")


@pytest.mark.parametrize("late", [False, True])
def test_one_that_is_stuck_ends_at_once(late: bool, app: App, log: Log, database_url: str) -> None:

    @refold.step
    def first() -> None: ...

    @refold.step
    def second() -> None: ...

    @app.workflow(name="w")
    def before() -> None:
        first()
        refold.recv("never")

    with app:
        before.start(id="w")
        wait_for(lambda: log.types("w") == ["WorkflowStarted", "StepCompleted"], "the step is done")
        if late:
            wait_for(lambda: app.info("w").status in ("running", "waiting"), "it waits")
    other = App("other", database_url=database_url)

    @other.workflow(name="w")
    def after() -> None:
        second()

    if not late:  # its cancel comes first, by a message, and then code that can't go on with it
        other.cancel("w", "wrong")
        assert log.one("select count(*) from refold.inbox") == 1
    with other:
        if late:
            log.wait_status("w", "stuck")
            other.cancel("w", "wrong")
        log.wait_status("w", "cancelled")
    assert log.types("w")[-2:] == ["CancelRequested", "WorkflowCancelled"]


def test_workflow_code_cancels_by_handle_or_step_only(app: App) -> None:
    @app.workflow
    def cancels() -> str:
        try:
            app.cancel("other")
        except refold.WrongCall as wrong:
            return str(wrong)
        return ""

    with app:
        assert cancels.start(id="w").result(20) == (
            "app.cancel(...) was called in workflow 'w', and would be done again at each replay. "
            "Put it into a step; a child is cancelled by its handle."
        )


@BOTH
def test_replayed_before_each_event_it_is_cancelled_all_the_same(
    name: str, app: App, desk: Desk, log: Log
) -> None:
    app.always_replay = True
    with app:
        app.workflows[name].start(["a", "b", "recv"], id="w")
        wait_for(lambda: "recv" in desk.done, "it waits")
        app.cancel("w")
        log.wait_status("w", "cancelled")
    assert desk.done == ["a", "b", "recv", "undo recv", "undo b", "undo a"]


def test_a_cancel_that_lies_in_the_inbox_of_one_that_never_ran_ends_it_without_its_code(
    app: App, desk: Desk, log: Log
) -> None:
    app.workflows["plain"].start(["a"], id="w")
    # As a connector hands it over: it decides nothing, it asks.
    log.rows(
        "insert into refold.inbox (workflow_id, message_id, type, body) values ('w', 'c', 'CancelRequested', %s)",
        b'{"type":"CancelRequested","message_id":"c","reason":"another tick"}',
    )
    with app:
        log.wait_status("w", "cancelled")
        assert app.workflows["plain"].start(["b"]).result(20) == ["b"]
    assert desk.done == ["b"]
    assert log.events("w", "WorkflowCancelled")[0]["reason"] == "another tick"


def test_whoever_waits_for_it_as_a_child_is_told_though_it_never_ran(app: App, desk: Desk, log: Log) -> None:
    @app.workflow
    def waits() -> None:
        refold.recv("never")

    @app.workflow
    def parent() -> str:
        try:
            app.workflows["plain"].options(id="shared").call(["a"])
        except refold.WorkflowCancelled as cancelled:
            return cancelled.reason
        return ""

    for no, (workflow, id, input) in enumerate(
        [(waits, "first", b"{}"), (app.workflows["plain"], "shared", b'{"names":["a"]}')]
    ):
        app.accept([Start(workflow, id, input, order=Order("k", no))], label="feed", timeout=20)
    with app:
        handle = parent.start(id="p")
        wait_for(lambda: log.one("select count(*) from refold.inbox") == 1, "the parent has asked to be told")
        app.cancel("shared", "not today")
        assert handle.result(20) == "not today"
    assert desk.done == []
