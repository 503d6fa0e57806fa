"""The schema is made once, by whoever comes first, and is the one that the code was written for, or says so."""

import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from fixtures.lanes import MakeWorker, step_done
from fixtures.postgres import OwnPostgres, PostgresServer, free_port
from fixtures.workers import Log, wait_for
from refold.eventlog import (
    SCHEMA_VERSION,
    DatabaseUnreachable,
    SchemaForbidden,
    SchemaMismatch,
    check,
    describe_url,
    migrate,
)
from refold.eventlog._connect import connect_sync
from refold.eventlog._log import Append
from refold.eventlog._schema import schema_sql

Session = Callable[[], psycopg.Connection[Any]]

_MIGRATE = "import sys; from refold.eventlog import migrate; migrate(sys.argv[1])"
_WAITING = (
    "select count(*) from pg_stat_activity where wait_event = 'advisory' and datname = current_database()"
)


def test_processes_that_migrate_at_once_do_it_once(empty_database_url: str) -> None:
    log = Log(empty_database_url)
    with psycopg.connect(
        empty_database_url
    ) as holder:  # so that all of them have begun before the first is let on
        holder.execute("select pg_advisory_xact_lock(%s)", (0x7265666F6C64,))
        processes = [
            subprocess.Popen(
                [sys.executable, "-c", _MIGRATE, empty_database_url], stderr=subprocess.PIPE, text=True
            )
            for _ in range(3)
        ]
        wait_for(lambda: log.one(_WAITING) == 3, "all of them wait for the lock")
    said = [process.communicate(timeout=60)[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0], said
    assert log.rows("select schema_version, era from refold.meta") == [(SCHEMA_VERSION, 1)]
    log.close()


def test_the_schema_is_made_at_first_use_and_then_left_alone(empty_database_url: str) -> None:
    check(empty_database_url)
    log = Log(empty_database_url)
    log.rows("alter table refold.workflows set (fillfactor = 71)")  # somebody tuned it
    check(empty_database_url)
    migrate(empty_database_url)
    assert log.one("select reloptions from pg_class where oid = 'refold.workflows'::regclass") == [
        "fillfactor=71"
    ]
    log.close()


def test_the_whole_schema_can_be_run_again(make_worker: MakeWorker, database_url: str, log: Log) -> None:
    make_worker("w1").start("o-1")
    with connect_sync(database_url) as connection:
        connection.execute(schema_sql())
    assert log.types("o-1") == ["WorkflowStarted"]


@pytest.mark.raises_error("SchemaMismatch")
@pytest.mark.parametrize("act", [check, migrate])
def test_a_schema_newer_than_the_code_is_not_touched(
    act: Callable[[str], Any], database_url: str, log: Log
) -> None:
    log.rows("update refold.meta set schema_version = 4711")
    with pytest.raises(SchemaMismatch) as caught:
        act(database_url)
    assert str(caught.value) == (
        f"the database has refold schema 4711, this code knows {SCHEMA_VERSION}: it was written for an older schema.\n"
        "Install the refold release that the other programs on this database use."
    )
    assert log.one("select schema_version from refold.meta") == 4711


@pytest.mark.raises_error("SchemaMismatch")
def test_a_schema_older_than_the_code_is_brought_up_only_when_asked(database_url: str, log: Log) -> None:
    log.rows("update refold.meta set schema_version = 0")
    with pytest.raises(SchemaMismatch) as caught:
        check(database_url)
    assert str(caught.value) == (
        f"the database has refold schema 0, this code needs {SCHEMA_VERSION}.\nRun: refold migrate"
    )
    assert migrate(database_url) == SCHEMA_VERSION
    check(database_url)


@pytest.fixture
def limited(postgres: PostgresServer) -> Iterator[str]:
    """A user of the server's who may do nothing but connect."""
    name = f"limited_{free_port()}"
    with psycopg.connect(postgres.url, autocommit=True) as connection:
        connection.execute(sql.SQL("create role {} login").format(sql.Identifier(name)))
        yield name
        connection.execute(sql.SQL("drop role {}").format(sql.Identifier(name)))


@pytest.mark.raises_error("SchemaForbidden")
@pytest.mark.parametrize("act", [check, migrate])
def test_a_user_who_may_not_create_the_schema_is_told_who_can_help(
    act: Callable[[str], Any], limited: str, empty_database_url: str
) -> None:
    url = make_conninfo(empty_database_url, user=limited)
    database = conninfo_to_dict(url)["dbname"]
    with pytest.raises(SchemaForbidden) as caught:
        act(url)
    assert str(caught.value) == (
        f"user '{limited}' may not create refold's schema in database '{database}' "
        f"(permission denied for database {database}).\n"
        f'Let the owner run: grant create on database "{database}" to "{limited}"; '
        "or run `refold migrate` once as the owner."
    )


@pytest.mark.raises_error("SchemaForbidden")
@pytest.mark.parametrize("act", [check, migrate])
def test_a_user_who_may_not_use_the_schema_is_told_what_is_missing(
    act: Callable[[str], Any], limited: str, database_url: str
) -> None:
    url = make_conninfo(database_url, user=limited)
    database = conninfo_to_dict(url)["dbname"]
    with pytest.raises(SchemaForbidden) as caught:
        act(url)
    assert str(caught.value) == (
        f"user '{limited}' may not use refold's schema in database '{database}' "
        "(permission denied for schema refold).\n"
        f'Let its owner run: grant usage on schema refold to "{limited}"; '
        f'grant all on all tables in schema refold to "{limited}"'
    )


def test_those_rights_are_all_that_a_worker_needs(
    make_worker: MakeWorker, limited: str, database_url: str, log: Log
) -> None:
    for right in ("usage on schema refold", "all on all tables in schema refold"):
        log.rows(f'grant {right} to "{limited}"')  # pyright: ignore[reportArgumentType]
    url = make_conninfo(database_url, user=limited)
    check(url)
    worker = make_worker("w1", url)
    worker.start("o-1", owned=False)
    assert worker.claim() == ["o-1"]
    worker.flush(Append("o-1", events=[step_done(1)]))
    worker.tick()
    worker.close()
    log.rows(f'drop owned by "{limited}"')  # pyright: ignore[reportArgumentType]


@pytest.mark.raises_error("DatabaseUnreachable")
def test_a_postgres_that_refuses_is_named(empty_database_url: str) -> None:
    port = free_port()
    with pytest.raises(DatabaseUnreachable) as caught:
        check(f"postgresql://shop:secret@127.0.0.1:{port}/orders")
    said = str(caught.value)
    assert said == (
        f"can't connect to Postgres at 127.0.0.1:{port}, database orders: Connection refused.\n"
        "Check REFOLD_DATABASE_URL (or App(database_url=...)), and that the server is running."
    )
    assert "secret" not in said


@pytest.mark.raises_error("DatabaseUnreachable")
def test_a_wrong_password_is_said_without_it(own_postgres: OwnPostgres) -> None:
    with psycopg.connect(own_postgres.url, autocommit=True) as connection:
        connection.execute("create role shop login password 'right'")
        hba = own_postgres.data_dir / "pg_hba.conf"
        hba.write_text(f"host all shop 127.0.0.1/32 scram-sha-256\n{hba.read_text()}")
        connection.execute("select pg_reload_conf()")
        url = f"postgresql://shop:wrong@127.0.0.1:{own_postgres.port}/postgres"

        def refused() -> str:
            try:
                check(url)
            except DatabaseUnreachable as error:
                return str(error)
            except SchemaForbidden:  # let in: the server has not read the file yet
                return ""
            return ""

        said = wait_for(refused, "the server asks for a password")
    assert said == (
        f"can't connect to Postgres at 127.0.0.1:{own_postgres.port}, database postgres: "
        'FATAL: password authentication failed for user "shop".\n'
        "Check REFOLD_DATABASE_URL (or App(database_url=...)), and that the server is running."
    )


@pytest.mark.parametrize(
    ("url", "where"),
    [
        ("postgresql://u:secret@db.example/shop", "db.example:5432, database shop"),
        ("postgresql://u:secret@db.example:6432", "db.example:6432, database u"),
        ("host=/run/postgresql dbname=shop password=secret", "/run/postgresql:5432, database shop"),
    ],
)
def test_where_a_url_points_is_told_without_its_password(url: str, where: str) -> None:
    assert describe_url(url) == where


# Eras: transactions' numbers of another cluster mean nothing in this one (rule 21).


def _eras(log: Log) -> list[tuple[Any, ...]]:
    return log.rows("select workflow_id, era from refold.events order by 1")


def test_a_dump_restored_into_another_cluster_begins_a_new_era(
    make_worker: MakeWorker, database_url: str, log: Log
) -> None:
    worker = make_worker("w1")
    worker.start("before")
    log.rows("update refold.meta set system_identifier = 1")
    migrate(database_url)
    worker.start("after")
    assert _eras(log) == [("after", 2), ("before", 1)]
    migrate(database_url)
    assert log.rows("select era from refold.meta") == [(2,)]
    assert log.one("select system_identifier from refold.meta") == log.one(
        "select system_identifier from pg_control_system()"
    )


@pytest.mark.parametrize(
    ("moved", "era"), [(False, 2), (True, 3)], ids=["the same cluster", "another cluster"]
)
def test_the_era_survives_the_loss_of_the_table_that_says_it(
    make_worker: MakeWorker, database_url: str, log: Log, moved: bool, era: int
) -> None:
    worker = make_worker("w1")
    log.rows("update refold.meta set system_identifier = 1")
    migrate(database_url)
    worker.start("o-1")
    if moved:  # the numbers of its transactions are higher than this cluster has come
        log.rows("alter table refold.events disable trigger all")
        log.rows("update refold.events set xid = '9000000000000'")
        log.rows("alter table refold.events enable trigger all")
    log.rows("drop table refold.meta")
    migrate(database_url)
    assert log.one("select era from refold.meta") == era
    worker.start("o-2")
    assert _eras(log) == [("o-1", 2), ("o-2", era)]
