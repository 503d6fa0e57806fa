"""The tools that other tests break lines with do what they say."""

import threading
from collections.abc import Iterator

import psycopg
import pytest

from fixtures.postgres import OwnPostgres
from fixtures.proxy import CutProxy, Direction

_SESSIONS = "select count(*) from pg_stat_activity where state = 'idle in transaction' and datname = current_database()"


@pytest.fixture
def facts(database_url: str) -> Iterator[psycopg.Connection]:
    """A direct connection to the database behind the proxy, which has a table for facts."""
    with psycopg.connect(database_url, autocommit=True) as conn:
        conn.execute("create table facts (fact int)")
        yield conn


def _read(facts: psycopg.Connection) -> list[int]:
    return [fact for (fact,) in facts.execute("select fact from facts order by fact")]


def test_a_line_that_nobody_cuts_is_transparent(cut_proxy: CutProxy) -> None:
    with psycopg.connect(cut_proxy.url) as conn:
        assert conn.execute("select repeat('x', 1000000)").fetchone() == ("x" * 1_000_000,)
    assert cut_proxy.passed[Direction.TO_CLIENT] > 1_000_000
    assert cut_proxy.cuts == 0


def test_a_cut_before_the_answer_commits_and_the_client_never_hears(
    cut_proxy: CutProxy, facts: psycopg.Connection
) -> None:
    with psycopg.connect(cut_proxy.url, autocommit=True) as conn:
        cut_proxy.cut_after(0, Direction.TO_CLIENT)
        with pytest.raises(psycopg.OperationalError, match="closed the connection unexpectedly"):
            conn.execute("insert into facts values (1)")
    assert _read(facts) == [1]
    with psycopg.connect(cut_proxy.url, autocommit=True) as conn:  # the next line holds
        conn.execute("insert into facts values (2)")
    assert _read(facts) == [1, 2]
    assert cut_proxy.cuts == 1


def test_a_cut_inside_the_request_leaves_nothing(cut_proxy: CutProxy, facts: psycopg.Connection) -> None:
    with psycopg.connect(cut_proxy.url, autocommit=True) as conn:
        cut_proxy.cut_after(10, Direction.TO_SERVER)
        with pytest.raises(psycopg.OperationalError, match="closed the connection unexpectedly"):
            conn.execute("insert into facts values (1)")
    assert _read(facts) == []


def test_a_held_commit_takes_place_when_it_is_released(
    cut_proxy: CutProxy, facts: psycopg.Connection
) -> None:
    with psycopg.connect(cut_proxy.url) as conn:
        conn.execute("insert into facts values (1)")
        cut_proxy.hold(Direction.TO_SERVER)
        committing = threading.Thread(target=conn.commit)
        committing.start()
        cut_proxy.wait_until_holding(Direction.TO_SERVER)
        assert _read(facts) == []
        cut_proxy.release()
        committing.join()
    assert _read(facts) == [1]


def test_a_server_that_does_not_learn_of_the_cut_keeps_its_transaction(
    cut_proxy: CutProxy, facts: psycopg.Connection
) -> None:
    with psycopg.connect(cut_proxy.url) as conn:
        conn.execute("insert into facts values (1)")
        cut_proxy.cut(server_learns=False)
        with pytest.raises(psycopg.OperationalError, match="closed the connection unexpectedly"):
            conn.commit()
    assert facts.execute(_SESSIONS).fetchone() == (1,)
    assert _read(facts) == []


def test_a_refusing_line_takes_no_new_connection(cut_proxy: CutProxy) -> None:
    cut_proxy.refuse()
    with pytest.raises(psycopg.OperationalError, match="closed the connection unexpectedly"):
        psycopg.connect(cut_proxy.url)
    cut_proxy.refuse(False)
    psycopg.connect(cut_proxy.url).close()


def test_pgbouncer_gives_a_client_another_session_for_each_transaction(pgbouncer_url: str) -> None:
    with psycopg.connect(pgbouncer_url) as first, psycopg.connect(pgbouncer_url) as second:
        first.execute("select 1")
        second.execute("select 1")
        first.commit()
        second.commit()
        sessions = set()
        for _ in range(3):
            row = first.execute("select pg_backend_pid()").fetchone()
            first.commit()
            sessions.add(row)
    assert len(sessions) > 1


def test_a_killed_server_comes_back_at_the_same_address_with_what_was_committed(
    own_postgres: OwnPostgres,
) -> None:
    with psycopg.connect(own_postgres.url, autocommit=True) as conn:
        conn.execute("create table facts (fact int)")
        conn.execute("insert into facts values (1)")
        own_postgres.kill()
        own_postgres.start()
        with pytest.raises(psycopg.OperationalError, match="unexpected"):
            conn.execute("insert into facts values (2)")
    with psycopg.connect(own_postgres.url, autocommit=True) as conn:
        assert conn.execute("select fact from facts").fetchall() == [(1,)]
