"""Children: one transaction starts them, their ends come back as messages, a chosen ID is the child's identity."""

import asyncio
import threading
from typing import Any

import msgspec
import pytest

import refold
from fixtures.workers import Log, wait_for
from refold import App


class OutOfStock(Exception):
    """At module level, so that it can be rebuilt."""


def test_a_child_is_a_workflow_with_an_id_derived_from_its_parents(app: App, log: Log) -> None:
    @app.workflow
    def child(n: int) -> int:
        return n * 2

    @app.workflow
    def parent(n: int) -> int:
        return child(n) + child(n + 1)

    with app:
        assert parent.start(3, id="p").result(10) == 14
    started = log.events("p", "ChildStarted")
    assert [event["child"] for event in started] == [f"p/{event['no']}" for event in started]
    assert log.rows(
        "select workflow_id, parent from refold.workflows where parent is not null order by 1"
    ) == [(event["child"], "p") for event in started]
    assert (
        log.one(
            "select count(distinct e.xid) from refold.events e where (e.workflow_id = 'p' and e.type = 'ChildStarted'"
            " and e.seq = %s) or (e.workflow_id = %s and e.seq = 0)",
            started[0]["seq"],
            started[0]["child"],
        )
        == 1
    ), "the child's start and the event that records it are two transactions"


@pytest.mark.timeout(60)
@pytest.mark.parametrize("colour", ["def", "async"])
def test_a_thousand_children_are_gathered(app: App, log: Log, colour: str) -> None:
    @refold.step
    def work(n: int) -> int:
        return n

    @app.workflow
    def child(n: int) -> int:
        return work(n)

    @app.workflow
    async def parent(n: int) -> int:
        return sum(await asyncio.gather(*(child.acall(i) for i in range(n))))

    @app.workflow
    def sync_parent(n: int) -> int:
        return sum(refold.gather(*(child.later(i) for i in range(n))))

    with app:
        assert (parent if colour == "async" else sync_parent).start(1000, id="p").result(50) == 499_500
    assert (
        log.one("select count(*) from refold.workflows where parent = 'p' and status = 'completed'") == 1000
    )


def test_a_childs_error_is_raised_in_the_parent_as_its_own_type(app: App) -> None:
    @app.workflow
    def child(kind: str) -> None:
        if kind == "ours":
            raise OutOfStock("shelf 7", 3)
        raise ZeroDivisionError("by zero")

    @app.workflow
    def parent() -> str:
        said = []
        for kind in ("ours", "builtin"):
            try:
                child(kind)
            except OutOfStock as error:
                said.append(f"{error.args}")
            except ZeroDivisionError as error:
                said.append(str(error))
        return " / ".join(said)

    with app:
        assert parent.start().result(10) == "('shelf 7', 3) / by zero"


def test_a_failed_child_fails_a_parent_that_does_not_catch_it(app: App, log: Log) -> None:
    @app.workflow
    async def child() -> None:
        raise OutOfStock("shelf 7")

    @app.workflow
    async def parent() -> None:
        await asyncio.gather(child(), child())

    with app, pytest.raises(OutOfStock, match="shelf 7"):
        parent.start(id="p").result(10)
    assert log.status("p") == "failed"


def test_a_child_with_a_chosen_id_that_runs_already_is_adopted(app: App, log: Log) -> None:
    ran: list[str] = []

    @refold.step
    def note(who: str) -> str:
        ran.append(who)
        return who

    @app.workflow
    def child(who: str) -> str:
        return note(who) + refold.recv("go", str)

    @app.workflow
    def parent(who: str) -> str:
        return child.options(id="chosen").call(who)

    with app:
        first = child.start("ann", id="chosen")
        parents = [parent.start("ann", id=f"p{n}") for n in range(3)]
        wait_for(lambda: log.types("chosen").count("WatcherAdded") == 3, "they watch")
        app.send("chosen", "!", "go")
        assert [handle.result(10) for handle in (first, *parents)] == ["ann!"] * 4
    assert ran == ["ann"]


def test_a_child_with_a_chosen_id_that_has_ended_is_adopted(app: App, log: Log) -> None:
    ran: list[str] = []

    @refold.step
    def note(who: str) -> str:
        ran.append(who)
        if who == "bad":
            raise OutOfStock(who)
        return who

    @app.workflow
    def child(who: str) -> str:
        return note(who)

    @app.workflow
    def parent(who: str) -> str:
        return child.options(id=f"chosen-{who}").call(who)

    with app:
        child.start("good", id="chosen-good").result(10)
        with pytest.raises(OutOfStock):
            child.start("bad", id="chosen-bad").result(10)
        assert parent.start("good").result(10) == "good"
        with pytest.raises(OutOfStock, match="bad"):
            parent.start("bad").result(10)
    assert ran == ["good", "bad"]


def test_a_chosen_id_of_another_workflow_or_input_is_an_error_in_the_parent(app: App, log: Log) -> None:
    @app.workflow
    def child(n: int) -> int:
        return n

    @app.workflow
    def stranger(n: int) -> int:
        return n

    @app.workflow
    def parent(n: int) -> str:
        try:
            return str(child.options(id="taken").call(n))
        except refold.WorkflowIdReused as error:
            return f"reused: {error.workflow_id} {error.found}"

    with app:
        stranger.start(1, id="taken").result(10)
        assert parent.start(1, id="p1").result(10) == "reused: taken workflow 'stranger'"
        app.delete("taken")
    assert log.types("p1") == ["WorkflowStarted", "ChildStarted", "ChildFailed", "WorkflowCompleted"]


def test_a_chosen_id_with_another_input_is_an_error_in_the_parent(app: App) -> None:
    @app.workflow
    def child(n: int) -> int:
        return n

    @app.workflow
    def parent(n: int) -> str:
        try:
            return str(child.options(id="taken").call(n))
        except refold.WorkflowIdReused as error:
            return f"reused: {error.found}"

    with app:
        child.start(1, id="taken").result(10)
        assert parent.start(2).result(10) == "reused: workflow 'child' with another input"
        assert parent.start(1).result(10) == "1"


def test_two_children_of_one_id_in_one_flush_are_one_workflow(app: App, log: Log) -> None:
    ran: list[int] = []

    @refold.step
    def note(n: int) -> int:
        ran.append(n)
        return n

    @app.workflow
    def child(n: int) -> int:
        return note(n)

    @app.workflow
    async def parent() -> list[int]:
        return await asyncio.gather(*(child.options(id="same").acall(7) for _ in range(3)))

    with app:
        assert parent.start(id="p").result(10) == [7, 7, 7]
        assert sorted(h.result(10) for h in [child.start(7, id="same"), child.start(7, id="same")]) == [7, 7]
    assert ran == [7]
    assert len(log.events("p", "ChildStarted")) == 3


def test_an_optional_field_that_was_added_since_is_no_other_child(database_url: str, log: Log) -> None:
    old, new = App("old", database_url=database_url), App("new", database_url=database_url)

    class Order(msgspec.Struct):
        id: str

    @old.workflow
    def child(order: Order) -> str:
        return order.id

    with old:
        child.start(Order("o"), id="taken").result(10)

    class NewOrder(msgspec.Struct):
        id: str
        note: str = ""

    @new.workflow(name="child")
    def new_child(order: NewOrder) -> str:
        return order.id

    @new.workflow
    def parent(note: str) -> str:
        try:
            return new_child.options(id="taken").call(NewOrder("o", note))
        except refold.WorkflowIdReused:
            return "reused"

    with new:
        assert parent.start("").result(10) == "o"
        assert parent.start("gift").result(10) == "reused"


def test_a_child_whose_history_was_deleted_is_an_error_in_the_parent(app: App) -> None:
    @app.workflow
    def child() -> int:
        return 1

    @app.workflow
    def parent() -> str:
        try:
            return str(child.options(id="gone").call())
        except refold.WorkflowDeleted as error:
            return f"deleted: {error.workflow_id}"

    with app:
        child.start(id="gone").result(10)
        app.delete("gone")
        assert parent.start().result(10) == "deleted: gone"


def test_a_child_whose_parent_ended_without_it_goes_on(app: App, log: Log) -> None:
    @app.workflow
    async def child() -> str:
        return await refold.arecv("go", str)

    @app.workflow
    async def parent() -> str:
        task = asyncio.ensure_future(child.options(id="left").acall())
        await asyncio.sleep(0)
        del task
        return "gone"

    with app:
        assert parent.start(id="p").result(10) == "gone"
        app.send("left", "on", "go")
        assert app.get("left").result(10) == "on"
        wait_for(lambda: log.one("select count(*) from refold.inbox") == 0, "the answer to nobody is dropped")


def test_children_run_in_another_process_than_their_parent(database_url: str, log: Log) -> None:
    """Two workers share one database: the parent's has no room, the children go to the other."""
    small, big = (
        App("small", database_url=database_url, concurrency=1),
        App("big", database_url=database_url),
    )
    where: set[str] = set()

    def declare(app: App) -> Any:
        @refold.step
        def note(n: int) -> int:
            where.add(app.name)
            return n

        @app.workflow
        def child(n: int) -> int:
            return note(n)

        return child

    child = declare(small)
    declare(big)

    @small.workflow
    def parent() -> int:
        return sum(refold.gather(*(child.later(n) for n in range(20))))

    with small:
        handle = parent.start(id="p")
        wait_for(lambda: "ChildStarted" in log.types("p"), "children were asked for")
        with big:
            assert handle.result(30) == 190
    assert "big" in where


def test_starting_in_a_workflow_is_a_handle_that_does_not_wait(app: App, log: Log) -> None:
    gate = threading.Event()

    @refold.step
    def hold() -> str:
        gate.wait(20)
        return "held"

    @app.workflow
    def child() -> str:
        return hold()

    @app.workflow
    def parent() -> str:
        handle = child.start(id="c")
        refold.send("test", "started", "")
        return handle.id + " " + handle.result()

    with app:
        handle = parent.start(id="p")
        wait_for(lambda: "MessageSent" in log.types("p"), "it went on without the child's result")
        gate.set()
        assert handle.result(10) == "c held"
