"""What Kafka adds to the command line: `refold kafka ...`, and the development broker of `refold dev`.

Loaded by the entry point `kafka` of `refold.connectors`, so that core needs to know no connector. The client library
is imported only by what uses it: `refold --help` works without the extra.
"""

import contextlib
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click
import msgspec

from refold.connectors._kafka_address_cli import ADDRESS_FILE, BOOTSTRAP, find_dev_address
from refold.connectors._kafka_parked_cli import parked_command, retry_command, skip_command
from refold.connectors._kafka_status_cli import status_command
from refold.core import App, ConnectorPlugin, SourceFact
from refold.core.cli import (
    Unreachable,
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
    from refold.connectors._devbroker import DevBroker
    from refold.connectors.kafka import ConsumerPosition


@click.group("kafka", short_help="lag, positions and parked records; produce records")
def kafka() -> None:
    """Look at how far consumers have read, settle what was parked, and produce records to try them."""


@kafka.command(
    "positions",
    short_help="show how far each partition was handed over",
    epilog=example("refold kafka positions"),
)
@click.option("--consumer", help="Only this consumer.")
@database_option
@common
def positions_command(consumer: str | None, database_url: str | None, as_json: bool) -> None:
    """Show how far every consumer has handed over every partition. This is what counts; Kafka's offsets are a hint.

    Below that is what has happened to the partitions lately: records that were lost before they could be read, and
    messages that were dropped because their workflow had ended.
    """
    from refold.connectors import kafka as connector

    with open_log(database_url) as log:
        found = log.positions("kafka:")
        facts = log.source_facts("kafka:" if consumer is None else connector.source_prefix(consumer))
    rows = []
    by_source = {}
    for position in found:
        described = connector.describe_position(position)
        if described is not None and consumer in (None, described.consumer):
            rows.append((described, _moment(position.at)))
            by_source[position.source] = described
    told = [(by_source[fact.source], fact) for fact in facts if fact.source in by_source]
    if as_json:
        print_json([_position_fields(row, at, [fact for of, fact in told if of is row]) for row, at in rows])
        return
    if not rows:
        click.echo("no positions" + (f" of {consumer}" if consumer else " yet"))
        return
    print_table(
        ("CONSUMER", "TOPIC", "PARTITION", "NEXT OFFSET", "HANDED OVER", "CLUSTER"),
        (
            (row.consumer, row.topic, str(row.partition), str(row.next_offset), clock(at), row.cluster)
            for row, at in rows
        ),
    )
    if told:
        click.echo()
        print_table(
            ("AT", "CONSUMER", "TOPIC", "PARTITION", "WHAT HAPPENED"),
            (
                (clock(_moment(fact.at)), of.consumer, of.topic, str(of.partition), fact.text)
                for of, fact in told
            ),
            flexible=4,
        )


def _position_fields(row: "ConsumerPosition", at: datetime, facts: Iterable[SourceFact]) -> dict[str, Any]:
    return {
        **msgspec.to_builtins(row),
        "handed_over_at": stamp(at),
        "facts": [{"at": stamp(_moment(one.at)), "kind": one.kind, "text": one.text} for one in facts],
    }


def _moment(micros: int) -> datetime:
    return datetime.fromtimestamp(micros / 1e6, UTC)


@kafka.command(
    "produce",
    short_help="produce records",
    epilog=example('refold kafka produce orders \'{"id": "o-1", "amount": 5}\''),
)
@click.argument("topic")
@click.argument("values", nargs=-1, required=True)
@click.option("--key", help="The records' key.")
@click.option(
    "--header", "headers", multiple=True, metavar="NAME=VALUE", help="A header; may be given again."
)
@click.option(
    "--bootstrap-servers", metavar="HOST:PORT", help=f"[default: {BOOTSTRAP}, else `refold dev`'s broker]"
)
@common
def produce_command(
    topic: str,
    values: tuple[str, ...],
    key: str | None,
    headers: tuple[str, ...],
    bootstrap_servers: str | None,
    as_json: bool,
) -> None:
    """Produce each of VALUES as a record of TOPIC, as it stands. A single - reads a record from each line of stdin.

    Returns when the broker has all of them. For trying things out: a program produces with a client of its own.
    """
    from refold.connectors import kafka as connector

    pairs = [_header(text) for text in headers]
    records = list(_lines()) if values == ("-",) else list(values)
    address = bootstrap_servers or os.environ.get(BOOTSTRAP) or _dev_address()
    try:
        produced = connector.produce(address, topic, records, key=key, headers=pairs)
    except connector.BrokerUnreachable as error:
        raise Unreachable(str(error)) from error
    if as_json:
        print_json(produced)
        return
    for record in produced[:10]:
        click.echo(f"produced to {topic}, partition {record.partition}, offset {record.offset}")
    if len(produced) > 10:
        click.echo(f"and {len(produced) - 10} more")


def _header(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals:
        raise Wrong(f"--header {text} has no value\nexpected a name and a value, like:  --header source=shop")
    return name, value


def _lines() -> Iterator[str]:
    return (line.rstrip("\n") for line in sys.stdin if line.strip())


def _dev_address() -> str:
    address = find_dev_address()
    if address is not None:
        return address
    raise Wrong(
        f"no broker: {BOOTSTRAP} is not set, and no `refold dev` with a development broker runs here\n"
        "start one, or say where the broker is:  --bootstrap-servers HOST:PORT"
    )


class _DevService:
    """The development broker of one `refold dev`; its address is in `.refold/` for `refold kafka produce`."""

    def __init__(self, broker: "DevBroker", folder: Path) -> None:
        self._broker = broker
        self._file = folder / ADDRESS_FILE
        folder.mkdir(exist_ok=True)
        self._file.write_text(f"{broker.bootstrap}\n")

    def describe(self) -> Sequence[tuple[str, str]]:
        return [("broker", f"development broker at {self._broker.bootstrap}, in memory")]

    def stop(self) -> None:
        self._file.unlink(missing_ok=True)
        self._broker.stop()
        os.environ.pop(BOOTSTRAP, None)


class _OwnBroker:
    """A broker that was there already: nothing to start, nothing to stop."""

    def __init__(self, address: str) -> None:
        self._address = address

    def describe(self) -> Sequence[tuple[str, str]]:
        return [("broker", self._address)]

    def stop(self) -> None:
        pass


def start_dev_broker(app: App, folder: Path) -> _DevService | _OwnBroker | None:
    """Give an app with consumers that name no broker one for development, unless the environment names one."""
    if not app.connectors:
        return None
    from refold.connectors.kafka import KafkaConsumer

    consumers = [connector for connector in app.connectors if isinstance(connector, KafkaConsumer)]
    if not consumers:
        return None
    address = os.environ.get(BOOTSTRAP)
    named = [consumer.bootstrap_servers for consumer in consumers if consumer.bootstrap_servers]
    if address or len(named) == len(consumers):
        return _OwnBroker(address or named[0])
    from refold.connectors._devbroker import DevBroker

    broker = DevBroker()
    os.environ[BOOTSTRAP] = broker.bootstrap
    with contextlib.suppress(Exception):  # the first record would make the topic as well, only later
        _create_topics(broker.bootstrap, [topic for consumer in consumers for topic in consumer.topics])
    return _DevService(broker, folder)


def _create_topics(address: str, topics: Iterable[str]) -> None:
    from confluent_kafka.admin import AdminClient
    from confluent_kafka.cimpl import NewTopic

    admin = AdminClient({"bootstrap.servers": address, "log_level": 0})
    for future in admin.create_topics(
        [NewTopic(topic, num_partitions=1) for topic in dict.fromkeys(topics)]
    ).values():
        future.result(5)


for _command in (status_command, parked_command, retry_command, skip_command):
    kafka.add_command(_command)

plugin: Final = ConnectorPlugin(commands=[kafka], dev_service=start_dev_broker)
