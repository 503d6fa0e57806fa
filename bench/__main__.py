"""Measure refold and DBOS on one Postgres in one run, in turns, and print medians, ranges and ratios.

    python -m bench                       five rounds, all measures, under 9 minutes
    python -m bench --only throughput     one measure (repeatable)
    python -m bench --full                ten rounds of longer runs

Every round starts each contestant in a new process on a new database, in another order, so that a slow
spell of the machine hits all. DBOS runs at the best of its styles, chosen by a screening at the start of
the same run.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from bench import _measures as measures
from bench._environment import HERE, dbos_python, machine_facts
from bench._figures import print_facts, table
from bench._measures import DBOS_COUNTS, METRICS, REFOLD_COUNTS, Bench, Contestant, Figures, Sizes
from bench._peer import own_python
from bench._server import running_server

DBOS_STYLES = {
    "sync, 1 thread": ("def", 1),
    "sync, 8 threads": ("def", 8),
    "sync, 16 threads": ("def", 16),
    "async, 8 tasks": ("async", 8),
}
IN_FLIGHT = 500
CONTESTANTS = ("refold def", "refold async", "DBOS")


def main() -> int:
    options = _options()
    began = time.monotonic()
    wanted = tuple(options.only or measures.MEASURES)
    peers = tuple(options.peer or CONTESTANTS)
    facts: dict[str, Any] = {"machine": machine_facts(), "rounds": options.rounds}
    scale = 5 if options.full else 1
    with running_server() as server, tempfile.TemporaryDirectory() as folder:
        facts["postgres"] = server.facts()
        print_facts(facts)
        bench = Bench(server, Path(folder))
        contestants = [
            Contestant(
                name, "refold", own_python(), {"throughput": (name.removeprefix("refold "), IN_FLIGHT)},
                REFOLD_COUNTS, Sizes(throughput=6_000 * scale, load=2_000),
            )
            for name in peers
            if name.startswith("refold")
        ]  # fmt: skip
        if "DBOS" in peers:
            dbos = Contestant(
                "DBOS",
                "dbos",
                dbos_python(),
                {"throughput": ("def", 8)},
                DBOS_COUNTS,
                Sizes(throughput=300 * scale),
            )
            dbos, facts["screening"] = _screen(bench, dbos, wanted)
            contestants.append(dbos)
        if options.idle_seconds is not None:
            contestants = [
                replace(who, sizes=replace(who.sizes, idle_seconds=options.idle_seconds))
                for who in contestants
            ]
        samples = _rounds(bench, contestants, wanted, options, began)
        _footprints(bench, contestants, wanted, samples)
        facts["styles"] = {who.name: who.styles for who in contestants}
    facts["seconds"] = round(time.monotonic() - began, 1)
    report = {"facts": facts, "figures": samples, "summary": _summary(samples)}
    print(table(samples, METRICS, [name for name in CONTESTANTS if any(name in s for s in samples.values())]))
    print(f"took {facts['seconds']:.0f} s")
    out = Path(options.json)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(report, indent=1))
    print(f"all figures: {out}")
    return 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        "python -m bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--only", action="append", choices=measures.MEASURES, help="measure only this; repeatable"
    )
    parser.add_argument("--peer", action="append", choices=CONTESTANTS)
    parser.add_argument("--rounds", type=int)
    parser.add_argument(
        "--full", action="store_true", help="ten rounds, five times as many workflows a round"
    )
    parser.add_argument(
        "--idle-seconds", type=float, help="how long to count an idle worker's statements (60)"
    )
    parser.add_argument(
        "--budget", type=float, default=520, help="seconds after which no further round begins"
    )
    parser.add_argument("--json", default=str(HERE / "results" / "last.json"), help="where all figures go")
    options = parser.parse_args()
    options.rounds = options.rounds or (10 if options.full else 5)
    if options.full:
        options.budget = float("inf")
    return options


def _screen(bench: Bench, dbos: Contestant, wanted: tuple[str, ...]) -> tuple[Contestant, dict[str, Any]]:
    """Try each of DBOS's styles once for each measure and keep the best of each."""
    tried: dict[str, dict[str, float]] = {}
    best: dict[str, tuple[str, int]] = {}
    small = Sizes(throughput=150, latency=50, rows=1, drain=1_000, histories=(500,), children=300, wakes=15)
    for label, style in DBOS_STYLES.items():
        who = replace(dbos, name=f"dbos_{style[0]}_{style[1]}", styles={"throughput": style}, sizes=small)
        database = f"screen_{who.name}"
        with bench.peer(who, database) as peer:
            peer.ask("start_working")
            for name, measure in measures.IN_ONE_PEER.items():
                # Threads only matter where several workflows run at once.
                if name in wanted and (name == "throughput" or style[1] == 8):
                    tried.setdefault(name, {})[label] = measure(bench, who, peer, database)[name]
        if style[1] == 8:
            if "drain" in wanted:
                tried.setdefault("drain", {})[label] = measures.drain(bench, who, database)["drain"]
            if "recovery" in wanted:
                measures.build_histories(bench, who)
                tried.setdefault("recovery", {})[label] = measures.recovery(bench, who)["recovery_500"]
    for name, figures in tried.items():
        pick = max if name in ("throughput", "drain") else min
        label = pick(figures, key=lambda which: figures[which])
        best[name] = DBOS_STYLES[label]
        shown = ", ".join(f"{style} {figure:.3g}" for style, figure in figures.items())
        print(f"screening DBOS, {name}: {shown} -> {label}", flush=True)
    return replace(dbos, styles={**dbos.styles, **best}), tried


def _rounds(
    bench: Bench,
    contestants: list[Contestant],
    wanted: tuple[str, ...],
    options: argparse.Namespace,
    began: float,
) -> dict[str, dict[str, list[float]]]:
    samples: dict[str, dict[str, list[float]]] = {}
    in_rounds = [name for name in wanted if name not in ("footprint", "idle")]
    if not in_rounds:
        return samples
    if "recovery" in wanted:
        for who in contestants:
            measures.build_histories(bench, who)
    longest = 0.0
    last = max((who.sizes.idle_seconds for who in contestants), default=0) + 25 if "idle" in wanted else 5
    for number in range(options.rounds):
        round_began = time.monotonic()
        if number and round_began - began + longest + last > options.budget:
            print(f"stopped after {number} rounds: the next would pass {options.budget:g} s", flush=True)
            break
        turn = number % len(contestants)
        for who in contestants[turn:] + contestants[:turn]:
            for name, figure in _round(bench, who, in_rounds, number).items():
                samples.setdefault(name, {}).setdefault(who.name, []).append(figure)
        longest = max(longest, time.monotonic() - round_began)
        print(f"round {number + 1} of {options.rounds}: {time.monotonic() - round_began:.0f} s", flush=True)
    return samples


def _round(bench: Bench, who: Contestant, wanted: list[str], number: int) -> Figures:
    figures: Figures = {}
    database = f"{who.name.replace(' ', '_').lower()}_{number}"
    with bench.peer(who, database) as peer:
        peer.ask("start_working")
        for name, measure in measures.IN_ONE_PEER.items():
            if name in wanted:
                figures |= measure(bench, who, peer, database)
        peer.close()
    if "drain" in wanted:
        figures |= measures.drain(bench, who, database)
    if "recovery" in wanted:
        figures |= measures.recovery(bench, who)
    return figures


def _footprints(
    bench: Bench,
    contestants: list[Contestant],
    wanted: tuple[str, ...],
    samples: dict[str, dict[str, list[float]]],
) -> None:
    """Count statements, in databases of their own; last, because a server that logs them all is slower."""
    if "footprint" not in wanted and "idle" not in wanted:
        return
    peers = []
    for who in contestants:
        database = f"{who.name.replace(' ', '_').lower()}_logged"
        bench.databases[database] = bench.server.create(database)
        bench.server.log_statements(database)
        peer = bench.peer(who, database)
        peers.append((who, peer, database))
        peer.ask("start_working")
        if "footprint" in wanted:
            found = measures.footprint(bench, who, peer, database)
            if "recovery" in wanted and who.system == "refold":
                found |= measures.replay_selects(bench, who)
            for name, figure in found.items():
                samples.setdefault(name, {})[who.name] = [figure]
    if "idle" in wanted:
        # All at once, each in its own database: they do nothing, so they don't disturb one another.
        seconds = max(who.sizes.idle_seconds for who in contestants)
        print(f"counting statements of idle workers for {seconds:.0f} s", flush=True)
        time.sleep(3)
        log = bench.server.log_size()
        time.sleep(seconds)
        until = bench.server.log_size()
        for who, _, database in peers:
            total = bench.server.statements(database, log, until).total
            samples.setdefault("idle", {})[who.name] = [total / seconds]
    for _, peer, _ in peers:
        peer.kill()


def _summary(samples: dict[str, dict[str, list[float]]]) -> dict[str, dict[str, Any]]:
    return {
        name: {
            who: {
                "median": statistics.median(figures),
                "min": min(figures),
                "max": max(figures),
                "n": len(figures),
            }
            for who, figures in by_contestant.items()
        }
        for name, by_contestant in samples.items()
    }


if __name__ == "__main__":
    sys.exit(main())
