"""The other side: a request as the sender would make it. For `curl` lines, `refold webhook send` and tests."""

import secrets
import shlex
import time
from collections.abc import Collection, Sequence
from typing import Any, Final

import msgspec

from refold.connectors.webhook._answers import Refused
from refold.connectors.webhook._cloudevents import STRUCTURED
from refold.connectors.webhook._endpoint import Endpoint
from refold.connectors.webhook._headers import Headers
from refold.connectors.webhook._identity import FieldId, KeyId
from refold.connectors.webhook._request import Request
from refold.connectors.webhook._schemes import Bearer
from refold.connectors.webhook._secrets import variables_of
from refold.core import sample

Pairs = list[tuple[str, str]]

_CONTENT_TYPES: Final = {
    "json": "application/json",
    "text": "text/plain; charset=utf-8",
    "bytes": "application/octet-stream",
}


def new_delivery_id() -> str:
    """Return an ID that no delivery had before."""
    return f"try-{secrets.token_hex(4)}"


def signed_headers(
    endpoint: Endpoint, body: bytes, delivery_id: str, *, content_type: str | None = None
) -> Pairs:
    """Return the headers with which the sender would send `body`, now. Raises SecretMissing."""
    kind = content_type or (STRUCTURED if endpoint.takes_events else _CONTENT_TYPES[endpoint.codec.form])
    made = [("Content-Type", kind)]
    if endpoint.settings.verifier.kind == "github":
        made.append(("X-GitHub-Event", _github_event(endpoint)))
    made += endpoint.open().sign(body, delivery_id, int(time.time()))
    wanted = endpoint.settings.identity.header
    if wanted and wanted.lower() not in [name.lower() for name, _ in made]:
        value = f'"{delivery_id}"' if isinstance(endpoint.settings.identity, KeyId) else delivery_id
        made.append((wanted, value))
    return made


def _github_event(endpoint: Endpoint) -> str:
    events: Sequence[str] | None = getattr(endpoint.settings.verifier, "events", None)
    return events[0] if events else "push"


def sample_body(endpoint: Endpoint, delivery_id: str) -> bytes:
    """Return a made-up body of the endpoint's type, with `delivery_id` in it where the sender has it in the body."""
    if endpoint.codec.form != "json":
        body = b"hello"
    else:
        body = sample(endpoint.codec.type, endpoint.name)
    identity = endpoint.settings.identity
    if isinstance(identity, FieldId):
        return _with_field(body, identity.path.split("."), delivery_id)
    if endpoint.takes_events:
        event = {"specversion": "1.0", "id": delivery_id, "source": "/try", "type": "try"}
        data = msgspec.Raw(body) if endpoint.codec.form == "json" else body.decode()
        return msgspec.json.encode({**event, "data": data})
    return body


def _with_field(body: bytes, path: Sequence[str], value: str) -> bytes:
    document: Any = msgspec.json.decode(body)
    if not isinstance(document, dict):
        return body
    at = document
    for name in path[:-1]:
        at = at.setdefault(name, {})
        if not isinstance(at, dict):
            return body
    at[path[-1]] = value
    return msgspec.json.encode(document)


def curl_line(endpoint: Endpoint, url: str, made_up: Collection[str] = ()) -> str | None:
    """Return a signed request as a line for a shell; None when nobody can make up a body that the endpoint takes.

    A token that the environment holds is in the line by its variable's name, unless that is one of `made_up`: then
    no shell has it, and it is no secret.
    """
    made = _sample_request(endpoint)
    if made is None:
        return None
    body, pairs = made
    words = [f"curl {url}{endpoint.path}"]
    words += [f"-H {_header(endpoint, name, value, made_up)}" for name, value in pairs]
    words.append(f"-d {shlex.quote(body.decode())}")
    return " ".join(words)


def send_line(endpoint: Endpoint, url: str, target: str) -> str:
    """Return the command that makes up a body, signs and sends it; of a FILE where nobody can make one up.

    No secret is in it, and no signature: it may stand in a log. `target` is the app, as the command line takes it.
    """
    where = f"--app {shlex.quote(target)} --url {url}"
    made = _sample_request(endpoint)
    if made is None:
        return f"refold webhook send {endpoint.path} FILE {where}"
    return f"echo {shlex.quote(made[0].decode())} | refold webhook send {endpoint.path} - {where}"


def _sample_request(endpoint: Endpoint) -> tuple[bytes, Pairs] | None:
    """Return a body that the endpoint takes, with the headers that go with it; None when nobody can make one up."""
    delivery_id = new_delivery_id()
    try:
        body = sample_body(endpoint, delivery_id)
        pairs = signed_headers(endpoint, body, delivery_id)
        raw = [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in pairs]
        items = endpoint.items(Request(endpoint.path, b"", Headers(raw), body))
    except (Refused, msgspec.MsgspecError, TypeError, ValueError):
        return None
    if not items or any(item.misfit for item in items):
        return None
    return body, pairs


def _header(endpoint: Endpoint, name: str, value: str, made_up: Collection[str]) -> str:
    verifier = endpoint.settings.verifier
    if isinstance(verifier, Bearer) and name == verifier.header:
        variables = variables_of(verifier.secrets[:1])
        if variables and variables[0] not in made_up:
            start = "Bearer " if name.lower() == "authorization" else ""
            return f'"{name}: {start}${variables[0]}"'
    return shlex.quote(f"{name}: {value}")
