"""Dead letters: a record whose workflow failed is in its topic, as it was, and its order has gone on."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import refold
from fixtures.brokers import ApacheBroker, Broker
from fixtures.kafka_app import Order, Watched, ended, headers, order, records
from fixtures.workers import wait_for
from refold import App
from refold.connectors import kafka
from refold.core import Workflow


@refold.step
def check(order: Order) -> str:
    if order.id.startswith("bad"):
        raise RuntimeError(f"{order.id} is bad")
    return order.id


def checking(app: App) -> Workflow[..., Any]:
    @app.workflow
    def on_order(message: kafka.Message[Order]) -> str:
        return check(message.value)

    return on_order


@pytest.mark.parametrize("ordering", ["none", "key", "partition"])
def test_a_failed_record_goes_to_its_topic_as_it_was_and_its_order_goes_on(
    broker: Broker, database_url: str, ordering: kafka.Ordering
) -> None:
    topic, letters = broker.create_topic(), broker.create_topic()
    broker.produce(topic, order("a"), key="k")
    broker.produce(
        topic, b'{ "id": "bad" }', b"\xff no json", None, b"null", key=b"\xfek",
        headers=[("trace", b"\x00"), ("none", None)],
    )  # fmt: skip
    broker.produce(topic, order("b"), key=b"\xfek")
    with Watched(
        database_url, broker, topic, workflow=checking, ordering=ordering, dead_letter=letters
    ) as shop:
        found = records(broker, letters, 4)
        shop.wait(lambda: shop.app.parked() == [] and len(ended(database_url)) == 10, "their ends")
    by_offset = sorted(found, key=lambda record: int(dict(headers(record))["x-dlq-offset"] or b""))
    assert [record.value() for record in by_offset] == [b'{ "id": "bad" }', b"\xff no json", None, b"null"]
    first = by_offset[0]
    assert first.key() == b"\xfek"
    assert headers(first)[:2] == [("trace", b"\x00"), ("none", None)]
    said = dict(headers(first)[2:])
    assert (said["x-dlq-topic"], said["x-dlq-partition"], said["x-dlq-offset"]) == (
        topic.encode(),
        b"0",
        b"1",
    )
    assert said["x-dlq-error"] == b"RuntimeError: bad is bad"
    assert said["x-dlq-consumer"] == b"orders"
    assert ended(database_url)[(said["x-dlq-workflow"] or b"").decode()] == "failed"
    assert len({dict(headers(record))["refold-id"] for record in found}) == 4
    assert (dict(headers(by_offset[1]))["x-dlq-error"] or b"").startswith(
        b"DecodeFailed: the value of record 2"
    )
    statuses = list(ended(database_url).values())
    assert (statuses.count("failed"), statuses.count("completed")) == (4, 6)  # a, b and the letters


def test_a_letter_waits_for_its_topic(apache_broker: ApacheBroker, database_url: str) -> None:
    """While the topic is not there the record stays parked: nothing is given up."""
    topic, letters = apache_broker.create_topic(), f"letters-{os.urandom(4).hex()}"
    apache_broker.produce(topic, order("bad"), order("b"), key="k")
    shop = Watched(
        database_url, apache_broker, topic, workflow=checking, ordering="key", dead_letter=letters,
        config={"socket.connection.setup.timeout.ms": 5_000},
    )  # fmt: skip
    with shop:
        shop.wait(lambda: [one.waiting for one in shop.app.parked()] == [1], "the parked record")
        shop.wait(lambda: _tries(shop) >= 1, "a try without the topic")
        assert len(shop.app.parked()) == 1
        apache_broker.create_topic(letters)
        [letter] = records(apache_broker, letters, 1)
        shop.wait_ended(3)
    assert letter.value() == order("bad")


def _tries(shop: Watched) -> int:
    return shop.seen("StepFailed")


PROGRAM = """
import os, sys
from typing import Any
import refold
from refold import App
from refold.connectors import kafka
from refold.connectors.kafka import _dead_letters, _publish

app = App("shop")
topic, letters, point = sys.argv[1:]

@kafka.consumer(topic, name="orders", group=f"orders-{os.getpid()}", ordering="key", dead_letter=letters,
                config={"session.timeout.ms": 1500, "heartbeat.interval.ms": 200})
@app.workflow
def on_order(message: kafka.Message[Any]) -> str:
    if message.value["id"].startswith("bad"):
        raise RuntimeError("bad")
    return message.value["id"]

def die(*_: Any) -> None:
    os.kill(os.getpid(), 9)

if point == "before the letter is begun":
    _dead_letters.DeadLetters._begin = die
elif point == "before it is produced":
    _publish.Sender.send = die
elif point == "after it was produced":
    send = _publish.Sender.send
    async def then_die(self: Any, outgoing: Any) -> Any:
        await send(self, outgoing)
        die()
    _publish.Sender.send = then_die
elif point == "before the order goes on":
    app.askip = die
elif point == "after the order went on":
    skip = app.askip
    async def skip_and_die(*args: Any) -> None:
        await skip(*args)
        die()
    app.askip = skip_and_die
app.run()
"""


@pytest.mark.parametrize(
    "point",
    [
        "before the letter is begun",
        "before it is produced",
        "after it was produced",
        "before the order goes on",
        "after the order went on",
    ],
)
def test_a_letter_is_not_lost_wherever_the_worker_dies(
    dev_broker: Broker, database_url: str, tmp_path: Path, point: str
) -> None:
    topic, letters = dev_broker.create_topic(), dev_broker.create_topic()
    dev_broker.produce(topic, order("bad"), order("b"), key="k")
    program = tmp_path / "shop.py"
    program.write_text(PROGRAM)
    environment = {
        **os.environ,
        "REFOLD_DATABASE_URL": database_url,
        "REFOLD_KAFKA_BOOTSTRAP": dev_broker.bootstrap,
    }
    died = subprocess.run([sys.executable, str(program), topic, letters, point], env=environment, timeout=100)
    assert died.returncode == -signal.SIGKILL
    second = subprocess.Popen([sys.executable, str(program), topic, letters, "none"], env=environment)
    try:
        wait_for(
            lambda: list(ended(database_url).values()).count("completed") == 2,
            "the letter and the next record",
        )
        count = 2 if point == "after it was produced" else 1
        found = records(dev_broker, letters, count)
    finally:
        second.terminate()
        second.wait(30)
    assert {record.value() for record in found} == {order("bad")}
    # A repeat is known by its ID.
    assert len({dict(headers(record))["refold-id"] for record in found}) == 1
    assert list(ended(database_url).values()).count("failed") == 1
