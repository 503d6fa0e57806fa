"""A database of an older release is brought up to this one's schema, with all that is in it."""

from collections.abc import Iterator
from pathlib import Path
from typing import Final, LiteralString

import psycopg
import pytest

from fixtures.lanes import MakeWorker, completed, end, message, new_workflow, position_moved, step_done
from fixtures.workers import Log
from refold import App
from refold.core import Order, Start
from refold.eventlog import SCHEMA_VERSION, check, migrate, rebuild
from refold.eventlog._connect import Connection, connect_sync
from refold.eventlog._log import Append, _columns

SCHEMAS: Final = Path(__file__).parents[1] / "fixtures" / "schemas"

_COLUMNS: Final[LiteralString] = """
    select table_name, column_name, data_type, collation_name, is_nullable, column_default
      from information_schema.columns where table_schema = 'refold' order by 1, 2
"""
_INDEXES: Final[LiteralString] = (
    "select indexname, indexdef from pg_indexes where schemaname = 'refold' order by 1"
)
_FUNCTIONS: Final[LiteralString] = """
    select p.oid::regprocedure::text, p.prosrc, p.proconfig from pg_proc p
     where p.pronamespace = 'refold'::regnamespace order by 1
"""


def _flush_1(connection: Connection, *appends: Append) -> None:
    """Flush as the programs of schema 1 do: without the arrays that came with 2."""
    columns = _columns(appends)
    del columns[21], columns[11:15]
    statement = "select * from refold.flush(" + ", ".join(["%s"] * (4 + len(columns))) + ")"
    connection.execute(statement, (None, None, None, None, *columns), binary=True)  # pyright: ignore[reportArgumentType, reportCallIssue]


@pytest.fixture
def version_1(empty_database_url: str) -> Iterator[Connection]:
    """A connection to a database as the first release made it, with workflows in it, mail and a position."""
    with connect_sync(empty_database_url) as connection:
        connection.execute((SCHEMAS / "1.sql").read_text().encode())
        connection.execute(
            "insert into refold.meta (schema_version, system_identifier)"
            " select 1, system_identifier from pg_control_system()"
        )
        _flush_1(
            connection,
            Append("+", starts=[new_workflow(id) for id in ("a", "b", "done")]),
            Append("@", messages=[message("b", "m")]),
            position_moved("shop", 0),
        )
        _flush_1(connection, Append("done", events=[completed(1)], head=end(1)))
        yield connection


def test_an_old_database_becomes_the_same_as_a_new_one(
    version_1: Connection, empty_database_url: str, log: Log
) -> None:
    with psycopg.connect(empty_database_url, autocommit=True) as connection:
        kept = {
            table: connection.execute(f"select * from refold.{table} order by 1, 2").fetchall()  # pyright: ignore[reportArgumentType, reportCallIssue]
            for table in ("events", "inbox", "positions")
        }
        assert migrate(empty_database_url) == SCHEMA_VERSION
        check(empty_database_url)
        for table, rows in kept.items():
            assert connection.execute(f"select * from refold.{table} order by 1, 2").fetchall() == rows  # pyright: ignore[reportArgumentType, reportCallIssue]
        for what in (_COLUMNS, _INDEXES):
            assert connection.execute(what).fetchall() == log.rows(what)
        extra = {row[0]: row[1:] for row in connection.execute(_FUNCTIONS).fetchall()}
        for name, *rest in log.rows(_FUNCTIONS):
            assert extra.pop(name) == tuple(rest)
        assert [name[:12] for name in extra] == ["refold.flush"], "what the release before still calls"
        migrate(empty_database_url)
        assert connection.execute("select count(*) from refold.workflows").fetchone() == (3,)


def test_a_program_of_the_release_before_goes_on_beside_the_new_ones(
    version_1: Connection, empty_database_url: str
) -> None:
    """It knows nothing of orders, and ends workflows of one all the same: the next one goes on."""
    migrate(empty_database_url)
    app = App("shop", database_url=empty_database_url)

    @app.workflow
    def order() -> int:
        return 1

    app.accept([Start(order, f"o-{n}", b"{}", order=Order("k", n)) for n in (1, 2)], label="hook")
    _flush_1(
        version_1,
        Append("a", events=[step_done(1)]),
        Append("o-1", events=[completed(1)], head=end(1)),
        Append("+", starts=[new_workflow("c")]),
    )
    with app:
        assert [app.get(id).result(30) for id in ("o-2", "c", "b")] == [1, 1, 1]
    app.close()


def test_what_an_old_release_wrote_can_be_rebuilt(
    version_1: Connection, empty_database_url: str, make_worker: MakeWorker
) -> None:
    migrate(empty_database_url)
    version_1.execute("drop table refold.workflows, refold.workers, refold.positions, refold.waiters")
    assert rebuild(empty_database_url).workflows == 3
    worker = make_worker("w1", empty_database_url)
    assert worker.claim() == ["a", "b"]
