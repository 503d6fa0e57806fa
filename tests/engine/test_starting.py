"""Starting: one ID, one workflow; durable when the call returns, from whatever program, of either colour."""

import asyncio
import threading
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import msgspec
import psycopg
import pytest

import refold
from fixtures.workers import Log
from refold import App


class Order(msgspec.Struct):
    id: str
    amount: int


def test_the_same_id_again_gives_the_first_workflow(app: App, log: Log) -> None:
    ran: list[str] = []

    @refold.step
    def charge(order: Order) -> str:
        ran.append(order.id)
        return f"receipt of {order.id}"

    @app.workflow
    def checkout(order: Order) -> str:
        return charge(order)

    with app:
        first = checkout.start(Order("o1", 5), id="o1")
        again = checkout.start(Order("o1", 5), id="o1")
        assert first.result(10) == again.result(10) == "receipt of o1"
        assert checkout.start(Order("o1", 5), id="o1").result(10) == "receipt of o1"
    # Without a worker as well: nothing is started, the result is the first one's.
    assert checkout.start(Order("o1", 5), id="o1").result(10) == "receipt of o1"
    assert ran == ["o1"]
    assert log.types("o1") == ["WorkflowStarted", "StepCompleted", "WorkflowCompleted"]


@pytest.mark.parametrize("worker", [True, False], ids=["worker", "no worker"])
@pytest.mark.raises_error("WorkflowIdReused")
def test_an_id_used_for_another_input_raises_with_both_shown(app: App, log: Log, worker: bool) -> None:
    @app.workflow
    def checkout(order: Order) -> None: ...

    @app.workflow
    def refund(order: Order) -> None: ...

    if worker:
        app.start_worker()
    checkout.start(Order("o1", 5), id="o1")
    with pytest.raises(refold.WorkflowIdReused) as caught:
        checkout.start(Order("o1", 6), id="o1")
    assert str(caught.value) == (
        """workflow ID 'o1' belongs to workflow 'checkout' with input {"order":{"id":"o1","amount":5}}; it was used """
        """again for workflow 'checkout' with input {"order":{"id":"o1","amount":6}}. """
        "Choose another ID, or get the first one with app.get(id)."
    )
    with pytest.raises(
        refold.WorkflowIdReused, match=r"belongs to workflow 'checkout'; .* for workflow 'refund'"
    ):
        refund.start(Order("o1", 5), id="o1")
    assert len(log.events("o1", "WorkflowStarted")) == 1


def test_an_optional_field_that_was_added_since_is_no_other_input(database_url: str, log: Log) -> None:
    old = App("old", database_url=database_url)

    @old.workflow
    def checkout(order: Order) -> None: ...

    checkout.start(Order("o1", 5), id="o1")
    old.close()

    class NewOrder(msgspec.Struct):
        id: str
        amount: int
        note: str = ""

    new = App("new", database_url=database_url)

    @new.workflow(name="checkout")
    def new_checkout(order: NewOrder) -> None: ...

    try:
        assert new_checkout.start(NewOrder("o1", 5), id="o1").id == "o1"
        with pytest.raises(refold.WorkflowIdReused):
            new_checkout.start(NewOrder("o1", 5, note="gift"), id="o1")
    finally:
        new.close()
    assert log.types("o1") == ["WorkflowStarted"]


def test_a_hundred_threads_that_start_one_id_start_one_workflow(app: App, log: Log) -> None:
    ran: list[int] = []

    @refold.step
    def note(n: int) -> int:
        ran.append(n)
        return n

    @app.workflow
    def one(n: int) -> int:
        return note(n)

    results: list[Any] = []

    def start(n: int) -> None:
        try:
            results.append(one.start(n % 2, id="one").result(20))
        except refold.WorkflowIdReused:
            results.append("reused")

    with app:
        threads = [threading.Thread(target=start, args=(n,)) for n in range(100)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(ran) == 1
    assert sorted(map(str, results)) == sorted([str(ran[0])] * 50 + ["reused"] * 50)


def test_a_start_is_durable_when_the_call_returns(app: App, database_url: str) -> None:
    @app.workflow
    def later(n: int) -> None: ...

    for n in range(5):
        later.start(n, id=f"l{n}")
        with psycopg.connect(database_url) as connection:
            found = connection.execute(
                "select w.status, e.type from refold.workflows w join refold.events e using (workflow_id)"
                " where workflow_id = %s",
                [f"l{n}"],
            ).fetchall()
        assert found == [("pending", "WorkflowStarted")]


def test_a_script_without_a_worker_starts_and_another_process_runs_it(app: App, database_url: str) -> None:
    other = App("other", database_url=database_url)

    for each in (app, other):

        @each.workflow
        def add(a: int, b: int) -> int:
            return a + b

    handle = app.workflows["add"].start(1, 2, id="sum")
    assert handle.status() == "pending"
    with pytest.raises(refold.TimedOut, match=r"the result of workflow sum: nothing came within 0\.05 s"):
        handle.result(timeout=0.05)
    with other:
        assert handle.result(10) == 3
    assert handle.status() == "completed"


def test_starting_waiting_and_looking_from_async_code(app: App) -> None:
    @app.workflow
    async def add(a: int, b: int) -> int:
        got = await refold.arecv("more", int)
        return a + b + got

    async def program() -> int:
        async with app:
            handle = await add.astart(1, 2, id="sum")
            assert (await app.aget("sum")).id == "sum"
            await app.asend("sum", 10, "more")
            assert (await app.ainfo("sum")).name == "add"
            result = await handle.aresult(10)
            assert await (await app.aget("sum")).astatus() == "completed"
            assert [item.id for item in (await app.alist()).items] == ["sum"]
            assert [type(r.event).__name__ for r in await app.ahistory("sum")][-1] == "WorkflowCompleted"
            return result

    assert asyncio.run(program()) == 13


def test_calling_a_workflow_outside_starts_it_and_waits(app: App) -> None:
    @app.workflow
    def double(n: int) -> int:
        return 2 * n

    @app.workflow
    async def adouble(n: int) -> int:
        return 2 * n

    async def program() -> int:
        return await adouble(5)

    with app:
        assert double(4) == 8
        assert asyncio.run(program()) == 10


@pytest.mark.raises_error("WrongCall")
def test_a_blocking_call_on_a_running_loop_is_refused_and_names_the_async_one(app: App, log: Log) -> None:
    @app.workflow
    def later() -> None: ...

    later.start(id="l")

    async def program() -> None:
        calls: list[tuple[Callable[[], object], str]] = [
            (lambda: later.start(), "await later.astart(...)"),
            (lambda: app.get("l"), "await app.aget(...)"),
            (lambda: app.list(), "await app.alist(...)"),
            (lambda: app.send("l", 1), "await app.asend(...)"),
            (lambda: app.history("l"), "await app.ahistory(...)"),
            (lambda: app.info("l"), "await app.ainfo(...)"),
            (lambda: app.delete("l"), "await app.adelete(...)"),
        ]
        for call, right in calls:
            with pytest.raises(
                refold.WrongCall, match="was called on a running event loop and would block it"
            ) as e:
                call()
            assert str(e.value).endswith(f"Write {right} there.")
        handle = await app.aget("l")
        with pytest.raises(refold.WrongCall, match=r"await handle\.aresult"):
            handle.result()
        with pytest.raises(refold.WrongCall, match=r"await later\.astart"):
            later()
        assert (await app.ainfo("l")).status == "pending"

    asyncio.run(program())
    assert log.one("select count(*) from refold.workflows") == 1


def test_a_fastapi_handler_starts_workflows_and_its_pools_serve_async_steps(
    database_url: str, log: Log
) -> None:
    from fastapi import FastAPI
    from fastapi.testclient import TestClient

    app = App("shop", database_url=database_url)
    loops: set[int] = set()

    @refold.step
    async def charge(order: Order) -> str:
        loops.add(id(asyncio.get_running_loop()))  # the server's loop: its connection pools can be used here
        return f"receipt of {order.id}"

    @app.workflow
    async def checkout(order: Order) -> str:
        return await charge(order)

    web = FastAPI(lifespan=app.lifespan)

    @web.post("/orders/{order_id}")
    async def create(order_id: str, wait: bool = False) -> dict[str, str]:
        loops.add(id(asyncio.get_running_loop()))
        handle = await checkout.astart(Order(order_id, 5), id=order_id)
        return {"id": handle.id, "result": await handle.aresult(10) if wait else ""}

    @web.post("/blocking")
    async def blocking() -> str:
        return checkout.start(Order("b", 1)).id

    @web.post("/sync")
    def sync() -> str:  # FastAPI runs it in a thread: blocking is fine there
        return checkout.start(Order("s", 1), id="s").result(10)

    with TestClient(web) as client:
        assert client.post("/orders/o1").json() == {"id": "o1", "result": ""}
        assert len(log.events("o1", "WorkflowStarted")) == 1, "not durable when the handler returned"
        assert client.post("/orders/o1?wait=true").json() == {"id": "o1", "result": "receipt of o1"}
        assert client.post("/sync").json() == "receipt of s"
        with pytest.raises(refold.WrongCall, match="astart"):
            client.post("/blocking")
    assert len(loops) == 1


def test_a_workflow_started_in_a_step_is_the_same_one_in_every_try(app: App, log: Log) -> None:
    @app.workflow
    def audit(n: int) -> int:
        return n

    @refold.step(retries=2, retry_delay=timedelta(milliseconds=5))
    def place(n: int) -> str:
        first = audit.start(n)
        second = audit.start(n + 1)
        if refold.step_info().attempt < 3:
            raise OSError
        return f"{first.id} {second.id}"

    @app.workflow
    def order() -> str:
        return place(7)

    with app:
        first, second = order.start(id="o").result(10).split()
        assert app.get(first).result(10) == 7
        assert app.get(second).result(10) == 8
    assert log.one("select count(*) from refold.workflows where name = 'audit'") == 2


def test_deleting_keeps_the_id_taken(app: App, log: Log) -> None:
    ran: list[int] = []

    @refold.step
    def note() -> None:
        ran.append(1)

    @app.workflow
    def one(n: int) -> None:
        note()

    with app:
        one.start(1, id="one").result(10)
        app.delete("one")
        with pytest.raises(refold.WorkflowDeleted):
            one.start(1, id="one").result(10)
        with pytest.raises(refold.WorkflowIdReused, match="a deleted run of workflow 'one'"):
            one.start(2, id="one")
    assert ran == [1]
    assert log.types("one") == ["IdentitySealed"]
