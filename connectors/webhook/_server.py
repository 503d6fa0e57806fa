"""An HTTP server of our own, in a thread of its own: for `refold dev` and `refold worker --http`.

In production most programs mount `webhook.asgi(app)` in a server that they have anyway. This one is uvicorn, from the
extra `webhook`; it serves only where REFOLD_HTTP says so.
"""

import logging
import os
import socket
import threading
from collections.abc import Collection
from typing import TYPE_CHECKING, Final

from refold.connectors.webhook._answers import problem
from refold.connectors.webhook._asgi import Hooks, Receive, Scope, Send, _send, asgi
from refold.connectors.webhook._endpoint import Endpoint
from refold.connectors.webhook._sending import curl_line, send_line
from refold.core import App, DefinitionRefused, SourceReport

if TYPE_CHECKING:
    import uvicorn

log: Final = logging.getLogger("refold.webhook")

VARIABLE: Final = "REFOLD_HTTP"
PREFIX: Final = "/hooks"
_STOP: Final = 5.0
# Longer than proxies and balancers keep a connection: who closes first must not be us, in the middle of their request.
_KEEP_ALIVE: Final = 75


class HttpServer:
    """Serves the endpoints of an app under /hooks, when REFOLD_HTTP names an address. A connector, since it lives as
    long as the worker does."""

    name = "http"
    kind = "http"

    def __init__(self) -> None:
        self._server: uvicorn.Server | None = None
        self._thread: threading.Thread | None = None
        self._socket: socket.socket | None = None
        self._app: App | None = None
        self.url: str | None = None
        self.listener: socket.socket | None = None  # listens already, in place of what the variable says
        self.shows_curl = False  # signed requests are for a desk: a log is no place for them
        self.made_up: Collection[str] = ()  # variables whose secrets are of this run only

    def start(self, app: App) -> None:
        """Listen and serve, if an address is given. Raises DefinitionRefused for one that can't be listened on."""
        self._app = app
        address = os.environ.get(VARIABLE)
        if not address and self.listener is None:
            return
        try:
            import uvicorn
        except ImportError as exc:
            raise ImportError(
                "an HTTP server for webhook endpoints is asked for: pip install 'refold[webhook]'"
            ) from exc
        self._socket, self.listener = self.listener or listen(address or ""), None
        host, port = self._socket.getsockname()[:2]
        shown = f"[{host}]" if ":" in host else host
        self.url = f"http://{shown}:{port}{PREFIX}"
        config = uvicorn.Config(
            _Mounted(asgi(app)), lifespan="off", log_config=None, access_log=False, server_header=False,
            timeout_graceful_shutdown=int(_STOP), ws="none",
            timeout_keep_alive=_KEEP_ALIVE,
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
        """Return one line: the address, or how to be reached."""
        return [
            self.url or f"not served by this process: mount webhook.asgi(app), or set {VARIABLE}=HOST:PORT"
        ]

    def report(self) -> list[SourceReport]:
        """Return nothing: it is no source, its endpoints are."""
        return []

    def try_next(self) -> list[str]:
        """Return for each endpoint a signed request, at a desk (those with a timestamp are good for five minutes);
        elsewhere the command that signs one."""
        if self._app is None or self.url is None:
            return []
        lines = []
        for each in self._app.connectors:
            if isinstance(each, Endpoint):
                line = curl_line(each, self.url, self.made_up) if self.shows_curl else None
                lines.append(line or send_line(each, self.url, _app_of_the_command()))
        return lines


def _app_of_the_command() -> str:
    """Return the app as it was typed: `refold worker shop.py`."""
    import click

    context = click.get_current_context(silent=True)
    target = None if context is None else context.params.get("file")
    return target if isinstance(target, str) else "FILE.py"


class _Mounted:
    """The hooks under their prefix, and 404 beside it."""

    def __init__(self, hooks: Hooks) -> None:
        self._hooks = hooks

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and not scope["path"].startswith(f"{PREFIX}/"):
            await _send(send, problem("no-such-endpoint", f"endpoints are under {PREFIX}"), may_close=True)
            return
        await self._hooks({**scope, "root_path": PREFIX}, receive, send)


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
