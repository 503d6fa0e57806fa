"""Worker processes that get killed and come back, while records, deliveries and ticks keep them at work."""

import contextlib
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import psycopg
from crash.checker import Verdict, check
from crash.senders import Deliveries, KafkaRecords, Ticks, sending

from fixtures.postgres import free_port

ROOT = Path(__file__).resolve().parents[2]
APP = ROOT / "tests" / "crash" / "kill_app.py"
TOPIC = "records"
WORKFLOWS = ("on_record", "on_delivery", "on_tick")
# The schedule's first tick comes so many seconds after its workers are started.
_BEFORE_TICKS = 20
DELIVERIES = "/hooks/deliveries"
SECRET = "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD"
TABLES = """
    create table tries (key text not null, workflow_id text not null, no int not null, pid int not null);
    create table effects (record text not null, workflow_id text not null);
    create index on tries (pid);
"""

# Steps that the process had begun and that have no recorded result: what its death hit.
IN_FLIGHT = """
    select count(*) from tries t
     where t.pid = %s
       and not exists (select from refold.events e
                        where e.workflow_id = t.workflow_id and e.type = 'StepCompleted'
                          and (convert_from(e.body, 'UTF8')::json ->> 'no')::int = t.no)
"""
FINISHED = "select count(finished_at) from refold.workflows"


class Fleet:
    """Workers of one app, numbered from 0, each started as a user starts it; a worker that is killed can come back.

    Each serves the app's webhooks at a port of its own, which it keeps.
    """

    def __init__(self, app: Path, count: int, env: Mapping[str, str], folder: Path) -> None:
        self._command = [str(Path(sys.executable).with_name("refold")), "worker", str(app)]
        self.ports = [free_port() for _ in range(count)]
        self._env = {**os.environ, "PYTHONUNBUFFERED": "1", **env}
        self._folder = folder
        self._workers: list[subprocess.Popen[bytes]] = []
        self._log_before: dict[int, int] = {}
        for _ in range(count):
            self._workers.append(self._start(len(self._workers)))

    def kill(self, number: int) -> int:
        """SIGKILL; returns the dead process's number once the kernel has ended it."""
        worker = self._workers[number]
        worker.kill()
        worker.wait()
        return worker.pid

    def restart(self, number: int) -> None:
        self._workers[number] = self._start(number)

    def ended(self) -> list[tuple[int, int]]:
        """Workers that ended without being killed here: (number, exit code). There should be none."""
        return [(i, code) for i, worker in enumerate(self._workers) if (code := worker.poll()) is not None]

    def stop(self) -> list[int]:
        """SIGTERM to all; returns their exit codes. One that does not end within 40 s is killed: -9."""
        for worker in self._workers:
            worker.terminate()
        codes = []
        for worker in self._workers:
            try:
                codes.append(worker.wait(40))
            except subprocess.TimeoutExpired:
                worker.kill()
                codes.append(worker.wait())
        return codes

    def log(self, number: int) -> str:
        return (self._folder / f"worker-{number}.log").read_text(errors="replace")

    def is_up(self, number: int) -> bool:
        """Whether the worker, since it was last started, has said that it works."""
        path = self._folder / f"worker-{number}.log"
        return b"worker of" in path.read_bytes()[self._log_before[number] :]

    def _start(self, number: int) -> subprocess.Popen[bytes]:
        with (self._folder / f"worker-{number}.log").open("ab") as log:
            self._log_before[number] = log.tell()
            return subprocess.Popen(
                self._command,
                env={**self._env, "REFOLD_HTTP": f"127.0.0.1:{self.ports[number]}"},
                cwd=self._folder,
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
            )


@contextlib.contextmanager
def running_fleet(app: Path, count: int, env: Mapping[str, str], folder: Path) -> Iterator[Fleet]:
    """A fleet of which no process is left when the block ends."""
    fleet = Fleet(app, count, env, folder)
    try:
        yield fleet
    finally:
        for number in range(count):
            fleet.kill(number)


@dataclass
class Report:
    """What a kill run did and what the checker says about it."""

    verdict: Verdict
    kills: int = 0
    hits: int = 0
    lost_steps: int = 0
    restarts: int = 0
    tries: int = 0
    seconds: float = 0.0
    exit_codes: list[int] = field(default_factory=list)
    ended_by_themselves: list[tuple[int, int]] = field(default_factory=list)

    def __str__(self) -> str:
        return (
            f"{self.seconds:.0f} s, {self.kills} kills, {self.hits} of them with work in flight"
            f" ({self.lost_steps} steps), {self.restarts} restarts of Postgres, {self.tries} posts of deliveries,"
            f" exit codes {self.exit_codes}\n"
            f"{self.verdict}"
        )


def kill_run(
    *,
    database: str,
    restart_postgres: Callable[[], None],
    bootstrap: str,
    folder: Path,
    records: int,
    deliveries: int,
    seconds: float,
    tick_seconds: int,
    workers: int,
    between_kills: tuple[float, float],
    restarts: int,
    style: str,
    seed: int,
) -> Report:
    """Send records and deliveries over `seconds`, and a little later tick for `tick_seconds`, while random workers are
    killed, and let the checker judge.

    A killed worker is started again at once, so each kill is two rebalances, and a port that refuses for a while.
    Postgres is restarted `restarts` times, evenly spread. After the last tick nothing is killed any more, and the
    workers get a minute to finish.
    """
    choice = random.Random(seed)
    ticks = Ticks(_BEFORE_TICKS, tick_seconds, folder / "ticks.jsonl")
    env = {
        "REFOLD_DATABASE_URL": database,
        "REFOLD_KAFKA_BOOTSTRAP": bootstrap,
        "KILL_STYLE": style,
        "KILL_SECRET": SECRET,
        "KILL_TICKS": f"{ticks.first.isoformat()} {ticks.last.isoformat()}",
    }
    report = Report(Verdict())
    began = time.monotonic()
    with running_fleet(APP, workers, env, folder) as fleet:
        wait_until(lambda: fleet.is_up(0) or bool(fleet.ended()), 30, "a worker has started")
        if fleet.ended():
            raise RuntimeError(f"workers ended at once: {fleet.ended()}\n{fleet.log(fleet.ended()[0][0])}")
        if ticks.left() < tick_seconds:
            raise RuntimeError("the schedule's first tick was over before a worker had started")
        kafka = KafkaRecords(bootstrap, TOPIC, records, seconds, folder / "records.jsonl", seed)
        posts = Deliveries(
            fleet.ports, DELIVERIES, SECRET, deliveries, seconds, folder / "deliveries.jsonl", seed
        )
        with sending(kafka, posts):
            _kill_at_random(fleet, choice, database, restart_postgres, ticks, between_kills, restarts, report)
            kafka.wait(60)
            posts.wait(60)
        wait_while_moving(lambda: finished(database), records + deliveries + ticks.count, quiet=60)
        # One that was killed last may be starting still, and could not stop in order before it has.
        wait_until(lambda: all(map(fleet.is_up, range(workers))) or bool(fleet.ended()), 60, "all are up")
        report.exit_codes = fleet.stop()
    report.seconds, report.tries = time.monotonic() - began, posts.tries
    report.verdict = check(database, [kafka.manifest, *posts.manifests(), ticks.manifest], WORKFLOWS)
    return report


def _kill_at_random(
    fleet: Fleet,
    choice: random.Random,
    database: str,
    restart_postgres: Callable[[], None],
    ticks: Ticks,
    between_kills: tuple[float, float],
    restarts: int,
    report: Report,
) -> None:
    """Until the last tick is over."""
    seconds = ticks.left()
    restart_when_left = [seconds * (restarts - i) / (restarts + 1) for i in range(restarts)]
    while (left := ticks.left()) > 0:
        time.sleep(min(choice.uniform(*between_kills), left))
        if restart_when_left and ticks.left() <= restart_when_left[0]:
            del restart_when_left[0]
            restart_postgres()
            report.restarts += 1
        report.ended_by_themselves += fleet.ended()
        victim = choice.randrange(len(fleet.ports))
        pid = fleet.kill(victim)
        fleet.restart(victim)
        with psycopg.connect(database) as connection:
            in_flight = (connection.execute(IN_FLIGHT, [pid]).fetchone() or (0,))[0]
        report.kills += 1
        report.hits += in_flight > 0
        report.lost_steps += in_flight


def finished(database: str) -> int:
    with psycopg.connect(database) as connection:
        found = connection.execute(FINISHED).fetchone()
    return int(found[0]) if found else 0


def wait_until(condition: Callable[[], bool], timeout: float, what: str) -> None:
    """Look every 50 ms until `condition` holds."""
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"not within {timeout:g} s: {what}")
        time.sleep(0.05)


def wait_while_moving(count: Callable[[], int], goal: int, quiet: float) -> None:
    """Return when `count()` has reached `goal`, or stood still for `quiet` seconds: the checker will say why."""
    last, moved_at = count(), time.monotonic()
    while last < goal and time.monotonic() - moved_at < quiet:
        time.sleep(0.1)
        if (now := count()) != last:
            last, moved_at = now, time.monotonic()
