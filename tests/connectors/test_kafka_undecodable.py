"""A record that cannot be decoded is not skipped: it is written down in the transaction of those around it."""

from fixtures.brokers import Broker
from fixtures.kafka_app import Watched, ask, order


def test_what_was_read_past_has_been_written_down(dev_broker: Broker, database_url: str) -> None:
    """As soon as the position is past the record, its workflow is there, with its bytes and the reason."""
    topic = dev_broker.create_topic()
    dev_broker.produce(topic, order("a"), b"no json", order("b"))
    with Watched(database_url, dev_broker, topic) as shop:
        shop.wait(lambda: shop.results() == ["a", "b"], "the records around it")
        statuses = ask(
            database_url, "select status from refold.workflows order by split_part(workflow_id, ':', 7)::int"
        )
    assert statuses == [("completed",), ("failed",), ("completed",)], "record 1 was skipped"
