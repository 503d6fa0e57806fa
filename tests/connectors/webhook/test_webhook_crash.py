"""A receiver that is killed at the worst moments, and a sender that tries again: one workflow, its step once."""

import signal
import time
from pathlib import Path

import httpx2
import pytest

from fixtures.workers import Log, Program, Programs
from refold.connectors import webhook

SERVER = """\
import os
import signal
import socket
from typing import Any

import uvicorn

import refold
from refold.connectors import webhook

app = refold.App("shop")
POINT = os.environ.get("DIE_AT", "")
VERIFIER = webhook.standard(secret="whsec_c2VjcmV0")


def die(point: str) -> None:
    if POINT == point:
        os.kill(os.getpid(), signal.SIGKILL)


@refold.step
def book(payment: str) -> str:
    die("in the step")
    return payment


@webhook.post("/payments", verify=VERIFIER, wait=30 if POINT == "in the step" else None)
@app.workflow
def on_payment(delivery: webhook.Delivery[dict[str, Any]]) -> str:
    return book(delivery.body["id"])


@webhook.signal("/notes", to=lambda delivery: "reader", topic="note", verify=VERIFIER)
@app.workflow
def reader() -> list[Any]:
    first = refold.recv("note")
    return [first, refold.recv("note")]


async def dying(scope, receive, send):
    async def receiving():
        message = await receive()
        if message["type"] == "http.request":
            die("with the body read")
        return message

    async def sending(message):
        if message["type"] == "http.response.start":
            assert POINT != "in the step", "the step comes first"
            die("between commit and answer")
        await send(message)
        if message["type"] == "http.response.start":
            die("in the answer")

    if scope["type"] == "http":
        await hooks(scope, receiving, sending)
    else:
        await hooks(scope, receive, send)


hooks = webhook.asgi(app, run_worker=True)
listener = socket.create_server(("127.0.0.1", 0))
print(f"port={listener.getsockname()[1]}.", flush=True)
uvicorn.Server(uvicorn.Config(dying, log_level="warning")).run(sockets=[listener])
"""
POINTS = {
    "with the body read": 0,
    "between commit and answer": 1,
    "in the answer": 1,
    "in the step": 1,
}


class Receiver:
    """The server, alive or dying at a point; what is sent to it is signed with its own clock's time."""

    def __init__(self, programs: Programs, folder: Path) -> None:
        self._programs = programs
        self._file = folder / "server.py"
        self._file.write_text(SERVER)

    def start(self, die_at: str = "") -> tuple[Program, str]:
        program = self._programs.start(self._file, DIE_AT=die_at)
        program.wait_output(".\n", 60)
        return program, f"http://127.0.0.1:{program.output.partition('port=')[2].partition('.')[0]}"


def _send(url: str, body: bytes) -> httpx2.Response:
    check = webhook.standard(secret="whsec_c2VjcmV0").open("the sender")
    headers = dict(check.sign(body, "msg_1", int(time.time())))
    return httpx2.post(url, content=body, headers={**headers, "content-type": "application/json"}, timeout=60)


@pytest.mark.parametrize("point", POINTS)
def test_a_delivery_whose_receiver_was_killed_is_one_workflow_after_a_retry(
    point: str, programs: Programs, tmp_path: Path, log: Log
) -> None:
    receiver = Receiver(programs, tmp_path)
    dying, url = receiver.start(point)
    with pytest.raises(httpx2.TransportError):
        _send(f"{url}/payments", b'{"id": "p-1"}')
    assert dying.wait() == -signal.SIGKILL
    assert log.one("select count(*) from refold.workflows") == POINTS[point]

    _, url = receiver.start()
    for _ in range(3):
        again = _send(f"{url}/payments", b'{"id": "p-1"}')
        assert (again.status_code, again.json()) == (202, {"workflow": "webhook:on_payment:msg_1"})
    log.wait_status("webhook:on_payment:msg_1", "completed", 120)
    assert log.one("select count(*) from refold.workflows") == 1
    assert log.types("webhook:on_payment:msg_1") == ["WorkflowStarted", "StepCompleted", "WorkflowCompleted"]


def test_a_signal_whose_receiver_was_killed_is_one_message_after_the_retry(
    programs: Programs, tmp_path: Path, log: Log
) -> None:
    receiver = Receiver(programs, tmp_path)
    dying, url = receiver.start("between commit and answer")
    with pytest.raises(httpx2.TransportError):
        _send(f"{url}/notes", b'"a"')
    assert dying.wait() == -signal.SIGKILL
    _, url = receiver.start()
    for _ in range(2):
        assert _send(f"{url}/notes", b'"a"').json() == {"workflow": "reader", "delivered": True}
    assert log.one("select count(*) from refold.inbox") == 1
