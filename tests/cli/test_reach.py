"""What can't be reached ends with exit code 3 and says where it looked; never with a traceback."""

import socket
from urllib.parse import urlsplit, urlunsplit

import psycopg
import pytest

from fixtures.pages import matches
from fixtures.terminal import Terminal

LOOK = ["list"]
RUN = ["worker", "shop.py"]


@pytest.fixture
def closed_port() -> int:
    """A port on which nobody listens."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@pytest.mark.parametrize("command", [LOOK, RUN], ids=["list", "worker"])
def test_a_refused_connection(shop: Terminal, closed_port: int, command: list[str]) -> None:
    shop.environment["REFOLD_DATABASE_URL"] = f"postgresql://ada:secret@127.0.0.1:{closed_port}/shop"
    said = shop.type(*command)
    assert said.code == 3, said.err
    assert f"refold: can't connect to Postgres at 127.0.0.1:{closed_port}, database shop" in said.err
    assert "REFOLD_DATABASE_URL" in said.err
    assert "secret" not in said.err + said.out
    assert "Traceback" not in said.err


@pytest.mark.parametrize(
    "command", [LOOK, RUN, ["dev", "shop.py"], ["migrate"]], ids=lambda command: command[0]
)
@pytest.mark.parametrize("address", ["localhost", "postgresq://ada:secret@127.0.0.1/shop"])
def test_an_address_that_is_none(shop: Terminal, command: list[str], address: str) -> None:
    shop.environment["REFOLD_DATABASE_URL"] = address
    said = shop.type(*command)
    assert (said.code, said.err) == (
        3,
        "refold: can't connect to Postgres at the address that is given: it is neither a URL like "
        "postgresql://user@host:5432/name nor a conninfo string.\n"
        "  Check REFOLD_DATABASE_URL (or App(database_url=...)), and that the server is running.\n",
    )


def test_no_database_at_all(terminal: Terminal) -> None:
    said = terminal.type("list")
    assert said.code == 2
    assert said.err == (
        f"refold: no database: REFOLD_DATABASE_URL is not set, and {terminal.folder} has no .refold/ folder\n"
        "  run this where `refold dev` runs, or give the database:  --database-url postgresql://...\n"
    )


def test_no_right_to_create_the_schema(shop: Terminal, empty_database_url: str) -> None:
    with psycopg.connect(empty_database_url, autocommit=True) as owner:
        database = owner.info.dbname
        owner.execute("drop role if exists refold_guest")
        owner.execute("create role refold_guest login")
        owner.execute(f'revoke all on database "{database}" from public'.encode())
        owner.execute(f'grant connect on database "{database}" to refold_guest'.encode())
    try:
        shop.environment["REFOLD_DATABASE_URL"] = _as_user(empty_database_url, "refold_guest")
        said = shop.type("worker", "shop.py")
        assert said.code == 1, said.err
        assert "user 'refold_guest' may not create refold's schema in database" in said.err
        assert "grant create on database" in said.err
        assert "Traceback" not in said.err
    finally:
        with psycopg.connect(empty_database_url, autocommit=True) as owner:
            owner.execute(f'revoke all on database "{database}" from refold_guest'.encode())
            owner.execute("drop role refold_guest")


def _as_user(url: str, user: str) -> str:
    if "://" not in url:
        return f"{url} user={user}"
    parts = urlsplit(url)
    host = parts.netloc.rpartition("@")[2]
    return urlunsplit(parts._replace(netloc=f"{user}@{host}"))


@pytest.mark.parametrize(
    ("version", "text"),
    [
        (
            9999,
            "refold: the database has refold schema 9999, this code knows ...: it was written for an older schema.\n"
            "  Install the refold release that the other programs on this database use.\n",
        ),
        (0, "refold: the database has refold schema 0, this code needs ....\n  Run: refold migrate\n"),
    ],
    ids=["newer", "older"],
)
@pytest.mark.parametrize("command", [LOOK, RUN], ids=["list", "worker"])
def test_a_schema_of_another_release(
    shop: Terminal, database_url: str, version: int, text: str, command: list[str]
) -> None:
    with psycopg.connect(database_url, autocommit=True) as owner:
        owner.execute("update refold.meta set schema_version = %s", (version,))
    said = shop.type(*command)
    assert said.code == 1, said.err
    assert matches([text], said.err), said.err
