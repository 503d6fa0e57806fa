"""Records in order: those of a key, or of a partition, one after the other; a failed one parks only its own."""

import threading
from collections import defaultdict
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

import refold
from fixtures.brokers import Broker
from fixtures.kafka_app import Order, Watched, ask, ended, order
from refold import App
from refold.connectors import kafka
from refold.core import Workflow


class Floor:
    """What records do in their steps, as it happened: (order, record, "in" or "out")."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.happened: list[tuple[str, str, str]] = []
        self.meetings: dict[str, threading.Barrier] = {}
        self.broken: set[str] = set()

    def workflow(
        self, order_of: Callable[[kafka.Message[Order]], str]
    ) -> Callable[[App], Workflow[..., Any]]:
        """Return a workflow of two steps; `order_of` says in which order a record belongs."""

        @refold.step
        def enter(order: str, id: str) -> None:
            with self._lock:
                self.happened.append((order, id, "in"))
            if id in self.meetings:
                self.meetings[id].wait(60)

        @refold.step
        def leave(order: str, id: str) -> str:
            if id in self.broken:
                raise RuntimeError(f"{id} is broken")
            with self._lock:
                self.happened.append((order, id, "out"))
            return id

        def made(app: App) -> Workflow[..., Any]:
            @app.workflow
            def on_order(message: kafka.Message[Order]) -> str:
                enter(order_of(message), message.value.id)
                return leave(order_of(message), message.value.id)

            return on_order

        return made

    def orders(self) -> dict[str, list[str]]:
        """Return the records of each order as they came; fails if one came before the one before it had left."""
        found: dict[str, list[str]] = defaultdict(list)
        inside: dict[str, str] = {}
        for name, id, what in self.happened:
            if what == "in":
                assert name not in inside, f"{id} came in while {inside.get(name)} was inside"
                inside[name] = id
                found[name].append(id)
            else:
                assert inside.pop(name, None) == id
        return dict(found)


def by_key(message: kafka.Message[Order]) -> str:
    return (message.key or b"none").decode()


def by_partition(message: kafka.Message[Order]) -> str:
    return str(message.partition)


def test_records_of_a_key_run_one_after_the_other_and_keys_side_by_side(
    broker: Broker, database_url: str
) -> None:
    floor, topic = Floor(), broker.create_topic(partitions=2)
    # The first of each key waits for that of the other: they would wait in vain if keys did not run side by side.
    meeting = threading.Barrier(2)
    floor.meetings = {"a0": meeting, "b0": meeting}
    for n in range(10):
        for key in "ab":
            broker.produce(topic, order(f"{key}{n}"), key=key, partition=0)
        broker.produce(topic, order(f"c{n}"), key="c", partition=1)
        broker.produce(topic, order(f"n{n}"), partition=0)
    with Watched(
        database_url, broker, topic, workflow=floor.workflow(by_key), ordering="key", batch_size=7
    ) as shop:
        shop.wait_ended(40)
    wanted = {name: [f"{name[0]}{n}" for n in range(10)] for name in ("a", "b", "c", "none")}
    assert floor.orders() == wanted


def test_records_of_a_partition_run_one_after_the_other_and_partitions_side_by_side(
    broker: Broker, database_url: str
) -> None:
    floor, topic = Floor(), broker.create_topic(partitions=2)
    meeting = threading.Barrier(2)
    floor.meetings = {"0-0": meeting, "1-0": meeting}
    for partition in (0, 1):
        for n in range(10):
            broker.produce(topic, order(f"{partition}-{n}"), key=str(n % 3), partition=partition)
    with Watched(
        database_url, broker, topic, workflow=floor.workflow(by_partition), ordering="partition", batch_size=7
    ) as shop:
        shop.wait_ended(20)
    assert floor.orders() == {part: [f"{part}-{n}" for n in range(10)] for part in ("0", "1")}


_PROTOCOLS = [
    ("apache", {}),
    ("apache", {"partition.assignment.strategy": "cooperative-sticky"}),
    ("apache", {"group.protocol": "consumer"}),
    ("tansu", {"partition.assignment.strategy": "cooperative-sticky"}),
    ("mock", {"group.protocol": "consumer"}),
]


@pytest.mark.parametrize(
    ("where", "config"),
    _PROTOCOLS,
    ids=["apache-eager", "apache-cooperative", "apache-KIP-848", "tansu-cooperative", "mock-KIP-848"],
)
def test_keys_stay_in_order_while_consumers_come_and_go(
    request: pytest.FixtureRequest, database_url: str, where: str, config: dict[str, Any]
) -> None:
    """Two workers share one floor: a record that ran on one while its predecessor was on the other would be seen."""
    names = {"apache": "apache_broker", "tansu": "dev_broker", "mock": "mock_broker"}
    broker: Broker = request.getfixturevalue(names[where])
    floor, topic = Floor(), broker.create_topic(partitions=4)
    group = f"order-{topic}"
    numbers = dict.fromkeys("abcdefgh", 0)

    def produce() -> None:
        for _ in range(8):
            for i, key in enumerate(numbers):
                broker.produce(topic, order(f"{key}{numbers[key]}"), key=key, partition=i % 4)
                numbers[key] += 1

    def watched() -> Watched:
        return Watched(
            database_url, broker, topic, workflow=floor.workflow(by_key), ordering="key", group=group,
            config=config, quick="group.protocol" not in config, batch_size=5,
        )  # fmt: skip

    with watched() as first:
        produce()
        first.wait(lambda: first.seen("WorkflowCompleted") > 10)
        with watched() as second:
            produce()
            second.wait(lambda: second.connector.is_reading() and first.connector.is_reading())
            produce()
            second.wait_ended(3 * 64)
        produce()
        first.wait_ended(4 * 64)
    assert floor.orders() == {key: [f"{key}{n}" for n in range(32)] for key in numbers}


def test_without_an_ordering_records_of_a_key_run_side_by_side(dev_broker: Broker, database_url: str) -> None:
    floor, topic = Floor(), dev_broker.create_topic()
    meeting = threading.Barrier(2)
    floor.meetings = {"a0": meeting, "a1": meeting}
    dev_broker.produce(topic, order("a0"), order("a1"), key="a")
    with Watched(database_url, dev_broker, topic, workflow=floor.workflow(by_key)) as shop:
        shop.wait_ended(2)
    assert ask(database_url, "select count(*) from refold.workflows where order_key is not null") == [(0,)]


def test_a_record_that_cannot_be_decoded_parks_its_own_key_and_no_other(
    broker: Broker, database_url: str
) -> None:
    floor, topic = Floor(), broker.create_topic()
    broker.produce(topic, order("a0"), b"no json", order("a2"), order("a3"), key="a")
    broker.produce(topic, order("b0"), order("b1"), key="b")
    with Watched(database_url, broker, topic, workflow=floor.workflow(by_key), ordering="key") as shop:
        shop.wait_ended(3)
        shop.wait(lambda: len(shop.app.parked()) == 1, "the parked record")
        [parked] = shop.app.parked()
        seen = kafka.describe_parked(parked)
        assert (seen.topic, seen.partition, seen.offset, seen.key, seen.waiting) == (topic, 0, 1, "a", 2)
        assert seen.error.startswith(f"DecodeFailed: the value of record 1 in {topic}[0] does not fit")
        assert floor.orders() == {"a": ["a0"], "b": ["b0", "b1"]}
        shop.app.skip(parked.id, "no order")
        statuses = shop.wait_ended(6)
    assert statuses[parked.id] == "failed"
    assert floor.orders() == {"a": ["a0", "a2", "a3"], "b": ["b0", "b1"]}


def test_a_failed_record_parks_its_key_until_it_is_retried(broker: Broker, database_url: str) -> None:
    floor, topic = Floor(), broker.create_topic()
    floor.broken = {"a1", "a3"}
    broker.produce(topic, *(order(f"a{n}") for n in range(5)), key="a")
    broker.produce(topic, *(order(f"b{n}") for n in range(3)), key="b")
    with Watched(database_url, broker, topic, workflow=floor.workflow(by_key), ordering="key") as shop:
        shop.wait_ended(4)
        shop.wait(lambda: len(shop.app.parked()) == 1, "the parked record")
        [parked] = shop.app.parked()
        assert kafka.describe_parked(parked).error == "RuntimeError: a1 is broken"
        assert kafka.describe_parked(parked).waiting == 3
        floor.broken = {"a3"}
        assert shop.app.retry(parked.id) == ["leave"]
        shop.wait(lambda: [p.order_no for p in shop.app.parked()] == [3], "the next one that fails")
        shop.app.skip(shop.app.parked()[0].id)
        shop.wait_ended(8)
    # `enter` of the retried one was recorded and did not run again.
    assert [id for name, id, what in floor.happened if (name, what) == ("a", "in")] == [
        f"a{n}" for n in range(5)
    ]
    assert [id for name, id, what in floor.happened if (name, what) == ("a", "out")] == [
        "a0",
        "a1",
        "a2",
        "a4",
    ]
    assert shop.results() == ["a0", "a1", "a2", "a4", "b0", "b1", "b2"]


def test_what_waits_behind_a_parked_key_does_not_stop_the_topic(
    dev_broker: Broker, database_url: str
) -> None:
    """Of 300 records 200 wait behind a poison one, and only 50 may be in flight."""
    floor, topic = Floor(), dev_broker.create_topic()
    dev_broker.produce(topic, b"no json", *(order(f"a{n}") for n in range(200)), key="a")
    for n in range(100):
        dev_broker.produce(topic, order(f"b{n}"), key=f"b{n % 10}")
    with Watched(
        database_url, dev_broker, topic, workflow=floor.workflow(by_key), ordering="key",
        max_in_flight=50, batch_size=20, count_every=0.05,
    ) as shop:  # fmt: skip
        shop.wait_ended(100)
        [parked] = shop.app.parked()
        assert parked.waiting == 200
        shop.app.skip(parked.id)
        shop.wait_ended(301)
    assert floor.orders()["a"] == [f"a{n}" for n in range(200)]


def test_a_topic_made_again_has_orders_of_its_own(mock_broker: Broker, database_url: str) -> None:
    """Its offsets begin at 0 again: they are no places among those of the old one, which is still waiting."""
    floor, topic = Floor(), mock_broker.create_topic()
    mock_broker.produce(topic, b"no json", order("a1"), key="a", timestamp=1_000)
    with Watched(database_url, mock_broker, topic, workflow=floor.workflow(by_key), ordering="key") as first:
        first.wait(lambda: [p.waiting for p in first.app.parked()] == [1], "the parked record")
    mock_broker.delete_topic(topic)
    mock_broker.create_topic(topic)
    mock_broker.produce(topic, order("new0"), order("new1"), key="a", timestamp=2_000)
    with Watched(database_url, mock_broker, topic, workflow=floor.workflow(by_key), ordering="key") as second:
        second.wait_ended(2)
        assert [p.waiting for p in second.app.parked()] == [1]
    assert second.results() == ["new0", "new1"]


@pytest.mark.parametrize("ordering", ["keys", "", None])
def test_an_unknown_ordering_is_refused(ordering: Any) -> None:
    with pytest.raises(refold.DefinitionRefused, match='Use "none", "partition" or "key"'):
        kafka.consumer("t", ordering=ordering)


def _to_nobody(_: kafka.Message[Any]) -> None:
    return None


@pytest.mark.parametrize("topics", [("t",), ("u", "t"), ("^t",), ("^(t|u)$",), ("u", "^[a-t].*")])
def test_dead_letters_do_not_go_where_they_come_from(topics: tuple[str, ...]) -> None:
    """One that came back would fail again, and make another one, for ever."""
    with pytest.raises(refold.DefinitionRefused, match="Give a topic that it does not read itself"):
        kafka.consumer(*topics, dead_letter="t")
    with pytest.raises(refold.DefinitionRefused, match="Give a topic that it does not read itself"):
        kafka.signal(*topics, to=_to_nobody, topic="x", dead_letter="t")


def test_dead_letters_may_go_beside_what_is_read_by_a_pattern() -> None:
    kafka.consumer("^t[.]", "^(?!", dead_letter="t")


@pytest.mark.parametrize("declare", [kafka.consumer, partial(kafka.signal, to=_to_nobody, topic="x")])
def test_a_header_without_a_name_is_refused(declare: Any) -> None:
    with pytest.raises(refold.DefinitionRefused, match='Name a header, like "refold-id"'):
        declare("t", dedup="")


def test_statuses_tell_who_waits_for_whom(dev_broker: Broker, database_url: str) -> None:
    topic = dev_broker.create_topic()
    dev_broker.produce(topic, b"no json", order("a1"), key="a")
    with Watched(database_url, dev_broker, topic, workflow=Floor().workflow(by_key), ordering="key") as shop:
        shop.wait(lambda: [p.waiting for p in shop.app.parked()] == [1], "the parked record")
        rows = ask(database_url, "select status from refold.workflows order by order_no")
        assert rows == [("parked",), ("waiting",)]
        assert ended(database_url) == {}
