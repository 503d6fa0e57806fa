"""Figures of rounds as text: medians with ranges, and ratios that are taken round by round."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Samples = dict[str, dict[str, list[float]]]  # figure -> contestant -> one of each round


@dataclass(frozen=True)
class Metric:
    """A line of the report. `target` is refold's figure over DBOS's, or its own with `absolute`."""

    name: str
    what: str
    unit: str
    higher_is_better: bool = False
    target: float | None = None
    target_def: float | None = None
    absolute: bool = False
    digits: int = 2


def add(samples: Samples, who: str, figures: Mapping[str, float]) -> None:
    """Keep the figures of one round."""
    for name, figure in figures.items():
        samples.setdefault(name, {}).setdefault(who, []).append(figure)


def table(samples: Samples, metrics: Sequence[Metric], contestants: Sequence[str]) -> str:
    """Return medians with the lowest and the highest, and the medians of the rounds' ratios to DBOS."""
    lines = ["", f"{'median [lowest .. highest]':40}" + "".join(f"{who:>28}" for who in contestants)]
    verdicts: list[str] = []
    for metric in (metric for metric in metrics if metric.name in samples):
        by_contestant = samples[metric.name]
        label = f"{metric.what}{f' ({metric.unit})' if metric.unit else ''}"
        cells = (_cell(metric, by_contestant.get(who)) for who in contestants)
        lines.append(f"{label:40}" + "".join(f"{cell:>28}" for cell in cells))
        for who in contestants:
            if who != "DBOS" and who in by_contestant:
                verdicts += _verdict(metric, who, by_contestant)
    if verdicts:
        lines += ["", "against DBOS, median of the rounds' ratios [lowest .. highest]", *verdicts]
    return "\n".join(lines)


def _cell(metric: Metric, figures: list[float] | None) -> str:
    if not figures:
        return "-"
    numbers = [
        f"{number:,.{metric.digits}f}" for number in (statistics.median(figures), min(figures), max(figures))
    ]
    return numbers[0] if len(figures) == 1 else f"{numbers[0]} [{numbers[1]} .. {numbers[2]}]"


def _verdict(metric: Metric, name: str, by_contestant: dict[str, list[float]]) -> list[str]:
    mine, theirs = by_contestant[name], by_contestant.get("DBOS")
    target = metric.target_def if name == "refold def" and metric.target_def else metric.target
    if metric.absolute:
        assert target is not None
        figure = statistics.median(mine)
        reached = "reached" if figure <= target else "NOT reached"
        return [f"  {name:13} {metric.what:36} {figure:8.3f}   target <= {target:g}: {reached}"]
    if not theirs:
        return []
    # Round by round, so that each ratio compares two figures of the same minutes.
    ratios = [a / b for a, b in zip(mine, theirs, strict=False) if b]
    ratio = statistics.median(ratios)
    shown = f"{ratio:8.3f}x [{min(ratios):.3f} .. {max(ratios):.3f}]"
    if target is None:
        return [f"  {name:13} {metric.what:36} {shown}"]
    reached = "reached" if (ratio >= target) == metric.higher_is_better else "NOT reached"
    wanted = f"{'>=' if metric.higher_is_better else '<='} {_fraction(target)}"
    return [f"  {name:13} {metric.what:36} {shown}   target {wanted}: {reached}"]


def _fraction(number: float) -> str:
    return f"{number:g}" if number >= 0.3 else f"1/{1 / number:.0f}"


def print_facts(facts: Mapping[str, Any]) -> None:
    """Print what figures mean nothing without; refuses a Postgres that does not sync."""
    machine, postgres = facts["machine"], facts["postgres"]
    print(
        f"{machine['cpu']}, {machine['cores']} cores, {machine['memory_gib']} GiB,"
        f" Python {machine['python']}, load {machine['load_before']:.2f},"
        f" 8 kB fdatasync {machine['fdatasync_8kb_us']} us\n"
        f"PostgreSQL {postgres['server_version']}, fsync={postgres['fsync']},"
        f" synchronous_commit={postgres['synchronous_commit']},"
        f" full_page_writes={postgres['full_page_writes']}; DBOS {machine['dbos']}",
        flush=True,
    )
    if postgres["fsync"] != "on" or postgres["synchronous_commit"] != "on":
        raise SystemExit("fsync and synchronous_commit must be on: figures without them mean nothing")
