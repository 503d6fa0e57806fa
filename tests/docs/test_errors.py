"""The whole text of the errors that a user meets around an app: its database, its workflows, their IDs."""

import json
import os
import socket
from collections.abc import Iterator

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo

import refold
from fixtures.pages import matches
from fixtures.postgres import OwnPostgres
from fixtures.workers import wait_for
from refold import App
from refold.core import Lane, Move
from refold.eventlog import SCHEMA_VERSION, PositionMoved, WorkersAlive, rebuild


@pytest.fixture
def app(database_url: str) -> Iterator[App]:
    """An app with two workflows, not running."""
    made = App("shop", database_url=database_url)

    @made.workflow
    def checkout(order: str) -> str:
        return order

    @made.workflow
    def approval() -> bool:
        return refold.recv("approval", bool)

    yield made
    made.close()


def _end_one(app: App, workflow_id: str) -> None:
    with app:
        app.workflows["checkout"].options(id=workflow_id).start("tea").result(timeout=30)


@pytest.mark.raises_error("WorkflowNotFound")
def test_an_unknown_id(app: App) -> None:
    with pytest.raises(refold.WorkflowNotFound) as alone:
        app.get("order-1")
    assert str(alone.value) == (
        "no workflow has the ID 'order-1'; there are no others like it.\nSee what there is: refold list"
    )
    for number in (40, 41, 42, 43):
        app.workflows["checkout"].options(id=f"order-{number}").start("tea")
    with pytest.raises(refold.WorkflowNotFound) as near:
        app.get("ordr-42")
    assert matches(
        [
            "no workflow has the ID 'ordr-42'; the nearest: order-42, ..., ....",
            "See what there is: refold list",
        ],
        str(near.value),
    )
    assert len(near.value.nearest) == 3


@pytest.mark.raises_error("WorkflowEnded")
def test_a_message_to_the_dead_and_the_deletion_of_the_living(app: App) -> None:
    _end_one(app, "order-1")
    with pytest.raises(refold.WorkflowEnded) as ended:
        app.send("order-1", True, topic="approval")
    assert str(ended.value) == (
        "workflow 'order-1' is completed: nobody will receive a message to it.\n"
        "See its history: refold show order-1"
    )
    app.workflows["approval"].options(id="approval-1").start()
    with pytest.raises(refold.WorkflowEnded) as living:
        app.delete("approval-1")
    assert str(living.value) == (
        "workflow 'approval-1' is pending: only a workflow that has ended can be deleted.\n"
        "See its history: refold show approval-1"
    )


@pytest.mark.raises_error("WorkflowCancelled")
def test_the_result_of_a_cancelled_workflow(app: App) -> None:
    app.workflows["approval"].options(id="approval-1").start()
    app.cancel("approval-1", "asked twice")
    with pytest.raises(refold.WorkflowCancelled) as cancelled:
        app.get("approval-1").result(timeout=30)
    assert str(cancelled.value) == (
        "workflow 'approval-1' was cancelled: asked twice. It has no result; start it again under another ID, or see "
        "what it had done: refold show approval-1"
    )


@pytest.mark.raises_error("WorkflowNotParked")
def test_a_retry_of_what_is_not_parked(app: App) -> None:
    _end_one(app, "order-1")
    for decide, asked in ((app.retry, "retried"), (app.skip, "skipped")):
        with pytest.raises(refold.WorkflowNotParked) as refused:
            decide("order-1")
        assert str(refused.value) == (
            f"workflow 'order-1' is completed, and only a parked one can be {asked}.\n"
            "See what became of it: refold show order-1"
        )


@pytest.mark.raises_error("WorkflowSkipped")
def test_the_result_of_a_skipped_poison(app: App) -> None:
    app.workflows["approval"].options(id="approval-1").start()
    with psycopg.connect(str(app.database_url), autocommit=True) as connection:
        connection.execute("update refold.workflows set suspicion = 6, alone_deaths = 3")
    with app:
        wait_for(lambda: app.info("approval-1").status == "parked", "it is parked")
        app.skip("approval-1", "a bad record")
        with pytest.raises(refold.WorkflowSkipped) as skipped:
            app.get("approval-1").result(timeout=30)
    assert str(skipped.value) == (
        "workflow 'approval-1' was parked (its worker died 6 times while running it, the last times with nothing else "
        "in hand; look at the steps it was in) and then skipped by a person. See where it was: refold show approval-1"
    )
    assert skipped.value.__notes__ == ["skipped by a person: a bad record"]


@pytest.mark.raises_error("WorkflowDeleted")
def test_the_result_of_a_deleted_history(app: App) -> None:
    _end_one(app, "order-1")
    app.delete("order-1")
    with pytest.raises(refold.WorkflowDeleted) as deleted:
        app.get("order-1").result(timeout=5)
    assert str(deleted.value) == (
        "the history of workflow 'order-1' was deleted; only its ID is kept, so that it never starts twice. "
        "Keep histories as long as somebody asks for their results."
    )


@pytest.mark.raises_error("InvalidId")
@pytest.mark.parametrize(
    ("workflow_id", "problem"),
    [
        ("", "'' has 0 bytes"),
        ("o\n1", "'o\\n1' holds a character that can't be printed"),
        ("source:orders", "'source:orders' begins like a stream of refold's own"),
        ("ä" * 257, f"'{'ä' * 77}...' has 514 bytes"),
    ],
    ids=["empty", "control character", "ours", "long"],
)
def test_an_id_that_cannot_be_stored(app: App, workflow_id: str, problem: str) -> None:
    with pytest.raises(refold.InvalidId) as invalid:
        app.send(workflow_id, True)
    assert str(invalid.value) == (
        f"workflow ID {problem}. An ID has 1 to 512 bytes of UTF-8, no control characters, "
        "and does not begin with source:, schedule: or queue:."
    )


@pytest.mark.raises_error("DatabaseUnreachable")
def test_a_postgres_that_refuses_the_connection() -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    app = App("shop", database_url=f"postgresql://ada:secret@127.0.0.1:{port}/shop")
    with pytest.raises(refold.DatabaseUnreachable) as refused:
        app.start_worker()
    assert matches(
        [
            f"can't connect to Postgres at 127.0.0.1:{port}, database shop: ....",
            "Check REFOLD_DATABASE_URL (or App(database_url=...)), and that the server is running.",
        ],
        str(refused.value),
    )
    assert "secret" not in str(refused.value)


@pytest.mark.raises_error("DatabaseUnreachable")
def test_a_wrong_password(own_postgres: OwnPostgres) -> None:
    with psycopg.connect(own_postgres.url, autocommit=True) as owner:
        owner.execute("create role ada login password 'right'")
        hba = owner.execute("show hba_file").fetchone()
        assert hba is not None
        with open(hba[0], "r+") as rules:
            before = rules.read()
            rules.seek(0)
            rules.write(f"host all ada 127.0.0.1/32 scram-sha-256\n{before}")
        owner.execute("select pg_reload_conf()")
    url = own_postgres.url_of("postgres", tcp=True)
    given = conninfo_to_dict(url)
    app = App("shop", database_url=make_conninfo(url, user="ada", password="wrong"))
    with pytest.raises(refold.DatabaseUnreachable) as refused:
        app.start_worker()
    assert matches(
        [
            f"can't connect to Postgres at 127.0.0.1:{given['port']}, database postgres: ..."
            'password authentication failed for user "ada".',
            "Check REFOLD_DATABASE_URL (or App(database_url=...)), and that the server is running.",
        ],
        str(refused.value),
    )
    assert "wrong" not in str(refused.value)


@pytest.mark.raises_error("SchemaMismatch")
@pytest.mark.parametrize(
    ("found", "text"),
    [
        (
            9999,
            f"the database has refold schema 9999, this code knows {SCHEMA_VERSION}: it was written for an older "
            "schema.\nInstall the refold release that the other programs on this database use.",
        ),
        (0, f"the database has refold schema 0, this code needs {SCHEMA_VERSION}.\nRun: refold migrate"),
    ],
    ids=["newer", "older"],
)
def test_a_schema_of_another_release(app: App, database_url: str, found: int, text: str) -> None:
    with psycopg.connect(database_url, autocommit=True) as owner:
        owner.execute("update refold.meta set schema_version = %s", (found,))
    with pytest.raises(refold.SchemaMismatch) as mismatch:
        app.start_worker()
    assert str(mismatch.value) == text


@pytest.mark.raises_error("SchemaForbidden")
def test_a_user_that_may_not_create_the_schema(empty_database_url: str) -> None:
    role = f"guest_{os.getpid()}"
    with psycopg.connect(empty_database_url, autocommit=True) as owner:
        database = owner.info.dbname
        owner.execute(f"create role {role} login".encode())
    try:
        app = App("shop", database_url=make_conninfo(empty_database_url, user=role))
        with pytest.raises(refold.SchemaForbidden) as forbidden:
            app.start_worker()
        assert str(forbidden.value) == (
            f"user '{role}' may not create refold's schema in database '{database}' "
            f"(permission denied for database {database}).\n"
            f'Let the owner run: grant create on database "{database}" to "{role}"; '
            "or run `refold migrate` once as the owner."
        )
    finally:
        with psycopg.connect(empty_database_url, autocommit=True) as owner:
            owner.execute(f"drop role {role}".encode())


@pytest.mark.raises_error("WorkersAlive")
def test_a_rebuild_under_a_running_worker(app: App, database_url: str) -> None:
    with app, pytest.raises(WorkersAlive) as alive:
        rebuild(database_url)
    assert matches(
        [
            f"1 worker(s) are running ({alive.value.workers[0]}); a rebuild needs the database to itself.",
            "Stop them (SIGTERM is enough), then run `refold rebuild` again.",
        ],
        str(alive.value),
    )


@pytest.mark.raises_error("PositionMoved")
def test_a_hand_over_from_a_position_that_is_not_the_last_one(app: App) -> None:
    with app:
        lane = app.lane("test")
        before = lane.read_positions(["test:orders"]).result(10)["test:orders"]
        move = Move(before, json.dumps({"next": 1}).encode(), "orders")
        lane.hand_over([move]).result(10)
        with pytest.raises(PositionMoved) as moved:
            lane.hand_over([move]).result(10)
        _close(lane)
    assert str(moved.value) == (
        "the position of test:orders is not the one that was read: another reader handed these messages over. "
        "Read the position again and go on from there."
    )


def _close(lane: Lane) -> None:
    lane.close()
