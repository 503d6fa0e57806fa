"""`refold list` and `refold show`: what runs, and the history of one workflow."""

from datetime import UTC, datetime, timedelta
from typing import Any, Final

import click
import msgspec

from refold.core import WorkflowInfo
from refold.core.cli._client import open_log
from refold.core.cli._events import describe_event, event_fields
from refold.core.cli._output import (
    clock,
    common,
    database_option,
    example,
    print_json,
    print_table,
    short_time,
    stamp,
)

_STATUSES: Final = ("pending", "running", "waiting", "stuck", "parked", "completed", "failed", "cancelled")


@click.command(
    "list", short_help="list workflows, newest first", epilog=example("refold list --status failed")
)
@click.option("--status", type=click.Choice(_STATUSES), help="Only workflows of this status.")
@click.option("--name", help="Only runs of this workflow.")
@click.option("--limit", type=click.IntRange(1, 10_000), default=50, show_default=True)
@click.option("--cursor", help="Go on where an earlier list ended.")
@database_option
@common
def list_command(
    status: str | None,
    name: str | None,
    limit: int,
    cursor: str | None,
    database_url: str | None,
    as_json: bool,
) -> None:
    """List workflows, newest first; a last line gives the cursor when there are more."""
    with open_log(database_url) as log:
        page = log.list(status=status, name=name, limit=limit, cursor=cursor)
    if as_json:
        print_json(
            {"workflows": [_info_fields(info) for info in page.items], "next_cursor": page.next_cursor}
        )
        return
    if not page.items:
        click.echo("no workflows" + (" like that" if status or name else " yet"))
        return
    print_table(
        ("ID", "WORKFLOW", "STATUS", "STARTED", "NOTE"),
        ((info.id, info.name, info.status, clock(info.started_at), _note(info)) for info in page.items),
        flexible=4,
    )
    if page.next_cursor:
        click.echo(f"more:  refold list --cursor {page.next_cursor}")


def _info_fields(info: WorkflowInfo) -> dict[str, Any]:
    fields: dict[str, Any] = msgspec.to_builtins(info, builtin_types=(datetime, bytes, msgspec.Raw))
    return {key: stamp(value) if isinstance(value, datetime) else value for key, value in fields.items()}


def _note(info: WorkflowInfo) -> str:
    return getattr(info, "note", None) or ""


@click.command("show", short_help="show the history of a workflow", epilog=example("refold show order-1"))
@click.argument("workflow_id", metavar="ID")
@database_option
@common
def show_command(workflow_id: str, database_url: str | None, as_json: bool) -> None:
    """Show the history of workflow ID as a table: each event, when, and how long after the one before it."""
    with open_log(database_url) as log:
        info = log.info(workflow_id)
        history = log.history(workflow_id)
    if as_json:
        events = [
            {"seq": recorded.seq, "at": stamp(_moment(recorded.at)), **event_fields(recorded.event)}
            for recorded in history
        ]
        print_json({**_info_fields(info), "history": events})
        return
    first, last = _moment(history[0].at), _moment(history[-1].at)
    click.echo(
        f"{click.style(info.id, bold=True)}  {info.name}  {info.status}  "
        f"started {first.astimezone():%Y-%m-%d %H:%M:%S %Z}, {len(history)} events over {short_time(last - first)}"
    )
    if note := _note(info):
        click.echo(note)
    rows = []
    before = first
    for recorded in history:
        at = _moment(recorded.at)
        after = f"+{short_time(at - before)}" if recorded.seq else ""
        rows.append(
            (
                str(recorded.seq),
                clock(at),
                after,
                type(recorded.event).__name__,
                describe_event(recorded.event),
            )
        )
        before = at
    print_table(("SEQ", "AT", "AFTER", "EVENT", "WHAT"), rows)


def _moment(micros: int) -> datetime:
    return datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=micros)
