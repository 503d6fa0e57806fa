"""Brokers that go away, topics that are not there, transactions that are aborted, consumers that come and go."""

import logging
import os
from typing import Any

import pytest
from confluent_kafka import Producer

from fixtures.brokers import ApacheBroker, Broker, MockBroker, TansuBroker
from fixtures.kafka_app import Watched, ask, ended, offsets_moved_to, order, postgres_busy, results
from fixtures.postgres import free_port
from refold.connectors._devbroker import DevBroker


def test_a_broker_that_restarts_is_read_on(apache_broker: ApacheBroker, database_url: str) -> None:
    topic = apache_broker.create_topic()
    with Watched(database_url, apache_broker, topic, check_every=0.5) as shop:
        apache_broker.produce(topic, order("a"))
        shop.wait_ended(1)
        apache_broker.kill()
        apache_broker.start()
        apache_broker.produce(topic, order("b"))
        shop.wait_ended(2)
    assert shop.results() == ["a", "b"]


def test_a_development_broker_that_was_restarted_is_another_cluster(database_url: str) -> None:
    with DevBroker() as process:
        broker = TansuBroker(process)
        for value in ("a", "b"):  # both of them at offset 0 of a topic of this name
            topic = broker.create_topic("orders")
            broker.produce(topic, order(value))
            with Watched(database_url, broker, topic) as shop:
                shop.wait_seen("WorkflowCompleted", 1)
            process.stop()
            process.start()
    assert results(database_url) == ["a", "b"]
    assert len({id.split(":")[2] for id in ended(database_url)}) == 2


def test_brokers_that_cannot_be_reached_are_complained_of_once(
    database_url: str, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    nowhere = Broker(f"127.0.0.1:{free_port()}")
    with caplog.at_level(logging.INFO), Watched(database_url, nowhere, "orders") as shop:
        shop.wait(lambda: "can't reach Kafka" in caplog.text)
        # The loop goes round: it looks again and again, and says nothing more.
        tries = shop.connector.tries
        shop.wait(lambda: shop.connector.tries >= tries + 2)
    assert caplog.text.count("can't reach Kafka at") == 1
    assert f"consumer 'orders': can't reach Kafka at {nowhere.bootstrap}" in caplog.text
    assert "rdkafka" not in "".join(capfd.readouterr())


def test_a_broker_that_goes_away_and_comes_back_is_said_once_each(
    mock_broker: MockBroker,
    database_url: str,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    topic = mock_broker.create_topic()
    with caplog.at_level(logging.INFO), Watched(database_url, mock_broker, topic, check_every=0.5) as shop:
        mock_broker.produce(topic, order("a"))
        shop.wait_ended(1)
        mock_broker.set_down(True)
        shop.wait(lambda: "can't reach Kafka" in caplog.text)
        mock_broker.set_down(False)
        mock_broker.produce(topic, order("b"))
        shop.wait_ended(2)
        shop.wait(lambda: "is there again" in caplog.text)
    assert caplog.text.count("can't reach Kafka") == 1
    assert "rdkafka" not in "".join(capfd.readouterr())


@pytest.mark.parametrize("kind", ["dev_broker", "apache_broker"])
def test_a_topic_that_is_missing_is_named_and_read_once_it_is_there(
    kind: str, request: pytest.FixtureRequest, database_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    broker: Broker = request.getfixturevalue(kind)
    topic = f"late-{os.urandom(4).hex()}"
    with caplog.at_level(logging.WARNING), Watched(database_url, broker, topic) as shop:
        shop.wait(lambda: "does not exist" in caplog.text)
        assert (
            f"consumer 'orders': topic '{topic}' does not exist at {broker.bootstrap}. Create it, or correct the name "
            "in kafka.consumer; it goes on trying"
        ) in caplog.text
        broker.create_topic(topic)
        broker.produce(topic, order("a"))
        shop.wait_ended(1)
    assert caplog.text.count("does not exist") == 1


def test_records_of_an_aborted_transaction_start_nothing(
    apache_broker: ApacheBroker, database_url: str
) -> None:
    topic = apache_broker.create_topic()
    producer = Producer(
        {"bootstrap.servers": apache_broker.bootstrap, "transactional.id": topic, "log_level": 0}
    )
    producer.init_transactions(10)
    for n in range(6):
        producer.begin_transaction()
        producer.produce(topic, order(n))
        producer.flush(10)
        if n % 2:
            producer.abort_transaction(10)
        else:
            producer.commit_transaction(10)
    for _ in range(2):  # the second time from a position among the holes
        with Watched(database_url, apache_broker, topic) as shop:
            shop.wait_ended(3)
            shop.wait(lambda: shop.connector.is_reading())
    assert results(database_url) == ["0", "2", "4"]
    assert set(ended(database_url).values()) == {"completed"}


@pytest.mark.parametrize(
    "config",
    [{}, {"partition.assignment.strategy": "cooperative-sticky"}, {"group.protocol": "consumer"}],
    ids=["eager", "cooperative", "KIP-848"],
)
def test_consumers_that_come_and_go_share_the_work_and_double_nothing(
    apache_broker: ApacheBroker, database_url: str, config: dict[str, Any]
) -> None:
    # A KIP-848 group takes its times from the broker.
    quick = "group.protocol" not in config
    topic = apache_broker.create_topic(partitions=4)

    def produce(what: str) -> None:
        for partition in range(4):
            apache_broker.produce(
                topic, *(order(f"{what}{partition}-{n}") for n in range(25)), partition=partition
            )

    def watched() -> Watched:
        return Watched(database_url, apache_broker, topic, config=config, quick=quick, batch_size=10)

    produce("a")
    with watched() as first:
        first.wait(lambda: first.seen("WorkflowCompleted") > 10)
        with watched() as second:
            produce("b")
            # Shared: the second one has partitions of its own.
            second.wait(lambda: second.connector.is_reading() and first.connector.is_reading())
            produce("c")
            second.wait_ended(300)
        produce("d")
        first.wait_ended(400)
    expected = sorted(f"{what}{p}-{n}" for what in "abcd" for p in range(4) for n in range(25))
    assert results(database_url) == expected
    started = ask(database_url, "select count(*) from refold.events where type = 'WorkflowStarted'")
    assert started == [(400,)]


def test_where_a_new_consumer_begins_is_its_choice_and_said_once(
    apache_broker: ApacheBroker, database_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    from datetime import UTC, datetime

    topic = apache_broker.create_topic(partitions=2)
    apache_broker.produce(topic, order("2020"), timestamp=1_577_836_800_000, partition=0)
    apache_broker.produce(topic, order("2024"), timestamp=1_704_067_200_000, partition=0)
    since = datetime(2022, 1, 1, tzinfo=UTC)
    with caplog.at_level(logging.INFO, "refold.kafka"):
        with Watched(database_url, apache_broker, topic, name="since", start=since) as shop:
            shop.wait_ended(1)
        with Watched(database_url, apache_broker, topic, name="late", start="latest") as late:
            late.wait(late.connector.is_reading)
        # Produced while nobody reads: a position was written down at the first sight of the topic, so none is missed.
        apache_broker.produce(topic, order("next"), partition=1)
        with Watched(database_url, apache_broker, topic, name="late", start="latest") as late:
            late.wait_ended(2)
        with Watched(database_url, apache_broker, topic, name="all") as everything:
            everything.wait_ended(5)
    assert results(database_url) == ["2020", "2024", "2024", "next", "next"]
    assert [
        line.split("it starts at ")[1] for line in caplog.text.splitlines() if "it starts at" in line
    ] == [
        "the first record at or after 2022-01-01T00:00:00+00:00",
        "what is produced from now on",
        "the earliest record",
    ]


def test_a_partition_that_is_added_later_is_read_from_its_start(
    apache_broker: ApacheBroker, database_url: str
) -> None:
    from confluent_kafka.admin import NewPartitions  # type: ignore[attr-defined,unused-ignore]

    topic = apache_broker.create_topic()
    apache_broker.produce(topic, order("before"))
    with Watched(database_url, apache_broker, topic, start="latest") as first:
        first.wait(first.connector.is_reading)
    apache_broker.admin.create_partitions([NewPartitions(topic, 2)])[topic].result()
    apache_broker.produce(topic, order("new"), partition=1)
    with Watched(database_url, apache_broker, topic, start="latest") as second:
        second.wait_ended(1)
    assert second.results() == ["new"]


def test_a_late_consumer_cannot_move_the_position_back(
    apache_broker: ApacheBroker, database_url: str
) -> None:
    """The zombie's hand-over is on its way into Postgres when another consumer's is done."""
    topic = apache_broker.create_topic()
    with Watched(database_url, apache_broker, topic) as zombie:
        apache_broker.produce(topic, order("a"))
        zombie.wait_ended(1)
        with postgres_busy(database_url):
            apache_broker.produce(topic, order("b"))
            zombie.wait(lambda: _waits_for_a_lock(database_url))
            # Another group, so that it gets the partition as well: what a split brain looks like.
            with_another_group = Watched(database_url, apache_broker, topic, group="split")
            with_another_group.__enter__()
        try:
            zombie.wait_ended(2)
            apache_broker.produce(topic, *(order(n) for n in range(20)))
            zombie.wait_ended(22)
        finally:
            with_another_group.__exit__()
    assert zombie.results() == sorted(["a", "b", *map(str, range(20))])
    offsets = offsets_moved_to(database_url)
    assert offsets == sorted(set(offsets)), "the position only ever moved forwards"


def _waits_for_a_lock(database_url: str) -> bool:
    waiting = ask(
        database_url,
        "select 1 from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock'",
    )
    return bool(waiting)
