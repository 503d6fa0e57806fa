"""`refold kafka parked`, `retry` and `skip`: records that were set aside, and what a person does about them."""

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import click
import msgspec

from refold.core import App, WorkflowNotParked
from refold.core.cli import (
    Wrong,
    clock,
    common,
    database_option,
    example,
    open_log,
    print_json,
    print_table,
    stamp,
)

if TYPE_CHECKING:
    from refold.connectors.kafka import ParkedRecord

_PAGE = 500


@click.command(
    "parked",
    short_help="show records that were set aside",
    epilog=example("refold kafka parked --consumer on_order"),
)
@click.option("--consumer", help="Only this consumer's.")
@click.option("--key", help="Only records with this key.")
@click.option("--limit", type=click.IntRange(1, 10_000), default=100, show_default=True)
@database_option
@common
def parked_command(
    consumer: str | None, key: str | None, limit: int, database_url: str | None, as_json: bool
) -> None:
    """Show the records whose workflow failed and was set aside, and how many records of their order wait behind each.

    `refold kafka retry` runs one again, `refold kafka skip` lets it be and has the ones behind it go on.
    """
    with open_log(database_url) as log:
        found: list[ParkedRecord] = []
        for record in _parked(log, consumer, key):
            if len(found) == limit:
                break
            found.append(record)
    if as_json:
        print_json(
            [{**msgspec.to_builtins(one), "parked_at": stamp(_moment(one.parked_at))} for one in found]
        )
        return
    if not found:
        click.echo("no parked records" + (f" of {consumer}" if consumer else ""))
        return
    print_table(
        ("CONSUMER", "TOPIC", "PARTITION", "OFFSET", "KEY", "WAITING", "PARKED AT", "ERROR"),
        (
            (
                one.consumer, one.topic, str(one.partition), str(one.offset), "" if one.key is None else one.key,
                str(one.waiting), clock(_moment(one.parked_at)), one.error,
            )
            for one in found
        ),
        flexible=7,
    )  # fmt: skip
    if len(found) == limit:
        click.echo(f"there may be more:  refold kafka parked --limit {10 * limit}")


@click.command(
    "retry",
    short_help="run parked records again",
    epilog=example("refold kafka retry --consumer on_order --all"),
)
@click.argument("ids", nargs=-1, metavar="[ID]...")
@click.option("--consumer", help="Only this consumer's.")
@click.option("--key", help="The records with this key.")
@click.option("--all", "every", is_flag=True, help="All of them.")
@database_option
@common
def retry_command(
    ids: tuple[str, ...],
    consumer: str | None,
    key: str | None,
    every: bool,
    database_url: str | None,
    as_json: bool,
) -> None:
    """Run parked records again: those of these workflow IDs, of --key, or --all.

    The steps that had failed run again; what is recorded stays. Those behind them go on when they have ended.
    """
    with open_log(database_url) as log:
        chosen = list(_chosen(log, ids, consumer, key, every, "retry"))
        done = [id for id in chosen if _tried(log, id)]
    _say("retried", done, as_json)


@click.command(
    "skip",
    short_help="give parked records up",
    epilog=example("refold kafka skip --consumer on_order --all --yes"),
)
@click.argument("ids", nargs=-1, metavar="[ID]...")
@click.option("--consumer", help="Only this consumer's.")
@click.option("--key", help="The records with this key.")
@click.option("--all", "every", is_flag=True, help="All of them.")
@click.option("--reason", default="", help="Why; it is kept with the workflow's error.")
@click.option("--yes", is_flag=True, help="Don't ask.")
@database_option
@common
def skip_command(
    ids: tuple[str, ...],
    consumer: str | None,
    key: str | None,
    every: bool,
    reason: str,
    yes: bool,
    database_url: str | None,
    as_json: bool,
) -> None:
    """Give parked records up: those of these workflow IDs, of --key, or --all. Their workflows end as failed.

    The records that wait behind them go on.
    """
    with open_log(database_url) as log:
        chosen = list(_chosen(log, ids, consumer, key, every, "skip"))
        if chosen and not yes and not as_json and not ids:
            click.confirm(f"end {_count(chosen)} as failed?", abort=True)
        done = [id for id in chosen if _skipped(log, id, reason)]
    _say("skipped", done, as_json)


def _tried(log: App, id: str) -> bool:
    try:
        log.retry(id)
    except WorkflowNotParked:
        return False  # somebody was first
    return True


def _skipped(log: App, id: str, reason: str) -> bool:
    try:
        log.skip(id, reason)
    except WorkflowNotParked:
        return False
    return True


def _chosen(
    log: App, ids: Sequence[str], consumer: str | None, key: str | None, every: bool, what: str
) -> Iterator[str]:
    """Return the IDs that a person chose, the ones that come first in their order first."""
    if sum((bool(ids), key is not None, every)) != 1:
        raise Wrong(
            f"which records? expected IDs, or --key, or --all\n"
            f"see what is parked:  refold kafka parked\nlike:  refold kafka {what} --key order-42"
        )
    if ids:
        return iter(ids)
    # All of them before the first is settled: it may be parked again at once, and is not to be met twice.
    return iter([record.workflow for record in _parked(log, consumer, key)])


def _parked(log: App, consumer: str | None, key: str | None) -> Iterator["ParkedRecord"]:
    from refold.connectors import kafka

    prefix = "kafka:" if consumer is None else kafka.source_prefix(consumer)
    after = None
    while page := log.parked(prefix, limit=_PAGE, after=after):
        for parked in page:
            if key is None or kafka.is_order_of(parked.order_key, key.encode()):
                yield kafka.describe_parked(parked)
        after = page[-1]


def _say(what: str, done: Sequence[str], as_json: bool) -> None:
    if as_json:
        print_json({what: list(done)})
        return
    click.echo(f"{what} {_count(done)}" if done else "nothing is parked that fits")
    for id in done[:10]:
        click.echo(f"  {id}")


def _count(ids: Sequence[str]) -> str:
    return f"{len(ids)} parked record{'' if len(ids) == 1 else 's'}"


def _moment(micros: int) -> datetime:
    return datetime.fromtimestamp(micros / 1e6, UTC)


__all__ = ["parked_command", "retry_command", "skip_command"]
