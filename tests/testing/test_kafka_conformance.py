"""Kafka's connector keeps every clause, on the development broker (or the one that REFOLD_TEST_KAFKA names)."""

import os
import uuid
from collections.abc import Sequence
from typing import ClassVar

import confluent_kafka
from confluent_kafka import TopicPartition

from fixtures.brokers import Broker
from refold.connectors import kafka
from refold.connectors._devbroker import DevBroker
from refold.core import App
from refold.testing import Conformance, Harness, Work, perform

_PARTITIONS = 2


class KafkaHarness(Harness):
    """A topic with two partitions, and a group that an operator deletes to have everything read again."""

    name = "kafka"
    kind = "pull"
    max_in_flight = 10
    ordering: ClassVar[kafka.Ordering] = "none"

    def open(self) -> None:
        address = os.environ.get("REFOLD_TEST_KAFKA")
        self._process = None if address else DevBroker()
        self._broker = Broker(address or (self._process.bootstrap if self._process else ""))
        self._consumer: confluent_kafka.Consumer | None = None

    def close(self) -> None:
        self._forget()
        if self._process is not None:
            self._process.stop()

    def begin(self) -> dict[str, str]:
        self._forget()
        self._ends = [0] * _PARTITIONS
        return {
            "bootstrap": self._broker.bootstrap,
            "topic": self._broker.create_topic(partitions=_PARTITIONS),
            "group": f"kit-{uuid.uuid4().hex[:8]}",
        }

    def send(self, work: Work) -> None:
        self._produce(work.body, key=work.key)

    def send_undecodable(self, key: str) -> None:
        self._produce(b"\xff no json", key=key)

    def _produce(self, value: bytes, key: str) -> None:
        [(partition, offset)] = self._broker.produce(self.settings["topic"], value, key=key)
        self._ends[partition] = offset + 1

    def redeliver(self, works: Sequence[Work]) -> None:
        self._forget()
        self.settings["group"] = f"kit-{uuid.uuid4().hex[:8]}"

    def unacknowledged(self) -> int:
        """How far the group's committed offsets are behind the ends."""
        if self._consumer is None:
            self._consumer = confluent_kafka.Consumer(
                {
                    "bootstrap.servers": self._broker.bootstrap,
                    "group.id": self.settings["group"],
                    "log_level": 0,
                }
            )
        asked = [TopicPartition(self.settings["topic"], number) for number in range(_PARTITIONS)]
        found = self._consumer.committed(asked, timeout=10)
        return sum(end - max(at.offset, 0) for end, at in zip(self._ends, found, strict=True))

    def _forget(self) -> None:
        if self._consumer is not None:
            self._consumer.close()
            self._consumer = None

    def declare(self, app: App) -> None:
        @kafka.consumer(
            self.settings["topic"],
            name="kit",
            group=self.settings["group"],
            bootstrap_servers=self.settings["bootstrap"],
            config=Broker.quick,
            max_in_flight=10,
            ordering=self.ordering,
        )
        @app.workflow
        def on_work(message: kafka.Message[Work]) -> str:
            return perform(message.value)


class KafkaInOrderHarness(KafkaHarness):
    """The same with keys in order."""

    name = "kafka-in-order"
    ordering: ClassVar[kafka.Ordering] = "key"


class TestKafka(Conformance):
    harness: ClassVar[type[Harness]] = KafkaHarness


class TestKafkaInOrder(Conformance):
    harness: ClassVar[type[Harness]] = KafkaInOrderHarness
