"""Workers share one database and claim what they can run, nothing else."""

import asyncio
import logging
import threading
from typing import Any, LiteralString

import pytest

import refold
from fixtures.workers import Log, wait_for
from refold import App
from refold.eventlog._log import Lane


def test_a_worker_leaves_alone_what_it_has_no_code_for(
    app: App, database_url: str, log: Log, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="refold.worker")
    other = App("other", database_url=database_url)

    @app.workflow
    def ours(n: int) -> int:
        return n

    @other.workflow
    def theirs(n: int) -> int:
        return n

    for n in range(5):
        theirs.start(n, id=f"t{n}")
        ours.start(n, id=f"o{n}")
    other.send("t0", "mail", "t")
    other.close()
    with app:
        for n in range(5):
            assert app.get(f"o{n}").result(10) == n
        beat = log.one("select beat from refold.workers where lane = 'beat'")
        wait_for(
            lambda: log.one("select beat from refold.workers where lane = 'beat'") > beat, "it looked again"
        )
        assert {info.status for info in app.list(name="theirs").items} == {"pending"}
        assert all(len(log.types(f"t{n}")) == 1 for n in range(5))
        named = [r for r in caplog.records if "theirs" in r.getMessage()]
        assert len(named) == 1, "a name that nobody serves is logged once"
    with other:
        assert [other.get(f"t{n}").result(10) for n in range(5)] == list(range(5))


def test_a_child_that_the_parents_worker_cannot_run_is_run_by_one_that_can(
    database_url: str, log: Log
) -> None:
    parents, children = App("parents", database_url=database_url), App("children", database_url=database_url)

    @children.workflow
    def child(n: int) -> int:
        return n * 2

    @parents.workflow
    def parent(n: int) -> int:
        return child(n)

    with parents:
        handle = parent.start(4, id="p")
        wait_for(lambda: "ChildStarted" in log.types("p"), "the child was asked for")
        with children:
            assert handle.result(20) == 8


def test_two_workers_run_a_thousand_workflows_once_each(app: App, database_url: str, log: Log) -> None:
    other = App("other", database_url=database_url, concurrency=50)
    ran: list[tuple[str, int]] = []

    for each in (app, other):
        name = each.name

        @refold.step
        def note(n: int, name: str = name) -> int:
            ran.append((name, n))
            return n

        @each.workflow
        def one(n: int) -> int:
            return note(n)

    async def start_all() -> None:
        await asyncio.gather(*(app.workflows["one"].astart(n, id=f"w{n}") for n in range(1000)))

    asyncio.run(start_all())
    app.close()
    with app, other:
        wait_for(
            lambda: log.one("select count(*) from refold.workflows where status = 'completed'") == 1000,
            "all ended",
        )
    assert sorted(n for _, n in ran) == list(range(1000))


def test_a_start_does_not_take_the_place_of_what_a_claim_on_the_wire_gives(
    database_url: str, log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = App("small", database_url=database_url, concurrency=2)
    on_the_wire, gate, given, done = (threading.Event() for _ in range(4))
    run = Lane.run

    async def run_late(self: Lane, statement: LiteralString, *arguments: Any) -> Any:
        if "refold.claim" in statement:
            on_the_wire.set()
            await asyncio.to_thread(gate.wait, 20)
        rows = await run(self, statement, *arguments)
        if "refold.claim" in statement:
            given.set()
        return rows

    monkeypatch.setattr(Lane, "run", run_late)

    @refold.step
    def hold() -> None:
        assert done.wait(20)

    @app.workflow
    def one() -> None:
        hold()

    with app:
        assert on_the_wire.wait(20)
        handles = [one.start() for _ in range(6)]
        gate.set()
        assert given.wait(20)
        owned = log.one("select count(*) from refold.workflows where owner is not null")
        assert owned == 2, "it has more in hand than it may"
        done.set()
        for handle in handles:
            handle.result(20)


def test_a_full_worker_takes_no_more_than_its_concurrency(database_url: str, log: Log) -> None:
    app = App("small", database_url=database_url, concurrency=4)
    gate = threading.Event()
    lock = threading.Lock()
    running = most = 0

    @refold.step
    def hold() -> None:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        gate.wait(20)
        with lock:
            running -= 1

    @app.workflow
    def one(n: int) -> None:
        hold()

    with app:
        handles = [one.start(n, id=f"w{n}") for n in range(12)]
        wait_for(lambda: running == 4, "four run")
        assert (
            log.one("select count(*) from refold.workflows where owner is null and status = 'pending'") == 8
        )
        gate.set()
        for handle in handles:
            handle.result(20)
    assert most == 4


def test_claiming_takes_the_longest_due_first(database_url: str, log: Log) -> None:
    app = App("one", database_url=database_url, concurrency=1)
    order: list[int] = []

    @refold.step
    def note(n: int) -> None:
        order.append(n)

    @app.workflow
    def one(n: int) -> None:
        note(n)

    for n in range(8):
        one.start(n, id=f"w{7 - n}")
    with app:
        wait_for(lambda: len(order) == 8, "all ran")
    assert order == list(range(8))


def test_a_claim_whose_answer_did_not_arrive_before_the_worker_left_is_free(app: App, log: Log) -> None:
    """As when Postgres grants a claim while the worker stops: nobody would ever declare one dead that has left."""

    @app.workflow
    def one() -> None: ...

    @app.workflow
    def waits() -> None:
        refold.recv("never")

    app.start_worker()
    waits.start(id="w")
    wait_for(lambda: log.owner("w") is None, "it waits, and nobody has it")
    log.rows(
        "update refold.workflows set owner = (select worker from refold.workers limit 1), status = 'running'"
    )
    app.stop_worker()
    assert log.rows("select owner, status from refold.workflows") == [(None, "pending")]
    assert log.rows("select worker from refold.workers") == []


def test_an_idle_worker_asks_at_most_once_in_two_seconds(app: App, log: Log) -> None:
    """Counted in Postgres, over three heartbeats; nobody else is in this database but the one who counts."""

    @app.workflow
    def one() -> None: ...

    with app:
        one.start().result(10)
        wait_for(lambda: _beat(log) >= 2, "it has come to rest")
        before, beat = _transactions(log), _beat(log)
        wait_for(lambda: _beat(log) >= beat + 3, "three beats more")
        sent = [query for query in _transactions(log) if query not in before]
    assert all("refold.tick" in query for _, query in sent), sent


def _beat(log: Log) -> int:
    found = log.one("select beat from refold.workers where lane = 'beat'")
    assert isinstance(found, int)
    return found


def _transactions(log: Log) -> list[tuple[object, str]]:
    """Return when each other session last began a statement, and which."""
    return [
        (at, query)
        for at, query in log.rows(
            "select query_start, query from pg_stat_activity where datname = current_database()"
            " and pid <> pg_backend_pid() and backend_type = 'client backend'"
        )
    ]
