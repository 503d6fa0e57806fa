"""The HTTP server of a worker's process, in a thread of its own: for `refold dev` and `refold worker --http`.

In production most programs mount the connectors' ASGI apps in a server that they have anyway. This one is uvicorn, from
the extra `webhook`; it serves only where REFOLD_HTTP says so. A connector that takes requests gives it a `Site`.
"""

import logging
import os
import socket
import threading
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from typing import TYPE_CHECKING, Any, Final, Protocol

from refold.core import App, DefinitionRefused, SourceReport

if TYPE_CHECKING:
    import uvicorn

log: Final = logging.getLogger("refold.http")

VARIABLE: Final = "REFOLD_HTTP"
_STOP: Final = 5.0
# Longer than proxies and balancers keep a connection: who closes first must not be us, in the middle of their request.
_KEEP_ALIVE: Final = 75

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Asgi = Callable[[Scope, Receive, Send], Awaitable[None]]


class Site(Protocol):
    """What one connector has served: an ASGI app below `prefix`, "/hooks"; it may be "", too."""

    @property
    def prefix(self) -> str: ...

    @property
    def mounted_by(self) -> str:
        """The call that gives the ASGI app to a server of the user's own: `webhook.asgi(app)`."""
        ...

    def asgi(self) -> Asgi:
        """Return the ASGI app; called when the server starts. What it raises keeps the worker from starting."""
        ...

    def describe(self, url: str) -> Sequence[str]:
        """Return lines: what is served at `url`, which ends with the prefix."""
        ...

    def try_next(self, url: str) -> Sequence[str]:
        """Return commands that send something there."""
        ...


class HttpServer:
    """Serves the sites of an app's connectors, when REFOLD_HTTP names an address. A connector, since it lives as long
    as the worker does."""

    name = "http"
    kind = "http"

    def __init__(self) -> None:
        self.sites: list[Site] = []
        self.url: str | None = None  # without a prefix; None while it does not serve
        self.listener: socket.socket | None = None  # listens already, in place of what the variable says
        self._server: uvicorn.Server | None = None
        self._thread: threading.Thread | None = None
        self._socket: socket.socket | None = None

    def add(self, site: Site) -> None:
        """Serve `site` as well, from the next start on. Raises DefinitionRefused when its place is taken."""
        if any(other.prefix == site.prefix for other in self.sites):
            raise DefinitionRefused(
                f"{site.mounted_by} under {site.prefix or '/'}",
                "another connector of this app is served there",
                "Give one of them another path.",
            )
        self.sites.append(site)

    def start(self, app: App) -> None:
        """Listen and serve, if an address is given. Raises DefinitionRefused for one that can't be listened on."""
        address = os.environ.get(VARIABLE)
        if not address and self.listener is None:
            return
        try:
            import uvicorn
        except ImportError as exc:
            raise ImportError("an HTTP server is asked for: pip install 'refold[webhook]'") from exc
        sites = _Sites({site.prefix: site.asgi() for site in self.sites})
        self._socket, self.listener = self.listener or listen(address or ""), None
        host, port = self._socket.getsockname()[:2]
        self.url = f"http://{f'[{host}]' if ':' in host else host}:{port}"
        config = uvicorn.Config(
            sites, lifespan="off", log_config=None, access_log=False, server_header=False,
            timeout_graceful_shutdown=int(_STOP), ws="none", timeout_keep_alive=_KEEP_ALIVE,
        )  # fmt: skip
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(
            target=self._run, args=(self._server,), name="refold-http", daemon=True
        )
        self._thread.start()

    def _run(self, server: "uvicorn.Server") -> None:
        # Signals are the program's own: uvicorn takes them in the main thread only.
        server.run(sockets=[self._socket] if self._socket is not None else None)

    def stop(self) -> None:
        """Take no more requests; those that have begun are answered first."""
        if self._server is not None and self._thread is not None:
            self._server.should_exit = True
            self._thread.join(_STOP + 2)
        if self._socket is not None:
            self._socket.close()
        self._server = self._thread = self._socket = self.url = None

    def describe(self) -> list[str]:
        """Return what is served where, or how to be reached."""
        if self.url is not None:
            return [line for site in self.sites for line in site.describe(self.url + site.prefix)]
        calls = " and ".join(dict.fromkeys(site.mounted_by for site in self.sites))
        return [f"not served by this process: mount {calls}, or set {VARIABLE}=HOST:PORT"]

    def report(self) -> list[SourceReport]:
        """Return nothing: it is no source, its endpoints are."""
        return []

    def try_next(self) -> list[str]:
        """Return what its sites suggest."""
        if self.url is None:
            return []
        return [line for site in self.sites for line in site.try_next(self.url + site.prefix)]


def server_of(app: App) -> HttpServer:
    """Return the server of `app`, which begins and ends with its worker; its first connector with a site adds it."""
    found = next((each for each in app.connectors if isinstance(each, HttpServer)), None)
    if found is None:
        found = HttpServer()
        app.connect(found)
    return found


class _Sites:
    """Each site below its prefix, the longest that fits, and 404 beside them."""

    def __init__(self, apps: dict[str, Asgi]) -> None:
        self._apps = dict(sorted(apps.items(), key=lambda item: len(item[0]), reverse=True))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            raise ValueError(f"requests come by http, not by {scope['type']}")
        for prefix, app in self._apps.items():
            if scope["path"].startswith(f"{prefix}/"):
                await app({**scope, "root_path": prefix}, receive, send)
                return
        body = b'{"type":"urn:refold:http:no-such-endpoint","status":404,"title":"Nothing is served at this path"}'
        headers = [
            (b"content-type", b"application/problem+json"),
            (b"content-length", str(len(body)).encode()),
        ]
        await send({"type": "http.response.start", "status": 404, "headers": headers})
        await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else body})


def listen(address: str) -> socket.socket:
    """Return a listening socket for HOST:PORT. Raises DefinitionRefused."""
    host, _, port = address.rpartition(":")
    host = host.strip("[]")
    if not port.isdigit() or not host:
        raise DefinitionRefused(
            f"{VARIABLE}={address!r}", "that is no address", "Write it like 127.0.0.1:8000."
        )
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    made = socket.socket(family, socket.SOCK_STREAM)
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind((host, int(port)))
        made.listen(1024)
    except (OSError, OverflowError) as exc:
        made.close()
        raise DefinitionRefused(
            f"{VARIABLE}={address!r}", f"it can't be listened on ({exc})", "Give another address."
        ) from exc
    return made


def listen_nearby(first: int, count: int) -> socket.socket:
    """Listen on the loopback address, at the first port of `count` from `first` on that is free; else at any."""
    for port in range(first, first + count):
        try:
            return listen(f"127.0.0.1:{port}")
        except DefinitionRefused:
            continue
    return listen("127.0.0.1:0")


__all__ = ["VARIABLE", "Asgi", "HttpServer", "Site", "listen", "listen_nearby", "server_of"]
