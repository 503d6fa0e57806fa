"""What webhooks add to the command line: `refold webhook send`, and what `refold dev` needs to serve endpoints.

Loaded by an entry point, so that core needs to know no connector. The webhook package itself is imported inside of
functions only: `refold --help` stays quick.
"""

import base64
import contextlib
import http.client
import json
import os
import secrets
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

import click

from refold.connectors._http import VARIABLE, listen, listen_nearby, server_of
from refold.core import App, ConnectorPlugin
from refold.core.cli import Unreachable, Wrong, common, example, load_app, print_json, project_folder

if TYPE_CHECKING:
    from refold.connectors.webhook._endpoint import Endpoint

_STATE: Final = "webhook-dev.json"
_SECRETS: Final = "webhook-secrets.json"
_FIRST_PORT: Final = 8000
_PORTS: Final = 50
_TIMEOUT: Final = 60.0


@click.group("webhook", short_help="sign and send deliveries to try endpoints")
def webhook() -> None:
    """Send deliveries to endpoints, signed as their senders would sign them."""


@webhook.command(
    "send",
    short_help="sign a file and post it",
    epilog=example("refold webhook send /payments payment.json --app shop.py"),
)
@click.argument("path")
@click.argument("file", type=click.File("rb"))
@click.option("--app", "target", metavar="FILE", help="The app's file  [default: that of `refold dev`]")
@click.option(
    "--url", metavar="URL", help="Where the endpoints are mounted  [default: `refold dev`'s address]"
)
@click.option("--id", "delivery_id", help="The delivery's ID; the same ID again is the same delivery.")
@click.option("--content-type", metavar="TYPE", help="Another content type than the endpoint's.")
@click.option(
    "--header", "headers", multiple=True, metavar="NAME=VALUE", help="One more; may be given again."
)
@common
def send_command(
    path: str,
    file: Any,
    target: str | None,
    url: str | None,
    delivery_id: str | None,
    content_type: str | None,
    headers: tuple[str, ...],
    as_json: bool,
) -> None:
    """Sign FILE (- is stdin) with the first secret of the endpoint at PATH, and post it there.

    The secrets are read as the app reads them: from its code, and from the environment. Those that `refold dev` has
    made up are known.
    """
    from refold.connectors.webhook._sending import new_delivery_id, signed_headers

    state = _read(project_folder() / _STATE)
    for name, value in _read(project_folder() / _SECRETS).items():
        os.environ.setdefault(name, value)
    found = target or state.get("app")
    base = url or state.get("url")
    if not found or not base:
        raise Wrong(
            "no `refold dev` with endpoints runs here\n"
            "start one, or say what and where:  --app shop.py --url http://127.0.0.1:8000/hooks"
        )
    endpoint = _endpoint(load_app(found), path, found)
    body: bytes = file.read()
    pairs = signed_headers(endpoint, body, delivery_id or new_delivery_id(), content_type=content_type)
    pairs += [_pair(text) for text in headers]
    status, answered = _post(base.rstrip("/") + endpoint.path, body, pairs)
    if as_json:
        print_json({"status": status, "answer": _parsed(answered)})
    else:
        click.echo(f"{status} {http.client.responses.get(status, '')}".rstrip())
        click.echo(answered.decode("utf-8", "replace"))
    if status >= 400:
        raise click.exceptions.Exit(1)


def _endpoint(app: App, path: str, target: str) -> "Endpoint":
    from refold.connectors.webhook._endpoint import Endpoint

    wanted = "/" + path.strip("/")
    known = {each.path: each for each in app.connectors if isinstance(each, Endpoint)}
    if wanted not in known:
        raise Wrong(f"{target} has no endpoint at {wanted}\nendpoints in it: {', '.join(known) or 'none'}")
    return known[wanted]


def _post(url: str, body: bytes, pairs: Sequence[tuple[str, str]]) -> tuple[int, bytes]:
    if urlsplit(url).scheme not in ("http", "https"):
        raise Wrong(f"--url {url} is no address\nexpected one like:  --url http://127.0.0.1:8000/hooks")
    request = urllib.request.Request(url, data=body, headers=dict(pairs), method="POST")
    try:
        with urllib.request.urlopen(request, timeout=_TIMEOUT) as response:
            return response.status, response.read()
    except urllib.error.HTTPError as answer:
        with answer:
            return answer.code, answer.read()
    except (OSError, http.client.HTTPException) as error:
        raise Unreachable(
            f"nobody answers at {url}: {error}\nis the server up?  refold dev, or your own program"
        ) from error


def _pair(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals:
        raise Wrong(
            f"--header {text} has no value\nexpected a name and a value, like:  --header X-Source=shop"
        )
    return name, value


def _parsed(answered: bytes) -> Any:
    try:
        return json.loads(answered)
    except ValueError:
        return answered.decode("utf-8", "replace")


def _read(file: Path) -> dict[str, str]:
    with contextlib.suppress(OSError, ValueError):
        found = json.loads(file.read_text())
        if isinstance(found, dict):
            return {str(name): str(value) for name, value in found.items()}
    return {}


def _write(file: Path, values: dict[str, str]) -> None:
    file.parent.mkdir(exist_ok=True)
    with open(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as out:
        json.dump(values, out)


class _DevService:
    """Gives an app with endpoints an address, and secrets that nobody has set; what it did ends with the run."""

    def __init__(self, url: str, folder: Path, made_up: dict[str, str], target: str | None) -> None:
        self._state = folder / _STATE
        self._made_up = made_up
        os.environ.update(made_up)
        if made_up:
            _write(folder / _SECRETS, {**_read(folder / _SECRETS), **made_up})
        _write(self._state, {"url": url, "app": target or ""})

    def describe(self) -> Sequence[tuple[str, str]]:
        if not self._made_up:
            return []
        names = ", ".join(self._made_up)
        return [("secrets", f"{names}: not set, so made up for this folder (.refold/{_SECRETS})")]

    def stop(self) -> None:
        self._state.unlink(missing_ok=True)
        for name, value in self._made_up.items():
            if os.environ.get(name) == value:
                del os.environ[name]


def start_dev_service(app: App, folder: Path) -> _DevService | None:
    """Have the endpoints of `app` served on the loopback address, with every secret that they need."""
    if not any(each.kind == "webhook" for each in app.connectors):
        return None
    from refold.connectors.webhook._endpoint import Endpoint
    from refold.connectors.webhook._site import site_of

    endpoints = [each for each in app.connectors if isinstance(each, Endpoint)]
    context = click.get_current_context(silent=True)
    target = None if context is None else context.params.get("file")
    known = _read(folder / _SECRETS)
    made_up = {
        name: known.get(name) or _new_secret(endpoint)
        for endpoint in endpoints
        for name in endpoint.variables()
        if not os.environ.get(name)
    }
    site, server = site_of(app), server_of(app)
    site.shows_curl, site.made_up = True, made_up.keys()
    address = os.environ.get(VARIABLE)
    server.listener = listen(address) if address else listen_nearby(_FIRST_PORT, _PORTS)
    host, port = server.listener.getsockname()[:2]
    url = f"http://{f'[{host}]' if ':' in host else host}:{port}/hooks"
    return _DevService(url, folder, made_up, _absolute(target))


def _absolute(target: str | None) -> str | None:
    """Return FILE or FILE:NAME so that it is found from any folder; a module's name as it is."""
    if target is None:
        return None
    place, colon, name = target.partition(":")
    return f"{Path(place).resolve()}{colon}{name}" if Path(place).exists() else target


def _new_secret(endpoint: "Endpoint") -> str:
    if endpoint.settings.verifier.kind == "standard":
        return "whsec_" + base64.b64encode(secrets.token_bytes(24)).decode()
    return secrets.token_hex(24)


plugin = ConnectorPlugin(commands=[webhook], dev_service=start_dev_service)

__all__ = ["plugin", "start_dev_service", "webhook"]
