"""Kafka with DBOS Transact: `DBOS.kafka_consumer` on a workflow of one step, its own defaults."""

import argparse
import asyncio
import importlib
import itertools
import json
from typing import Any

from bench.peers._protocol import PAYLOAD, LoopThread, serve

DBOS: Any = importlib.import_module("dbos").DBOS
_runs = itertools.count()
_seen = 0


def _saw() -> None:
    global _seen
    _seen = next(_runs) + 1


def _step(order_id: str) -> str:
    _saw()
    return PAYLOAD


async def _astep(order_id: str) -> str:
    _saw()
    return PAYLOAD


step: Any = DBOS.step(name="step")(_step)
astep: Any = DBOS.step(name="astep")(_astep)


def _on_order(message: Any) -> None:
    step(json.loads(message.value)["order_id"])


async def _aon_order(message: Any) -> None:
    await astep(json.loads(message.value)["order_id"])


on_order: Any = DBOS.workflow(name="on_order")(_on_order)
aon_order: Any = DBOS.workflow(name="aon_order")(_aon_order)


class DbosKafkaPeer:
    def __init__(self, url: str, topic: str, style: str, config: dict[str, Any]) -> None:
        self._loop = LoopThread()
        self._url = url
        DBOS.kafka_consumer({"group.id": "bench", **config}, [topic])(
            on_order if style == "def" else aon_order
        )

    def start_working(self) -> None:
        DBOS(
            config={
                "name": "bench",
                "system_database_url": self._url,
                "log_level": "ERROR",
                "application_version": "bench",
            }
        )

        async def launch() -> None:
            await asyncio.sleep(0)
            DBOS.launch()

        self._loop.run(launch())

    def seen(self) -> int:
        """How many steps have run."""
        return _seen


if __name__ == "__main__":
    options = argparse.ArgumentParser()
    options.add_argument("url")
    options.add_argument("--bootstrap", required=True)
    options.add_argument("--topic", required=True)
    options.add_argument("--style", choices=("def", "async"), required=True)
    options.add_argument("--config", type=json.loads, default={})
    given = options.parse_args()
    config = {"bootstrap.servers": given.bootstrap, **given.config}
    serve(DbosKafkaPeer(given.url, given.topic, given.style, config))
