"""Transactions of a user's own SQL that end with one event of refold's: both commit, or neither.

The sync and the async form differ in nothing but `await`; what they decide is shared below them.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any, Final, LiteralString

import psycopg
from psycopg import errors

from refold.eventlog._connect import BACKEND_PID, named_after, with_defaults
from refold.eventlog._errors import Fenced, StaleWriter
from refold.eventlog._events import from_micros
from refold.eventlog._log import FENCED, NewEvent

_REGISTER: Final[LiteralString] = "select refold.register(%s, %s, null)"
_RECORD: Final[LiteralString] = "select refold.record(%s, %s, %s, %s, %s, %s, %s, %s, %s)"
_LAST_FLUSH: Final[LiteralString] = (
    "select flush_no, epoch from refold.workers where worker = %s and lane = %s for update"
)
# A frozen process must not hold the user's rows for ever; a step's own time-out is shorter or longer as it says.
_LIMIT: Final[LiteralString] = "select set_config('idle_in_transaction_session_timeout', %s, true)"
# Seconds between two tries to learn from a Postgres that is away what became of a commit.
_LOOK_AGAIN: Final = 0.2

# What to record at the end: the stream and the event in its place. None: nobody waits for it, roll back.
Event_ = tuple[str, NewEvent] | None


class RolledBack(Exception):
    """The transaction was given up because nobody waits for its outcome any more."""


class LineBroke(Exception):
    """The transaction's own connection was lost, and nothing of it was committed: run it again on a new one."""


class _Lane:
    """A lane of a worker for transactional steps: registered once, its flushes numbered."""

    def __init__(self, url: str, worker: str, name: str, limit_ms: int) -> None:
        self.url, self.worker, self.name = with_defaults(named_after(url, worker)), worker, name
        self.limit = f"{limit_ms}ms"
        self.epoch: int | None = None
        self.flush_no = 0

    def record(self, stream: str, event: NewEvent) -> tuple[Any, ...]:
        self.flush_no += 1
        return (
            *(self.worker, self.name, self.epoch, self.flush_no),
            *(stream, event.seq, event.type, from_micros(event.at), event.body),
        )

    def translated(
        self, error: psycopg.Error, recorded: tuple[str, NewEvent] | None, *, lost: bool
    ) -> Exception:
        if error.sqlstate == FENCED:
            return Fenced(self.worker)
        if lost:
            return LineBroke(str(error))
        if (
            recorded is not None
            and isinstance(error, errors.UniqueViolation)
            and error.diag.constraint_name == "one_event_per_seq"
        ):
            return StaleWriter(recorded[0], recorded[1].seq, recorded[1].seq + 1)
        return error

    def was_committed(self, row: tuple[Any, ...] | None) -> bool:
        if row is None or row[1] != self.epoch:
            raise Fenced(self.worker)
        return bool(row[0] == self.flush_no)


def is_worth_another_try(error: BaseException) -> bool:
    """Whether a transaction failed for no fault of its own: serialization, deadlock, or its line broke."""
    return isinstance(error, errors.SerializationFailure | errors.DeadlockDetected | LineBroke)


def _is_lost(error: psycopg.Error, connection: Any) -> bool:
    """Whether our own line broke: the step may use other connections of its own, whose errors are its own."""
    if connection is None or connection.closed or connection.broken:
        return True
    # 57P0x: the server ends the session. 25P03: it stood idle in its transaction for too long.
    return (error.sqlstate or "").startswith(("08", "57P", "25P03"))


class TransactionLane(_Lane):
    """For `def` steps; used by one thread."""

    def __init__(self, url: str, worker: str, name: str, limit_ms: int) -> None:
        super().__init__(url, worker, name, limit_ms)
        self._connection: psycopg.Connection[Any] | None = None

    def commit(self, work: Callable[[psycopg.Connection[Any]], Event_]) -> None:
        """Run `work` in a transaction and commit it together with the event that it returns, or nothing at all.

        Raises what `work` raises, RolledBack when it returned None, Fenced, StaleWriter, and for the caller to try
        again: what `is_worth_another_try` knows.
        """
        recorded: Event_ = None
        try:
            connection = self._open()
            with connection.transaction():
                connection.execute(_LIMIT, (self.limit,))
                recorded = work(connection)
                if recorded is None:
                    raise RolledBack
                connection.execute(_RECORD, self.record(*recorded))
        except psycopg.Error as error:
            lost = _is_lost(error, self._connection)
            if recorded is not None and lost and self._found_committed():
                return
            raise self.translated(error, recorded, lost=lost) from error

    def _found_committed(self) -> bool:
        """Whether the commit that the line broke in was done after all (rule 11); waits until Postgres can say."""
        while True:
            try:
                row = self._open().execute(_LAST_FLUSH, (self.worker, self.name)).fetchone()
                return self.was_committed(row)
            except psycopg.Error as error:
                if not _is_lost(error, self._connection):
                    raise
            time.sleep(_LOOK_AGAIN)

    def _open(self) -> psycopg.Connection[Any]:
        if self._connection is None or self._connection.closed or self._connection.broken:
            self._connection = psycopg.connect(self.url, autocommit=True)
            pid = self._connection.execute(BACKEND_PID).fetchone()
            if pid is None or pid[0] != self._connection.info.backend_pid:
                self._connection.prepare_threshold = None
        if self.epoch is None:
            row = self._connection.execute(_REGISTER, (self.worker, self.name)).fetchone()
            assert row is not None
            self.epoch = row[0]
        return self._connection

    def close(self) -> None:
        """Close the connection."""
        if self._connection is not None:
            self._connection.close()


class AsyncTransactionLane(_Lane):
    """For `async def` steps; used by one task at a time."""

    def __init__(self, url: str, worker: str, name: str, limit_ms: int) -> None:
        super().__init__(url, worker, name, limit_ms)
        self._connection: psycopg.AsyncConnection[Any] | None = None

    async def commit(self, work: Callable[[psycopg.AsyncConnection[Any]], Awaitable[Event_]]) -> None:
        """Do what `TransactionLane.commit` does."""
        recorded: Event_ = None
        try:
            connection = await self._open()
            async with connection.transaction():
                await connection.execute(_LIMIT, (self.limit,))
                recorded = await work(connection)
                if recorded is None:
                    raise RolledBack
                await connection.execute(_RECORD, self.record(*recorded))
        except psycopg.Error as error:
            lost = _is_lost(error, self._connection)
            if recorded is not None and lost and await self._found_committed():
                return
            raise self.translated(error, recorded, lost=lost) from error

    async def _found_committed(self) -> bool:
        while True:
            try:
                cursor = await (await self._open()).execute(_LAST_FLUSH, (self.worker, self.name))
                return self.was_committed(await cursor.fetchone())
            except psycopg.Error as error:
                if not _is_lost(error, self._connection):
                    raise
            await asyncio.sleep(_LOOK_AGAIN)

    async def _open(self) -> psycopg.AsyncConnection[Any]:
        if self._connection is None or self._connection.closed or self._connection.broken:
            self._connection = await psycopg.AsyncConnection.connect(self.url, autocommit=True)
            pid = await (await self._connection.execute(BACKEND_PID)).fetchone()
            if pid is None or pid[0] != self._connection.info.backend_pid:
                self._connection.prepare_threshold = None
        if self.epoch is None:
            row = await (await self._connection.execute(_REGISTER, (self.worker, self.name))).fetchone()
            assert row is not None
            self.epoch = row[0]
        return self._connection

    async def close(self) -> None:
        """Close the connection."""
        if self._connection is not None:
            await self._connection.close()
