"""Who is alive: heartbeats, the watch over other workers, and what a tick tells an idle one.

Liveness uses no clock of the log (rule 12): a worker is dead when its heartbeat *counter* stood still over
`DEAD_AFTER` seconds of the watcher's own monotonic time, in at least three successful reads; or when its session lock,
which Postgres frees with the process's connection, was free in two reads with no beat between them.
"""

import contextlib
import logging
import secrets
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, LiteralString

import psycopg
from psycopg import errors

from refold.eventlog._arrays import Texts
from refold.eventlog._connect import BACKEND_PID, Connection, connect_sync, named_after
from refold.eventlog._errors import DatabaseUnreachable, Fenced
from refold.eventlog._log import FENCED

log = logging.getLogger("refold.worker")

BEAT_EVERY: Final = 2.0  # seconds; also the slow poll behind every notification
DEAD_AFTER: Final = 6.0
BEAT_EVERY_POOLED: Final = 1.0  # behind a pooler there are no notifications: the poll is all there is

_TICK: Final[LiteralString] = "select kind, key, number, at from refold.tick(%s, %s, %s, %s)"
_DECLARE_DEAD: Final[LiteralString] = "select refold.declare_dead(%s, %s, %s, %s)"
# The sessions of a worker, by the name that its connections have.
_CUT_OFF: Final[LiteralString] = """
    select pg_terminate_backend(pid) from pg_stat_activity
     where datname = current_database()
       and right(application_name, length(%(dead)s::text) + 1) = ' ' || %(dead)s::text
"""


@dataclass(slots=True, frozen=True)
class Tick:
    """What one tick found. Times are microseconds since 1970."""

    log_time: int
    work: bool = False
    suspects: bool = False
    mail: bool = False
    next_due: int | None = None
    pooled: bool = False
    outage: bool = False  # the first tick after the line was lost


@dataclass(slots=True)
class _Sighting:
    beat: int
    since: float
    reads: int = 1
    gone: int = 0


class DeathWatch:
    """Decides from what ticks read which other workers are dead. Pure: the time is passed in."""

    def __init__(self, dead_after: float = DEAD_AFTER) -> None:
        self._dead_after = dead_after
        self._seen: dict[str, _Sighting] = {}

    def observe(self, peers: dict[str, tuple[int, bool]], now: float) -> list[tuple[str, int]]:
        """Take one read of {worker: (beat, its lock is free)} at monotonic `now`; return the dead with their beats."""
        dead = []
        for worker in self._seen.keys() - peers.keys():
            del self._seen[worker]
        for worker, (beat, gone) in peers.items():
            seen = self._seen.get(worker)
            if seen is None or seen.beat != beat:
                self._seen[worker] = _Sighting(beat, now, gone=int(gone))
                continue
            seen.reads += 1
            seen.gone = seen.gone + 1 if gone else 0
            # Twice, because a live worker that lost its connection needs a moment to take its lock again.
            if seen.gone >= 2 or (seen.reads >= 3 and now - seen.since >= self._dead_after):
                dead.append((worker, beat))
        return dead

    def forget(self) -> None:
        """Start counting again: after an outage everybody's beat stood still."""
        self._seen.clear()


class Heartbeat:
    """A thread with a connection of its own that beats for `worker`, watches the others, and reports each tick.

    `on_tick` and `on_fenced` are called on that thread. `alive()` False means that the engine is stuck in somebody's
    code: then no beat is sent, and the others take over (rule 17).
    """

    def __init__(
        self,
        url: str,
        worker: str,
        *,
        can_run: Callable[[], tuple[Sequence[str], Sequence[str]]],
        on_tick: Callable[[Tick], None],
        on_fenced: Callable[[], None],
        alive: Callable[[], bool] = lambda: True,
        every: float = BEAT_EVERY,
        dead_after: float = DEAD_AFTER,
    ) -> None:
        self.worker = worker
        self.lock_key = secrets.randbits(62)
        self._url = named_after(url, worker)
        self._can_run, self._on_tick, self._on_fenced, self._alive = can_run, on_tick, on_fenced, alive
        self._every, self._dead_after = every, dead_after
        self._watch = DeathWatch(dead_after)
        self._epoch = 0
        self._pooled = False
        self._has_lock = False
        self._stop = threading.Event()
        self._soon = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"refold-heartbeat-{worker}", daemon=True)
        self._connection: Connection | None = None

    def register(self) -> None:
        """Enter the worker, with its session lock, before any other lane of it.

        Raises DatabaseUnreachable.
        """
        connection = self._open()
        row = connection.execute(
            "select refold.register(%s, 'beat', %s)", (self.worker, None if self._pooled else self.lock_key)
        ).fetchone()
        assert row is not None
        self._epoch = row[0]

    def start(self) -> None:
        """Begin to beat."""
        self._thread.start()

    def stop(self) -> None:
        """Stop beating; returns when the thread has ended. The worker's rows stay."""
        self._stop.set()
        self._soon.set()
        if self._thread.is_alive() and threading.current_thread() is not self._thread:
            self._thread.join()
        self._drop()

    @property
    def pooled(self) -> bool:
        return self._pooled

    def _open(self) -> Connection:
        if self._connection is None or self._connection.closed:
            connection = connect_sync(self._url)
            row = connection.execute(BACKEND_PID).fetchone()
            self._pooled = row is None or row[0] != connection.info.backend_pid
            self._connection, self._has_lock = connection, False
        if not self._pooled and not self._has_lock:
            # Not waited for: where our last connection broke and Postgres has not noticed, that session still holds it,
            # and a beat that waits for it would be no beat. Then each tick tries again.
            row = self._connection.execute("select pg_try_advisory_lock(%s)", (self.lock_key,)).fetchone()
            self._has_lock = row is not None and row[0]
        return self._connection

    def _run(self) -> None:
        outage = False
        while not self._stop.is_set():
            if self._alive():
                try:
                    self._tick(outage)
                    outage = False
                except Fenced:
                    if not self._stop.is_set():
                        self._on_fenced()
                    break
                except (psycopg.OperationalError, psycopg.InterfaceError, DatabaseUnreachable) as error:
                    if not outage:
                        log.warning("worker %s lost Postgres: %s", self.worker, str(error).strip())
                    outage = True
                    self._watch.forget()
                    self._drop()
            self._soon.wait(self._pause(outage))
            self._soon.clear()
        self._drop()

    def _pause(self, outage: bool) -> float:
        if outage:
            return 0.2
        return min(self._every, BEAT_EVERY_POOLED) if self._pooled else self._every

    def _tick(self, outage: bool) -> None:
        connection = self._open()
        names, fingerprints = self._can_run()
        try:
            rows = connection.execute(
                _TICK, (self.worker, self._epoch, Texts(names), Texts(fingerprints)), binary=True
            ).fetchall()
        except psycopg.Error as error:
            if error.sqlstate == FENCED:
                raise Fenced(self.worker) from error
            raise
        kinds = {kind for kind, _, _, _ in rows}
        peers = {key: (number, kind == "gone") for kind, key, number, _ in rows if kind in ("peer", "gone")}
        times = {kind: at for kind, _, _, at in rows}
        self._on_tick(
            Tick(
                log_time=times["now"],
                work="work" in kinds,
                suspects="suspect" in kinds,
                mail="mail" in kinds,
                next_due=times.get("next"),
                pooled=self._pooled,
                outage=outage,
            )
        )
        for worker, beat in self._watch.observe(peers, time.monotonic()):
            self._declare_dead(connection, worker, beat)

    def _declare_dead(self, connection: Connection, dead: str, beat: int) -> None:
        """Fence `dead` off, free its workflows, and end its sessions.

        A frozen worker can hold locks: on its own rows, which we want here, and on rows of the user's that whoever goes
        on with its workflows will want.
        """
        try:
            for last_try in (False, True):
                try:
                    with connection.transaction():
                        connection.execute("set local lock_timeout = '1s'")
                        row = connection.execute(
                            _DECLARE_DEAD, (self.worker, self._epoch, dead, beat)
                        ).fetchone()
                except errors.LockNotAvailable:
                    if last_try:
                        return
                    self._cut_off(connection, dead)
                except errors.DeadlockDetected:
                    return  # two watchers at each other; the next tick knows more
                else:
                    if row is not None and row[0] is not None:
                        log.warning("worker %s is dead: its %s workflows are free", dead, row[0])
                        self._cut_off(connection, dead)
                    return
        except psycopg.Error as error:
            if error.sqlstate == FENCED:
                raise Fenced(self.worker) from error
            raise

    def _cut_off(self, connection: Connection, dead: str) -> None:
        with contextlib.suppress(errors.InsufficientPrivilege):  # then the transactions' own time-outs do it
            connection.execute(_CUT_OFF, {"dead": dead})

    def _drop(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()
