"""What is measured: one function per measure, the same for every contestant, and the target that refold is
held to.

A measure asks a peer questions and returns named figures. It counts rows in Postgres afterwards where a
figure claims that work was done: a peer that answered early would otherwise look fast.
"""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import LiteralString

from bench._figures import Metric
from bench._peer import PeerProcess
from bench._server import Server

Figures = dict[str, float]


@dataclass(frozen=True)
class Counts:
    """SQL that a system's own tables answer: how many of these workflows have a result, how many steps."""

    # `%(names)s` is the list of workflow names.
    completed: LiteralString
    steps: LiteralString
    unfinished: LiteralString


DBOS_COUNTS = Counts(
    completed="select count(*) from dbos.workflow_status s join dbos.workflow_output o using (workflow_uuid)"
    " where s.status = 'SUCCESS' and s.name = any(%(names)s)",
    steps="select count(*) from dbos.operation_outputs where function_name in ('step', 'astep')",
    unfinished="select count(*) from dbos.workflow_status"
    " where status in ('ENQUEUED', 'PENDING') and name = any(%(names)s)",
)
REFOLD_COUNTS = Counts(
    completed="select count(*) from refold.workflows where status = 'completed' and name = any(%(names)s)",
    steps="select count(*) from refold.events where type = 'StepCompleted'",
    unfinished="select count(*) from refold.workflows where status <> 'completed' and name = any(%(names)s)",
)


@dataclass(frozen=True)
class Contestant:
    """A system in one colour, as it is started and asked."""

    name: str
    system: str
    python: Path
    styles: dict[str, tuple[str, int]]  # measure -> (colour, how many at a time)
    counts: Counts
    sizes: "Sizes"

    @property
    def module(self) -> str:
        return f"bench.peers.{self.system}"

    def style(self, measure: str) -> tuple[str, int]:
        return self.styles.get(measure, self.styles["throughput"])


@dataclass(frozen=True)
class Sizes:
    """How much of each; a slow system gets fewer of what is a rate, never of what is one size."""

    throughput: int
    latency: int = 200
    rows: int = 3
    row_steps: int = 100
    drain: int = 5_000
    histories: tuple[int, ...] = (1_000, 5_000)
    children: int = 1_000
    wakes: int = 50
    load: int = 300
    alone: int = 100
    idle_seconds: float = 60.0


@dataclass
class Bench:
    server: Server
    folder: Path
    databases: dict[str, str] = field(default_factory=dict)

    def peer(self, who: Contestant, database: str) -> PeerProcess:
        url = self.databases.get(database)
        if url is None:
            url = self.databases[database] = self.server.create(database)
        return PeerProcess(who.module, who.python, url, self.folder / f"{who.system}.log")

    def count(self, statement: LiteralString, database: str, names: Sequence[str] = ()) -> int:
        with self.server.query(database) as connection:
            found = connection.execute(statement, {"names": list(names)}).fetchone()
            assert found is not None
            return int(found[0])


def colour(style: str, name: str) -> str:
    return name if style == "def" else f"a{name}"


def throughput(bench: Bench, who: Contestant, peer: PeerProcess, database: str) -> Figures:
    style, in_flight = who.style("throughput")
    count = who.sizes.throughput
    names = [colour(style, "three")]
    peer.ask("warm_up", style=style)
    done, steps = bench.count(who.counts.completed, database, names), bench.count(who.counts.steps, database)
    wal, server_cpu = bench.server.wal_position(), bench.server.cpu_seconds()
    took = peer.ask("throughput", style=style, count=count, in_flight=in_flight)
    server_cpu = bench.server.cpu_seconds() - server_cpu
    wal = bench.server.wal_position() - wal
    found = (
        bench.count(who.counts.completed, database, names) - done,
        bench.count(who.counts.steps, database) - steps,
    )
    if found != (count, 3 * count):
        raise AssertionError(
            f"{who.name}: {found} workflows and steps in Postgres, expected {(count, 3 * count)}"
        )
    return {
        "throughput": count / took["seconds"],
        "cpu": 1e6 * took["cpu_seconds"] / count,
        "server_cpu": 1e6 * server_cpu / count,
        "wal": wal / count,
    }


def latency(bench: Bench, who: Contestant, peer: PeerProcess, database: str) -> Figures:
    style, _ = who.style("latency")
    peer.ask("latency", style=style, count=20)
    took = sorted(peer.ask("latency", style=style, count=who.sizes.latency)["ms"])
    return {"latency": statistics.median(took), "latency_p99": took[int(0.99 * len(took))]}


def row(bench: Bench, who: Contestant, peer: PeerProcess, database: str) -> Figures:
    style, _ = who.style("row")
    took = peer.ask("row", style=style, steps=who.sizes.row_steps, count=who.sizes.rows)
    return {"row": statistics.median(took["ms_per_step"])}


def fan_out(bench: Bench, who: Contestant, peer: PeerProcess, database: str) -> Figures:
    style, _ = who.style("fan_out")
    before = bench.count(who.counts.completed, database, [colour(style, "child")])
    took = peer.ask("fan_out", style=style, children=who.sizes.children)
    found = bench.count(who.counts.completed, database, [colour(style, "child")]) - before
    if found != who.sizes.children:
        raise AssertionError(f"{who.name}: {found} children in Postgres, expected {who.sizes.children}")
    return {"fan_out": took["seconds"]}


def wake(bench: Bench, who: Contestant, peer: PeerProcess, database: str) -> Figures:
    """From a send in another process to the line after `recv`."""
    style, _ = who.style("wake")
    workflow_id = f"waiter-{style}-{time.monotonic_ns()}"
    before = len(peer.ask("marks", name="woken"))
    peer.ask("start_waiter", style=style, workflow_id=workflow_id, messages=who.sizes.wakes)
    sent = []
    with bench.peer(who, database) as sender:
        for i in range(who.sizes.wakes):
            sent.append(sender.ask("send", workflow_id=workflow_id, value=i))
            peer.ask("wait_for_mark", name="woken", count=before + i + 1)
    woken = peer.ask("marks", name="woken")[before:]
    took = [1000 * (woke - began) for began, woke in zip(sent, woken, strict=True)]
    # The first send of a process opens its connection.
    return {"wake": statistics.median(took[1:])}


def drain(bench: Bench, who: Contestant, database: str) -> Figures:
    """From the first of the pending workflows that runs to the last that has its result in Postgres."""
    style, _ = who.style("drain")
    names = [colour(style, "child")]
    with bench.peer(who, database) as client:
        client.ask("enqueue", style=style, count=who.sizes.drain)
        before = bench.count(who.counts.completed, database, names)
        with bench.peer(who, database) as peer:
            peer.ask("start_working")
            peer.ask("listen")
            peer.ask("wait_for_mark", name="child", count=who.sizes.drain)
            while bench.count(who.counts.unfinished, database, names):
                time.sleep(0.01)
            ended = time.monotonic()
            began = peer.ask("marks", name="child")[0]
            peer.close()
    found = bench.count(who.counts.completed, database, names) - before
    if found != who.sizes.drain:
        raise AssertionError(f"{who.name}: {found} drained in Postgres, expected {who.sizes.drain}")
    return {"drain": who.sizes.drain / (ended - began)}


def build_histories(bench: Bench, who: Contestant) -> None:
    """Leave one unfinished workflow per size behind, each in a database of its own."""
    style, _ = who.style("recovery")
    for steps in who.sizes.histories:
        with bench.peer(who, history_database(who, steps)) as peer:
            peer.ask("start_working")
            peer.ask("build_history", style=style, workflow_id=f"history-{steps}", steps=steps)
            if who.system == "refold":
                peer.close()


def recovery(bench: Bench, who: Contestant) -> Figures:
    """From the claim of an unfinished workflow, by a new process, to where its code is at the end of its
    history.

    DBOS: from the first line of the workflow's code, which its recovery runs at launch (its claim is left
    out, in its favour). refold: from the send that makes the workflow claimable, so wake-up, claim and
    read count in.
    """
    figures: Figures = {}
    for steps in who.sizes.histories:
        with bench.peer(who, history_database(who, steps)) as peer:
            peer.ask("start_working")
            if who.system == "refold":
                began = peer.ask("send", workflow_id=f"history-{steps}", value=0)
                caught_up = peer.ask("wait_for_mark", name="caught up")[0]
                figures[f"replay_{steps}"] = caught_up - peer.ask("marks", name="began")[0]
            else:
                caught_up = peer.ask("wait_for_mark", name="caught up")[0]
                began = peer.ask("marks", name="began")[0]
            figures[f"recovery_{steps}"] = caught_up - began
            if who.system == "refold":
                peer.close()
    return figures


def history_database(who: Contestant, steps: int) -> str:
    return f"{who.name.replace(' ', '_').lower()}_history_{steps}"


# The measures of one running peer, in the order of a round.
IN_ONE_PEER: dict[str, Callable[[Bench, Contestant, PeerProcess, str], Figures]] = {
    "throughput": throughput,
    "latency": latency,
    "row": row,
    "fan_out": fan_out,
    "wake": wake,
}
MEASURES = (*IN_ONE_PEER, "drain", "recovery", "footprint", "idle")


def footprint(bench: Bench, who: Contestant, peer: PeerProcess, database: str) -> Figures:
    """Statements and transactions per 3-step workflow, under load and one after another, from the server's
    log.
    """
    style, in_flight = who.style("throughput")
    figures: Figures = {}
    peer.ask("warm_up", style=style)
    for name, count, at_once in (("load", who.sizes.load, in_flight), ("alone", who.sizes.alone, 1)):
        size, log = bench.server.table_bytes(database), bench.server.log_size()
        peer.ask("throughput", style=style, count=count, in_flight=at_once)
        found = bench.server.statements(database, log)
        figures[f"statements_{name}"] = found.total / count
        figures[f"begins_and_commits_{name}"] = found.begins_and_commits / count
        figures[f"transactions_{name}"] = found.transactions / count
        if name == "load":
            figures["tables"] = (bench.server.table_bytes(database) - size) / count
    return figures


def replay_selects(bench: Bench, who: Contestant) -> Figures:
    """How many SELECTs on events a replay of the longest history makes."""
    steps = who.sizes.histories[-1]
    database = history_database(who, steps)
    bench.server.log_statements(database)
    with bench.peer(who, database) as peer:
        peer.ask("start_working")
        log = bench.server.log_size()
        peer.ask("send", workflow_id=f"history-{steps}", value=0)
        peer.ask("wait_for_mark", name="caught up")
        texts = bench.server.statements(database, log).texts
        peer.close()
    reads = [text for text in texts if text.lstrip().lower().startswith("select") and "events" in text]
    return {"replay_selects": float(len(reads))}


METRICS = (
    Metric("throughput", "3-step workflows", "/s", True, target=30, target_def=25, digits=0),
    Metric("latency", "1-step workflow, p50", "ms", target=0.35),
    Metric("latency_p99", "1-step workflow, p99", "ms"),
    Metric("row", "a step in a row of 100", "ms", target=0.4),
    Metric("drain", "drain of 5,000 pending", "/s", True, target=5, digits=0),
    Metric("recovery_1000", "recovery of 1,000 steps", "s", digits=3),
    Metric("recovery_5000", "recovery of 5,000 steps", "s", target=1 / 30, digits=3),
    Metric("fan_out", "fan-out to 1,000 children", "s", target=1 / 15, digits=3),
    Metric("wake", "send to wake, p50", "ms", target=0.35),
    Metric("idle", "statements while idle", "/s", target=0.5, absolute=True),
    Metric("cpu", "Python CPU per workflow", "us", target=1 / 35, digits=0),
    Metric("server_cpu", "Postgres CPU per workflow", "us", digits=0),
    Metric("wal", "WAL per workflow", "bytes", target=0.6, digits=0),
    Metric("tables", "tables and indexes per workflow", "bytes", digits=0),
    Metric("transactions_load", "transactions per workflow, loaded", "", target=0.2, absolute=True),
    Metric("statements_load", "statements per workflow, loaded", "", target=1, absolute=True),
    Metric("transactions_alone", "transactions per workflow, alone", "", target=5, absolute=True),
    Metric("statements_alone", "statements per workflow, alone", ""),
    Metric("replay_selects", "SELECTs to replay 5,000 steps", "", target=1, absolute=True, digits=0),
)
