"""The endpoints of an app as what the worker's own HTTP server has under /hooks."""

from collections.abc import Collection
from typing import Final

from refold.connectors._http import server_of
from refold.connectors.webhook._asgi import Hooks, asgi
from refold.connectors.webhook._endpoint import Endpoint
from refold.connectors.webhook._sending import curl_line, send_line
from refold.core import App

PREFIX: Final = "/hooks"


class HooksSite:
    """All webhook endpoints of one app."""

    prefix = PREFIX
    mounted_by = "webhook.asgi(app)"

    def __init__(self, app: App) -> None:
        self._app = app
        self.shows_curl = False  # signed requests are for a desk: a log is no place for them
        self.made_up: Collection[str] = ()  # variables whose secrets are of this run only

    def asgi(self) -> Hooks:
        """Return the app; raises SecretMissing for a secret that is not set."""
        return asgi(self._app)

    def describe(self, url: str) -> list[str]:
        """Return the address."""
        return [url]

    def try_next(self, url: str) -> list[str]:
        """Return for each endpoint a signed request, at a desk (those with a timestamp are good for five minutes);
        elsewhere the command that signs one."""
        lines = []
        for each in self._app.connectors:
            if isinstance(each, Endpoint):
                line = curl_line(each, url, self.made_up) if self.shows_curl else None
                lines.append(line or send_line(each, url, _app_of_the_command()))
        return lines


def site_of(app: App) -> HooksSite:
    """Return the site of `app`'s endpoints; the first one that is declared adds it to the server."""
    server = server_of(app)
    found = next((site for site in server.sites if isinstance(site, HooksSite)), None)
    if found is None:
        found = HooksSite(app)
        server.add(found)
    return found


def _app_of_the_command() -> str:
    """Return the app as it was typed: `refold worker shop.py`."""
    import click

    context = click.get_current_context(silent=True)
    target = None if context is None else context.params.get("file")
    return target if isinstance(target, str) else "FILE.py"
