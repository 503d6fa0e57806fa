"""The ASGI app: raw ASGI, no framework. From bytes on a connection to a commit, and only then an answer.

The order is what keeps strangers cheap: path, method, declared size, body as it streams in (counted), signature, and
only after that anything that looks into the body. Whatever is wrong is a problem with its status, and nothing has
been started.
"""

import asyncio
import logging
import re
import time
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from typing import Any, Final

from refold.connectors.webhook._answers import Answer, Refused, json_answer, problem
from refold.connectors.webhook._endpoint import Endpoint, Item, PostEndpoint, SignalEndpoint, answer_signal
from refold.connectors.webhook._handshakes import answer_verified
from refold.connectors.webhook._headers import Headers, latin
from refold.connectors.webhook._openapi import describe_endpoints
from refold.connectors.webhook._request import Request
from refold.core import Accepted, App, InvalidId, WorkflowHandle

log: Final = logging.getLogger("refold.webhook")

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

OPENAPI: Final = "/openapi.json"
MIB: Final = 1024 * 1024

_RETRY_AFTER: Final = (b"retry-after", b"5")
# What the client still sends of a body that nobody wants must not be read as its next request.
_CLOSE: Final = (b"connection", b"close")
_SAY_EVERY: Final = 10.0
_WAIT: Final = re.compile(r"(?:^|[,;\s])wait=([0-9]{1,6})(?:$|[,;\s])")
_DIGITS: Final = re.compile(rb"[0-9]{1,18}\Z")
_ENDED: Final = ("completed", "failed", "cancelled", "deleted")
# What a look at a workflow's end may take beyond the time that it is waited for.
_GRACE: Final = 0.5
# How much of a body that is too large is read past, and for how long.
_SKIPPED: Final = MIB
_SKIP_FOR: Final = 1.0


class _Gone(Exception):
    """The client has hung up before its request was whole."""


class Hooks:
    """The endpoints of one app, as an ASGI app. It routes on what the mount leaves of the path."""

    def __init__(self, app: App, *, run_worker: bool, max_in_memory: int, openapi: bool) -> None:
        self._app = app
        self._run_worker = run_worker
        self._room = max_in_memory
        self._openapi = openapi
        self._routes: dict[str, Endpoint] = {}
        self._known = -1
        self._held = 0  # bytes of bodies that are in memory now
        self._said: dict[tuple[str, str], tuple[float, int]] = {}
        for endpoint in self._endpoints().values():
            endpoint.open()  # a secret that is missing is told here, not to the first sender

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request; for the scope `lifespan`, live as long as the server."""
        if scope["type"] == "lifespan":
            await self._live(receive, send)
            return
        if scope["type"] != "http":
            raise ValueError(f"webhooks come by http, not by {scope['type']}")
        try:
            answer = await self._answer(scope, receive)
        except Refused as refused:
            answer = refused.answer
        except _Gone:
            return
        except Exception:
            log.exception("a request could not be handled; this is a defect in refold")
            answer = problem("defect")
        await _send(send, answer, may_close=scope.get("http_version", "1.1").startswith("1"))

    def _endpoints(self) -> dict[str, Endpoint]:
        connectors = self._app.connectors
        if self._known != len(connectors):
            self._routes = {each.path: each for each in connectors if isinstance(each, Endpoint)}
            self._known = len(connectors)
        return self._routes

    # One request.

    async def _answer(self, scope: Scope, receive: Receive) -> Answer:
        path = _path_of(scope)
        endpoint = self._endpoints().get(path)
        method: str = scope["method"]
        if endpoint is None:
            if path == OPENAPI and self._openapi:
                return self._description(method, scope.get("root_path", ""))
            raise Refused("no-such-endpoint")
        headers = Headers(scope["headers"])
        query: bytes = scope.get("query_string", b"")
        check = endpoint.open()
        if query and endpoint.echo is not None and method in ("GET", "POST"):
            echoed = endpoint.echo.answer(query)
            if echoed is not None:
                return echoed
        if method != "POST":
            return _other_method(endpoint, method, headers)
        body = await self._read(endpoint, headers, receive)
        try:
            request = Request(path, query, headers, body)
            refusal = check.refuses(headers, body, time.time())
            if refusal is not None:
                self._say(logging.WARNING, endpoint, f"a request was refused: {refusal}")
                raise Refused("not-verified")
            answered = answer_verified(endpoint.settings.verifier, request)
            return answered if answered is not None else await self._take(endpoint, request)
        finally:
            self._held -= len(body)

    def _description(self, method: str, root: str) -> Answer:
        if method not in ("GET", "HEAD"):
            raise Refused("method-not-allowed", "", (b"allow", b"GET, HEAD"))
        return json_answer(200, describe_endpoints(self._app.name, list(self._endpoints().values()), root))

    async def _read(self, endpoint: Endpoint, headers: Headers, receive: Receive) -> bytes:
        """Return the whole body; its bytes count as held from then on. Raises Refused, _Gone."""
        most = endpoint.settings.max_body
        declared = headers.one(b"content-length")
        if declared is not None and _DIGITS.match(declared) is None:
            raise Refused("bad-request", "Content-Length is no number", _CLOSE)
        if declared is not None and int(declared) > most:
            # Who asks before he sends is told at once; who would send more than we care to skip, too.
            skips = not headers.has(b"expect") and int(declared) <= most + _SKIPPED
            raise await _without_rest(
                Refused("too-large", f"{most} bytes are taken"), receive if skips else None
            )
        chunks: list[bytes] = []
        size = 0
        try:
            async with asyncio.timeout(endpoint.settings.body_timeout):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise _Gone
                    chunk: bytes = message.get("body", b"")
                    more: bool = message.get("more_body", False)
                    size += len(chunk)
                    self._held += len(chunk)
                    if size > most or self._held > self._room:
                        chunks.clear()
                        refused = Refused("too-large", f"{most} bytes are taken")
                        if size <= most:
                            self._say(logging.WARNING, endpoint, "bodies in memory are at their limit")
                            refused = Refused("busy", "", _RETRY_AFTER)
                        raise await _without_rest(refused, receive) if more else refused
                    chunks.append(chunk)
                    if not more:
                        return chunks[0] if len(chunks) == 1 else b"".join(chunks)
        except TimeoutError:
            self._held -= size
            raise Refused(
                "slow-body", f"{endpoint.settings.body_timeout:g} s are given to it", _CLOSE
            ) from None
        except BaseException:
            self._held -= size
            raise

    async def _take(self, endpoint: Endpoint, request: Request) -> Answer:
        items = endpoint.items(request)
        if not items:
            return json_answer(202, {"workflows": []})
        accepted = await self._accept(endpoint, items)
        if isinstance(endpoint, SignalEndpoint):
            return answer_signal(items, accepted)
        assert isinstance(endpoint, PostEndpoint)
        said = [self._tell(endpoint, item, one) for item, one in zip(items, accepted, strict=True)]
        if len(said) > 1 or endpoint.takes_events_in_batches(request):
            return json_answer(202, {"workflows": said})
        if endpoint.wait is not None:
            return await self._wait(endpoint, request, accepted[0])
        same = said[0].get("same_body_as")
        headers = () if same is None else ((b"refold-same-body", same.encode()),)
        return json_answer(202, said[0], *headers)

    async def _accept(self, endpoint: Endpoint, items: Sequence[Item]) -> Sequence[Accepted]:
        """Record `items` and return once they are durable. Raises Refused when that does not happen in time."""
        try:
            return await self._app.aaccept(
                [item.what for item in items], label=endpoint.label, timeout=endpoint.settings.timeout
            )
        except InvalidId:
            raise Refused("no-target", "to= gave what can't be a workflow's ID") from None
        except Exception as exc:
            # Whatever it is, nobody may believe that the delivery was taken. If it was after all, the sender's next
            # try finds it.
            self._say(
                logging.ERROR, endpoint, f"a delivery could not be recorded: {type(exc).__name__}: {exc}"
            )
            raise Refused("not-recorded", "", _RETRY_AFTER) from exc

    def _tell(self, endpoint: Endpoint, item: Item, accepted: Accepted) -> dict[str, Any]:
        """Return what the sender hears of one workflow. Raises Refused for a key that was used for another request."""
        said: dict[str, Any] = {"workflow": accepted.id}
        if not accepted.new and accepted.digest not in (None, item.digest):
            if endpoint.settings.identity.replays:
                raise Refused("key-reused", "", workflow=accepted.id)
            log.warning("%s: another body came under the ID of workflow %s; the first one counts",
                        endpoint.where, accepted.id)  # fmt: skip
        if accepted.new and accepted.same is not None:
            said["same_body_as"] = accepted.same
            log.warning("%s: workflow %s has the same body as %s: sent again by somebody who caught it?",
                        endpoint.where, accepted.id, accepted.same)  # fmt: skip
        if item.misfit:
            said["misfit"] = item.misfit
            if accepted.new:
                log.warning("%s: workflow %s has failed at once: its body does not fit: %s",
                            endpoint.where, accepted.id, item.misfit)  # fmt: skip
        return said

    async def _wait(self, endpoint: PostEndpoint, request: Request, accepted: Accepted) -> Answer:
        """Answer with the result if it comes in time: 200 says that it has ended, `status` how."""
        limit = endpoint.wait or 0.0
        asked = _WAIT.search(latin(request.headers.one(b"prefer") or b""))
        if asked is not None:
            limit = min(limit, float(asked[1]))
        handle: WorkflowHandle[Any] = WorkflowHandle(self._app, accepted.id, endpoint.workflow)
        said: dict[str, Any] = {"workflow": accepted.id}
        conflict = not accepted.new and endpoint.on_inflight == "conflict"
        try:
            async with asyncio.timeout(limit + 2 * _GRACE):
                status, result = await self._end_of(handle, 0 if conflict else limit)
        except Exception as exc:
            log.debug("%s: the end of %s can't be seen", endpoint.where, accepted.id, exc_info=exc)
            return json_answer(202, said)  # it is recorded, whatever we can't see now
        if status == "completed":
            return json_answer(200, {**said, "status": status, "result": result})
        if status in _ENDED:
            return json_answer(200, {**said, "status": status})
        if conflict:
            raise Refused("in-flight", "", _RETRY_AFTER, **said)
        return json_answer(202, said)

    async def _end_of(self, handle: WorkflowHandle[Any], limit: float) -> tuple[str, Any]:
        """Return the status of a workflow after at most `limit` seconds, and its result if it has one."""
        try:
            return "completed", await handle.aresult(timeout=limit)
        except Exception:  # it has not ended, or with an error of its own, which may be any
            status = (await self._app.ainfo(handle.id)).status
        if status == "completed":  # just now, or the time was too short to look
            return status, await handle.aresult(timeout=_GRACE)
        return status, None

    def _say(self, level: int, endpoint: Endpoint, text: str) -> None:
        """Log a line about an endpoint, the same one at most every few seconds: strangers don't write our logs."""
        now = time.monotonic()
        last, left_out = self._said.get((endpoint.path, text[:60]), (-_SAY_EVERY, 0))
        if now - last < _SAY_EVERY:
            self._said[endpoint.path, text[:60]] = (last, left_out + 1)
            return
        self._said[endpoint.path, text[:60]] = (now, 0)
        more = f" ({left_out} more like it)" if left_out else ""
        log.log(level, "%s: %s%s", endpoint.where, text, more, extra={"endpoint": endpoint.name})

    # With a server of its own.

    async def _live(self, receive: Receive, send: Send) -> None:
        await receive()
        try:
            if self._run_worker:
                await self._app.__aenter__()
        except Exception as exc:
            await send({"type": "lifespan.startup.failed", "message": str(exc)})
            raise
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await self._app.__aexit__(None, None, None)
        await send({"type": "lifespan.shutdown.complete"})


def asgi(
    app: App, *, run_worker: bool = False, max_in_memory: int = 256 * MIB, openapi: bool = True
) -> Hooks:
    """Return the endpoints of `app` as an ASGI app, to be mounted in another one, or served by itself.

    Deliveries are recorded whether a worker runs in this process or not. Run one with the server
    (`FastAPI(lifespan=app.lifespan)`), in another process (`refold worker`), or, where this is served by itself, with
    `run_worker=True`. Bodies in memory take at most `max_in_memory` bytes; above that senders get 503 and try again.
    `openapi` serves a description at /openapi.json.

    Raises SecretMissing for a secret that is not in the environment.
    """
    return Hooks(app, run_worker=run_worker, max_in_memory=max_in_memory, openapi=openapi)


async def _without_rest(refused: Refused, receive: Receive | None) -> Refused:
    """Skip what still comes of a body that nobody wants, and return the refusal; without the whole rest, one that ends
    the connection.

    Closing on a client that still sends resets its connection, and it would never read why.
    """
    skipped = 0
    try:
        async with asyncio.timeout(_SKIP_FOR):
            while receive is not None and skipped <= _SKIPPED:
                message = await receive()
                skipped += len(message.get("body", b""))
                if not message.get("more_body", False):
                    return refused
    except TimeoutError:
        pass
    refused.headers = (*refused.headers, _CLOSE)
    return refused


async def _send(send: Send, answer: Answer, *, may_close: bool) -> None:
    headers = [(b"content-length", b"%d" % len(answer.body))]
    headers += answer.headers if may_close else [each for each in answer.headers if each != _CLOSE]
    await send({"type": "http.response.start", "status": answer.status, "headers": headers})
    await send({"type": "http.response.body", "body": answer.body})


def _path_of(scope: Scope) -> str:
    """Return what the mount leaves of the path. Most frameworks leave the prefix in, some older ones take it out."""
    path: str = scope["path"]
    root: str = scope.get("root_path", "")
    return path[len(root) :] if root and path.startswith(root) else path


def _other_method(endpoint: Endpoint, method: str, headers: Headers) -> Answer:
    allowed = "POST, OPTIONS" if endpoint.echo is None else "GET, POST, OPTIONS"
    allow = (b"allow", allowed.encode())
    if method != "OPTIONS":
        raise Refused("method-not-allowed", "", allow)
    # CloudEvents' question whether its events are wanted; any other OPTIONS asks what can be done here.
    origin = headers.one(b"webhook-request-origin")
    if origin is not None and endpoint.takes_events:
        return Answer(200, b"", (allow, (b"webhook-allowed-origin", origin), (b"webhook-allowed-rate", b"*")))
    return Answer(204, b"", (allow,))
