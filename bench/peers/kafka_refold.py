"""Kafka with refold: a consumer on a workflow of one step, as it comes."""

import argparse
import itertools
import os

import msgspec

import refold
from bench.peers._protocol import PAYLOAD, serve
from refold import App
from refold.connectors import kafka

app = App("bench")
_runs = itertools.count()
_seen = 0


class Order(msgspec.Struct):
    order_id: str
    amount: int
    currency: str
    customer: str


def _saw() -> None:
    global _seen
    _seen = next(_runs) + 1


@refold.step
def step(order_id: str) -> str:
    _saw()
    return PAYLOAD


@refold.step
async def astep(order_id: str) -> str:
    _saw()
    return PAYLOAD


class RefoldKafkaPeer:
    def __init__(self, topic: str, style: str, config: dict[str, object]) -> None:
        consumer = kafka.consumer(topic, name="bench", config=config)
        if style == "def":

            @consumer
            @app.workflow
            def on_order(message: kafka.Message[Order]) -> None:
                step(message.value.order_id)

        else:

            @consumer
            @app.workflow(name="aon_order")
            async def aon_order(message: kafka.Message[Order]) -> None:
                await astep(message.value.order_id)

    def start_working(self) -> None:
        app.start_worker()

    def seen(self) -> int:
        """How many steps have run."""
        return _seen

    def stop(self) -> None:
        app.stop_worker()


if __name__ == "__main__":
    options = argparse.ArgumentParser()
    options.add_argument("url")
    options.add_argument("--bootstrap", required=True)
    options.add_argument("--topic", required=True)
    options.add_argument("--style", choices=("def", "async"), required=True)
    options.add_argument("--config", type=msgspec.json.decode, default={})
    given = options.parse_args()
    os.environ["REFOLD_DATABASE_URL"] = given.url
    os.environ["REFOLD_KAFKA_BOOTSTRAP"] = given.bootstrap
    peer = RefoldKafkaPeer(given.topic, given.style, given.config)
    serve(peer)
    peer.stop()
