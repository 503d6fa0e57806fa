"""The report of a connector: a line for each clause, and why where it is refused or makes no sense."""

import textwrap
from collections.abc import Sequence
from typing import Final

import msgspec

from refold.testing._kit import Verdict

_WIDTH: Final = 110
_SIGNS: Final = {"kept": "kept", "refused": "REFUSED", "not applicable": "n/a"}


def line_of(verdict: Verdict) -> str:
    """Return what the report says of one clause."""
    took = f"{verdict.seconds:5.1f} s" if verdict.result != "not applicable" else "       "
    first = f"  {_SIGNS[verdict.result]:8} {verdict.clause:28} {took}  "
    if verdict.result == "kept":
        return first + verdict.promise
    if verdict.result == "not applicable":
        return first + verdict.text
    lines = [first + verdict.promise]
    for part in verdict.text.splitlines():
        lines += textwrap.wrap(part, _WIDTH, initial_indent=" " * 11, subsequent_indent=" " * 11)
    return "\n".join(lines)


def sum_up(name: str, verdicts: Sequence[Verdict]) -> str:
    """Return the last line of the report."""
    counts = [sum(verdict.result == result for verdict in verdicts) for result in _SIGNS]
    return f"{name}: {counts[0]} clauses kept, {counts[1]} refused, {counts[2]} not applicable"


def as_json(name: str, verdicts: Sequence[Verdict]) -> str:
    """Return the report for programs."""
    return msgspec.json.format(
        msgspec.json.encode({"connector": name, "clauses": list(verdicts)}), indent=2
    ).decode()


__all__ = ["as_json", "line_of", "sum_up"]
