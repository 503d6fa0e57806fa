"""`refold sources`: how far each source of workflow starts has come, whatever connector it belongs to."""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, NamedTuple

import click
import msgspec

from refold.core import SourcePosition
from refold.core.cli._client import open_log
from refold.core.cli._output import clock, common, database_option, example, print_json, print_table, stamp


@click.command(
    "sources", short_help="show how far each source was handed over", epilog=example("refold sources")
)
@click.argument("prefix", default="")
@database_option
@common
def sources_command(prefix: str, database_url: str | None, as_json: bool) -> None:
    """Show what starts workflows from outside: partitions, schedules, endpoints. PREFIX chooses by the source's name.

    The position is what Postgres holds, and what counts; a source that keeps none has the label of its workflows alone.
    IN FLIGHT counts the workflows of a label that have not ended. A connector's own command says more: `refold kafka
    status`.
    """
    with open_log(database_url) as log:
        found = log.positions(prefix)
        in_flight = log.in_flight("" if found or not prefix else prefix)
    rows = [_Row.of(at, in_flight.get(at.label, {})) for at in found]
    known = {row.label for row in rows}
    rows += [
        _Row(None, label, None, counts, None)
        for label, counts in sorted(in_flight.items())
        if label not in known and label.startswith(prefix)
    ]
    if as_json:
        print_json([row.fields() for row in rows])
        return
    if not rows:
        click.echo("no sources" + (f" like that: {prefix}" if prefix else " yet"))
        return
    print_table(
        ("SOURCE", "LABEL", "POSITION", "IN FLIGHT", "HANDED OVER"),
        (
            (
                row.source or "-",
                row.label,
                _shown(row.position),
                row.counted(),
                clock(row.at) if row.at else "-",
            )
            for row in rows
        ),
        flexible=2,
    )


class _Row(NamedTuple):
    """One source; of a label without positions what is in flight."""

    source: str | None
    label: str
    position: bytes | None
    in_flight: Mapping[str, int]
    at: datetime | None

    @classmethod
    def of(cls, at: SourcePosition, in_flight: Mapping[str, int]) -> "_Row":
        """Return the row of a source with a position."""
        moment = datetime.fromtimestamp(at.at / 1e6, UTC)
        return cls(at.source, at.label, at.position, in_flight, moment)

    def counted(self) -> str:
        """Return how many are in flight, and of which status where that is not the usual one."""
        total = sum(self.in_flight.values())
        parked = self.in_flight.get("parked", 0)
        return f"{total}, {parked} parked" if parked else str(total)

    def fields(self) -> dict[str, Any]:
        """Return this row for programs."""
        return {
            "source": self.source,
            "label": self.label,
            "position": None if self.position is None else msgspec.json.decode(self.position),
            "in_flight": dict(self.in_flight),
            "handed_over_at": stamp(self.at) if self.at else None,
        }


def _shown(position: bytes | None) -> str:
    """Return a position, which is its connector's own JSON, in a form to read: `next_offset 5, era 1`."""
    if position is None:
        return "-"
    value = msgspec.json.decode(position)
    if isinstance(value, dict):
        return ", ".join(f"{key} {_plain(part)}" for key, part in value.items() if part not in (None, {}, []))
    return _plain(value)


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else msgspec.json.encode(value).decode()


__all__ = ["sources_command"]
