"""`refold send`, `cancel`, `retry`, `skip`, `delete`, `rebuild` and `migrate`: what changes what is already there."""

from collections.abc import Sequence

import click
import msgspec

from refold.core import RefoldError, WorkflowNotFound, WorkflowNotParked
from refold.core.cli._client import open_log, resolve_database
from refold.core.cli._output import common, database_option, example, parse_json, print_json


@click.command(
    "send",
    short_help="send a message to a workflow",
    epilog=example("refold send order-1 true --topic approval"),
)
@click.argument("workflow_id", metavar="ID")
@click.argument("value")
@click.option("--topic", default="", help="The topic that the workflow's `recv` names.")
@database_option
@common
def send_command(workflow_id: str, value: str, topic: str, database_url: str | None, as_json: bool) -> None:
    """Send VALUE, which is JSON, to workflow ID; durable when the command returns.

    A workflow that has not started yet finds the message when it does. A word that is no JSON is taken as a string.
    """
    decoded = parse_json(value, "the value")
    with open_log(database_url) as log:
        log.send(workflow_id, decoded, topic=topic)
    if as_json:
        print_json({"id": workflow_id, "topic": topic, "value": decoded})
    else:
        click.echo(
            f"sent {msgspec.json.encode(decoded).decode()} to {workflow_id}"
            + (f" on {topic}" if topic else "")
        )


@click.command(
    "cancel",
    short_help="ask a workflow to cancel",
    epilog=example("refold cancel order-1 --reason 'the customer called'"),
)
@click.argument("workflow_id", metavar="ID")
@click.option("--reason", default="", help="Why: kept in its history.")
@database_option
@common
def cancel_command(workflow_id: str, reason: str, database_url: str | None, as_json: bool) -> None:
    """Ask workflow ID to cancel; durable when the command returns.

    Its code may undo what was done before it ends. One that never ran, is parked or stuck ends at once.
    """
    with open_log(database_url) as log:
        log.cancel(workflow_id, reason)
        status = log.info(workflow_id).status
    if as_json:
        print_json({"id": workflow_id, "status": status})
    elif status == "cancelled":
        click.echo(f"cancelled {workflow_id}")
    else:
        click.echo(f"asked {workflow_id} to cancel ({status})\nlook:   refold show {workflow_id}")


@click.command(
    "retry", short_help="set parked workflows going again", epilog=example("refold retry order-1 order-2")
)
@click.argument("workflow_ids", metavar="ID...", nargs=-1, required=True)
@database_option
@common
def retry_command(workflow_ids: tuple[str, ...], database_url: str | None, as_json: bool) -> None:
    """Set the parked workflows ID... going again: the steps that failed them run again, recorded results stay."""
    again = []
    refused: list[RefoldError] = []
    with open_log(database_url) as log:
        for workflow_id in workflow_ids:
            try:
                steps = log.retry(workflow_id)
            except (WorkflowNotParked, WorkflowNotFound) as error:
                refused.append(error)
                continue
            again.append({"id": workflow_id, "steps": steps})
            if not as_json:
                what = f"{', '.join(steps)} runs again" if steps else "its code is run again over its history"
                click.echo(f"retried {workflow_id}: {what}")
    if as_json:
        print_json({"retried": again})
    _complain_of(refused)


@click.command(
    "skip",
    short_help="end parked workflows as failed, and let what is behind them go on",
    epilog=example("refold skip order-1 --reason 'test data'"),
)
@click.argument("workflow_ids", metavar="ID...", nargs=-1, required=True)
@click.option("--reason", default="", help="Why: kept in their histories.")
@database_option
@common
def skip_command(workflow_ids: tuple[str, ...], reason: str, database_url: str | None, as_json: bool) -> None:
    """End the parked workflows ID... as failed, with the errors that parked them."""
    skipped = []
    refused: list[RefoldError] = []
    with open_log(database_url) as log:
        for workflow_id in workflow_ids:
            try:
                log.skip(workflow_id, reason)
            except (WorkflowNotParked, WorkflowNotFound) as error:
                refused.append(error)
                continue
            skipped.append(workflow_id)
            if not as_json:
                click.echo(f"skipped {workflow_id}")
    if as_json:
        print_json({"skipped": skipped})
    _complain_of(refused)


def _complain_of(refused: Sequence[RefoldError]) -> None:
    """Say which of several could not be decided about, when all the others are."""
    if refused:
        raise click.ClickException("\n".join(map(str, refused)))


@click.command(
    "delete",
    short_help="delete the history of an ended workflow",
    epilog=example("refold delete order-1 --yes"),
)
@click.argument("workflow_id", metavar="ID")
@click.option("--yes", is_flag=True, help="Don't ask.")
@database_option
@common
def delete_command(workflow_id: str, yes: bool, database_url: str | None, as_json: bool) -> None:
    """Delete the history of workflow ID for good. Its ID stays taken: it can't run a second time.

    A workflow that is not at its end is not deleted.
    """
    with open_log(database_url) as log:
        info = log.info(workflow_id)
        if not yes and not as_json:
            click.confirm(
                f"delete the history of {info.name} {workflow_id} ({info.status}) for good?", abort=True
            )
        log.delete(workflow_id)
    if as_json:
        print_json({"id": workflow_id, "deleted": True})
    else:
        click.echo(f"deleted {workflow_id}; the ID stays taken")


@click.command(
    "rebuild",
    short_help="make every table again from the events",
    epilog=example("refold rebuild --yes"),
)
@click.option("--yes", is_flag=True, help="Don't ask.")
@database_option
@common
def rebuild_command(yes: bool, database_url: str | None, as_json: bool) -> None:
    """Make all tables but the events and the inbox again from the events. Refused while workers are alive.

    Needs no app: open workflows are marked due, and the next worker finds out by replay what each is waiting for.
    """
    from refold.eventlog import rebuild

    if not yes and not as_json:
        click.confirm("drop every table but events and inbox, and make them again?", abort=True)
    with resolve_database(database_url) as url:
        rebuilt = rebuild(url)
    if as_json:
        print_json(rebuilt)
    else:
        click.echo(
            f"rebuilt {rebuilt.workflows} workflows and {rebuilt.positions} positions from {rebuilt.events} events"
        )


@click.command("migrate", short_help="create or update refold's schema", epilog=example("refold migrate"))
@database_option
@common
def migrate_command(database_url: str | None, as_json: bool) -> None:
    """Create refold's schema in the database, or bring an older one to this release; does nothing when it is current.

    For a production database whose workers may not create tables. Safe to run from several places at once.
    """
    from refold.eventlog._connect import connect_sync
    from refold.eventlog._schema import find_version, migrate

    with resolve_database(database_url) as url:
        with connect_sync(url) as connection:
            before = find_version(connection)
        after = migrate(url)
    if as_json:
        print_json({"from": before, "to": after})
    elif before == after:
        click.echo(f"the schema is current (version {after})")
    elif before is None:
        click.echo(f"made the schema (version {after})")
    else:
        click.echo(f"updated the schema from version {before} to {after}")
