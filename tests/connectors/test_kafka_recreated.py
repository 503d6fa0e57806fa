"""A topic that is deleted and made again is another topic: same name, same offsets, other records.

librdkafka says nothing of it and goes on at the old offset. On Apache Kafka, because it does both for real; the mock
cluster stands for brokers that don't describe their topics.
"""

import re

import pytest

from fixtures.brokers import ApacheBroker, MockBroker
from fixtures.kafka_app import Watched, ended, gaps, order


@pytest.mark.parametrize(
    ("count", "check_every"),
    # Fewer: the broker refuses the old offset. As many: there is nothing to read, only the check now and then finds
    # it. More: the client reads on at the old offset, and only the look before the hand-over finds it.
    [(3, 600.0), (10, 0.5), (15, 600.0)],
    ids=["fewer", "as many", "more"],
)
def test_every_record_of_the_new_topic_runs_when_it_was_made_again_under_a_live_consumer(
    apache_broker: ApacheBroker, database_url: str, count: int, check_every: float
) -> None:
    topic = apache_broker.create_topic()
    apache_broker.produce(topic, *(order(f"old{n}") for n in range(10)))
    with Watched(database_url, apache_broker, topic, check_every=check_every) as shop:
        shop.wait_ended(10)
        apache_broker.delete_topic(topic)
        apache_broker.create_topic(topic)
        apache_broker.produce(topic, *(order(f"new{n}") for n in range(count)))
        shop.wait_ended(10 + count)
        apache_broker.produce(topic, order("last"))
        shop.wait_ended(10 + count + 1)
    expected = [f"old{n}" for n in range(10)] + [f"new{n}" for n in range(count)] + ["last"]
    assert shop.results() == sorted(expected)
    assert any("the topic was deleted and made again" in gap for gap in gaps(database_url))


def test_every_record_of_the_new_topic_runs_when_it_was_made_again_while_nobody_read(
    apache_broker: ApacheBroker, database_url: str
) -> None:
    topic = apache_broker.create_topic()
    apache_broker.produce(topic, order("old0"), order("old1"))
    with Watched(database_url, apache_broker, topic) as first:
        first.wait_ended(2)
    old_id = apache_broker.topic_id(topic)
    apache_broker.delete_topic(topic)
    apache_broker.create_topic(topic)
    assert apache_broker.topic_id(topic) != old_id
    apache_broker.produce(topic, *(order(f"new{n}") for n in range(4)))
    with Watched(database_url, apache_broker, topic) as second:
        second.wait_ended(6)
    assert second.results() == ["new0", "new1", "new2", "new3", "old0", "old1"]
    assert len({re.split(":", id)[4] for id in ended(database_url)}) == 2


def test_without_topic_ids_the_timestamp_tells_the_topics_apart(
    mock_broker: MockBroker, database_url: str
) -> None:
    topic = mock_broker.create_topic()
    mock_broker.produce(topic, order("old0"), order("old1"), timestamp=1_000)
    with Watched(database_url, mock_broker, topic) as first:
        first.wait_ended(2)
    mock_broker.delete_topic(topic)
    mock_broker.create_topic(topic)
    mock_broker.produce(topic, *(order(f"new{n}") for n in range(4)), timestamp=2_000)
    with Watched(database_url, mock_broker, topic) as second:
        second.wait_ended(6)
    assert second.results() == ["new0", "new1", "new2", "new3", "old0", "old1"]
    assert {id.split(":")[4] for id in ended(database_url)} == {"@1000", "@2000~1"}


def test_without_topic_ids_an_offset_that_goes_backwards_is_a_new_topic(
    mock_broker: MockBroker, database_url: str
) -> None:
    topic = mock_broker.create_topic()
    mock_broker.produce(topic, *(order(f"old{n}") for n in range(5)), timestamp=1_000)
    with Watched(database_url, mock_broker, topic) as first:
        first.wait_ended(5)
    mock_broker.delete_topic(topic)
    mock_broker.create_topic(topic)
    mock_broker.produce(topic, order("new0"), timestamp=2_000)
    with Watched(database_url, mock_broker, topic) as second:
        second.wait_ended(6)
    assert second.results() == ["new0", "old0", "old1", "old2", "old3", "old4"]


def test_without_topic_ids_the_same_topic_goes_on(mock_broker: MockBroker, database_url: str) -> None:
    topic = mock_broker.create_topic()
    mock_broker.produce(topic, order("a"), order("b"))
    with Watched(database_url, mock_broker, topic) as first:
        first.wait_ended(2)
    mock_broker.produce(topic, order("c"))
    with Watched(database_url, mock_broker, topic) as second:
        second.wait_ended(3)
    assert second.results() == ["a", "b", "c"]
    assert second.seen("WorkflowStarted") == 1
    assert gaps(database_url) == []
