"""`refold kafka status`: for each partition, how far it is and how far it could be."""

import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

import click
import msgspec

from refold.connectors._kafka_address_cli import BOOTSTRAP, find_dev_address
from refold.core import App, ParkedWorkflow, SourcePosition
from refold.core.cli import (
    clock,
    common,
    database_option,
    example,
    load_app,
    open_log,
    print_json,
    print_table,
    stamp,
)

if TYPE_CHECKING:
    from refold.connectors.kafka import ConsumerPosition, Place

_TIMEOUT: Final = 5.0
_MOST: Final = 100_000


class PartitionStatus(msgspec.Struct):
    """One row. `lag` and `end` are None where the brokers can't be asked; `runnable` and `parked` are workflows."""

    consumer: str
    cluster: str
    topic: str
    partition: int
    next_offset: int
    end: int | None
    lag: int | None
    runnable: int
    parked: int
    handed_over_at: str


@click.command(
    "status",
    short_help="show lag, position and work in flight of each partition",
    epilog=example("refold kafka status shop.py"),
)
@click.argument("target", required=False, metavar="[APP]")
@click.option("--consumer", help="Only this consumer.")
@click.option(
    "--bootstrap-servers", metavar="HOST:PORT", help=f"[default: {BOOTSTRAP}, else `refold dev`'s broker]"
)
@database_option
@common
def status_command(
    target: str | None,
    consumer: str | None,
    bootstrap_servers: str | None,
    database_url: str | None,
    as_json: bool,
) -> None:
    """Show of each partition how far it was handed over, how many records the broker has beyond that (LAG), how many
    workflows of it could run now (RUNNABLE) and how many were set aside (PARKED).

    With APP, like shop.py, the brokers are asked as its consumers would: with their address, user and password.
    """
    from refold.connectors import kafka

    clients = _clients_of(target)
    with open_log(database_url) as log:
        positions = [
            (described, at)
            for at in log.positions("kafka:")
            if (described := kafka.describe_position(at)) is not None
            and consumer in (None, described.consumer)
        ]
        names = {described.consumer for described, _ in positions}
        runnable = {name: _count(map(kafka.place_of, log.runnable(name, limit=_MOST))) for name in names}
        parked = {name: _count(map(kafka.place_of_parked, _parked(log, name))) for name in names}
    ends: dict[tuple[str, str, int], int] = {}
    complaints: set[str] = set()
    for name in sorted(names):
        address, config = clients(name, bootstrap_servers)
        mine = [described for described, _ in positions if described.consumer == name]
        ends |= {(name, *key): end for key, end in _ends(address, config, mine, complaints).items()}
    rows = [
        _row(
            described,
            at,
            ends.get((described.consumer, described.topic, described.partition)),
            runnable,
            parked,
        )
        for described, at in positions
    ]
    _show(rows, complaints, consumer, as_json)


def _show(rows: list[PartitionStatus], complaints: set[str], consumer: str | None, as_json: bool) -> None:
    for complaint in sorted(complaints):
        click.echo(f"refold: {complaint}; LAG is not known", err=True)
    if as_json:
        print_json(rows)
        return
    if not rows:
        click.echo("no positions" + (f" of {consumer}" if consumer else " yet"))
        return
    print_table(
        ("CONSUMER", "TOPIC", "PARTITION", "NEXT OFFSET", "END", "LAG", "RUNNABLE", "PARKED", "HANDED OVER", "CLUSTER"),
        (
            (
                row.consumer, row.topic, str(row.partition), str(row.next_offset), _number(row.end),
                _number(row.lag), str(row.runnable), str(row.parked),
                clock(datetime.fromisoformat(row.handed_over_at)), row.cluster,
            )
            for row in rows
        ),
    )  # fmt: skip


def _number(value: int | None) -> str:
    return "?" if value is None else str(value)


def _row(
    described: "ConsumerPosition",
    at: SourcePosition,
    end: int | None,
    runnable: Mapping[str, Counter[tuple[str, str, int]]],
    parked: Mapping[str, Counter[tuple[str, str, int]]],
) -> PartitionStatus:
    place = (described.cluster, described.topic, described.partition)
    return PartitionStatus(
        described.consumer,
        *place,
        described.next_offset,
        end,
        None if end is None else max(end - described.next_offset, 0),
        runnable[described.consumer][place],
        parked[described.consumer][place],
        stamp(datetime.fromtimestamp(at.at / 1e6, UTC)),
    )


def _count(places: "Iterable[Place | None]") -> Counter[tuple[str, str, int]]:
    return Counter((place.cluster, place.topic, place.partition) for place in places if place is not None)


def _parked(log: App, consumer: str) -> list[ParkedWorkflow]:
    from refold.connectors.kafka import source_prefix

    found: list[ParkedWorkflow] = []
    while len(found) < _MOST and (
        page := log.parked(source_prefix(consumer), limit=1000, after=found[-1] if found else None)
    ):
        found += page
    return found


def _clients_of(target: str | None) -> Callable[[str, str | None], tuple[str | None, Mapping[str, Any]]]:
    """Return where and how each consumer's brokers are asked."""
    declared: dict[str, tuple[str | None, Mapping[str, Any]]] = {}
    if target is not None:
        from refold.connectors.kafka import KafkaConsumer

        for one in load_app(target).connectors:
            if isinstance(one, KafkaConsumer):
                declared[one.name] = (one.bootstrap_servers, one.settings.config)

    def client(name: str, given: str | None) -> tuple[str | None, Mapping[str, Any]]:
        address, config = declared.get(name, (None, {}))
        return given or address or os.environ.get(BOOTSTRAP) or find_dev_address(), config

    return client


def _ends(
    address: str | None,
    config: Mapping[str, Any],
    positions: list["ConsumerPosition"],
    complaints: set[str],
) -> dict[tuple[str, int], int]:
    """Return the next offset of each partition that this cluster still has; says in `complaints` why there is none."""
    from refold.connectors.kafka import BrokerUnreachable, partition_ends

    if address is None:
        complaints.add(f"no broker to ask: {BOOTSTRAP} is not set (or: --bootstrap-servers HOST:PORT)")
        return {}
    try:
        return partition_ends(address, config, positions, timeout=_TIMEOUT)
    except BrokerUnreachable as error:
        complaints.add(str(error))
        return {}


__all__ = ["status_command"]
