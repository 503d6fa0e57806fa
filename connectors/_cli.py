"""What Kafka adds to the command line: `refold kafka ...`, and the development broker of `refold dev`.

Loaded by entry points (`refold.cli`, `refold.dev`), so that core needs to know no connector. The client library is
imported only by what uses it: `refold --help` works without the extra.
"""

import contextlib
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import unquote

import click
import msgspec

from refold.core import App, RefoldError
from refold.core.cli import (
    Wrong,
    clock,
    common,
    database_option,
    example,
    open_log,
    print_json,
    print_table,
    project_folder,
    stamp,
)

if TYPE_CHECKING:
    from refold.connectors._devbroker import DevBroker

_ADDRESS: Final = "broker-address"
_BOOTSTRAP: Final = "REFOLD_KAFKA_BOOTSTRAP"
_PATIENCE: Final = 10.0  # seconds that a produced record may take to reach the broker


class BrokerUnreachable(RefoldError):
    """No broker took a record. Reaction: check the address, and that a broker runs there."""

    exit_code = 3

    def __init__(self, where: str, reason: str) -> None:
        super().__init__(where, reason)
        self.where, self.reason = where, reason

    def __str__(self) -> str:
        return (
            f"can't produce to {self.where}: {self.reason}.\n"
            f"Check --bootstrap-servers or {_BOOTSTRAP}, and that a broker runs there."
        )


@click.group("kafka", short_help="look at positions, produce records")
def kafka() -> None:
    """Look at how far consumers have read, and produce records to try them."""


@kafka.command(
    "positions",
    short_help="show how far each partition was handed over",
    epilog=example("refold kafka positions"),
)
@click.option("--consumer", help="Only this consumer.")
@database_option
@common
def positions_command(consumer: str | None, database_url: str | None, as_json: bool) -> None:
    """Show how far every consumer has handed over every partition. This is what counts; Kafka's offsets are a hint."""
    with open_log(database_url) as log:
        found = [_fields(position) for position in log.positions(prefix="kafka:")]
    rows = [row for row in found if consumer in (None, row["consumer"])]
    if as_json:
        print_json(rows)
        return
    if not rows:
        click.echo("no positions" + (f" of {consumer}" if consumer else " yet"))
        return
    print_table(
        ("CONSUMER", "TOPIC", "PARTITION", "NEXT OFFSET", "HANDED OVER", "CLUSTER"),
        (
            (
                row["consumer"],
                row["topic"],
                str(row["partition"]),
                str(row["next_offset"]),
                row["when"],
                row["cluster"],
            )
            for row in rows
        ),
    )


def _fields(position: Any) -> dict[str, Any]:
    """Return a position as people read it; its source is `kafka:consumer:cluster:topic:partition`."""
    _, consumer, cluster, topic, partition = map(unquote, position.source.split(":"))
    body = msgspec.json.decode(position.position) if position.position else {}
    at = datetime.fromtimestamp(position.at / 1e6, UTC) if position.at else None
    return {
        "consumer": consumer,
        "cluster": cluster,
        "topic": topic,
        "partition": int(partition),
        "next_offset": body.get("next_offset"),
        "topic_id": body.get("topic_id"),
        "handed_over_at": stamp(at) if at else None,
        "when": clock(at) if at else "never",
    }


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
    "--bootstrap-servers", metavar="HOST:PORT", help=f"[default: {_BOOTSTRAP}, else `refold dev`'s broker]"
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
    pairs = [_header(text) for text in headers]
    records = _lines() if values == ("-",) else iter(values)
    address = bootstrap_servers or os.environ.get(_BOOTSTRAP) or _dev_address()
    produced = produce(address, topic, records, key=key, headers=pairs)
    if as_json:
        print_json(
            [{"topic": topic, "partition": partition, "offset": offset} for partition, offset in produced]
        )
        return
    for partition, offset in produced[:10]:
        click.echo(f"produced to {topic}, partition {partition}, offset {offset}")
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
    file = project_folder() / _ADDRESS
    if file.exists():
        return file.read_text().strip()
    raise Wrong(
        f"no broker: {_BOOTSTRAP} is not set, and no `refold dev` with a development broker runs here\n"
        "start one, or say where the broker is:  --bootstrap-servers HOST:PORT"
    )


def produce(
    address: str,
    topic: str,
    values: Iterable[str],
    *,
    key: str | None = None,
    headers: Sequence[tuple[str, str]] = (),
) -> list[tuple[int, int]]:
    """Produce the values and return (partition, offset) of each, once the broker has all of them.

    Raises BrokerUnreachable.
    """
    import confluent_kafka

    from refold.connectors import kafka as _  # noqa: F401  says how to install the client where it is missing

    failures: list[str] = []
    complaints: list[str] = []
    placed: list[tuple[int, int]] = []

    def delivered(error: Any, record: Any) -> None:
        if error is not None:
            failures.append(str(error.str()))
        else:
            placed.append((record.partition(), record.offset()))

    producer = confluent_kafka.Producer(
        {
            "bootstrap.servers": address,
            "message.timeout.ms": int(_PATIENCE * 1000),
            "enable.idempotence": True,
            "linger.ms": 1,
            "log_level": 0,
            "error_cb": lambda error: complaints.append(str(error.str())),
        }
    )
    for value in values:
        while True:
            try:
                producer.produce(
                    topic,
                    value=value.encode(),
                    key=None if key is None else key.encode(),
                    headers=list(headers),
                    on_delivery=delivered,
                )
                break
            except BufferError:  # the client's queue is full: let it send
                producer.poll(0.1)
    left = producer.flush(_PATIENCE + 1)
    if failures or left:
        reason = (complaints or failures or ["no answer"])[-1]
        raise BrokerUnreachable(f"{topic} at {address}", reason)
    return placed


class _DevService:
    """The development broker of one `refold dev`; its address is in `.refold/` for `refold kafka produce`."""

    def __init__(self, broker: "DevBroker", folder: Path, consumers: Sequence[Any]) -> None:
        self._broker = broker
        self._consumers = consumers
        self._file = folder / _ADDRESS
        folder.mkdir(exist_ok=True)
        self._file.write_text(f"{broker.bootstrap}\n")

    def describe(self) -> Sequence[tuple[str, str]]:
        return [("broker", f"development broker at {self._broker.bootstrap}, in memory")]

    def try_next(self) -> str | None:
        return _example_record(self._consumers)

    def stop(self) -> None:
        self._file.unlink(missing_ok=True)
        self._broker.stop()
        os.environ.pop(_BOOTSTRAP, None)


class _OwnBroker:
    """A broker that was there already: nothing to start, nothing to stop."""

    def __init__(self, address: str, consumers: Sequence[Any]) -> None:
        self._address = address
        self._consumers = consumers

    def describe(self) -> Sequence[tuple[str, str]]:
        return [("broker", self._address)]

    def try_next(self) -> str | None:
        return _example_record(self._consumers)

    def stop(self) -> None:
        pass


def start_dev_broker(app: App, folder: Path) -> _DevService | _OwnBroker | None:
    """Give an app with consumers that name no broker one for development, unless the environment names one."""
    consumers = [
        connector
        for connector in app.connectors
        if type(connector).__module__.startswith(f"{__package__}.kafka")
    ]
    if not consumers:
        return None
    address = os.environ.get(_BOOTSTRAP)
    if address or all(consumer.bootstrap_servers for consumer in consumers):
        return _OwnBroker(address or consumers[0].bootstrap_servers, consumers)
    from refold.connectors._devbroker import DevBroker

    broker = DevBroker()
    os.environ[_BOOTSTRAP] = broker.bootstrap
    with contextlib.suppress(Exception):  # the first record would make the topic as well, only later
        _create_topics(broker.bootstrap, [topic for consumer in consumers for topic in consumer.topics])
    return _DevService(broker, folder, consumers)


def _create_topics(address: str, topics: Iterable[str]) -> None:
    from confluent_kafka.admin import AdminClient, NewTopic

    admin = AdminClient({"bootstrap.servers": address, "log_level": 0})
    for future in admin.create_topics(
        [NewTopic(topic, num_partitions=1) for topic in dict.fromkeys(topics)]
    ).values():
        future.result(5)


def _example_record(consumers: Sequence[Any]) -> str:
    consumer = consumers[0]
    topic = consumer.topics[0]
    sample = msgspec.json.format(msgspec.json.encode(_sample(consumer.value_type, topic)), indent=0).decode()
    return f"refold kafka produce {topic} '{sample}'"


def _sample(hint: Any, topic: str, name: str = "") -> Any:
    """Return a value of the type, for somebody to type: the shop's order is {"id": "o-1", "amount": 5}."""
    info = msgspec.inspect.type_info(hint)
    match info:
        case msgspec.inspect.StructType() | msgspec.inspect.DataclassType() | msgspec.inspect.TypedDictType():
            return {
                field.encode_name: _sample_of(field.type, topic, field.name)
                for field in info.fields
                if field.required
            }
        case _:
            return _sample_of(info, topic, name)


def _sample_of(info: msgspec.inspect.Type, topic: str, name: str) -> Any:
    match info:
        case msgspec.inspect.StrType():
            return f"{topic[0]}-1" if name in ("id", "") else f"{name} 1"
        case msgspec.inspect.IntType():
            return 5
        case msgspec.inspect.FloatType() | msgspec.inspect.DecimalType():
            return 5.5
        case msgspec.inspect.BoolType():
            return True
        case msgspec.inspect.ListType() | msgspec.inspect.SetType() | msgspec.inspect.VarTupleType():
            return [_sample_of(info.item_type, topic, name)]
        case msgspec.inspect.UnionType():
            return _sample_of(info.types[0], topic, name)
        case msgspec.inspect.DateTimeType():
            return datetime.now(UTC).isoformat(timespec="seconds")
        case msgspec.inspect.StructType() | msgspec.inspect.DataclassType() | msgspec.inspect.TypedDictType():
            return _sample(info.cls, topic, name)
        case msgspec.inspect.NoneType():
            return None
        case _:
            return {}
