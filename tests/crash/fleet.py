"""Worker processes that get killed and come back, and the records that they work on meanwhile."""

import contextlib
import json
import os
import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import psycopg
from confluent_kafka import KafkaError, Message, Producer
from crash.checker import Verdict, check

ROOT = Path(__file__).resolve().parents[2]
APP = ROOT / "tests" / "crash" / "kill_app.py"
TOPIC, WORKFLOW = "records", "on_record"
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
FINISHED = "select count(finished_at) from refold.workflows where name = 'on_record'"


class Fleet:
    """Workers of one app, numbered from 0, each started as a user starts it; a worker that is killed can come back."""

    def __init__(self, app: Path, count: int, env: Mapping[str, str], folder: Path) -> None:
        self._command = [str(Path(sys.executable).with_name("refold")), "worker", str(app)]
        self._env = {**os.environ, "PYTHONUNBUFFERED": "1", **env}
        self._folder = folder
        self._workers: list[subprocess.Popen[bytes]] = []
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

    def _start(self, number: int) -> subprocess.Popen[bytes]:
        with (self._folder / f"worker-{number}.log").open("ab") as log:
            return subprocess.Popen(
                self._command,
                env=self._env,
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


class SteadyProducer:
    """Produces `count` records evenly over `seconds`, and writes the manifest as the broker acknowledges them."""

    def __init__(
        self, bootstrap: str, topic: str, count: int, seconds: float, manifest: Path, seed: int
    ) -> None:
        self._producer = Producer(
            {"bootstrap.servers": bootstrap, "enable.idempotence": True, "linger.ms": 5}
        )
        self._topic, self._count, self._seconds = topic, count, seconds
        self._manifest = manifest
        self._random = random.Random(seed)
        self._stop = threading.Event()
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="producer", daemon=True)
        self._thread.start()

    def wait(self, timeout: float) -> None:
        """Return when all records are acknowledged; raises what went wrong."""
        self._thread.join(timeout)
        if self._error is not None:
            raise self._error
        if self._thread.is_alive():
            raise TimeoutError("the producer is not done")

    def stop(self) -> None:
        self._stop.set()
        self._thread.join(30)

    def _run(self) -> None:
        try:
            self._produce()
        except BaseException as exc:
            self._error = exc

    def _produce(self) -> None:
        refused: list[KafkaError] = []
        with self._manifest.open("w") as file:

            def delivered(error: KafkaError | None, message: Message) -> None:
                if error is not None:
                    refused.append(error)
                    return
                key = message.key()
                record = {
                    "topic": message.topic(),
                    "partition": message.partition(),
                    "offset": message.offset(),
                    "record": key.decode() if isinstance(key, bytes) else key,
                }
                file.write(json.dumps(record) + "\n")

            began = time.monotonic()
            for i in range(self._count):
                name = f"record-{i:06}"
                value = json.dumps({"name": name, "work": self._random.randint(0, 100)}).encode()
                self._producer.produce(self._topic, value, key=name, on_delivery=delivered)
                self._producer.poll(0)
                # The pace is the test's load, not a wait for something to happen.
                if self._stop.wait(
                    max(0.0, began + (i + 1) * self._seconds / self._count - time.monotonic())
                ):
                    return
            if self._producer.flush(60) or refused:
                raise RuntimeError(f"not all records were produced: {refused[:3]}")


@dataclass
class Report:
    """What a kill run did and what the checker says about it."""

    verdict: Verdict
    kills: int = 0
    hits: int = 0
    lost_steps: int = 0
    restarts: int = 0
    seconds: float = 0.0
    exit_codes: list[int] = field(default_factory=list)
    ended_by_themselves: list[tuple[int, int]] = field(default_factory=list)

    def __str__(self) -> str:
        return (
            f"{self.seconds:.0f} s, {self.kills} kills, {self.hits} of them with work in flight"
            f" ({self.lost_steps} steps), {self.restarts} restarts of Postgres, exit codes {self.exit_codes}\n"
            f"{self.verdict}"
        )


def kill_run(
    *,
    database: str,
    restart_postgres: Callable[[], None],
    bootstrap: str,
    folder: Path,
    records: int,
    seconds: float,
    workers: int,
    between_kills: tuple[float, float],
    restarts: int,
    style: str,
    seed: int,
) -> Report:
    """Produce `records` over `seconds` while random workers are killed, and let the checker judge.

    A killed worker is started again at once, so each kill is two rebalances. Postgres is restarted `restarts` times,
    evenly spread. After the last record nothing is killed any more, and the workers get a minute to finish.
    """
    choice = random.Random(seed)
    manifest = folder / "manifest.jsonl"
    env = {"REFOLD_DATABASE_URL": database, "REFOLD_KAFKA_BOOTSTRAP": bootstrap, "KILL_STYLE": style}
    report = Report(Verdict())
    began = time.monotonic()
    restart_at = [began + seconds * (i + 1) / (restarts + 1) for i in range(restarts)]
    with running_fleet(APP, workers, env, folder) as fleet:
        wait_until(lambda: "worker of" in fleet.log(0) or bool(fleet.ended()), 30, "a worker has started")
        if fleet.ended():
            raise RuntimeError(f"workers ended at once: {fleet.ended()}\n{fleet.log(fleet.ended()[0][0])}")
        producer = SteadyProducer(bootstrap, TOPIC, records, seconds, manifest, seed)
        try:
            while time.monotonic() < began + seconds:
                pause = choice.uniform(*between_kills)
                next_kill = min(time.monotonic() + pause, began + seconds)
                time.sleep(max(0.0, next_kill - time.monotonic()))
                if restart_at and time.monotonic() >= restart_at[0]:
                    del restart_at[0]
                    restart_postgres()
                    report.restarts += 1
                report.ended_by_themselves += fleet.ended()
                victim = choice.randrange(workers)
                pid = fleet.kill(victim)
                fleet.restart(victim)
                with psycopg.connect(database) as connection:
                    in_flight = (connection.execute(IN_FLIGHT, [pid]).fetchone() or (0,))[0]
                report.kills += 1
                report.hits += in_flight > 0
                report.lost_steps += in_flight
            producer.wait(60)
        finally:
            producer.stop()
        wait_while_moving(lambda: finished(database), records, quiet=60)
        report.exit_codes = fleet.stop()
    report.seconds = time.monotonic() - began
    report.verdict = check(database, [manifest], [WORKFLOW])
    return report


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
