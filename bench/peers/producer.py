"""What produces Kafka records: as fast as it goes, or so many a second with the moment of each."""

import json
import time
from typing import Any

from confluent_kafka import Producer
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic

from bench.peers._protocol import serve


class RecordProducer:
    """Asked by the bench to make topics and to fill them with small records of one shape."""

    def create_topic(self, bootstrap: str, topic: str, partitions: int) -> None:
        admin = AdminClient({"bootstrap.servers": bootstrap})
        admin.create_topics([NewTopic(topic, partitions, 1)])[topic].result(30)

    def fill(self, bootstrap: str, topic: str, first: int, count: int) -> float:
        """Produce `count` records, numbered from `first`; returns the seconds it took until all are acknowledged."""
        producer = Producer({"bootstrap.servers": bootstrap, "linger.ms": 20, "enable.idempotence": True})
        began = time.monotonic()
        for i in range(first, first + count):
            while True:
                try:
                    producer.produce(topic, record(i), key=f"order-{i}")
                    break
                except BufferError:
                    producer.poll(0.1)
            producer.poll(0)
        left = producer.flush(120)
        if left:
            raise AssertionError(f"{left} records were not acknowledged")
        return time.monotonic() - began

    def trickle(self, bootstrap: str, topic: str, count: int, per_second: float) -> list[float]:
        """Produce into a topic of one partition at an even pace; returns when each record was given to the client."""
        producer = Producer({"bootstrap.servers": bootstrap, "linger.ms": 0})
        producer.list_topics(topic, timeout=10)  # connected, before the first record's clock starts
        given_at: list[float] = []
        began = time.monotonic()
        for i in range(count):
            time.sleep(max(0.0, began + i / per_second - time.monotonic()))
            given_at.append(time.time())
            producer.produce(topic, record(i), key=f"order-{i}")
            producer.flush(10)
        return given_at


def record(i: int) -> bytes:
    order: dict[str, Any] = {
        "order_id": f"order-{i}",
        "amount": 4_200,
        "currency": "EUR",
        "customer": "cus_4qnVBc3v",
    }
    return json.dumps(order).encode()


if __name__ == "__main__":
    serve(RecordProducer())
