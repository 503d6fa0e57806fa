"""What a person settles: workflows of an order that failed, and those that killed their workers."""

import threading
from datetime import timedelta
from typing import Any

import msgspec
import pytest

import refold
from fixtures.workers import Log, wait_for
from refold import App
from refold.core import Order, Start, Workflow


def start_in_order(
    app: App,
    workflow: Workflow[..., Any],
    id: str,
    *,
    key: str = "k",
    no: int = 1,
    parks: bool = True,
    **input: Any,
) -> None:
    """Start a workflow as the `no`-th of `key`; durable on return."""
    start = Start(workflow, id, msgspec.json.encode(input), order=Order(key, no, parks))
    app.accept([start], label="feed", timeout=20)


class Bank:
    """What steps of these tests do: refuse as long as they are told to."""

    def __init__(self) -> None:
        self.broken: set[str] = set()
        self.tries: list[tuple[str, int, str]] = []

    def visit(self, name: str) -> str:
        info = refold.step_info()
        self.tries.append((name, info.attempt, info.idempotency_key))
        if name in self.broken:
            raise ValueError(f"no {name}")
        return name


@pytest.fixture
def bank(app: App) -> Bank:
    """An app with workflows that visit the bank."""
    bank = Bank()

    @refold.step
    def visit(name: str) -> str:
        return bank.visit(name)

    @refold.step(retries=1, retry_delay=timedelta(0))
    def insist(name: str) -> str:
        return bank.visit(name)

    @app.workflow
    def errands(names: list[str]) -> str:
        return ",".join(visit(name) for name in names)

    @app.workflow
    async def insisting() -> str:
        return await insist.acall("x")

    @app.workflow
    def parent(names: list[str]) -> str:
        return visit("before") + ":" + errands(names)

    return bank


def parked(app: App, log: Log, name: str, id: str = "w", **input: Any) -> None:
    """Start a workflow in an order, and wait until it is parked."""
    start_in_order(app, app.workflows[name], id, **input)
    log.wait_status(id, "parked")


def wait_parked(log: Log, times: int) -> None:
    """Wait until workflow `w` was parked so often."""
    wait_for(lambda: len(log.events("w", "Parked")) == times, f"it is parked {times} times")


def test_an_error_out_of_an_ordered_workflow_parks_it_and_a_retry_goes_on_from_there(
    app: App, bank: Bank, log: Log
) -> None:
    bank.broken = {"b"}
    with app:
        parked(app, log, "errands", names=["a", "b", "c"])
        assert app.info("w").note == "waits for a person: refold retry w, or: refold skip w"
        assert app.info("w").finished_at is None
        error = log.events("w", "Parked")[0]["error"]
        assert (error["qualname"], error["message"]) == ("ValueError", "no b")
        bank.broken = set()
        assert app.retry("w") == ["visit"]
        assert app.get("w").result(20) == "a,b,c"
    assert bank.tries == [("a", 1, "w/0"), ("b", 1, "w/1"), ("b", 2, "w/1"), ("c", 1, "w/2")]
    assert log.types("w") == [
        "WorkflowStarted", "StepCompleted", "StepFailed", "Parked", "Retried", "StepCompleted", "StepCompleted",
        "WorkflowCompleted",
    ]  # fmt: skip
    assert log.events("w", "Retried")[0]["undelivered"] == [2]


def test_without_parks_it_fails(app: App, bank: Bank, log: Log) -> None:
    bank.broken = {"a"}
    with app:
        start_in_order(app, app.workflows["errands"], "w", parks=False, names=["a"])
        with pytest.raises(ValueError, match="no a"):
            app.get("w").result(20)
        with pytest.raises(refold.WorkflowNotParked):
            app.retry("w")


def test_each_retry_has_all_the_retries_of_the_step_and_counts_its_attempts_on(
    app: App, bank: Bank, log: Log
) -> None:
    bank.broken = {"x"}
    with app:
        parked(app, log, "insisting")
        for times in (2, 3):
            app.retry("w")
            wait_parked(log, times)
        bank.broken = set()
        app.retry("w")
        assert app.get("w").result(20) == "x"
    assert [attempt for _, attempt, _ in bank.tries] == [1, 2, 3, 4, 5, 6, 7]
    assert {key for _, _, key in bank.tries} == {"w/0"}


def test_a_bug_in_the_code_is_run_again_with_the_code_of_today(
    app: App, bank: Bank, log: Log, database_url: str
) -> None:
    @app.workflow(name="billing")
    def buggy(n: int) -> int:
        app.workflows["errands"].start(["a"])
        return n // 0

    with app:
        parked(app, log, "billing", n=6)
        assert app.retry("w") == []
        wait_parked(log, 2)
    fixed = App("fixed", database_url=database_url)
    fixed.workflows["errands"] = app.workflows["errands"]

    @fixed.workflow(name="billing")
    def billing(n: int) -> int:
        app.workflows["errands"].start(["a"])
        return n // 2

    fixed.retry("w")
    with fixed:
        assert fixed.get("w").result(20) == 3
    assert log.types("w").count("ChildStarted") == 1


def test_a_failed_child_goes_on_where_it_failed_and_nothing_of_it_is_done_twice(
    app: App, bank: Bank, log: Log
) -> None:
    bank.broken = {"b"}
    with app:
        parked(app, log, "parent", names=["a", "b"])
        assert log.status("w/1") == "failed"
        assert app.retry("w") == ["visit"]
        wait_parked(log, 2)
        bank.broken = set()
        assert app.retry("w") == ["visit"]
        assert app.get("w").result(20) == "before:a,b"
    assert [name for name, _, _ in bank.tries] == ["before", "a", "b", "b", "b"]
    assert [attempt for _, attempt, _ in bank.tries] == [1, 1, 1, 2, 3]
    assert log.types("w/1")[-4:] == ["WorkflowFailed", "Retried", "StepCompleted", "WorkflowCompleted"]
    assert app.get("w/1").result(20) == "a,b"


def test_a_skip_ends_it_with_the_error_that_parked_it(app: App, bank: Bank, log: Log) -> None:
    bank.broken = {"a"}
    with app:
        parked(app, log, "errands", names=["a"])
        app.skip("w", "test data")
        with pytest.raises(ValueError, match="no a") as caught:
            app.get("w").result(20)
        assert caught.value.__notes__ == ["skipped by a person: test data"]
    assert log.status("w") == "failed"
    assert log.types("w") == ["WorkflowStarted", "StepFailed", "Parked", "WorkflowFailed"]


def test_of_two_people_who_decide_at_once_one_is_told_that_it_is_decided(
    app: App, bank: Bank, log: Log, database_url: str
) -> None:
    bank.broken = {"a"}
    with app:
        parked(app, log, "errands", names=["a"])
    others = [App(f"person-{n}", database_url=database_url) for n in range(6)]
    start = threading.Barrier(len(others))
    refused: list[str] = []

    def decide(person: App, number: int) -> None:
        start.wait()
        try:
            person.retry("w") if number % 2 else person.skip("w")
        except refold.WorkflowNotParked as error:
            refused.append(error.status)

    threads = [threading.Thread(target=decide, args=(each, n)) for n, each in enumerate(others)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    for each in others:
        each.close()
    assert len(refused) == 5
    decided = log.types("w")[3:]
    assert decided in (["Retried"], ["WorkflowFailed"])
    assert log.status("w") == ("pending" if decided == ["Retried"] else "failed")


def test_one_that_killed_its_workers_is_retried_or_skipped_too(app: App, bank: Bank, log: Log) -> None:
    for each in ("w", "v"):
        app.workflows["errands"].start(["a"], id=each)
        log.rows("update refold.workflows set suspicion = 6, alone_deaths = 3 where workflow_id = %s", each)
    with app:
        for each in ("w", "v"):
            log.wait_status(each, "parked")
        assert app.retry("w") == []
        assert app.get("w").result(20) == "a"
        app.skip("v")
        with pytest.raises(refold.WorkflowSkipped):
            app.get("v").result(20)
    assert len(bank.tries) == 1


def test_a_parked_one_can_be_cancelled(app: App, bank: Bank, log: Log) -> None:
    bank.broken = {"a"}
    with app:
        parked(app, log, "errands", names=["a"])
        app.cancel("w", "forget it")
        with pytest.raises(refold.WorkflowCancelled, match="forget it"):
            app.get("w").result(20)


def test_mail_that_comes_while_it_is_parked_is_there_after_the_retry(app: App, log: Log) -> None:
    broken = True

    @refold.step
    def work() -> None:
        if broken:
            raise ValueError("no")

    @app.workflow
    def receiving() -> str:
        work()
        return refold.recv("", str)

    with app:
        parked(app, log, "receiving")
        app.send("w", "hello")
        broken = False
        app.retry("w")
        assert app.get("w").result(20) == "hello"


def test_always_replayed_a_retried_workflow_ends_the_same(app: App, bank: Bank, log: Log) -> None:
    app.always_replay = True
    bank.broken = {"b"}
    with app:
        parked(app, log, "parent", names=["a", "b", "c"])
        bank.broken = set()
        app.retry("w")
        assert app.get("w").result(20) == "before:a,b,c"


def test_an_input_that_cannot_be_decoded_is_decoded_again_with_the_types_of_today(
    app: App, bank: Bank, log: Log, database_url: str
) -> None:
    with app:
        parked(app, log, "errands", names=5)
        assert log.events("w", "Parked")[0]["error"]["qualname"] == "DecodeFailed"
    wider = App("wider", database_url=database_url)

    @wider.workflow(name="errands")
    def errands(names: list[str] | int) -> str:
        return f"{names} of them"

    wider.retry("w")
    with wider:
        assert wider.get("w").result(20) == "5 of them"


def test_what_is_behind_a_parked_one_waits_until_a_person_has_decided(app: App, bank: Bank, log: Log) -> None:
    bank.broken = {"b", "d"}
    with app:
        for no, name in enumerate("abcde"):
            start_in_order(app, app.workflows["errands"], name, no=no, names=[name])
        start_in_order(app, app.workflows["errands"], "other", key="l", names=["other"])
        log.wait_status("b", "parked")
        assert app.get("other").result(20) == "other"
        assert [log.status(name) for name in "acde"] == ["completed", "waiting", "waiting", "waiting"]
        assert app.in_flight("fee") == {"feed": {"parked": 1, "waiting": 3}}
        app.cancel("c", "not this one")  # never ran: it need not wait its turn for that
        bank.broken = {"d"}
        app.retry("b")
        log.wait_status("d", "parked")
        assert [log.status(name) for name in "abce"] == ["completed", "completed", "cancelled", "waiting"]
        app.skip("d")
        assert app.get("e").result(20) == "e"
    assert [name for name, _, _ in bank.tries if name != "other"] == ["a", "b", "b", "d", "e"]


def test_a_cancel_of_the_first_lets_the_next_go_on(app: App, bank: Bank, log: Log) -> None:
    @app.workflow
    def waits() -> None:
        refold.recv("never")

    for no, parks in ((1, True), (2, False), (3, True)):
        start_in_order(app, waits, f"w{no}", no=no, parks=parks)
    start_in_order(app, app.workflows["errands"], "last", no=4, names=["a"])
    app.cancel("w1")  # in nobody's hands
    assert [log.status(f"w{no}") for no in (1, 2, 3)] == ["cancelled", "pending", "pending"]
    app.cancel("w3")
    with app:
        wait_for(lambda: log.owner("w2") is not None, "it is taken up")
        app.cancel("w2")
        assert app.get("last").result(20) == "a"
    for no in (1, 2, 3):
        assert log.status(f"w{no}") == "cancelled"


def test_a_cancel_that_meets_the_parking_of_its_workflow_ends_it(app: App, log: Log) -> None:
    gate, here = threading.Event(), threading.Event()

    @refold.step
    def refuse() -> None:
        here.set()
        assert gate.wait(30)
        raise ValueError("no")

    @app.workflow
    def failing() -> None:
        refuse()

    start_in_order(app, failing, "w")
    start_in_order(app, failing, "next", no=2)
    with app:
        assert here.wait(20)
        # As a cancel that the worker has not heard of when it parks: in the inbox, and nobody is told.
        log.rows(
            "insert into refold.inbox (workflow_id, message_id, type, body) values ('w', 'c', 'CancelRequested', %s)",
            b'{"type":"CancelRequested","message_id":"c","reason":"late"}',
        )
        gate.set()
        log.wait_status("w", "cancelled")
        log.wait_status("next", "parked")
    assert log.types("w") == [
        "WorkflowStarted", "StepFailed", "Parked", "CancelRequested", "WorkflowCancelled",
    ]  # fmt: skip
