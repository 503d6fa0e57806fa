"""Webhooks with refold: `webhook.post` on a workflow, mounted as it comes, a worker in the same process."""

import argparse
import os

import msgspec

import refold
from bench.peers._protocol import PAYLOAD, serve
from bench.peers._web import WebPeer
from refold import App
from refold.connectors import webhook

app = App("bench")
SECRET = "BENCH_WEBHOOK_SECRET"


class Order(msgspec.Struct):
    order_id: str
    amount: int
    currency: str
    customer: str
    items: int


class Event(msgspec.Struct):
    type: str
    data: Order


@refold.step
def step(order_id: str) -> str:
    return PAYLOAD


@refold.step
async def astep(order_id: str) -> str:
    return PAYLOAD


@webhook.post("/def", verify=webhook.standard(secret=f"env:{SECRET}"))
@app.workflow
def on_order(delivery: webhook.Delivery[Event]) -> None:
    step(delivery.body.data.order_id)


@webhook.post("/async", verify=webhook.standard(secret=f"env:{SECRET}"))
@app.workflow
async def aon_order(delivery: webhook.Delivery[Event]) -> None:
    await astep(delivery.body.data.order_id)


if __name__ == "__main__":
    options = argparse.ArgumentParser()
    options.add_argument("url")
    options.add_argument("--secret", required=True)
    given = options.parse_args()
    os.environ |= {"REFOLD_DATABASE_URL": given.url, SECRET: given.secret}
    serve(WebPeer(webhook.asgi(app, run_worker=True), lifespan="on"))
