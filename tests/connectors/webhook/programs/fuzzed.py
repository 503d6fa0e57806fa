"""Endpoints of every kind, to be thrown anything at; each answer is counted, whatever asked for it.

`python fuzzed.py STATS` serves; on SIGUSR1 what it has counted goes to STATS, and answered IDs to STATS.ids.
"""

import asyncio
import gc
import json
import resource
import signal
import socket
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import msgspec
import uvicorn

import refold
from refold.connectors import webhook
from refold.connectors.webhook._asgi import Message, Receive, Scope, Send

app = refold.App("fuzzed")
LIMITS: dict[str, Any] = {"max_body": 20_000, "body_timeout": 1.0}


class Payment(msgspec.Struct):
    id: str
    cents: int
    tags: list[str] = []


def endpoint(path: str, body: Any, **options: Any) -> None:
    def take(delivery: Any) -> None:
        return None

    take.__annotations__["delivery"] = webhook.Delivery[body]
    webhook.post(path, **options, **LIMITS)(app.workflow(name=path[1:])(take))


endpoint("/standard", Payment, verify=webhook.standard(secret="whsec_c2VjcmV0"))
endpoint("/github", dict[str, Any], verify=webhook.github(secret="s"))
endpoint("/stripe", Payment, verify=webhook.stripe(secret="s"))
endpoint("/slack", Any, verify=webhook.slack(secret="s"))
endpoint("/shopify", bytes, verify=webhook.shopify(secret="s"))
endpoint("/hmac", Payment, verify=webhook.hmac(secret="s", header="X-Sign"), dedup="body")
endpoint("/keys", Payment, verify=webhook.bearer(token="t0ken"), id=webhook.idempotency_key(), wait=3)
endpoint("/open", Payment, verify=webhook.none(), id=webhook.header("X-Id"))
endpoint("/events", Payment, verify=webhook.none(), id=webhook.cloudevents())
endpoint("/text", str, verify=webhook.none(), id=lambda delivery: delivery.body[:20])


@webhook.signal(
    "/notes", to=lambda delivery: delivery.body["to"], topic="note", body=dict[str, str],
    verify=webhook.none(), id=webhook.header("X-Id"), **LIMITS,
)  # fmt: skip
@app.workflow
def reader() -> None:
    refold.recv("never")


class Counted:
    """The hooks, with a look at every answer."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner
        self.statuses: Counter[int] = Counter()
        self.ids = open(sys.argv[1] + ".ids", "w")  # noqa: SIM115  # not in memory, which is measured
        self.slowest = 0.0
        self.requests = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.inner(scope, receive, send)
            return
        began, status = time.monotonic(), 0

        async def look(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                self.statuses[status] += 1
            elif status in (200, 202) and scope["method"] == "POST" and message["body"]:
                said = json.loads(message["body"])
                for each in said.get("workflows", [said]):
                    if "workflow" in each and "delivered" not in each:
                        print(json.dumps(each["workflow"]), file=self.ids)
            await send(message)

        self.requests += 1
        await self.inner(scope, receive, look)
        self.slowest = max(self.slowest, time.monotonic() - began)

    def write(self) -> None:
        gc.collect()
        self.ids.flush()
        pages = int(Path("/proc/self/statm").read_text().split()[1]) if sys.platform == "linux" else 0
        found = {
            "requests": self.requests,
            "statuses": dict(self.statuses),
            "slowest": self.slowest,
            "rss": pages * resource.getpagesize(),
        }
        draft = Path(sys.argv[1] + ".draft")
        draft.write_text(json.dumps(found))
        draft.rename(sys.argv[1])


async def main() -> None:
    counted = Counted(webhook.asgi(app, run_worker=True))
    asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, counted.write)
    listener = socket.create_server(("127.0.0.1", 0))
    print(f"port={listener.getsockname()[1]}.", flush=True)
    await uvicorn.Server(uvicorn.Config(counted, log_level="warning", timeout_keep_alive=600)).serve(
        sockets=[listener]
    )


if __name__ == "__main__":
    asyncio.run(main())
