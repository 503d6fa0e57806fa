"""Playing the clauses on one connector: the system is opened once, each clause gets an empty database and topic."""

import shutil
import tempfile
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Literal, Self, get_args
from urllib.parse import quote

import psycopg
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict

from refold.eventlog import open_server, packaged_programs
from refold.testing._clauses import CLAUSES, Clause
from refold.testing._harness import Harness, Kind
from refold.testing._line import Line
from refold.testing._load import place_of
from refold.testing._stage import Refused, Stage


@dataclass(frozen=True)
class Verdict:
    """What became of one clause. `text` says why it was refused, or why it makes no sense here."""

    clause: str
    promise: str
    result: Literal["kept", "refused", "not applicable"]
    text: str = ""
    seconds: float = 0.0


class Kit:
    """Judges one connector. Use it in a `with` block, which starts the connector's system and a Postgres.

    `database_url` is any database of a Postgres in which this may create databases and drop them again; without it
    an embedded Postgres is started, and is gone at the end.
    """

    def __init__(self, harness: type[Harness], *, database_url: str | None = None) -> None:
        """Raises ValueError for a harness that does not say what it has to."""
        if (problem := problem_of(harness)) is not None:
            raise ValueError(f"{harness.__qualname__}: {problem}")
        self._place = place_of(harness)
        self._class = harness
        self._url = database_url
        self._stack = ExitStack()
        self._line: Line
        self._harness: Harness

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            folder = Path(tempfile.mkdtemp(prefix="refold-kit-"))
            stack.callback(shutil.rmtree, folder, ignore_errors=True)
            self._folder = folder
            if self._url is None:
                self._url = stack.enter_context(_own_postgres(folder))
            self._line = Line(self._url)
            stack.callback(self._line.close)
            self._harness = self._class(folder)
            self._harness.open()
            stack.callback(self._harness.close)
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def judge(self, clause: str) -> Verdict:
        """Play one clause and return what came of it; an error of the harness itself is raised."""
        found = CLAUSES[clause]
        why_not = found.not_applicable(self._harness)
        if why_not is not None:
            return Verdict(clause, found.promise, "not applicable", why_not)
        began = time.monotonic()
        try:
            self._play(found)
        except Refused as refused:
            return Verdict(clause, found.promise, "refused", str(refused), time.monotonic() - began)
        return Verdict(clause, found.promise, "kept", "", time.monotonic() - began)

    def judge_all(self, clauses: Sequence[str] = ()) -> Iterator[Verdict]:
        """Yield the verdict of each clause, or of these, as it comes."""
        for clause in clauses or CLAUSES:
            yield self.judge(clause)

    def _play(self, clause: Clause) -> None:
        assert self._url is not None
        # What an earlier clause has left is not in this one's way.
        self._harness.folder = self._folder / f"{clause.name}-{uuid.uuid4().hex[:6]}"
        self._harness.folder.mkdir()
        with _database(self._url) as (name, url):
            self._harness.settings = self._harness.begin()
            try:
                stage = Stage(self._harness, self._place, self._line, name, url)
                try:
                    clause.scene(stage)
                finally:
                    stage.close()
            finally:
                self._harness.end()


def problem_of(harness: type[Harness]) -> str | None:
    """Return what is wrong with what a harness says of its connector."""
    if not isinstance(getattr(harness, "name", None), str):
        return 'it has no name for the report; write:  name = "mine"'
    kinds = ", ".join(map(repr, get_args(Kind)))
    if (kind := getattr(harness, "kind", None)) not in get_args(Kind):
        return f"kind is {kind!r}, and it says who moves first; write one of {kinds}:  kind = 'pull'"
    if unknown := [clause for clause in harness.not_applicable if clause not in CLAUSES]:
        return f"not_applicable names {unknown[0]!r}, which is no clause; there are: {', '.join(CLAUSES)}"
    if harness.max_in_flight is not None and harness.max_in_flight < 1:
        return f"max_in_flight is {harness.max_in_flight}; give the bound that declare() gives, 10 say"
    return None


@contextmanager
def _own_postgres(folder: Path) -> Iterator[str]:
    server = open_server(folder / ".refold", packaged_programs())
    try:
        yield server.url
    finally:
        server.close()
        moved = folder / ".refold" / "data-folder"  # where Postgres's user could not reach the folder
        if moved.exists():
            shutil.rmtree(Path(moved.read_text().strip()).parent, ignore_errors=True)


@contextmanager
def _database(url: str) -> Iterator[tuple[str, str]]:
    """Make a database; yields its name and its URL, and drops it at the end."""
    name = f"refold_kit_{uuid.uuid4().hex[:12]}"
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(sql.SQL("create database {}").format(sql.Identifier(name)))
        try:
            yield name, _url_of(url, name)
        finally:
            connection.execute(sql.SQL("drop database {} with (force)").format(sql.Identifier(name)))


def _url_of(url: str, database: str) -> str:
    """Return the same URL with another database in it."""
    given = {key: str(value) for key, value in conninfo_to_dict(url).items() if key != "dbname"}
    options = "&".join(f"{key}={quote(value, safe='')}" for key, value in given.items())
    return f"postgresql:///{database}?{options}"


__all__ = ["Kit", "Verdict"]
