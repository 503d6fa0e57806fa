"""What sends webhooks: keep-alive connections of plain sockets in one thread, light enough to share the machine.

Requests are made and signed (Standard Webhooks) before the clock starts. Each connection sends its next one when
the answer to the last has come whole; any answer but 202 ends the run.
"""

import base64
import hashlib
import hmac
import json
import select
import socket
import time
from typing import Any

from bench.peers._protocol import serve, timed


class Sender:
    """Asked by the bench to send; `name` makes the deliveries of one run differ from those of all others."""

    def send(
        self, port: int, path: str, secret: str, name: str, count: int, connections: int
    ) -> dict[str, Any]:
        requests = [delivery(port, path, secret, f"{name}-{i}") for i in range(count)]
        run = _Run(port, requests, connections)
        began_at = time.time()
        took = timed(run.send_all)
        ms = sorted(1000 * seconds for seconds in run.took)
        return {**took, "began_at": began_at, "p50_ms": ms[len(ms) // 2], "p99_ms": ms[int(0.99 * len(ms))]}


def delivery(port: int, path: str, secret: str, name: str) -> bytes:
    """One signed delivery, whole as it goes over the wire."""
    order = {
        "order_id": name,
        "amount": 4_200,
        "currency": "EUR",
        "customer": "cus_4qnVBc3vUIdpZ",
        "items": 3,
    }
    body = json.dumps({"type": "order.paid", "data": order}).encode()
    sent = str(int(time.time()))
    signed = f"{name}.{sent}.".encode() + body
    digest = hmac.digest(base64.b64decode(secret.removeprefix("whsec_")), signed, hashlib.sha256)
    return (
        f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\nwebhook-id: {name}\r\nwebhook-timestamp: {sent}\r\n"
        f"webhook-signature: v1,{base64.b64encode(digest).decode()}\r\n\r\n"
    ).encode() + body


class _Run:
    def __init__(self, port: int, requests: list[bytes], connections: int) -> None:
        self._left = iter(requests)
        self._poll = select.epoll()
        self._sockets: dict[int, socket.socket] = {}
        self._answers: dict[int, bytes] = {}
        self._sent_at: dict[int, float] = {}
        self.took: list[float] = []
        for _ in range(connections):
            each = socket.create_connection(("127.0.0.1", port))
            each.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._sockets[each.fileno()] = each
            self._poll.register(each.fileno(), select.EPOLLIN)

    def send_all(self) -> None:
        under_way = sum(self._next(number) for number in self._sockets)
        while under_way:
            for number, _ in self._poll.poll(60) or _silence():
                if self._is_answered(number):
                    self.took.append(time.perf_counter() - self._sent_at[number])
                    under_way -= not self._next(number)
        for each in self._sockets.values():
            each.close()

    def _next(self, number: int) -> bool:
        request = next(self._left, None)
        if request is None:
            return False
        self._answers[number] = b""
        self._sent_at[number] = time.perf_counter()
        self._sockets[number].sendall(request)
        return True

    def _is_answered(self, number: int) -> bool:
        received = self._sockets[number].recv(65_536)
        answer = self._answers[number] = self._answers[number] + received
        head, found, body = answer.partition(b"\r\n\r\n")
        if not received or not answer.startswith(b"HTTP/1.1 202 "[: len(answer)]):
            raise AssertionError(f"wanted 202, got {answer[:500]!r}")
        if not found:
            return False
        length = head.lower().partition(b"content-length:")[2].partition(b"\r\n")[0]
        return len(body) >= int(length)


def _silence() -> list[tuple[int, int]]:
    raise AssertionError("no answer for 60 s")


if __name__ == "__main__":
    serve(Sender())
