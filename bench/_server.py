"""One throw-away PostgreSQL for the whole bench, durable as in production: fsync and synchronous_commit on.

Statements are counted from the server's own log (`log_statement = all`, switched on per database and only
while counting): that needs no extension, so it works with the embedded server's build as well.
"""

import contextlib
import os
import re
import shutil
import socket
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, LiteralString

import psycopg
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict

from refold.eventlog._embedded import EmbeddedServer, open_server, packaged_programs

_SETTINGS = {
    "max_connections": "200",
    "shared_buffers": "512MB",
    # No checkpoint in the middle of a measure: full-page images after it would count against whoever runs
    # then.
    "max_wal_size": "8GB",
    "checkpoint_timeout": "1h",
    "logging_collector": "off",
    "log_line_prefix": "%d|%p|%v|",
    "log_parameter_max_length": "0",
    "log_checkpoints": "off",
}
# A statement as the server's log has it, by the simple protocol or the extended one. (A prepared statement's
# Parse is not logged as a statement, only each Execute.)
_STATEMENT = re.compile(
    r"^(?P<db>[^|]*)\|(?P<pid>\d+)\|(?P<vxid>[^|]*)\|LOG:  (?:statement|execute [^:]*): (?P<sql>.*)"
)


@dataclass(frozen=True)
class Statements:
    """What a database was asked in a stretch of the log."""

    total: int
    begins_and_commits: int
    transactions: int
    texts: tuple[str, ...]


class Server:
    """A running PostgreSQL under a temporary folder; `url(database)` reaches it on loopback."""

    def __init__(self, server: EmbeddedServer, port: int) -> None:
        self._server, self._port = server, port
        self._log_path = server.data_dir / "server.log"

    @property
    def pid(self) -> int:
        return self._server.pid

    def url(self, database: str = "postgres") -> str:
        # TCP for both contestants, as in most installations; DBOS's URLs have no room for a socket's folder.
        return f"postgresql://postgres@127.0.0.1:{self._port}/{database}"

    @contextlib.contextmanager
    def query(self, database: str = "postgres") -> Iterator[psycopg.Connection[tuple[Any, ...]]]:
        with psycopg.connect(self.url(database), autocommit=True) as connection:
            yield connection

    def value(self, statement: LiteralString, database: str = "postgres") -> Any:
        with self.query(database) as connection:
            found = connection.execute(statement).fetchone()
            return found[0] if found else None

    def create(self, database: str) -> str:
        """Make an empty database and return its URL."""
        with self.query() as connection:
            connection.execute(sql.SQL("create database {}").format(sql.Identifier(database)))
        return self.url(database)

    def log_statements(self, database: str) -> None:
        """From its next connection on, `database` logs all statements; slow, so never while time is taken."""
        with self.query() as connection:
            connection.execute(
                sql.SQL("alter database {} set log_statement = 'all'").format(sql.Identifier(database))
            )

    def log_size(self) -> int:
        return self._log_path.stat().st_size

    def statements(self, database: str, since: int, until: int | None = None) -> Statements:
        """What `database` was asked between two `log_size()`s; a transaction is a distinct virtual xid."""
        with self._log_path.open("rb") as log:
            log.seek(since)
            part = log.read() if until is None else log.read(until - since)
        texts: list[str] = []
        transactions: set[str] = set()
        for line in part.decode(errors="replace").splitlines():
            match = _STATEMENT.match(line)
            if match and match["db"] == database:
                texts.append(match["sql"])
                transactions.add(match["vxid"])
        frame = sum(text.strip().lower().startswith(("begin", "commit", "rollback")) for text in texts)
        return Statements(len(texts), frame, len(transactions), tuple(texts))

    def wal_position(self) -> int:
        return int(self.value("select pg_current_wal_lsn() - '0/0'::pg_lsn"))

    def table_bytes(self, database: str) -> int:
        """Bytes of all user tables of `database` with their indexes and TOAST."""
        return int(
            self.value(
                "select coalesce(sum(pg_total_relation_size(c.oid)), 0) from pg_class c"
                " join pg_namespace n on n.oid = c.relnamespace"
                " where c.relkind in ('r', 'p') and n.nspname !~ '^pg_|^information_schema$'",
                database,
            )
        )

    def cpu_seconds(self) -> float:
        """CPU used by the server since it started: its living processes and those that have ended."""
        ticks, postmaster = 0, self._server.pid
        for stat in Path("/proc").glob("[0-9]*/stat"):
            with contextlib.suppress(OSError):
                fields = stat.read_text().rpartition(") ")[2].split()
                own = int(stat.parent.name) == postmaster
                if own or int(fields[1]) == postmaster:
                    # utime and stime; the postmaster's cutime and cstime are those of the backends that
                    # ended.
                    ticks += (
                        int(fields[11]) + int(fields[12]) + (int(fields[13]) + int(fields[14]) if own else 0)
                    )
        return ticks / os.sysconf("SC_CLK_TCK")

    def facts(self) -> dict[str, str]:
        names = (
            "server_version",
            "fsync",
            "synchronous_commit",
            "full_page_writes",
            "wal_sync_method",
            "shared_buffers",
        )
        with self.query() as connection:
            shown = {}
            for name in names:
                found = connection.execute(sql.SQL("show {}").format(sql.Identifier(name))).fetchone()
                shown[name] = str(found[0]) if found else ""
            return shown


@contextlib.contextmanager
def running_server(more: Mapping[str, str] | None = None) -> Iterator[Server]:
    """A server that is stopped, and its folder removed, when the block ends however it ends."""
    # /tmp itself: short, and open to the unprivileged user that the server runs as where we are root.
    parent = Path(tempfile.mkdtemp(prefix="refold-bench-", dir="/tmp"))
    parent.chmod(0o755)
    port = _free_port()
    settings = {**_SETTINGS, **(more or {}), "listen_addresses": "127.0.0.1", "port": str(port)}
    try:
        with open_server(parent / "postgres", packaged_programs(), settings=settings) as server:
            sockets = Path(str(conninfo_to_dict(server.url)["host"]))
            yield Server(server, port)
        shutil.rmtree(sockets, ignore_errors=True)
    finally:
        shutil.rmtree(parent, ignore_errors=True)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
