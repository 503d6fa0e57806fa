"""`refold sources`: how far each source of workflow starts has come, whatever connector it belongs to."""

from datetime import UTC, datetime
from typing import Any

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
    """Show what starts workflows from outside: partitions, streams, schedules. PREFIX chooses by the source's name.

    The position is what Postgres holds, and what counts. A connector's own command says more: `refold kafka positions`.
    """
    with open_log(database_url) as log:
        found = log.positions(prefix)
    if as_json:
        print_json([_fields(at) for at in found])
        return
    if not found:
        click.echo("no sources" + (f" like that: {prefix}" if prefix else " yet"))
        return
    print_table(
        ("SOURCE", "LABEL", "POSITION", "HANDED OVER"),
        ((at.source, at.label, _shown(at.position), clock(_moment(at))) for at in found),
        flexible=0,
    )


def _fields(at: SourcePosition) -> dict[str, Any]:
    position = None if at.position is None else msgspec.json.decode(at.position)
    return {
        "source": at.source,
        "label": at.label,
        "position": position,
        "handed_over_at": stamp(_moment(at)),
    }


def _shown(position: bytes | None) -> str:
    """Return a position, which is its connector's own JSON, in a form to read: `next_offset 5, era 1`."""
    value = None if position is None else msgspec.json.decode(position)
    if isinstance(value, dict):
        return ", ".join(f"{key} {_plain(part)}" for key, part in value.items() if part not in (None, {}, []))
    return _plain(value)


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else msgspec.json.encode(value).decode()


def _moment(at: SourcePosition) -> datetime:
    return datetime.fromtimestamp(at.at / 1e6, UTC)


__all__ = ["sources_command"]
