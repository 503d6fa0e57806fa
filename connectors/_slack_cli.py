"""What Slack adds to `refold dev`: a server for the endpoints of an app's Slack mounts.

Loaded by an entry point, so that core needs to know no connector. The Slack package itself is imported inside of
functions only: `refold --help` works without the extra.
"""

import contextlib
import socket
import threading
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Final

from refold.core import App, ConnectorPlugin

if TYPE_CHECKING:
    from refold.connectors.slack import SlackApp

_PORTS: Final = range(3000, 3050)  # bolt's own development server listens at 3000
_STOP: Final = 5.0


class _DevService:
    """Serves the endpoints on the loopback address, as long as `refold dev` runs."""

    def __init__(self, app: App, mounts: "Sequence[SlackApp]") -> None:
        import uvicorn

        from refold.connectors import slack

        self._mounts = mounts
        self._socket = _listen()
        config = uvicorn.Config(
            slack.asgi(app), lifespan="off", log_config=None, access_log=False, server_header=False, ws="none"
        )
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(
            target=self._server.run, kwargs={"sockets": [self._socket]}, name="refold-slack-http", daemon=True
        )
        self._thread.start()
        for mount in mounts:
            mount.is_served = True

    def describe(self) -> Sequence[tuple[str, str]]:
        host, port = self._socket.getsockname()
        paths = {
            f"{mount.mount_path}/{mount.name}" if len(self._mounts) > 1 else mount.mount_path
            for mount in self._mounts
        }
        return [
            ("slack", f"Request URL: http://{host}:{port}{path}/events, behind your tunnel")
            for path in sorted(paths)
        ]

    def stop(self) -> None:
        self._server.should_exit = True
        self._thread.join(_STOP)
        self._socket.close()


def start_dev_service(app: App, folder: Path) -> _DevService | None:
    """Serve the Slack mounts of `app` that take requests; one that uses Socket Mode alone needs no server."""
    if not any(each.kind == "slack" for each in app.connectors):
        return None
    from refold.connectors.slack import SlackApp

    mounts = [each for each in app.connectors if isinstance(each, SlackApp) and each.takes_requests]
    if not mounts:
        return None
    if find_spec("uvicorn") is None:
        raise ImportError(
            "to serve Slack's requests refold dev needs a server: pip install 'refold[webhook]'"
        )
    return _DevService(app, mounts)


def _listen() -> socket.socket:
    for port in (*_PORTS, 0):
        made = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        with contextlib.suppress(OSError):
            made.bind(("127.0.0.1", port))
            made.listen(1024)
            return made
        made.close()
    raise OSError("no port is free")


plugin = ConnectorPlugin(dev_service=start_dev_service)

__all__ = ["plugin", "start_dev_service"]
