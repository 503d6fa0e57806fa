"""`refold kafka status`, `parked`, `retry` and `skip`, beside an app whose consumer keeps keys in order."""

from collections.abc import Iterator
from typing import Any

import pytest

import refold
from fixtures.brokers import ApacheBroker, Broker
from fixtures.kafka_app import Order, Watched, order
from fixtures.terminal import Terminal
from refold import App
from refold.connectors import kafka
from refold.core import Workflow

broken: set[str] = set()


@refold.step
def charge(order: Order) -> str:
    if order.id in broken:
        raise RuntimeError(f"{order.id} can't be charged")
    return order.id


def _charging(app: App) -> Workflow[..., Any]:
    @app.workflow
    def on_order(message: kafka.Message[Order]) -> str:
        return charge(message.value)

    return on_order


@pytest.fixture
def desk(terminal: Terminal, database_url: str, dev_broker: Broker) -> Terminal:
    """A terminal in the same database and beside the same broker."""
    terminal.environment |= {
        "REFOLD_DATABASE_URL": database_url,
        "REFOLD_KAFKA_BOOTSTRAP": dev_broker.bootstrap,
    }
    return terminal


@pytest.fixture
def shop(database_url: str, dev_broker: Broker) -> Iterator[Watched]:
    """An app that runs, with two keys parked: "a" with one record behind it, "b" with none; four records are done."""
    broken.clear()
    broken.update({"a1", "b0"})
    topic = dev_broker.create_topic()
    dev_broker.produce(topic, *(order(f"a{n}") for n in range(3)), key="a")
    dev_broker.produce(topic, order("b0"), key="b")
    dev_broker.produce(topic, *(order(f"c{n}") for n in range(3)), key=b"\xff/c")
    with Watched(database_url, dev_broker, topic, workflow=_charging, ordering="key") as shop:
        shop.wait_ended(4)
        shop.wait(lambda: len(shop.app.parked()) == 2, "the parked records")
        yield shop


def test_parked_records_are_shown_with_where_they_are_and_who_waits(desk: Terminal, shop: Watched) -> None:
    rows = desk.type("kafka", "parked", "--json").json
    assert [(row["key"], row["offset"], row["waiting"], row["error"]) for row in rows] == [
        ("a", 1, 1, "RuntimeError: a1 can't be charged"),
        ("b", 3, 0, "RuntimeError: b0 can't be charged"),
    ]
    assert {(row["consumer"], row["topic"], row["partition"]) for row in rows} == {
        ("orders", shop.connector.topics[0], 0)
    }
    text = desk.type("kafka", "parked").out.splitlines()
    assert text[0].split() == [
        "CONSUMER",
        "TOPIC",
        "PARTITION",
        "OFFSET",
        "KEY",
        "WAITING",
        "PARKED",
        "AT",
        "ERROR",
    ]
    assert len(text) == 3
    assert desk.type("kafka", "parked", "--consumer", "other").out == "no parked records of other\n"
    assert len(desk.type("kafka", "parked", "--key", "b", "--json").json) == 1
    limited = desk.type("kafka", "parked", "--limit", "1").out
    assert limited.splitlines()[-1] == "there may be more:  refold kafka parked --limit 10"


def test_a_key_is_retried_and_the_ones_behind_it_go_on(desk: Terminal, shop: Watched) -> None:
    broken.clear()
    said = desk.type("kafka", "retry", "--key", "a")
    assert said.out.splitlines()[0] == "retried 1 parked record"
    shop.wait_ended(6)
    assert shop.results() == ["a0", "a1", "a2", "c0", "c1", "c2"]
    assert [row["key"] for row in desk.type("kafka", "parked", "--json").json] == ["b"]
    assert desk.type("kafka", "retry", "--all", "--consumer", "other").out == "nothing is parked that fits\n"
    assert len(desk.type("kafka", "retry", "--all", "--json").json["retried"]) == 1
    shop.wait_ended(7)


def test_records_are_skipped_by_id_and_all_together(desk: Terminal, shop: Watched) -> None:
    first, second = (row["workflow"] for row in desk.type("kafka", "parked", "--json").json)
    assert desk.type("kafka", "skip", first, "--reason", "a test order").out.splitlines()[1].strip() == first
    assert shop.wait_ended(6)[first] == "failed"
    asked = desk.type("kafka", "skip", "--all", input="n\n")
    assert asked.code != 0
    assert "end 1 parked record as failed?" in asked.out
    assert desk.type("kafka", "skip", "--all", "--yes").out.splitlines()[1].strip() == second
    assert shop.wait_ended(7)[second] == "failed"
    assert "a test order" in desk.type("show", first, "--json").out
    assert desk.type("kafka", "skip", first).out == "nothing is parked that fits\n"


def test_which_records_has_to_be_said(desk: Terminal, database_url: str) -> None:
    said = desk.type("kafka", "retry")
    assert (said.code, said.err) == (
        2,
        "refold: which records? expected IDs, or --key, or --all\n"
        "  see what is parked:  refold kafka parked\n"
        "  like:  refold kafka retry --key order-42\n",
    )


def test_the_status_of_each_partition_has_lag_and_work_in_flight(desk: Terminal, shop: Watched) -> None:
    [row] = desk.type("kafka", "status", "--json").json
    assert (row["consumer"], row["next_offset"], row["runnable"], row["parked"]) == ("orders", 7, 0, 2)
    assert row["lag"] is not None
    text = desk.type("kafka", "status", "--consumer", "orders").out.splitlines()
    assert text[0].split()[:9] == [
        *("CONSUMER", "TOPIC", "PARTITION", "NEXT", "OFFSET", "END", "LAG", "RUNNABLE", "PARKED"),
    ]  # fmt: skip
    assert desk.type("kafka", "status", "--consumer", "other").out == "no positions of other\n"


def test_a_parked_record_is_shown_where_it_is_though_its_id_is_a_header_s(
    desk: Terminal, database_url: str, dev_broker: Broker
) -> None:
    broken.clear()
    broken.add("a1")
    topic = dev_broker.create_topic()
    for n in range(3):
        dev_broker.produce(topic, order(f"a{n}"), key="a", headers=[("refold-id", f"id-{n}")])
    with Watched(
        database_url, dev_broker, topic, workflow=_charging, ordering="key", dedup="refold-id"
    ) as shop:
        shop.wait(lambda: [one.waiting for one in shop.app.parked()] == [1], "the parked record")
        [row] = desk.type("kafka", "parked", "--json").json
        assert (row["topic"], row["partition"], row["offset"], row["key"]) == (topic, 0, 1, "a")
        [status] = desk.type("kafka", "status", "--json").json
        assert (status["topic"], status["parked"]) == (topic, 1)


def test_without_a_broker_the_status_is_shown_without_the_lag(desk: Terminal, shop: Watched) -> None:
    del desk.environment["REFOLD_KAFKA_BOOTSTRAP"]
    said = desk.type("kafka", "status", "--json")
    assert said.code == 0
    assert [row["lag"] for row in said.json] == [None]
    assert said.err == (
        "refold: no broker to ask: REFOLD_KAFKA_BOOTSTRAP is not set (or: --bootstrap-servers HOST:PORT); "
        "LAG is not known\n"
    )


def test_the_connector_reports_each_partition(apache_broker: ApacheBroker, database_url: str) -> None:
    topic = apache_broker.create_topic()
    apache_broker.produce(topic, *(order(n) for n in range(5)))
    with Watched(database_url, apache_broker, topic, workflow=_charging) as shop:
        shop.wait_ended(5)
        shop.wait(lambda: [report.lag for report in shop.connector.report()] == [0], "the lag")
        [report] = shop.connector.report()
    assert (report.label, report.in_flight, report.paused) == ("orders", 0, False)
    assert report.position == f"{topic}[0], next offset 5"
