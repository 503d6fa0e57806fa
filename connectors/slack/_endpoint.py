"""The HTTP side: an ASGI app that reads a request, makes sure that it is Slack's, and answers after the commit."""

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from typing import Any, Final

from refold.connectors.slack._acks import Ack
from refold.connectors.slack._intake import EMPTY, Intake
from refold.connectors.slack._kinds import Unreadable, read_request
from refold.connectors.slack._signature import is_signed

log: Final = logging.getLogger("refold.slack")

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
SendMessage = Callable[[MutableMapping[str, Any]], Awaitable[None]]

_FORBIDDEN: Final = Ack(401, b'{"error":"not signed by Slack"}')
_TOO_LARGE: Final = Ack(413, b'{"error":"the body is too large"}')
_TOO_SLOW: Final = Ack(408, b'{"error":"the body came too slowly"}')
_WRONG_METHOD: Final = Ack(405, b'{"error":"POST it"}')


class Gone(Exception):
    """The other side hung up."""


class Endpoint:
    """One Slack app's endpoint: every path below where it is mounted."""

    def __init__(self, intake: Intake, secrets: Sequence[bytes], max_body: int) -> None:
        self._intake = intake
        self._secrets = secrets
        self._max_body = max_body

    async def __call__(self, scope: Scope, receive: Receive, send: SendMessage) -> None:
        if scope["type"] != "http":
            return
        try:
            answer = await self._answer(scope, receive)
        except Gone:
            return
        await respond(send, answer)

    async def _answer(self, scope: Scope, receive: Receive) -> Ack:
        since = time.monotonic()
        if scope["method"] != "POST":
            asked = b"ssl_check=1" in scope.get("query_string", b"").split(b"&")
            return EMPTY if scope["method"] == "GET" and asked else _WRONG_METHOD
        headers = dict(scope["headers"])
        try:
            async with asyncio.timeout(self._intake.answer_within):
                body = await self._read(headers.get(b"content-length"), receive)
        except TimeoutError:
            return _TOO_SLOW
        if body is None:
            return _TOO_LARGE
        if not is_signed(
            self._secrets,
            headers.get(b"x-slack-request-timestamp"),
            headers.get(b"x-slack-signature"),
            body,
            now=time.time(),
        ):
            return _FORBIDDEN
        content_type = headers.get(b"content-type", b"").partition(b";")[0].strip().lower()
        try:
            delivery = read_request(content_type.decode("latin-1"), body)
        except Unreadable as error:
            log.warning("a signed request could not be read: %s", error)
            return Ack(400, b'{"error":"the body is no payload of Slack\'s"}')
        return await self._intake.take(delivery, since=since)

    async def _read(self, announced: bytes | None, receive: Receive) -> bytes | None:
        """Return the body; None when it is larger than allowed, and no more of it is read."""
        if announced is not None and (not announced.isdigit() or int(announced) > self._max_body):
            return None
        chunks: list[bytes] = []
        size = 0
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise Gone
            chunk: bytes = message.get("body", b"")
            size += len(chunk)
            if size > self._max_body:
                return None
            chunks.append(chunk)
            if not message.get("more_body", False):
                return b"".join(chunks)


async def respond(send: SendMessage, answer: Ack) -> None:
    """Send an answer; one that nobody waits for any more is dropped."""
    headers = [(b"content-length", str(len(answer.body)).encode())]
    if answer.body:
        headers.append((b"content-type", answer.content_type.encode("latin-1")))
    if answer.status == 405:
        headers.append((b"allow", b"POST"))
    if answer.status == 503:
        headers.append((b"retry-after", b"1"))
    with contextlib.suppress(OSError):
        await send({"type": "http.response.start", "status": answer.status, "headers": headers})
        await send({"type": "http.response.body", "body": answer.body})
