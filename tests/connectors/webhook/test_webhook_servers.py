"""Mounted in what people have: Starlette, FastAPI, Django, or served alone; with a worker in the process or without."""

import asyncio
import signal
from pathlib import Path
from typing import Any

import httpx2
import pytest

from fixtures.workers import Log, Program, Programs, wait_for
from refold import App
from refold.connectors import webhook

HOOKS = """\
import socket
import sys
from typing import Any

import msgspec
import uvicorn

import refold
from refold.connectors import webhook

app = refold.App("shop")


@webhook.post("/payments", verify=webhook.bearer(token="t0ken"), id=webhook.field("id"), max_body=100)
@app.workflow
def on_payment(delivery: webhook.Delivery[dict[str, Any]]) -> str:
    return delivery.path


@webhook.post("/waiting", verify=webhook.none(), dedup="body", wait=30)
@app.workflow
def on_waiting(delivery: webhook.Delivery[dict[str, Any]]) -> str:
    return "done"


def serve(asgi: Any) -> None:
    listener = socket.create_server(("127.0.0.1", 0))
    print(f"port={listener.getsockname()[1]}.", flush=True)
    uvicorn.Server(uvicorn.Config(asgi, log_level="warning")).run(sockets=[listener])
"""

PROGRAMS = {
    "starlette": (
        "/hooks",
        """
from starlette.applications import Starlette
from starlette.routing import Mount
serve(Starlette(routes=[Mount("/hooks", webhook.asgi(app))], lifespan=app.lifespan))
""",
    ),
    "starlette, nested": (
        "/a/b/hooks",
        """
from starlette.applications import Starlette
from starlette.routing import Mount
inner = Mount("/b", routes=[Mount("/hooks", webhook.asgi(app))])
serve(Starlette(routes=[Mount("/a", routes=[inner])], lifespan=app.lifespan))
""",
    ),
    "fastapi": (
        "/hooks",
        """
from fastapi import FastAPI
api = FastAPI(lifespan=app.lifespan)
api.mount("/hooks", webhook.asgi(app))
serve(api)
""",
    ),
    "django": (
        "/hooks",
        """
import django
from django.conf import settings
from django.core.asgi import get_asgi_application
settings.configure(ALLOWED_HOSTS=["*"], ROOT_URLCONF=__name__, SECRET_KEY="x")
urlpatterns = []
site = get_asgi_application()
hooks = webhook.asgi(app, run_worker=True)

async def both(scope, receive, send):
    if scope["type"] == "lifespan":
        await hooks(scope, receive, send)
    elif scope["path"].startswith("/hooks/"):
        await hooks({**scope, "root_path": "/hooks"}, receive, send)
    else:
        await site(scope, receive, send)

serve(both)
""",
    ),
    "alone": ("", "serve(webhook.asgi(app, run_worker=True))\n"),
    "a prefix taken out of the path": (
        "",
        """
async def proxied(scope, receive, send):
    await hooks({**scope, "root_path": "/behind/a/proxy"} if scope["type"] == "http" else scope, receive, send)

hooks = webhook.asgi(app, run_worker=True)
serve(proxied)
""",
    ),
}


def _start(programs: Programs, folder: Path, text: str) -> tuple[Program, str]:
    """Run HOOKS and `text`; return the program and its address."""
    file = folder / "server.py"
    file.write_text(HOOKS + text)
    program = programs.start(file)
    program.wait_output(".\n", 60)
    port = program.output.partition("port=")[2].partition(".")[0]
    return program, f"http://127.0.0.1:{port}"


def _post(url: str, body: bytes, **headers: str) -> httpx2.Response:
    sent = {"content-type": "application/json", "authorization": "Bearer t0ken", **headers}
    return httpx2.post(url, content=body, headers=sent, timeout=60)


@pytest.mark.parametrize("name", PROGRAMS)
def test_deliveries_are_taken_in(name: str, programs: Programs, tmp_path: Path, log: Log) -> None:
    prefix, text = PROGRAMS[name]
    program, address = _start(programs, tmp_path, text)
    url = address + prefix
    for _ in range(2):
        answer = _post(f"{url}/payments", b'{"id": "p-1"}')
        assert (answer.status_code, answer.json()) == (202, {"workflow": "webhook:on_payment:p-1"})
    log.wait_status("webhook:on_payment:p-1", "completed")
    (ended,) = log.events("webhook:on_payment:p-1", "WorkflowCompleted")
    assert ended["result"] == "/payments"
    waited = _post(f"{url}/waiting", b"{}")
    assert (waited.status_code, waited.json()["result"]) == (200, "done")

    assert _post(f"{url}/payments", b" " * 101).status_code == 413
    assert _post(f"{url}/payments", b'{"id": 1}', authorization="Bearer other").status_code == 401
    assert _post(f"{url}/nowhere", b"{}").status_code == 404
    assert httpx2.get(f"{url}/payments").status_code == 405
    described = httpx2.get(f"{url}/openapi.json").json()
    assert sorted(described["paths"]) == ["/payments", "/waiting"]
    if name not in ("alone", "a prefix taken out of the path"):
        assert described["servers"] == [{"url": prefix}]
        assert httpx2.get(f"{address}/elsewhere").status_code == 404
    assert log.one("select count(*) from refold.workflows") == 2
    program.signal(signal.SIGTERM)
    assert program.wait() in (0, -signal.SIGTERM)  # uvicorn stops in order, then ends as it was told to


def test_a_process_without_a_worker_only_takes_deliveries_in(
    programs: Programs, tmp_path: Path, log: Log
) -> None:
    _, url = _start(programs, tmp_path, "serve(webhook.asgi(app))\n")
    assert _post(f"{url}/payments", b'{"id": "p-1"}').status_code == 202
    soon = _post(f"{url}/waiting", b"{}", prefer="wait=0")
    assert soon.status_code == 202
    assert [row[0] for row in log.rows("select status from refold.workflows")] == ["pending"] * 2

    worker = tmp_path / "worker.py"
    worker.write_text(HOOKS + "app.run()\n")
    programs.start(worker)
    log.wait_status("webhook:on_payment:p-1", "completed")
    # The end is heard in the process that waits for it, too.
    waited = _post(f"{url}/waiting", b'{"other": 1}')
    assert (waited.status_code, waited.json()["result"]) == (200, "done")


def test_a_secret_that_is_missing_keeps_the_server_from_starting(programs: Programs, tmp_path: Path) -> None:
    file = tmp_path / "server.py"
    missing = HOOKS.replace('token="t0ken"', 'token="env:NOT_SET_ANYWHERE"')
    file.write_text(missing + "serve(webhook.asgi(app))\n")
    program = programs.start(file)
    assert program.wait() == 1
    assert "the environment variable NOT_SET_ANYWHERE, which is not set" in program.output


def test_an_endpoint_that_is_declared_after_the_mount_is_served_too(database_url: str) -> None:
    app = App("late", database_url=database_url)
    hooks = webhook.asgi(app)

    @webhook.post("/late", verify=webhook.none(), dedup="body")
    @app.workflow
    def late(delivery: webhook.Delivery[Any]) -> None: ...

    async def ask() -> httpx2.Response:
        async with httpx2.AsyncClient(transport=httpx2.ASGITransport(hooks), base_url="http://x") as client:
            return await client.post("/late", content=b"{}")

    assert asyncio.run(ask()).status_code == 202
    wait_for(lambda: len(app.list().items) == 1, "it is recorded")
    app.close()
