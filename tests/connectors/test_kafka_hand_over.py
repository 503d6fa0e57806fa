"""What a consumer promises of every record, on each of the brokers."""

from typing import Any

import msgspec

from fixtures.brokers import Broker, MockBroker
from fixtures.kafka_app import Order, Watched, ended, order
from refold import App
from refold.connectors import kafka
from refold.core import Workflow


def test_every_record_becomes_one_workflow(broker: Broker, database_url: str) -> None:
    topic = broker.create_topic(partitions=3)
    for partition in range(3):
        broker.produce(topic, *(order(f"{partition}-{n}") for n in range(20)), partition=partition)
    with Watched(database_url, broker, topic) as shop:
        shop.wait_ended(60)
        broker.produce(topic, order("live"), partition=1)
        shop.wait_ended(61)
    expected = sorted([f"{p}-{n}" for p in range(3) for n in range(20)] + ["live"])
    assert shop.results() == expected


def test_a_second_run_goes_on_where_the_first_one_was(broker: Broker, database_url: str) -> None:
    topic = broker.create_topic()
    broker.produce(topic, order("a"), order("b"))
    with Watched(database_url, broker, topic) as first:
        first.wait_ended(2)
    broker.produce(topic, order("c"))
    with Watched(database_url, broker, topic) as second:
        second.wait_ended(3)
    assert second.results() == ["a", "b", "c"]
    assert second.seen("WorkflowStarted") == 1


def test_a_workflow_gets_the_record_as_it_was_produced(broker: Broker, database_url: str) -> None:
    got: list[kafka.Message[Order]] = []

    def workflow(app: App) -> Workflow[..., Any]:
        @app.workflow
        def on_order(message: kafka.Message[Order]) -> None:
            got.append(message)

        return on_order

    topic = broker.create_topic(partitions=2)
    headers = [("trace", b"1"), ("trace", b"2"), ("empty", b""), ("none", None)]
    broker.produce(
        topic, b'{"id": "o", "amount": 7, "more": 1}', partition=1, key=b"\x00key", headers=headers,
        timestamp=1_700_000_000_123,
    )  # fmt: skip
    with Watched(database_url, broker, topic, workflow=workflow) as shop:
        shop.wait_ended(1)
    [message] = got
    assert message.value == Order("o", 7)
    assert (message.topic, message.partition, message.offset) == (topic, 1, 0)
    assert message.key == b"\x00key"
    assert message.headers == tuple(headers)
    assert message.header("trace") == b"2"
    assert message.header_values("trace") == [b"1", b"2"]
    assert message.header("absent") is None
    assert message.timestamp is not None
    assert message.timestamp.isoformat() == "2023-11-14T22:13:20.123000+00:00"


def test_a_record_that_cannot_be_decoded_fails_visibly_and_holds_nobody_up(
    broker: Broker, database_url: str
) -> None:
    topic = broker.create_topic()
    broker.produce(topic, order("a"), b"\xff\x00no json", None, b'{"amount": 1}', order("b"))
    with Watched(database_url, broker, topic) as shop:
        statuses = shop.wait_ended(5)
        assert shop.results() == ["a", "b"]
        failed = sorted(id for id, status in statuses.items() if status == "failed")
        assert len(failed) == 3
        history = shop.app.history(failed[0])
        assert [type(one.event).__name__ for one in history] == ["WorkflowStarted", "WorkflowFailed"]
        kept = msgspec.json.decode(history[0].event.input)["message"]  # type: ignore[union-attr]
        assert msgspec.convert(kept, kafka.Message[bytes], strict=False).value == b"\xff\x00no json"
        assert f"the value of record 1 in {topic}[0] does not fit" in history[1].event.error.message  # type: ignore[union-attr]
        tombstone = shop.app.history(failed[1])[1].event.error.message  # type: ignore[union-attr]
        assert "it has no value (a tombstone), which only Message[Order | None] takes" in tombstone


def test_a_tombstone_is_taken_where_the_type_says_so(broker: Broker, database_url: str) -> None:
    def workflow(app: App) -> Workflow[..., Any]:
        @app.workflow
        def on_order(message: kafka.Message[Order | None]) -> str:
            return "gone" if message.value is None else message.value.id

        return on_order

    topic = broker.create_topic()
    broker.produce(topic, order("a"), None, key=b"k")
    with Watched(database_url, broker, topic, workflow=workflow) as shop:
        shop.wait_ended(2)
    assert shop.results() == ["a", "gone"]


def test_a_deleted_workflow_does_not_reopen_its_record(broker: Broker, database_url: str) -> None:
    topic = broker.create_topic()
    broker.produce(topic, order("a"), order("b"))
    with Watched(database_url, broker, topic) as first:
        for id in first.wait_ended(2):
            first.app.delete(id)
    broker.produce(topic, order("c"))
    # Another group: Kafka knows nothing of what was read, as after its own retention of offsets.
    with Watched(database_url, broker, topic, group="another") as second:
        second.wait(lambda: second.seen("WorkflowCompleted") == 1)
    assert list(ended(database_url).values()).count("completed") == 1


def test_kafka_is_told_after_the_hand_over(broker: Broker, database_url: str) -> None:
    topic = broker.create_topic()
    broker.produce(topic, order("a"), order("b"))
    with Watched(database_url, broker, topic, name=f"told-{topic}", group=f"told-{topic}") as shop:
        shop.wait_ended(2)
        shop.wait(lambda: broker.committed(f"told-{topic}", topic) == 2, "the committed offset")


def test_kafka_is_told_of_many_hand_overs_at_once_when_its_answers_are_slow(
    mock_broker: MockBroker, database_url: str
) -> None:
    """A commit for each would queue up in front of the heartbeats, until the group gives the partitions away."""
    topic = mock_broker.create_topic()
    mock_broker.answer_slowly(MockBroker.OFFSET_COMMIT, 100, milliseconds=1_500)
    count = mock_broker.count_requests()
    group = f"slow-{topic}"
    try:
        with Watched(
            database_url, mock_broker, topic, group=group, batch_size=1, config={"session.timeout.ms": 60_000}
        ) as shop:
            mock_broker.produce(topic, *(order(i) for i in range(100)))
            shop.wait_ended(100)
            assert count(MockBroker.OFFSET_COMMIT) < 50
    finally:
        mock_broker.accept(MockBroker.OFFSET_COMMIT)
    assert mock_broker.committed(group, topic) == 100


def test_kafka_is_told_by_the_next_worker_what_a_killed_one_could_not_tell(
    dev_broker: Broker, database_url: str
) -> None:
    topic = dev_broker.create_topic()
    dev_broker.produce(topic, order("a"))
    with Watched(database_url, dev_broker, topic) as first:
        first.wait_ended(1)
    # Kafka knows nothing of this group, as if the first had never told it. The topic is idle from here on.
    with Watched(database_url, dev_broker, topic, group=f"next-{topic}") as second:
        second.wait(lambda: dev_broker.committed(f"next-{topic}", topic) == 1, "the committed offset")


def test_two_topics_and_two_consumers_of_one_topic(broker: Broker, database_url: str) -> None:
    one, two = broker.create_topic(), broker.create_topic()
    broker.produce(one, order("a"))
    broker.produce(two, order("b"))
    with Watched(database_url, broker, one, two, name="both") as both:
        both.wait_ended(2)
    with Watched(database_url, broker, one, name="other") as other:
        other.wait_ended(3)
    assert other.results() == ["a", "a", "b"]
