"""Durable 202s: signed webhooks, each starting a workflow of one step that the same process finishes.

    python -m bench.webhook                five rounds
    python -m bench.webhook --rounds 1 --count 2000

One process serves and works; 16 keep-alive connections from another process on the same machine. refold's
`webhook.post` under uvicorn against DBOS in FastAPI under the same uvicorn, in turns, on one Postgres. What
counts is in Postgres: as many completed workflows and steps as there were 202s; a difference ends the run. A
workflow has finished when its end is committed, by Postgres's own record of that (`track_commit_timestamp`).
"""

import argparse
import json
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, LiteralString

from bench._environment import HERE, dbos_python, machine_facts
from bench._figures import Metric, Samples, add, print_facts, table
from bench._peer import PeerProcess, own_python
from bench._server import Server, running_server

CONNECTIONS = 16
SECRET = "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD"
METRICS = (
    Metric("finished", "workflows finished", "/s", True, target=8, digits=0),
    Metric("accepted", "202s", "/s", True, target=8, digits=0),
    Metric("p50", "202, p50", "ms", digits=1),
    Metric("p99", "202, p99", "ms", digits=1),
    Metric("cpu", "Python CPU per delivery", "us", digits=0),
    Metric("server_cpu", "Postgres CPU per delivery", "us", digits=0),
    Metric("sender_cpu", "sender's CPU per delivery", "us", digits=0),
)


@dataclass(frozen=True)
class System:
    """How a system is run and what its tables say."""

    module: str
    python: Path
    count: int
    # Completed workflows, recorded steps, and when the last end was committed.
    found: LiteralString


REFOLD: LiteralString = """
    select count(*) filter (where type = 'WorkflowCompleted'), count(*) filter (where type = 'StepCompleted'),
           extract(epoch from max(pg_xact_commit_timestamp(xid::xid)) filter (where type = 'WorkflowCompleted'))
      from refold.events
"""
DBOS: LiteralString = """
    select (select count(*) from dbos.workflow_status where status = 'SUCCESS'),
           (select count(*) from dbos.operation_outputs where function_name in ('step', 'astep')),
           extract(epoch from max(pg_xact_commit_timestamp(xmin)))
      from dbos.workflow_status where status = 'SUCCESS'
"""


def measure(
    server: Server, folder: Path, system: System, style: str, database: str, count: int
) -> dict[str, float]:
    """Send `count` deliveries to a new process on a new database."""
    url = server.create(database)
    with (
        PeerProcess(system.module, system.python, url, folder / "peer.log", ("--secret", SECRET)) as peer,
        PeerProcess("bench.peers.sender", own_python(), "", folder / "sender.log") as sender,
    ):
        to = {"port": peer.ask("start_working"), "path": f"/{style}", "secret": SECRET}
        warm = 200
        sender.ask("send", **to, name="warm", count=warm, connections=CONNECTIONS)
        _wait_for(server, system, database, warm)
        cpu, server_cpu = peer.ask("cpu_seconds"), server.cpu_seconds()
        sent = sender.ask("send", **to, name="order", count=count, connections=CONNECTIONS)
        ended_at = _wait_for(server, system, database, warm + count)
        server_cpu = server.cpu_seconds() - server_cpu
        cpu = peer.ask("cpu_seconds") - cpu
    return {
        "accepted": count / sent["seconds"],
        "finished": count / (ended_at - sent["began_at"]),
        "p50": sent["p50_ms"],
        "p99": sent["p99_ms"],
        "cpu": 1e6 * cpu / count,
        "server_cpu": 1e6 * server_cpu / count,
        "sender_cpu": 1e6 * sent["cpu_seconds"] / count,
    }


def _wait_for(server: Server, system: System, database: str, count: int) -> float:
    """Return when the last of `count` workflows was committed as ended. Raises when there are too many, or too few."""
    deadline = time.monotonic() + 120
    with server.query(database) as connection:
        while True:
            workflows, steps, ended_at = connection.execute(system.found).fetchone() or (0, 0, 0)
            if workflows >= count:
                if (workflows, steps) != (count, count):
                    raise AssertionError(
                        f"{workflows} workflows and {steps} steps in Postgres, expected {count}"
                    )
                return float(ended_at)
            if time.monotonic() > deadline:
                raise AssertionError(f"{workflows} workflows of {count} finished within 120 s")
            time.sleep(0.1)


def main() -> int:
    options = _options()
    began = time.monotonic()
    samples: Samples = {}
    refold = System("bench.peers.webhook_refold", own_python(), options.count, REFOLD)
    dbos = System("bench.peers.webhook_dbos", dbos_python(), options.dbos_count, DBOS)
    facts: dict[str, Any] = {"machine": machine_facts(), "rounds": options.rounds, "connections": CONNECTIONS}
    with (
        running_server({"track_commit_timestamp": "on"}) as server,
        tempfile.TemporaryDirectory() as temporary,
    ):
        folder = Path(temporary)
        facts["postgres"] = server.facts()
        print_facts(facts)
        contestants = {"refold def": (refold, "def"), "refold async": (refold, "async")}
        if not options.without_dbos:
            contestants["DBOS"] = (dbos, _best_style(server, folder, dbos, facts))
        names = list(contestants)
        for number in range(options.rounds):
            turn = number % len(names)
            for who in names[turn:] + names[:turn]:
                system, style = contestants[who]
                database = f"{who.replace(' ', '_').lower()}_{number}"
                add(samples, who, measure(server, folder, system, style, database, system.count))
            print(f"round {number + 1} of {options.rounds}", flush=True)
    facts["seconds"] = round(time.monotonic() - began, 1)
    print(table(samples, METRICS, names))
    print(f"took {facts['seconds']:.0f} s")
    out = Path(options.json)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps({"facts": facts, "figures": samples}, indent=1))
    return 0


def _best_style(server: Server, folder: Path, dbos: System, facts: dict[str, Any]) -> str:
    """Try both of DBOS's colours once and return the faster."""
    tried = {
        style: measure(server, folder, dbos, style, f"screen_{style}", max(dbos.count // 4, 100))["finished"]
        for style in ("def", "async")
    }
    best = max(tried, key=lambda style: tried[style])
    facts["screening"] = tried
    print(f"screening DBOS: {', '.join(f'{s} {f:.0f}/s' for s, f in tried.items())} -> {best}", flush=True)
    return best


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        "python -m bench.webhook", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--count", type=int, default=20_000, help="deliveries a round (20,000)")
    parser.add_argument("--dbos-count", type=int, default=1_500, help="deliveries a round for DBOS (1,500)")
    parser.add_argument("--without-dbos", action="store_true")
    parser.add_argument("--json", default=str(HERE / "results" / "webhook.json"), help="where all figures go")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
