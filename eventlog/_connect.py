"""Connections of refold's own: how they are made, and what stands between us and Postgres."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, Final, LiteralString, TypeAlias, TypeVar

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg.rows import tuple_row

from refold.eventlog._arrays import adapt
from refold.eventlog._errors import DatabaseUnreachable

AsyncConnection: TypeAlias = psycopg.AsyncConnection[tuple[Any, ...]]
Connection: TypeAlias = psycopg.Connection[tuple[Any, ...]]
T = TypeVar("T")

# A dead peer is found in seconds, not after TCP's two hours. The user's URL wins where it says otherwise.
_DEFAULTS: Final = {
    "connect_timeout": "10",
    "tcp_user_timeout": "10000",
    "keepalives_idle": "10",
    "keepalives_interval": "5",
    "keepalives_count": "3",
    "application_name": "refold",
}

# Errors after which the same statement may be sent again on a new connection.
LOST: Final = (
    psycopg.OperationalError,
    psycopg.InterfaceError,
    psycopg.errors.IdleInTransactionSessionTimeout,
)

# A pooler between us and Postgres (PgBouncer) answers with a process number of its own making. Then nothing that
# belongs to a session can be relied on: no LISTEN, no advisory lock of the session, no prepared statement.
BACKEND_PID: Final[LiteralString] = "select pg_backend_pid()"


def _parse(url: str) -> dict[str, Any]:
    try:
        return dict(conninfo_to_dict(url))
    except psycopg.ProgrammingError:
        # Without libpq's own words: they repeat what was given, and that may hold a password.
        raise DatabaseUnreachable(
            "the address that is given",
            "it is neither a URL like postgresql://user@host:5432/name nor a conninfo string",
        ) from None


def with_defaults(url: str) -> str:
    """Return `url` as a conninfo string with refold's time-outs where it does not set its own."""
    given = _parse(url)
    return make_conninfo(url, **{key: value for key, value in _DEFAULTS.items() if key not in given})


def named_after(url: str, worker: str) -> str:
    """Return `url` with `worker` at the end of its application_name.

    So pg_stat_activity shows whose connection is whose, and a worker that is declared dead can be cut off from its
    locks (rule 13) by a name that is never given twice, where the number of a process is.
    """
    given = _parse(url).get("application_name") or _DEFAULTS["application_name"]
    # Postgres cuts at 63 bytes; the worker's name must be whole.
    return make_conninfo(url, application_name=f"{str(given)[: max(0, 62 - len(worker))]} {worker}")


def describe(url: str) -> str:
    """Return where `url` points, without a password."""
    given = _parse(url)
    host = given.get("host") or given.get("hostaddr") or "localhost"
    port = given.get("port") or "5432"
    return f"{host}:{port}, database {given.get('dbname') or given.get('user') or 'postgres'!s}"


def _reason(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    # libpq: `connection to server at "127.0.0.1", port 5432 failed: Connection refused`, and a question on two lines.
    # Where it was is said already.
    reasons = [line.rpartition(" failed: ")[2] for line in lines if " failed: " in line] or lines
    return " ".join((reasons[-1] if reasons else type(error).__name__).split()).rstrip(".?")


async def connect(url: str) -> AsyncConnection:
    """Open an autocommit connection with refold's adapters.

    Raises DatabaseUnreachable.
    """
    try:
        connection = await psycopg.AsyncConnection.connect(
            with_defaults(url), autocommit=True, row_factory=tuple_row
        )
        pooled = await is_pooled(connection)
    except psycopg.OperationalError as error:
        raise DatabaseUnreachable(describe(url), _reason(error)) from error
    adapt(connection)
    # Planning `select refold.flush($1, ...)` is cheap; preparing it is cheaper, but needs a session of our own.
    connection.prepare_threshold = None if pooled else 0
    return connection


def connect_sync(url: str) -> Connection:
    """Open an autocommit connection with refold's adapters, for code that may block.

    Raises DatabaseUnreachable.
    """
    try:
        connection = psycopg.connect(with_defaults(url), autocommit=True, row_factory=tuple_row)
        row = connection.execute(BACKEND_PID).fetchone()
    except psycopg.OperationalError as error:
        raise DatabaseUnreachable(describe(url), _reason(error)) from error
    adapt(connection)
    pooled = row is None or row[0] != connection.info.backend_pid
    connection.prepare_threshold = None if pooled else 5
    return connection


async def is_pooled(connection: AsyncConnection) -> bool:
    """Whether a pooler stands between this connection and its backend."""
    cursor = await connection.execute(BACKEND_PID)
    row = await cursor.fetchone()
    return row is None or row[0] != connection.info.backend_pid


class Line:
    """One connection that is opened again when it was lost; used by one task at a time.

    `run(work)` repeats `work` on a new connection after a broken one, so `work` must be safe to repeat.
    """

    def __init__(self, url: str) -> None:
        self._url = url
        self._connection: AsyncConnection | None = None
        self._turn = asyncio.Lock()

    async def run(self, work: Callable[[AsyncConnection], Awaitable[T]]) -> T:
        """Run `work` with a live connection, again on a new one as often as the line breaks."""
        async with self._turn:
            delay = 0.0  # a line that broke is made anew at once
            while True:
                try:
                    return await work(await self.open())
                except (DatabaseUnreachable, *LOST) as error:
                    if not is_lost(error, self._connection):
                        raise
                    await self.drop()
                # Postgres is away or restarts: growing pauses, but never so long that its return goes unnoticed.
                await asyncio.sleep(delay)
                delay = min(max(delay * 2, 0.05), 1.0)

    async def ready(self) -> None:
        """Return once there is a live connection, however long that takes."""
        await self.run(_nothing)

    async def open(self) -> AsyncConnection:
        """Return the live connection, opening it first if need be."""
        if self._connection is None or self._connection.closed:
            self._connection = await connect(self._url)
        return self._connection

    async def drop(self) -> None:
        """Close the connection, whatever state it is in."""
        connection, self._connection = self._connection, None
        if connection is not None:
            await connection.close()


async def _nothing(_: AsyncConnection) -> None:
    """What `ready` has to do on its line."""


def is_lost(error: Exception, connection: AsyncConnection | None) -> bool:
    """Whether `error` says that the line is gone or the server going, rather than that the statement was wrong."""
    if isinstance(error, DatabaseUnreachable):
        return True
    if connection is None or connection.closed or connection.broken:
        return True
    # 57P0x: the server ends the session (shutdown, crash of a neighbour, pg_terminate_backend). 25P03: it stood idle.
    return (getattr(error, "sqlstate", None) or "").startswith(("08", "57P", "25P03"))
