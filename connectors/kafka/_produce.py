"""Producing a few records by hand, for the command line and for tests. A program has a producer of its own."""

import time
from collections.abc import Iterable, Sequence
from typing import Any, Final

import msgspec
from confluent_kafka import KafkaError, KafkaException, Message, Producer

from refold.connectors.kafka._broker import Lookup, is_missing_topic
from refold.connectors.kafka._identity import workflow_id
from refold.core import RefoldError

_TIMEOUT: Final = 10.0
_CREATION: Final = 1.0


class BrokerUnreachable(RefoldError):
    """Kafka did not answer, or did not let us in. Reaction: check the address, the network, the credentials."""

    def __init__(self, where: str, reason: str) -> None:
        super().__init__(where, reason)
        self.where, self.reason = where, reason

    def __str__(self) -> str:
        return f"can't reach Kafka at {self.where}: {self.reason}. Check REFOLD_KAFKA_BOOTSTRAP and that it is running."


class TopicMissing(RefoldError):
    """The topic does not exist. Reaction: create it, or correct its name."""

    def __init__(self, topic: str, where: str) -> None:
        super().__init__(topic, where)
        self.topic, self.where = topic, where

    def __str__(self) -> str:
        return f"topic {self.topic!r} does not exist at {self.where}. Create it, or correct its name."


class ProduceRefused(RefoldError):
    """Kafka refused a record. Reaction: see what it says; nothing after that record was produced."""

    def __init__(self, topic: str, reason: str) -> None:
        super().__init__(topic, reason)
        self.topic, self.reason = topic, reason

    def __str__(self) -> str:
        return (
            f"Kafka refused a record for topic {self.topic!r}: {self.reason}. Nothing after it was produced."
        )


class Produced(msgspec.Struct, frozen=True):
    """Where a record is now: enough to tell the ID of the workflow that it starts."""

    topic: str
    partition: int
    offset: int
    timestamp: int
    cluster: str
    topic_id: str | None

    def workflow_id(self, consumer: str) -> str:
        """Return the ID of the workflow that the consumer of this name starts for the record."""
        return workflow_id(
            consumer=consumer,
            cluster=self.cluster,
            topic=self.topic,
            topic_id=self.topic_id,
            partition=self.partition,
            offset=self.offset,
            timestamp=self.timestamp,
        )


def produce(
    bootstrap: str,
    topic: str,
    value: str | bytes | Iterable[str | bytes | None] | None,
    *,
    key: str | bytes | None = None,
    headers: Sequence[tuple[str, str | bytes | None]] = (),
    config: dict[str, Any] | None = None,
) -> list[Produced]:
    """Produce `value`, or each of several, as it stands; on return the brokers have all of them, in this order.

    None is a tombstone. Raises BrokerUnreachable, TopicMissing, ProduceRefused.
    """
    values = [value] if value is None or isinstance(value, str | bytes) else list(value)
    producer = Producer(
        {
            "bootstrap.servers": bootstrap,
            # One record has no order to keep, and is not held up by asking for a producer ID.
            "enable.idempotence": len(values) > 1,
            "message.timeout.ms": int(_TIMEOUT * 1000),
            "linger.ms": 0 if len(values) == 1 else 5,
            "log_level": 0,
            **(config or {}),
        }
    )
    _check_topic(producer, bootstrap, topic)
    done: list[Message] = []
    failed: list[KafkaError] = []

    def report(error: KafkaError | None, message: Message) -> None:
        if error is not None:
            failed.append(error)
        else:
            done.append(message)

    for one in values:
        while True:
            try:
                producer.produce(topic, one, key, headers=list(headers) or None, on_delivery=report)
                break
            except BufferError:
                producer.poll(0.1)
        producer.poll(0)
        if failed:
            break
    producer.flush(_TIMEOUT + 5)
    if failed:
        raise ProduceRefused(topic, failed[0].str())
    lookup = Lookup({"bootstrap.servers": bootstrap, **(config or {})}, patience=2.0)
    cluster = lookup.metadata([topic]).cluster
    topic_id = lookup.topic_ids([topic], must=False).get(topic)
    return [
        Produced(
            topic,
            message.partition() or 0,
            message.offset() or 0,
            message.timestamp()[1] if message.timestamp()[0] else 0,
            cluster,
            topic_id,
        )
        for message in done
    ]


def _check_topic(producer: Producer, bootstrap: str, topic: str) -> None:
    """Return once the topic is there; a broker that makes topics by itself does it now."""
    deadline = time.monotonic() + _CREATION
    while True:
        try:
            found = producer.list_topics(topic, timeout=_TIMEOUT / 2).topics[topic]
        except KafkaException as exc:
            raise BrokerUnreachable(bootstrap, exc.args[0].str()) from exc
        if found.error is None:
            return
        if not is_missing_topic(found.error) and not found.error.retriable():
            raise ProduceRefused(topic, found.error.str())
        if time.monotonic() > deadline:
            raise TopicMissing(topic, bootstrap)
        producer.poll(0.1)
