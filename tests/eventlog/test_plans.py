"""The statements that run all the time read a few rows by the index that is meant for them, however long the tables."""

import asyncio
import secrets
from collections.abc import Iterator
from typing import Any, LiteralString

import psycopg
import pytest

from fixtures.lanes import BEGAN, FakeWorker, completed
from fixtures.postgres import PostgresServer
from refold.eventlog._arrays import Texts, adapt
from refold.eventlog._log import (
    _FLUSH,
    READ_STREAM,
    READ_STREAMS,
    Append,
    HeadChange,
    NewWorkflow,
    _columns,
)
from refold.eventlog._read import _ALIKE, _ENDS, _HEAD, _LIST, _OWN_MAIL, _OWNED, _POSITIONS, _RUNNABLE

ROWS: LiteralString = "30000"

_FILL: LiteralString = f"""
    insert into refold.workflows (workflow_id, name, status, created_at, finished_at, source, digest, owner, due_at)
    select 'w-' || n, 'order-' || n % 5,
           case when n % 10 > 2 then 'completed' when n % 10 = 2 then 'running' else 'waiting' end,
           now() - n * interval '1 second', case when n % 10 > 2 then now() end, 'source-' || n % 3, 'd',
           case when n % 10 = 2 then 'w' || n % 7 end,
           case when n % 10 <= 1 then now() + (n - {ROWS} / 2) * interval '1 second' end
      from generate_series(1, {ROWS}) n;
    insert into refold.events (workflow_id, seq, type, at, body)
    select 'w-' || n, s, 'TimerFired', now(), '{{}}' from generate_series(1, {ROWS}) n, generate_series(0, 2) s;
    insert into refold.positions
    select 'source-' || n, 'source:source-' || n || '/0', 1, '1', 'label', now() from generate_series(1, 2000) n;
    insert into refold.workflows (workflow_id, name, status, created_at, source, digest, order_key, order_no, behind,
                                  due_at, findable)
    select 'o-' || k || '-' || n, 'ordered', 'pending', now() - (k * 1000 + n) * interval '1 minute', 'queue',
           'd-' || k, 'key-' || k, n, n > 0,
           case when n = 0 then now() end, true
      from generate_series(1, 20) k, generate_series(0, 50) n;
    analyze refold.workflows, refold.events, refold.positions;
"""

_READ = """
    select relname, seq_scan, seq_tup_read + coalesce(idx_tup_fetch, 0)
      from pg_stat_xact_user_tables where schemaname = 'refold' and relname in ('workflows', 'events', 'positions')
"""


class Watched:
    """Counts what statements read, by Postgres's own counters of a transaction."""

    def __init__(self, url: str) -> None:
        self.connection: psycopg.Connection[Any] = psycopg.connect(url)

    def _counters(self) -> dict[str, tuple[int, int]]:
        return {name: (scans, rows) for name, scans, rows in self.connection.execute(_READ).fetchall()}

    def _index_scans(self, index: str) -> int:
        row = self.connection.execute(
            "select pg_stat_get_xact_numscans(('refold.' || %s)::regclass)", (index,)
        ).fetchone()
        assert row is not None
        return int(row[0])

    def check(self, index: str, at_most: int, statement: Any, parameters: Any) -> list[tuple[Any, ...]]:
        """Run a statement; it must go by `index`, read no table whole, and at most `at_most` rows."""
        before, scans = self._counters(), self._index_scans(index)
        rows = self.connection.execute(statement, parameters).fetchall()
        after = self._counters()
        assert self._index_scans(index) > scans, f"{index} was not used"
        for table, (whole, read) in after.items():
            assert whole == before[table][0], f"{table} was read whole"
            assert read - before[table][1] <= at_most, f"{read - before[table][1]} rows of {table} were read"
        return rows


@pytest.fixture(scope="module")
def long_tables(postgres_server: PostgresServer) -> Iterator[str]:
    """The URL of a database with many workflows, one for all of these tests: they change nothing that stays."""
    name = postgres_server.create_database(postgres_server.template())
    url = postgres_server.url_of(name)
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(_FILL)
    yield url
    postgres_server.drop_database(name)


@pytest.fixture
def worker(long_tables: str, runner: asyncio.Runner) -> Iterator[FakeWorker]:
    """A worker on the long tables."""
    worker = FakeWorker(f"me-{secrets.token_hex(3)}", long_tables, runner)
    yield worker
    worker.sql.execute("select refold.leave(%s)", (worker.name,))
    worker.close()


@pytest.fixture
def watched(long_tables: str, worker: FakeWorker) -> Iterator[Watched]:
    """The long tables, and what is read of them. What a test does is rolled back, before the worker leaves."""
    watched = Watched(long_tables)
    yield watched
    watched.connection.rollback()
    watched.connection.close()


def test_a_claim(watched: Watched, worker: FakeWorker) -> None:
    parameters = (
        worker.name,
        "executor",
        worker.lane.epoch,
        1000,
        ["order-0", "order-1"],
        ["v", "v"],
        50,
        False,
    )
    claim = "select * from refold.claim(%s, %s, %s, %s, %s, %s, %s, %s)"
    rows = watched.check("workflows_due", 500, claim, parameters)
    assert len(rows) == 50


def test_an_idle_tick(watched: Watched, worker: FakeWorker) -> None:
    parameters = (worker.name, worker.epoch, ["order-0", "nobody's"], ["v", "v"])
    rows = watched.check("workflows_due", 500, "select kind from refold.tick(%s, %s, %s, %s)", parameters)
    assert {row[0] for row in rows} == {"now", "work", "next"}


def test_mail_is_found_from_the_inbox(watched: Watched, worker: FakeWorker) -> None:
    watched.connection.execute(
        "insert into refold.inbox (workflow_id, message_id, type, body)"
        " select 'w-' || n * 10, 'm', 'MessageReceived', '' from generate_series(1, 100) n"
    )
    tick = "select kind from refold.tick(%s, %s, array['order-0'], array['v'])"
    watched.check("workflows_pkey", 500, tick, (worker.name, worker.epoch))
    claim = "select * from refold.claim(%s, 'executor', %s, 1000, array['order-0'], array['v'], 50, false)"
    watched.check("workflows_pkey", 1000, claim, (worker.name, worker.lane.epoch))
    watched.connection.execute(
        "update refold.workflows set owner = %s where workflow_id = 'w-10'", (worker.name,)
    )
    rows = watched.check("workflows_owned", 500, _OWN_MAIL, (worker.name,))
    assert ("w-10", "m", b"") in rows


def test_a_page_of_the_list(watched: Watched) -> None:
    parameters = {"status": None, "name": None, "limit": 100, "at": None, "id": None}
    rows = watched.check("workflows_by_age", 150, _LIST, parameters)
    later = {**parameters, "at": int(rows[-1][3].timestamp() * 1_000_000), "id": rows[-1][0]}
    again = watched.check("workflows_by_age", 150, _LIST, later)
    assert len(rows) == len(again) == 100
    assert not {row[0] for row in rows} & {row[0] for row in again}


def test_the_count_of_runnable_workflows(watched: Watched) -> None:
    rows = watched.check("workflows_runnable", 110, _RUNNABLE, ("source-1", 100))
    assert rows == [(100,)]


def test_what_a_worker_owns(watched: Watched) -> None:
    rows = watched.check("workflows_owned", 1000, _OWNED, ("w3",))
    assert 300 < len(rows) < 600


def test_heads_and_ends_by_id(watched: Watched) -> None:
    watched.check("workflows_pkey", 10, _HEAD, (["w-1", "w-2", "w-3"],))
    watched.check("workflows_pkey", 10, _ENDS, (["w-3", "w-4", "w-5"],))


def test_a_history_is_one_scan_of_the_primary_key(watched: Watched) -> None:
    assert len(watched.check("one_event_per_seq", 3, READ_STREAM, ("w-77",))) == 3
    assert (
        len(watched.check("one_event_per_seq", 30, READ_STREAMS, ([f"w-{n}" for n in range(1, 11)],))) == 30
    )


def test_positions(watched: Watched) -> None:
    watched.check("positions_pkey", 5, _POSITIONS, (["source-1", "source-2"],))


def test_starting_behind_others_of_a_key(watched: Watched) -> None:
    at = BEGAN
    starts = [
        NewWorkflow(
            f"new-{k}", "ordered", "d", at, b"{}", source="queue", order_key=f"key-{k}", order_no=1000
        )
        for k in range(1, 11)
    ]
    adapt(watched.connection)
    arguments = (None, None, None, None, *_columns([Append("+", starts=starts)]))
    watched.check("one_first_per_key", 150, _FLUSH, arguments)
    rows = watched.connection.execute(
        "select bool_and(behind) from refold.workflows where workflow_id like 'new-%%'"
    )
    assert rows.fetchone() == (True,)


def test_ending_the_first_of_a_long_line(watched: Watched) -> None:
    adapt(watched.connection)
    appends = [
        Append(f"o-{k}-0", events=[completed(1)], head=HeadChange("completed", None, finished_at=BEGAN))
        for k in range(1, 11)
    ]
    arguments = (None, None, None, None, *_columns(appends))
    watched.check("workflows_behind", 150, _FLUSH, arguments)
    rows = watched.connection.execute(
        "select count(*) from refold.workflows where order_key is not null and finished_at is null and not behind"
    )
    assert rows.fetchone() == (20,)


def test_others_with_the_same_digest(watched: Watched) -> None:
    asked = (Texts(["queue"]), Texts(["d-7"]), Texts(["o-7-0"]))
    adapt(watched.connection)
    assert len(watched.check("workflows_alike", 10, _ALIKE, asked)) == 1


def test_taking_over_a_dead_worker_s_workflows(watched: Watched, worker: FakeWorker) -> None:
    watched.connection.execute("select refold.register('w3', 'beat', null)")
    declare = "select refold.declare_dead(%s, %s, 'w3', 0)"
    ((freed,),) = watched.check("workflows_owned", 3000, declare, (worker.name, worker.epoch))
    assert freed > 300


def test_starts_in_order_by_a_plan_that_was_made_when_the_tables_were_empty(
    postgres_server: PostgresServer,
) -> None:
    """A connection keeps its plans, and lives for weeks: none of them may read a table whole once it has grown."""
    name = postgres_server.create_database(postgres_server.template())
    watched = Watched(postgres_server.url_of(name))
    try:
        adapt(watched.connection)

        def starts(prefix: str) -> list[Append]:
            new = [
                NewWorkflow(
                    f"{prefix}-{k}", "n", "d", BEGAN, b"{}", order_key=f"{prefix}-key-{k}", order_no=1
                )
                for k in range(10)
            ]
            return [Append("+", starts=new)]

        watched.connection.execute(_FLUSH, (None, None, None, None, *_columns(starts("early"))))
        watched.connection.commit()
        with psycopg.connect(postgres_server.url_of(name), autocommit=True) as other:
            other.execute(_FILL.replace("analyze", "-- analyze"))  # that would have the plans made again
        arguments = (None, None, None, None, *_columns(starts("late")))
        watched.check("one_first_per_key", 150, _FLUSH, arguments)
    finally:
        watched.connection.close()
        postgres_server.drop_database(name)
