"""Kafka records through to finished workflows of one step: how many a second, how soon, in how much memory.

    python -m bench.kafka                            1,000,000 records for refold, 20,000 for DBOS
    python -m bench.kafka --count 50000 --dbos-count 2000

One worker process each, in turns, on one Postgres and one broker (the development broker), with the same client
settings: refold's `kafka.consumer` against DBOS's `kafka_consumer`. All records of a run are in the broker when
its worker starts; time runs from the first workflow's start to the commit of the last one's end, by Postgres's own
record (`track_commit_timestamp`). Then a new worker of each, 10 records a second: from the moment a record is given
to the producer to the commit of its workflow's end.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, LiteralString

from bench._environment import HERE, dbos_python, machine_facts
from bench._figures import Metric, Samples, add, print_facts, table
from bench._memory import Memory
from bench._peer import PeerProcess, own_python
from bench._server import Server, running_server
from refold.connectors._devbroker import DevBroker

PARTITIONS = 4
MEMORY_LIMIT_MB = 400
# For both. The first two are for the development broker, which gives out partitions after half a session.
CONFIG = {"session.timeout.ms": 2_000, "heartbeat.interval.ms": 300, "fetch.wait.max.ms": 10}
# A process's memory contains the part of Postgres's cache that it has touched; this is Postgres's default.
SETTINGS = {"track_commit_timestamp": "on", "shared_buffers": "128MB"}
METRICS = (
    Metric("records", "records finished", "/s", True, target=5, digits=0),
    Metric("million", "records finished, the long run", "/s", True, target=5, digits=0),
    Metric("p50", "produced to finished, p50", "ms", target=1 / 50, digits=1),
    Metric("p99", "produced to finished, p99", "ms", digits=1),
    Metric("peak", "peak memory of the worker", "MB", digits=0),
)


@dataclass(frozen=True)
class System:
    """How a system is run and what its tables say."""

    module: str
    python: Path
    # Completed workflows, recorded steps, when the first began, when the last end was committed.
    found: LiteralString
    # For each record by its offset: when the end of its workflow was committed.
    ended: LiteralString


REFOLD: tuple[LiteralString, LiteralString] = (
    """
    select count(*) filter (where type = 'WorkflowCompleted'), count(*) filter (where type = 'StepCompleted'),
           extract(epoch from min(pg_xact_commit_timestamp(xid::xid)) filter (where type = 'WorkflowStarted')),
           extract(epoch from max(pg_xact_commit_timestamp(xid::xid)) filter (where type = 'WorkflowCompleted'))
      from refold.events
    """,
    """
    select (regexp_match(workflow_id, '[0-9]+$'))[1]::int, extract(epoch from pg_xact_commit_timestamp(xid::xid))
      from refold.events where type = 'WorkflowCompleted'
    """,
)
DBOS: tuple[LiteralString, LiteralString] = (
    """
    select (select count(*) from dbos.workflow_status where status = 'SUCCESS'),
           (select count(*) from dbos.operation_outputs where function_name in ('step', 'astep')),
           min(created_at) / 1000.0, extract(epoch from max(pg_xact_commit_timestamp(xmin)))
      from dbos.workflow_status where status = 'SUCCESS'
    """,
    """
    select (regexp_match(workflow_uuid, '[0-9]+$'))[1]::int, extract(epoch from pg_xact_commit_timestamp(xmin))
      from dbos.workflow_status where status = 'SUCCESS'
    """,
)


class Bench:
    """The Postgres, the broker and the producer of a run."""

    def __init__(self, server: Server, broker: DevBroker, producer: PeerProcess, folder: Path) -> None:
        self.server, self.broker, self.producer, self.folder = server, broker, producer, folder
        self.filled = 0

    def topic(self, name: str, partitions: int) -> str:
        self.producer.ask("create_topic", bootstrap=self.broker.bootstrap, topic=name, partitions=partitions)
        return name

    def fill(self, topic: str, count: int) -> None:
        self.producer.ask(
            "fill", bootstrap=self.broker.bootstrap, topic=topic, first=self.filled, count=count, timeout=600
        )
        self.filled += count

    @contextmanager
    def worker(self, system: System, style: str, database: str, topic: str) -> Iterator[PeerProcess]:
        options = (
            "--bootstrap", self.broker.bootstrap, "--topic", topic, "--style", style,
            "--config", json.dumps(CONFIG),
        )  # fmt: skip
        url = self.server.create(database)
        with PeerProcess(system.module, system.python, url, self.folder / "peer.log", options) as peer:
            yield peer

    def records(self, system: System, style: str, name: str, count: int, memory: Memory) -> float:
        """Return how many of `count` records a second become finished workflows."""
        topic = self.topic(name, PARTITIONS)
        self.fill(topic, count)
        with self.worker(system, style, name, topic) as peer, memory.watching(peer.pid, self.server.pid):
            peer.ask("start_working")
            self._wait_until_seen(peer, count, 60 + count / 20)
            return self._found(system, name, count)

    def latency(self, system: System, style: str, name: str, count: int) -> dict[str, float]:
        topic = self.topic(name, 1)
        warm = 20
        with self.worker(system, style, name, topic) as peer:
            peer.ask("start_working")
            self.fill(topic, warm)
            self._wait_until_seen(peer, warm, 60)
            given_at = self.producer.ask(
                "trickle", bootstrap=self.broker.bootstrap, topic=topic, count=count, per_second=10
            )
            self._wait_until_seen(peer, warm + count, 60)
            self._found(system, name, warm + count)
        with self.server.query(name) as connection:
            ended = {int(offset): float(at) for offset, at in connection.execute(system.ended).fetchall()}
        took = sorted(1000 * (ended[warm + i] - at) for i, at in enumerate(given_at))
        return {"p50": statistics.median(took), "p99": took[int(0.99 * len(took))]}

    def _wait_until_seen(self, peer: PeerProcess, count: int, timeout: float) -> None:
        deadline = time.monotonic() + timeout
        while (seen := peer.ask("seen")) < count:
            if time.monotonic() > deadline:
                raise AssertionError(f"{seen} of {count} records were processed within {timeout:.0f} s")
            time.sleep(0.1)

    def _found(self, system: System, database: str, count: int) -> float:
        """Return the rate by Postgres's record, once all have finished there. Raises when it is another number."""
        deadline = time.monotonic() + 60
        with self.server.query(database) as connection:
            while True:
                found = connection.execute(system.found).fetchone()
                assert found is not None
                workflows, steps, began_at, ended_at = found
                if workflows >= count or time.monotonic() > deadline:
                    break
                time.sleep(0.1)
        if (workflows, steps) != (count, count):
            raise AssertionError(f"{workflows} workflows and {steps} steps in Postgres, expected {count}")
        return count / float(ended_at - began_at)


def main() -> int:
    options = _options()
    began = time.monotonic()
    refold = System("bench.peers.kafka_refold", own_python(), *REFOLD)
    dbos = System("bench.peers.kafka_dbos", dbos_python(), *DBOS)
    facts: dict[str, Any] = {"machine": machine_facts(), "config": CONFIG, "partitions": PARTITIONS}
    samples: Samples = {}
    with (
        running_server(SETTINGS) as server,
        tempfile.TemporaryDirectory() as temporary,
        DevBroker() as broker,
        PeerProcess("bench.peers.producer", own_python(), "", Path(temporary) / "producer.log") as producer,
    ):
        bench = Bench(server, broker, producer, Path(temporary))
        facts["postgres"] = server.facts()
        print_facts(facts)
        names = ["refold def", "refold async"] + ([] if options.without_dbos else ["DBOS"])
        best = "def" if options.without_dbos else _best_style(bench, dbos, options, facts)
        for number in range(options.rounds):
            turn = number % len(names)
            for who in names[turn:] + names[:turn]:
                system, style = (dbos, best) if who == "DBOS" else (refold, who.removeprefix("refold "))
                _round(bench, system, style, who, number, options, samples)
            print(f"round {number + 1} of {options.rounds}", flush=True)
        memory = facts["memory_mb"] = _long_run(bench, refold, options, samples)
        if "DBOS" in names:
            samples["million"]["DBOS"] = [statistics.median(samples["records"]["DBOS"])]
    facts["seconds"] = round(time.monotonic() - began, 1)
    print(table(samples, METRICS, names))
    over = [f"{kind} {size:.0f} MB" for kind, size in memory.items() if size > MEMORY_LIMIT_MB]
    print(f"\nthe long run, {options.count:,} records, largest resident sizes in MB:")
    print("\n".join(f"  {kind:48} {size:6.0f}" for kind, size in memory.items()))
    print(f"  above {MEMORY_LIMIT_MB} MB: {', '.join(over) or 'none'}\ntook {facts['seconds']:.0f} s")
    out = Path(options.json)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps({"facts": facts, "figures": samples}, indent=1))
    return 0


def _round(
    bench: Bench,
    system: System,
    style: str,
    who: str,
    number: int,
    options: argparse.Namespace,
    samples: Samples,
) -> None:
    name = f"{who.replace(' ', '_').lower()}_{number}"
    memory = Memory()
    rate = bench.records(system, style, name, options.dbos_count, memory)
    figures = {"records": rate, "peak": memory.peak["worker"]}
    add(samples, who, figures | bench.latency(system, style, f"{name}_slow", options.trickle))


def _long_run(
    bench: Bench, refold: System, options: argparse.Namespace, samples: Samples
) -> dict[str, float]:
    memory = Memory()
    rate = bench.records(refold, "def", "million", options.count, memory)
    add(samples, "refold def", {"million": rate})
    return memory.peak


def _best_style(bench: Bench, dbos: System, options: argparse.Namespace, facts: dict[str, Any]) -> str:
    """Try both of DBOS's colours once and return the faster."""
    count = max(options.dbos_count // 20, 200)
    tried = {
        style: bench.records(dbos, style, f"screen_{style}", count, Memory()) for style in ("def", "async")
    }
    best = max(tried, key=lambda style: tried[style])
    facts["screening"] = tried
    print(f"screening DBOS: {', '.join(f'{s} {f:.0f}/s' for s, f in tried.items())} -> {best}", flush=True)
    return best


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        "python -m bench.kafka", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--count", type=int, default=1_000_000, help="records of the long run (1,000,000)")
    parser.add_argument(
        "--dbos-count", type=int, default=20_000, help="records of a round, for each (20,000)"
    )
    parser.add_argument("--trickle", type=int, default=200, help="records at 10 a second (200)")
    parser.add_argument("--without-dbos", action="store_true")
    parser.add_argument("--json", default=str(HERE / "results" / "kafka.json"), help="where all figures go")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
