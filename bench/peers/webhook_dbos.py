"""Webhooks with DBOS Transact as its documentation has them: FastAPI, uvicorn, a workflow per idempotency key.

The signature is checked by hand, as FastAPI leaves it to the program. Run by the bench in DBOS's environment.
"""

import argparse
import base64
import hashlib
import hmac
import importlib
import time
from typing import Any

from bench.peers._protocol import PAYLOAD, serve
from bench.peers._web import WebPeer

_dbos: Any = importlib.import_module("dbos")
_fastapi: Any = importlib.import_module("fastapi")
_run_in_threadpool: Any = importlib.import_module("fastapi.concurrency").run_in_threadpool
DBOS: Any = _dbos.DBOS


def _step(order_id: str) -> str:
    return PAYLOAD


async def _astep(order_id: str) -> str:
    return PAYLOAD


step: Any = DBOS.step(name="step")(_step)
astep: Any = DBOS.step(name="astep")(_astep)


def _on_order(event: dict[str, Any]) -> None:
    step(event["data"]["order_id"])


async def _aon_order(event: dict[str, Any]) -> None:
    await astep(event["data"]["order_id"])


on_order: Any = DBOS.workflow(name="on_order")(_on_order)
aon_order: Any = DBOS.workflow(name="aon_order")(_aon_order)


def make_api(secret: str) -> Any:
    key = base64.b64decode(secret.removeprefix("whsec_"))
    api = _fastapi.FastAPI()

    async def verified(request: Any) -> tuple[str, Any]:
        body: bytes = await request.body()
        delivery, sent = request.headers["webhook-id"], request.headers["webhook-timestamp"]
        digest = base64.b64encode(hmac.digest(key, f"{delivery}.{sent}.".encode() + body, hashlib.sha256))
        is_signed = hmac.compare_digest(f"v1,{digest.decode()}", request.headers["webhook-signature"])
        if not is_signed or abs(time.time() - int(sent)) > 300:
            raise _fastapi.HTTPException(401)
        return delivery, await request.json()

    def start(delivery: str, event: Any) -> str:
        with _dbos.SetWorkflowID(delivery):
            return str(DBOS.start_workflow(on_order, event).workflow_id)

    async def order(request: Any) -> dict[str, str]:
        # The workflow is sync, and starting it blocks: FastAPI's threads are the place for that.
        return {"workflow": await _run_in_threadpool(start, *await verified(request))}

    async def aorder(request: Any) -> dict[str, str]:
        delivery, event = await verified(request)
        with _dbos.SetWorkflowID(delivery):
            handle = await DBOS.start_workflow_async(aon_order, event)
        return {"workflow": handle.workflow_id}

    for path, handler in (("/def", order), ("/async", aorder)):
        handler.__annotations__["request"] = _fastapi.Request
        api.post(path, status_code=202)(handler)
    return api


class DbosWebPeer(WebPeer):
    def __init__(self, url: str, secret: str) -> None:
        super().__init__(make_api(secret))
        self._url = url

    async def launch(self) -> None:
        # On the server's loop, so that it knows which one the async workflows run on.
        DBOS(
            config={
                "name": "bench",
                "system_database_url": self._url,
                "log_level": "ERROR",
                "application_version": "bench",
            }
        )
        DBOS.launch()


if __name__ == "__main__":
    options = argparse.ArgumentParser()
    options.add_argument("url")
    options.add_argument("--secret", required=True)
    given = options.parse_args()
    serve(DbosWebPeer(given.url, given.secret))
