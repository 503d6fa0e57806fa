"""What Kafka adds to the command line: `refold kafka ...`, and the development broker of `refold dev`.

Loaded by entry points (`refold.cli`, `refold.dev`), so that core needs to know no connector. The client library is
imported only by what uses it: `refold --help` works without the extra.
"""

import os
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import click
import msgspec

from refold.core import App
from refold.core.cli import (
    Wrong,
    common,
    database_option,
    example,
    open_log,
    print_json,
    print_table,
    project_folder,
    stamp,
)

_ADDRESS: Final = "broker-address"
_BOOTSTRAP: Final = "REFOLD_KAFKA_BOOTSTRAP"


@click.group("kafka", short_help="look at positions, produce records")
def kafka() -> None:
    """Look at how far consumers have read, and produce records to try them."""


@kafka.command(
    "produce",
    short_help="produce a record",
    epilog=example('refold kafka produce orders \'{"id": "o-1", "amount": 5}\''),
)
@click.argument("topic")
@click.argument("values", nargs=-1, required=True)
@click.option("--key", help="The record's key.")
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
    """Produce each of VALUES as a record of TOPIC, as it stands; a single - reads one record from each line of stdin.

    Returns when the broker has all of them. For trying things out: a program produces with a client of its own.
    """
    from refold.connectors._kafka_produce import produce

    pairs = [_header(text) for text in headers]
    records = _lines() if values == ("-",) else iter(values)
    address = bootstrap_servers or os.environ.get(_BOOTSTRAP) or _dev_address()
    produced = produce(address, topic, records, key=key, headers=pairs)
    if as_json:
        print_json([msgspec.to_builtins(record) for record in produced])
        return
    for record in produced[:10]:
        click.echo(f"produced to {record.topic}, partition {record.partition}, offset {record.offset}")
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
