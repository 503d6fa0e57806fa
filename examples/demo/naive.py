"""The same work behind a consumer as one writes it on the first day: it commits Kafka's offset, and starts the work
in a thread pool while it reads on.

`make demo ARGS=--break` runs this instead of the connector. A kill loses what was read and had not been started: the
broker believes it is done.
"""

import os
import signal
import threading
from concurrent.futures import ThreadPoolExecutor

import msgspec
from confluent_kafka import Consumer, Message

from examples.demo.airports import CONSUMER, TOPIC, Airport, app, on_airport
from refold.connectors import kafka

BATCH = 500


def main() -> None:
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    app.connectors.clear()  # the workflow stays; only its source is replaced
    decode = msgspec.json.Decoder(Airport).decode
    consumer = Consumer(
        {
            "bootstrap.servers": os.environ["REFOLD_KAFKA_BOOTSTRAP"],
            "group.id": CONSUMER,
            "auto.offset.reset": "earliest",
            "enable.auto.commit": False,
            "session.timeout.ms": 4000,
            "heartbeat.interval.ms": 500,
        }
    )
    consumer.subscribe([TOPIC])

    def start(record: Message) -> None:
        message = kafka.Message(
            topic=record.topic() or "",
            partition=record.partition() or 0,
            offset=record.offset() or 0,
            key=key if isinstance(key := record.key(), bytes) else None,
            value=decode(record.value() or b""),
        )
        on_airport.options(id=f"naive/{record.partition()}/{record.offset()}").start(message)

    with app, ThreadPoolExecutor(16) as pool:
        while not stop.is_set():
            if (first := consumer.poll(0.1)) is None:
                continue
            records = [record for record in (first, *consumer.consume(BATCH - 1, 0)) if not record.error()]
            # Here is the mistake: nothing of this batch has been started yet.
            consumer.commit(asynchronous=False)
            for record in records:
                pool.submit(start, record)
        consumer.close()


if __name__ == "__main__":
    main()
