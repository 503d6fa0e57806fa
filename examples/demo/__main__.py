"""A real data set through Kafka into workflows, a worker killed in the middle, and a proof that nothing is amiss.

    python -m examples.demo            every record exactly once, shown by a checker that imports nothing of refold
    python -m examples.demo --break    the same with a consumer that commits Kafka's offset first: records are lost

Postgres and the broker are started for the demo, in a temporary folder and on loopback, and end with it.
"""

import argparse
import contextlib
import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

import psycopg
from confluent_kafka import KafkaError, Message, Producer
from confluent_kafka.admin import AdminClient, NewTopic  # type: ignore[attr-defined]
from psycopg.conninfo import conninfo_to_dict

from examples.demo import airports
from examples.demo._bars import Bars
from refold.connectors._devbroker import DevBroker
from refold.eventlog import migrate
from refold.eventlog._embedded import open_server, packaged_programs

ROOT = Path(__file__).resolve().parents[2]
CHECKER = ROOT / "tests" / "crash" / "checker.py"
PARTITIONS = 4
WORKERS = 2
# Longer than it takes to find a dead worker and to move its partitions: when nothing has happened for so long, the
# end is reached, whether or not all records were.
QUIET_SECONDS = 25.0
GIVE_UP_SECONDS = 180.0

PROGRESS = """
    select count(*), count(finished_at), (select count(*) from effects)
      from refold.workflows where name = 'on_airport'
"""
# Steps that this process has begun and that have no recorded result: what the kill hits.
IN_FLIGHT = """
    select count(*) from tries t
     where t.pid = %s
       and not exists (select from refold.events e where e.workflow_id = t.workflow_id and e.type = 'WorkflowCompleted')
"""


def main() -> int:
    parser = argparse.ArgumentParser(
        "python -m examples.demo", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--break", action="store_true", dest="naive", help="commit Kafka's offset first")
    parser.add_argument("--records", type=int, help="use only the first N records")
    options = parser.parse_args()
    # A terminal that is closed, or `kill`, ends the demo as Ctrl-C does: with everything that it started.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    began = time.monotonic()
    with _folder() as folder, _postgres(folder) as database, DevBroker() as broker:
        code = _run(options, folder, database, broker.bootstrap)
    print(f"took {time.monotonic() - began:.0f} s")
    return code


def _run(options: argparse.Namespace, folder: Path, database: str, bootstrap: str) -> int:
    records = read_airports()[: options.records]
    migrate(database)
    with psycopg.connect(database) as connection:
        connection.execute(airports.TABLES)
    manifest = folder / "manifest.jsonl"
    produce(bootstrap, records, manifest)
    bars = Bars(len(records))
    kind = "a consumer that commits Kafka's offset first" if options.naive else "refold's Kafka connector"
    bars.note(f"{len(records):,} airports are in topic {airports.TOPIC!r}; {WORKERS} workers with {kind}")
    with _workers(options.naive, folder, database, bootstrap) as workers:
        kills, hit = _watch(bars, workers, database, len(records), options.naive)
    print(f"1 worker killed (SIGKILL) with {hit} workflows in its hands" if kills else "no worker was killed")
    command = [
        sys.executable,
        CHECKER,
        "--database",
        database,
        "--manifest",
        manifest,
        "--workflow",
        "on_airport",
    ]
    print("the checker says:", flush=True)
    checked = subprocess.run([str(part) for part in command], env={**os.environ, "PYTHONPATH": ""})
    if checked.returncode == 0:
        _print_result(database)
    return checked.returncode if kills else 2


def _watch(
    bars: Bars, workers: "list[subprocess.Popen[bytes]]", database: str, total: int, naive: bool
) -> tuple[int, int]:
    """Draw progress until all is done or nothing moves any more; kill one worker on the way."""
    kills = hit = 0
    last: tuple[Any, ...] = ()
    began = moved_at = time.monotonic()
    with psycopg.connect(database, autocommit=True) as connection:
        while True:
            now = connection.execute(PROGRESS).fetchone() or (0, 0, 0)
            started, finished, effects = now
            bars.show({"workflows started": started, "finished": finished, "effects": effects})
            if now != last:
                last, moved_at = now, time.monotonic()
            # The naive consumer is killed while it still starts what it has read: that is where it loses records.
            if not kills and (started if naive else finished) > total // 3:
                victim = workers[0]
                victim.kill()
                victim.wait()
                kills = 1
                hit = (connection.execute(IN_FLIGHT, [victim.pid]).fetchone() or (0,))[0]
                bars.note(f"kill -9 {victim.pid}: it had {hit} workflows in its hands")
            if finished >= total or time.monotonic() - moved_at > QUIET_SECONDS:
                break
            if time.monotonic() - began > GIVE_UP_SECONDS:
                bars.note(f"gave up after {GIVE_UP_SECONDS:.0f} s")
                break
            if dead := [worker for worker in workers[1:] if worker.poll() is not None]:
                bars.note(f"worker {dead[0].pid} ended by itself with code {dead[0].returncode}")
                break
            time.sleep(0.2)
    bars.finish()
    return kills, hit


def read_airports() -> list[dict[str, Any]]:
    """Every airport and landing strip of the package `airportsdata`, in the order of its file."""
    with (
        as_file(files("airportsdata") / "airports.csv") as path,
        path.open(encoding="utf-8", newline="") as file,
    ):
        rows = csv.DictReader(file)
        return [
            {**{name: row[name] for name in ("icao", "name", "city", "country")},
             "lat": float(row["lat"]), "lon": float(row["lon"])}
            for row in rows
        ]  # fmt: skip


def produce(bootstrap: str, records: list[dict[str, Any]], manifest: Path) -> None:
    """Produce all records and write down where the broker put each: the checker's only source of truth."""
    admin = AdminClient({"bootstrap.servers": bootstrap})
    admin.create_topics([NewTopic(airports.TOPIC, PARTITIONS, 1)])[airports.TOPIC].result(30)
    producer = Producer({"bootstrap.servers": bootstrap, "enable.idempotence": True, "linger.ms": 20})
    with manifest.open("w") as file:

        def delivered(error: KafkaError | None, message: Message) -> None:
            if error is not None:
                raise SystemExit(f"the broker refused a record: {error}")
            key = message.key()
            place = {"topic": message.topic(), "partition": message.partition(), "offset": message.offset()}
            file.write(
                json.dumps({**place, "record": key.decode() if isinstance(key, bytes) else key}) + "\n"
            )

        for record in records:
            while True:
                try:
                    producer.produce(
                        airports.TOPIC, json.dumps(record).encode(), key=record["icao"], on_delivery=delivered
                    )
                    break
                except BufferError:
                    producer.poll(0.1)
            producer.poll(0)
        if left := producer.flush(60):
            raise SystemExit(f"{left} records could not be produced within 60 s")


@contextlib.contextmanager
def _workers(
    naive: bool, folder: Path, database: str, bootstrap: str
) -> Iterator["list[subprocess.Popen[bytes]]"]:
    """The worker processes, started as a user would start them; none is left when the block ends."""
    refold = [
        str(Path(sys.executable).with_name("refold")),
        "worker",
        str(ROOT / "examples" / "demo" / "airports.py"),
    ]
    command = [sys.executable, "-m", "examples.demo.naive"] if naive else refold
    env = {**os.environ, "REFOLD_DATABASE_URL": database, "REFOLD_KAFKA_BOOTSTRAP": bootstrap}
    workers: list[subprocess.Popen[bytes]] = []
    try:
        for number in range(WORKERS):
            with (folder / f"worker-{number}.log").open("wb") as log:
                workers.append(
                    subprocess.Popen(
                        command, env=env, cwd=ROOT, stdout=log, stderr=log, start_new_session=True
                    )
                )
        yield workers
    finally:
        for worker in workers:
            if worker.poll() is None:
                worker.terminate()
        for number, worker in enumerate(workers):
            try:
                code = worker.wait(30)
            except subprocess.TimeoutExpired:
                worker.kill()
                code = worker.wait()
            if code not in (0, -signal.SIGKILL):
                print(
                    f"worker {number} ended with {code}:\n{(folder / f'worker-{number}.log').read_text()[-2000:]}"
                )


@contextlib.contextmanager
def _folder() -> Iterator[Path]:
    # In /tmp itself: short enough for a socket, and open to the user that Postgres runs as where we are root.
    folder = Path(tempfile.mkdtemp(prefix="refold-demo-", dir="/tmp"))
    folder.chmod(0o755)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def _postgres(folder: Path) -> Iterator[str]:
    with open_server(folder / "postgres", packaged_programs()) as server:
        sockets = Path(str(conninfo_to_dict(server.url)["host"]))
        print(f"PostgreSQL {server.version} and a broker run in {folder}", flush=True)
        yield server.url
    shutil.rmtree(sockets, ignore_errors=True)


def _print_result(database: str) -> None:
    with psycopg.connect(database) as connection:
        far = connection.execute(
            "select country, count(*), max(distance_km) from effects group by country order by 2 desc limit 3"
        ).fetchall()
    print("most airports: " + ", ".join(f"{country} {number:,}" for country, number, _ in far))


if __name__ == "__main__":
    sys.exit(main())
