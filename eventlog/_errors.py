"""The log's errors, one class for each different reaction of whoever catches it."""

from collections.abc import Sequence


class RefoldError(Exception):
    """Root of every error that refold raises on purpose, on whichever floor."""


class EventLogError(RefoldError):
    """Base of everything that the event log raises."""


class StaleWriter(EventLogError):
    """Another writer appended first: drop this copy, read the head again, go on if it is still yours."""

    def __init__(self, stream: str, expected: int, actual: int) -> None:
        super().__init__(stream, expected, actual)
        self.stream, self.expected, self.actual = stream, expected, actual

    def __str__(self) -> str:
        return (
            f"stream {self.stream!r} already has event {self.actual - 1}, this writer wanted to add event "
            f"{self.expected}: another worker took the workflow over. Drop this copy; it goes on there."
        )


class AppendRefused(EventLogError):
    """Postgres refused the rows of one workflow for their own sake; the others of its flush were written."""

    def __init__(self, stream: str, reason: str) -> None:
        super().__init__(stream, reason)
        self.stream, self.reason = stream, reason

    def __str__(self) -> str:
        return f"Postgres refused the rows of {self.stream!r}: {self.reason}"


class Fenced(EventLogError):
    """This worker was declared dead: nothing of the transaction was written. Start again as a new worker."""

    def __init__(self, worker: str) -> None:
        super().__init__(worker)
        self.worker = worker

    def __str__(self) -> str:
        return (
            f"worker {self.worker} was declared dead by another one (its heartbeat stood still); its workflows go "
            "on elsewhere and nothing more of it is written. It starts again as a new worker."
        )


class HeadsMissing(EventLogError):
    """Workflows have events but no head: the projections were lost, or are of another day than the log."""

    def __init__(self, ids: Sequence[str]) -> None:
        super().__init__(tuple(ids))
        self.ids = tuple(ids)

    def __str__(self) -> str:
        which = ", ".join(self.ids[:3]) + (" and others" if len(self.ids) > 3 else "")
        return (
            f"{which}: there are events in refold.events, but no row in refold.workflows.\n"
            "Stop the workers, then run: refold rebuild"
        )


class PositionMoved(EventLogError):
    """Another reader of the same source handed over first: nothing was written; read the positions again."""

    def __init__(self, sources: Sequence[str]) -> None:
        super().__init__(tuple(sources))
        self.sources = tuple(sources)

    def __str__(self) -> str:
        return (
            f"the position of {', '.join(self.sources)} is not the one that was read: another reader handed these "
            "messages over. Read the position again and go on from there."
        )


class SchemaMismatch(EventLogError):
    """The schema in the database is not the one of this code."""

    def __init__(self, found: int | None, expected: int) -> None:
        super().__init__(found, expected)
        self.found, self.expected = found, expected

    def __str__(self) -> str:
        if self.found is not None and self.found > self.expected:
            return (
                f"the database has refold schema {self.found}, this code knows {self.expected}: it was written for an "
                "older schema.\nInstall the refold release that the other programs on this database use."
            )
        found = "no refold schema" if self.found is None else f"refold schema {self.found}"
        return f"the database has {found}, this code needs {self.expected}.\nRun: refold migrate"


class SchemaForbidden(EventLogError):
    """The database user may not create the schema; or, where `exists`, not use it."""

    def __init__(self, user: str, database: str, reason: str, exists: bool = False) -> None:
        super().__init__(user, database, reason, exists)
        self.user, self.database, self.reason, self.exists = user, database, reason, exists

    def __str__(self) -> str:
        if self.exists:
            return (
                f"user {self.user!r} may not use refold's schema in database {self.database!r} ({self.reason}).\n"
                f'Let its owner run: grant usage on schema refold to "{self.user}"; '
                f'grant all on all tables in schema refold to "{self.user}"'
            )
        return (
            f"user {self.user!r} may not create refold's schema in database {self.database!r} ({self.reason}).\n"
            f'Let the owner run: grant create on database "{self.database}" to "{self.user}"; '
            "or run `refold migrate` once as the owner."
        )


class DatabaseUnreachable(EventLogError):
    """Postgres did not answer, or did not let us in."""

    def __init__(self, where: str, reason: str) -> None:
        super().__init__(where, reason)
        self.where, self.reason = where, reason

    def __str__(self) -> str:
        return (
            f"can't connect to Postgres at {self.where}: {self.reason}.\n"
            "Check REFOLD_DATABASE_URL (or App(database_url=...)), and that the server is running."
        )


class WorkersAlive(EventLogError):
    """A rebuild was asked for while workers run."""

    def __init__(self, workers: Sequence[str]) -> None:
        super().__init__(tuple(workers))
        self.workers = tuple(workers)

    def __str__(self) -> str:
        return (
            f"{len(self.workers)} worker(s) are running ({', '.join(self.workers)}); a rebuild needs the database to "
            "itself.\nStop them (SIGTERM is enough), then run `refold rebuild` again."
        )
