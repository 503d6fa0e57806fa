"""Publishing from a workflow: through the log, with an ID that every repeat has in common."""

import asyncio
import subprocess
import sys
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from confluent_kafka import KafkaError

import refold
from fixtures.brokers import ApacheBroker, Broker, MockBroker, NewTopic
from fixtures.kafka_app import Order, Watched, order, records
from fixtures.workers import wait_for
from refold import App
from refold.connectors import kafka
from refold.core import Workflow
from refold.eventlog._events import StepCompleted

TRACE = b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@pytest.fixture
def env_broker(broker: Broker, monkeypatch: pytest.MonkeyPatch) -> Broker:
    """Each broker in turn, the one that the environment names."""
    monkeypatch.setenv("REFOLD_KAFKA_BOOTSTRAP", broker.bootstrap)
    return broker


@pytest.fixture
def app(database_url: str) -> Iterator[App]:
    made = App("shop", database_url=database_url)
    yield made
    made.close()


def test_a_workflow_publishes_and_goes_on_when_the_broker_has_it(env_broker: Broker, app: App) -> None:
    topic = env_broker.create_topic()

    @app.workflow
    def ship() -> kafka.Published:
        kafka.publish(topic, b"\x00\xff raw", key=b"\xfe")
        kafka.publish(topic, "text", key="k", headers={"who": "ada", "none": None})
        kafka.publish(topic, None, key="k")
        return kafka.publish(topic, {"order": Order("o-1"), "tags": {"b", "a"}}, partition=0)

    with app:
        handle = ship.options(id="ship-1").start()
        published = handle.result(timeout=60)
    raw, text, gone, value = records(env_broker, topic, 4)
    assert (raw.value(), raw.key()) == (b"\x00\xff raw", b"\xfe")
    assert (text.value(), text.key()) == (b"text", b"k")
    assert text.headers() == [("who", b"ada"), ("none", None), ("refold-id", b"ship-1/1")]
    assert gone.value() is None
    assert value.value() == b'{"order":{"id":"o-1","amount":1},"tags":["a","b"]}'
    assert value.headers() == [("refold-id", b"ship-1/3")]
    assert published == kafka.Published(topic, 0, 3, "ship-1/3")
    steps = [one.event.name for one in app.history("ship-1") if isinstance(one.event, StepCompleted)]
    assert steps == ["kafka.publish"] * 4


def test_async_workflows_publish_side_by_side(env_broker: Broker, app: App) -> None:
    topic = env_broker.create_topic()

    @app.workflow
    async def ship() -> list[str]:
        done = await asyncio.gather(*(kafka.apublish(topic, n) for n in range(20)))
        return [one.id for one in done]

    with app:
        ids = ship.options(id="many").start().result(timeout=60)
    assert ids == [f"many/{n}" for n in range(20)]
    found = records(env_broker, topic, 20)
    assert sorted(int(one.value() or b"") for one in found) == list(range(20))


def test_the_wrong_colour_is_named(app: App) -> None:
    @app.workflow
    async def ship() -> None:
        kafka.publish("orders", 1)

    with app, pytest.raises(refold.WrongCall, match="called in an async def workflow"):
        ship.start().result(timeout=30)


def test_outside_of_a_workflow_each_call_is_a_record_of_its_own(env_broker: Broker) -> None:
    topic = env_broker.create_topic()
    first = kafka.publish(topic, 1)
    again = asyncio.run(kafka.apublish(topic, 1))
    named = kafka.publish(topic, 1, id="mine")
    assert len({first.id, again.id, named.id}) == 3
    assert [dict(one.headers() or [])["refold-id"] for one in records(env_broker, topic, 3)] == [
        first.id.encode(), again.id.encode(), b"mine",
    ]  # fmt: skip


def test_a_trace_goes_on_from_the_record_to_what_its_workflow_publishes(
    broker: Broker, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REFOLD_KAFKA_BOOTSTRAP", broker.bootstrap)
    out = broker.create_topic()

    def workflow(app: App) -> Workflow[..., Any]:
        @app.workflow
        def on_order(message: kafka.Message[Order]) -> str:
            kafka.publish(out, message.value)
            kafka.publish(out, message.value, headers={"traceparent": "another"})
            return message.trace["traceparent"].decode()

        return on_order

    topic = broker.create_topic()
    broker.produce(topic, order("a"), headers=[("traceparent", TRACE), ("tracestate", b"x=1"), ("more", b"")])
    with Watched(database_url, broker, topic, workflow=workflow) as shop:
        shop.wait_ended(1)
    assert shop.results() == [TRACE.decode()]
    one, other = (dict(record.headers() or []) for record in records(broker, out, 2))
    assert str(one.pop("refold-id")).endswith(":0/0'")
    assert one == {"traceparent": TRACE, "tracestate": b"x=1"}
    assert other["traceparent"] == b"another"
    assert "tracestate" not in other


def test_a_repeat_after_a_crash_has_the_same_id(
    mock_broker: MockBroker, app: App, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The worker dies after the broker has the record and before the log has the answer: the record is there twice."""
    monkeypatch.setenv("REFOLD_KAFKA_BOOTSTRAP", mock_broker.bootstrap)
    topic = mock_broker.create_topic()

    @app.workflow
    def ship() -> str:
        return kafka.publish(topic, 1).id

    program = (
        "import os, sys\n"
        "from refold import App\n"
        "from refold.connectors import kafka\n"
        "from refold.connectors.kafka import _producers\n"
        "app = App('shop')\n"
        "@app.workflow\n"
        "def ship() -> str:\n"
        f"    return kafka.publish({topic!r}, 1).id\n"
        "send = _producers.ProducerClient.send\n"
        "async def then_die(*args):\n"
        "    await send(*args)\n"
        "    os._exit(9)\n"
        "_producers.ProducerClient.send = then_die\n"
        "app.run()\n"
    )
    ship.options(id="ship-1").start()
    environment = {
        "REFOLD_DATABASE_URL": app.database_url or "",
        "REFOLD_KAFKA_BOOTSTRAP": mock_broker.bootstrap,
    }
    died = subprocess.run([sys.executable, "-c", program], env=environment, timeout=90)
    assert died.returncode == 9
    with app:
        assert app.get("ship-1").result(timeout=60) == "ship-1/0"
    one, again = records(mock_broker, topic, 2)
    assert one.headers() == again.headers() == [("refold-id", b"ship-1/0")]


@contextmanager
def _attempts(app: App) -> Iterator[Callable[[int], None]]:
    """Wait until that many tries of steps have failed."""
    failed = threading.Semaphore(0)

    def saw(_: str, recorded: Any) -> None:
        if type(recorded.event).__name__ in ("StepAttemptFailed", "StepFailed"):
            failed.release()

    def wait(count: int) -> None:
        for _ in range(count):
            assert failed.acquire(timeout=60)

    app.observe(saw)
    yield wait


def test_while_the_brokers_are_away_it_is_tried_again(mock_broker: MockBroker, app: App) -> None:
    topic = mock_broker.create_topic()
    shop = kafka.Producer(
        f"shop-{topic}", bootstrap_servers=mock_broker.bootstrap, config={"message.timeout.ms": 300}
    )

    @app.workflow
    def ship() -> str:
        return shop.publish(topic, 1).id

    with _attempts(app) as wait_attempts, app:
        mock_broker.set_down(True)
        try:
            handle = ship.options(id="ship-1").start()
            wait_attempts(1)
        finally:
            mock_broker.set_down(False)
        assert handle.result(timeout=60) == "ship-1/0"
    [record] = records(mock_broker, topic, 1)
    assert record.value() == b"1"


@pytest.mark.raises_error("PublishRefused")
def test_a_record_that_no_broker_will_take_is_an_error_in_the_workflow(
    apache_broker: ApacheBroker, app: App
) -> None:
    topic = apache_broker.create_topic()
    shop = kafka.Producer(
        f"refused-{topic}",
        bootstrap_servers=apache_broker.bootstrap,
        config={"topic.metadata.propagation.max.ms": 100, "message.max.bytes": 2_000},
    )

    @app.workflow
    def ship(topic: str, size: int) -> str:
        try:
            return shop.publish(topic, "x" * size).topic
        except kafka.PublishRefused as refused:
            return f"{refused.code} {refused}"

    with app:
        missing = ship.start("nowhere", 1).result(timeout=60)
        large = ship.start(topic, 5_000).result(timeout=60)
    advice = (
        "It was not published. Create the topic, correct its name or the size of the value, or give this program "
        "the right to write."
    )
    assert missing in (
        f"{KafkaError.UNKNOWN_TOPIC_OR_PART} Kafka refused a record for topic 'nowhere': "
        f"Broker: Unknown topic or partition. {advice}",
        f"{KafkaError._UNKNOWN_TOPIC} Kafka refused a record for topic 'nowhere': "
        f"Local: Unknown topic. {advice}",
    )
    assert large.startswith(f"{KafkaError.MSG_SIZE_TOO_LARGE} Kafka refused a record for topic {topic!r}: ")
    assert large.endswith(advice)


def test_records_that_only_together_are_too_large_for_their_topic_are_published(
    apache_broker: ApacheBroker, app: App
) -> None:
    """A broker measures batches, and refuses one as a whole. Only what is too large by itself is refused for good."""
    topic = f"small-{uuid.uuid4().hex[:10]}"
    small = NewTopic(topic, 1, 1, config={"max.message.bytes": "5000"})
    apache_broker.admin.create_topics([small])[topic].result()
    # Time to gather them in one batch.
    slow = kafka.Producer(topic, bootstrap_servers=apache_broker.bootstrap, config={"linger.ms": 200})

    @app.workflow
    async def ship(sizes: list[int]) -> list[str]:
        done = await asyncio.gather(
            *(slow.apublish(topic, "x" * size) for size in sizes), return_exceptions=True
        )
        return [type(one).__name__ for one in done]

    with app:
        assert ship.start([1_000] * 8 + [6_000]).result(timeout=60) == ["Published"] * 8 + ["PublishRefused"]
    assert [len(one.value() or b"") for one in records(apache_broker, topic, 8)] == [1_000] * 8


def test_after_a_fatal_error_a_new_client_goes_on_and_the_old_one_ends(
    mock_broker: MockBroker, app: App
) -> None:
    """The client tells of it by an exception where it is polled, and reports nothing of what it holds."""
    topic = mock_broker.create_topic()
    shop = kafka.Producer(f"fatal-{topic}", bootstrap_servers=mock_broker.bootstrap)

    @app.workflow
    def ship() -> str:
        try:
            return shop.publish(topic, 1).id
        except kafka.PublishRefused as refused:
            return refused.reason

    before = _producer_threads()
    mock_broker.refuse(mock_broker.INIT_PRODUCER_ID, KafkaError.CLUSTER_AUTHORIZATION_FAILED)
    with app:
        refused = ship.start().result(timeout=60)
        assert ship.options(id="ship-2").start().result(timeout=60) == "ship-2/0"
    assert "Cluster authorization failed" in refused
    assert records(mock_broker, topic, 1)[0].value() == b"1"
    wait_for(lambda: len(_producer_threads() - before) == 1, "the end of the broken client")


def _producer_threads() -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if thread.name == "refold-kafka-producer"}


def test_a_value_that_is_no_json_is_refused_where_it_is_published() -> None:
    with pytest.raises(refold.ValueRefused, match="a object cannot be written as JSON"):
        kafka.publish("orders", object())


def test_a_producer_refuses_what_would_break_its_promise() -> None:
    for config, words in (
        ({"transactional.id": "x"}, "may not set 'transactional.id'"),
        ({"enable.idempotence": False}, "may not set 'enable.idempotence' to False"),
        ({"acks": 1}, "may not set 'acks' to 1"),
        ({"bootstrap.servers": "x"}, "Use bootstrap_servers="),
    ):
        with pytest.raises(refold.DefinitionRefused, match=words):
            kafka.Producer("refused", config=config)
    kafka.Producer("audit", bootstrap_servers="a:1")
    kafka.Producer("audit", bootstrap_servers="a:1")  # the same, imported twice
    with pytest.raises(refold.DefinitionRefused, match="another producer of that name"):
        kafka.Producer("audit", bootstrap_servers="b:1")


def test_a_consumer_starts_one_workflow_for_all_repeats_of_a_published_record(
    broker: Broker, database_url: str
) -> None:
    topic = broker.create_topic(partitions=2)
    for partition, id, header in ((0, "a", b"ship-1/0"), (1, "a again", b"ship-1/0"), (0, "b", b"ship-1/1")):
        broker.produce(topic, order(id), partition=partition, headers=[("refold-id", header)])
    broker.produce(topic, order("c"), order("d"), partition=0)
    with Watched(database_url, broker, topic, dedup="refold-id", batch_size=1) as shop:
        shop.wait_ended(4)
        broker.produce(topic, order("b again"), partition=1, headers=[("refold-id", b"ship-1/1")])
        broker.produce(topic, order("e"), partition=1)
        shop.wait_ended(5)
    found = [result.removesuffix(" again") for result in shop.results()]
    assert found == ["a", "b", "c", "d", "e"]


def test_readers_find_the_id_in_the_last_header_of_its_name() -> None:
    message = kafka.Message(value=1, headers=(("refold-id", b"old"), ("refold-id", b"ship-1/2")))
    assert kafka.message_id(message) == "ship-1/2"
    assert kafka.message_id(kafka.Message(value=1)) is None


def test_a_program_that_ends_has_flushed(mock_broker: MockBroker) -> None:
    """What another thread of a program is publishing when it ends is in the brokers' hands at its end."""
    topic = mock_broker.create_topic()
    program = (
        "import asyncio, threading\n"
        "from refold.connectors import kafka\n"
        f"shop = kafka.Producer('shop', config={{'linger.ms': 700}})\n"
        "async def begin():\n"
        f"    asyncio.ensure_future(shop.apublish({topic!r}, 1))\n"
        "    await asyncio.sleep(0)\n"
        "    await asyncio.sleep(0)\n"
        "asyncio.run(begin())\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={"REFOLD_KAFKA_BOOTSTRAP": mock_broker.bootstrap},
        timeout=60,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert [record.value() for record in records(mock_broker, topic, 1)] == [b"1"]
