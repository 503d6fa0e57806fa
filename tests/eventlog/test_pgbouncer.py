"""Behind PgBouncer in transaction mode: nothing leans on a session, and a poll stands in for what needs one."""

import asyncio
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict

import refold
from fixtures.heads import compare_heads
from fixtures.lanes import FakeWorker, Run, new_workflow, step_done
from fixtures.postgres import PostgresServer
from fixtures.workers import Log, wait_for
from refold import App
from refold.eventlog._connect import connect, is_pooled
from refold.eventlog._listen import Listener
from refold.eventlog._log import Append, Lane
from refold.eventlog._transactions import TransactionLane
from refold.eventlog._workers import Heartbeat, Tick


@pytest.fixture
def behind(postgres_server: PostgresServer, pgbouncer_url: str) -> Iterator[Log]:
    """The tables behind the pooler, looked at directly; in the end their heads are checked as any test's are."""
    url = postgres_server.url_of(str(conninfo_to_dict(pgbouncer_url)["dbname"]))
    log = Log(url)
    yield log
    log.close()
    assert compare_heads(url) == []


@pytest.fixture
def pooled_worker(pgbouncer_url: str, behind: Log, runner: asyncio.Runner) -> Iterator[FakeWorker]:
    """A worker whose lane goes through the pooler."""
    worker = FakeWorker("w1", pgbouncer_url, runner)
    yield worker
    worker.close()


def test_a_pooler_is_noticed_and_nothing_is_prepared_in_its_sessions(
    pgbouncer_url: str, behind: Log, run: Run[Any]
) -> None:
    async def main() -> tuple[bool, int | None]:
        connection = await connect(pgbouncer_url)
        try:
            return await is_pooled(connection), connection.prepare_threshold
        finally:
            await connection.close()

    assert run(main()) == (True, None)


def test_many_lanes_share_sessions_and_none_is_harmed(
    pgbouncer_url: str, pooled_worker: FakeWorker, behind: Log, run: Run[Any]
) -> None:
    lanes = [Lane(pgbouncer_url, "w1", f"lane-{number}") for number in range(8)]
    ids = [f"o-{number}" for number in range(8)]

    async def work(lane: Lane, workflow_id: str) -> None:
        await lane.register()
        await lane.flush([Append("+", starts=[new_workflow(workflow_id)])])
        for seq in range(1, 20):
            await lane.flush([Append(workflow_id, events=[step_done(seq)])])
        await lane.close()

    async def main() -> None:
        await asyncio.gather(*map(work, lanes, ids))

    run(main())
    assert behind.rows("select workflow_id, count(*) from refold.events group by 1 order by 1") == [
        (workflow_id, 20) for workflow_id in ids
    ]
    assert pooled_worker.claim(20) == ids


def test_a_transactional_step_goes_through_it(
    pgbouncer_url: str, pooled_worker: FakeWorker, behind: Log
) -> None:
    pooled_worker.start("o-1")
    behind.rows("create table seats (taken_by text)")
    lane = TransactionLane(pgbouncer_url, "w1", "transaction-1", 5_000)

    def book(connection: psycopg.Connection[Any]) -> Any:
        connection.execute("insert into seats values ('o-1')")
        return "o-1", step_done(1)

    lane.commit(book)
    lane.close()
    assert behind.types("o-1") == ["WorkflowStarted", "StepCompleted"]
    assert behind.rows("select * from seats") == [("o-1",)]


def test_a_worker_behind_it_beats_without_a_session_lock_and_dies_by_its_counter_only(
    pgbouncer_url: str, pooled_worker: FakeWorker, behind: Log
) -> None:
    ticks: dict[str, list[Tick]] = {"w2": [], "w3": []}
    beats = []
    for name, seen in ticks.items():
        heartbeat = Heartbeat(
            pgbouncer_url,
            name,
            can_run=lambda: (["order"], ["v1"]),
            on_tick=seen.append,
            on_fenced=lambda: None,
            every=0.04,
            dead_after=0.3,
        )
        heartbeat.register()
        heartbeat.start()
        beats.append(heartbeat)
    # w1 has never beaten.
    dead = "select worker from refold.workers where dead_at is not null and lane = 'beat'"
    wait_for(lambda: behind.rows(dead), "who stands still is declared dead")
    for seen in ticks.values():
        seen.clear()
    wait_for(lambda: all(len(seen) > 15 for seen in ticks.values()), "the others beat on")
    assert all(tick.pooled for seen in ticks.values() for tick in seen)
    locks = "select count(*) from pg_locks l join pg_database d on d.oid = l.database"
    assert behind.one(locks + " where locktype = 'advisory' and datname = current_database()") == 0  # pyright: ignore[reportArgumentType]
    for heartbeat in beats:
        heartbeat.stop()
    assert behind.rows(dead) == [("w1",)]


def test_a_listener_behind_it_says_that_it_hears_nothing(
    pgbouncer_url: str, behind: Log, run: Run[Any]
) -> None:
    async def main() -> bool:
        listener = Listener(pgbouncer_url, ["refold_work"], lambda *what: None, lambda: None)
        await asyncio.wait_for(asyncio.shield(listener._task), 20)
        heard = listener.listening.is_set()
        await listener.close()
        return heard

    assert run(main()) is False


def test_an_app_behind_it_polls_and_waits_no_longer_than_a_poll(pgbouncer_url: str, behind: Log) -> None:
    app, outside = App("shop", database_url=pgbouncer_url), App("outside", database_url=pgbouncer_url)

    @refold.step
    def greet(name: str) -> str:
        return f"hello {name}"

    @app.workflow
    def approval(name: str) -> str:
        greeted = greet(name)
        return f"{greeted}: {refold.recv('verdict', str)}"

    with app:
        approval.start("ann", id="o-1")
        behind.wait_status("o-1", "waiting")
        outside.send("o-1", "yes", "verdict")
        # Neither the worker nor the one who waits is ever notified.
        assert outside.get("o-1").result(20) == "hello ann: yes"
    outside.close()
    app.close()
    assert behind.rows("select * from refold.workers") == []
