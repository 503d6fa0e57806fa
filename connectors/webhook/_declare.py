"""`@webhook.post` and `@webhook.signal`: what is declared over a workflow."""

import re
from collections.abc import Callable
from datetime import timedelta
from typing import Any, Final, Literal, TypeVar, cast

from refold.connectors.webhook._delivery import Delivery, DeliveryCodec, delivery_parameter
from refold.connectors.webhook._endpoint import (
    Endpoint,
    OnInflight,
    PostEndpoint,
    Settings,
    SignalEndpoint,
    seconds,
)
from refold.connectors.webhook._handshakes import Echo
from refold.connectors.webhook._identity import AnyIdentity, choose_identity
from refold.connectors.webhook._site import site_of
from refold.connectors.webhook._verify import Verifier
from refold.core import App, DefinitionRefused, Workflow

W = TypeVar("W", bound=Workflow[..., Any])

_PATH: Final = re.compile(r"(/[A-Za-z0-9._~!$&'()*+,;=:@-]+)+\Z")
_NAME_MAX: Final = 200
_MIB: Final = 1024 * 1024
# GitHub's own limit; all others send less.
_MAX_BODY: Final = {"github": 25 * _MIB}
_OURS: Final = ("/openapi.json",)


def post(
    path: str,
    *,
    verify: Verifier,
    id: AnyIdentity | None = None,
    name: str | None = None,
    wait: timedelta | float | None = None,
    on_inflight: OnInflight = "join",
    dedup: Literal["body"] | None = None,
    max_body: int | None = None,
    timeout: timedelta | float = 2.0,
    body_timeout: timedelta | float = 10.0,
    handshake: Echo | None = None,
) -> Callable[[W], W]:
    """Have every delivery to `path` start one run of the workflow below, ever.

    The workflow takes one `webhook.Delivery[T]`. `verify` says who may send: `webhook.github(secret="env:NAME")`.
    `id` is what a delivery is known by: a sender's own verifier knows that; else `webhook.header(...)`,
    `webhook.field(...)`, `webhook.cloudevents()`, `webhook.idempotency_key()`, or a function of the delivery.
    `dedup="body"` makes equal bodies one workflow, whatever their IDs. `name` (default: the workflow's) is the
    endpoint's identity, in the IDs of its workflows: keep it, and a renamed path or function runs nothing again.

    The answer is sent after the commit: 202 with the workflow's ID, and the same for a duplicate. With `wait` it is 200
    with the result, if that comes in time; a duplicate that comes while the first runs joins it, or gets 409 with
    `on_inflight="conflict"`. When Postgres does not answer within `timeout` it is 503 with Retry-After, and the sender
    tries again. Bodies above `max_body` bytes (1 MiB; 25 MiB from GitHub) are refused, and those that take longer
    than `body_timeout`. `handshake` answers a sender's question in the query: `webhook.echo("hub.challenge")`.

    Raises DefinitionRefused for a declaration that cannot work.
    """
    where = f"webhook.post({path!r})"
    if on_inflight not in ("join", "conflict") or (on_inflight == "conflict" and wait is None):
        raise DefinitionRefused(
            where,
            f"on_inflight={on_inflight!r} with wait={wait!r}",
            'It is "join" or "conflict", and the second only for an endpoint with wait=.',
        )

    def decorate(workflow: W) -> W:
        app = _app_of(where, workflow)
        codec = delivery_parameter(workflow.name, workflow.parameters)
        settings = _settings(
            where, path, name or workflow.name, verify, id, dedup, max_body, timeout, body_timeout, handshake
        )
        endpoint = PostEndpoint(app, workflow, codec, settings)
        endpoint.wait = seconds(wait)
        endpoint.on_inflight = on_inflight
        _connect(where, app, endpoint)
        return workflow

    return decorate


def signal(
    path: str,
    *,
    to: Callable[[Delivery[Any]], str],
    topic: str,
    verify: Verifier,
    body: Any = Any,
    value: Callable[[Delivery[Any]], Any] | None = None,
    id: AnyIdentity | None = None,
    name: str | None = None,
    dedup: Literal["body"] | None = None,
    max_body: int | None = None,
    timeout: timedelta | float = 2.0,
    body_timeout: timedelta | float = 10.0,
    handshake: Echo | None = None,
) -> Callable[[W], W]:
    """Have every delivery to `path` be a message into a run of the workflow below, for its `refold.recv(topic)`.

    `to` says which run: it takes the `Delivery` and returns the workflow's ID. `body` is the type that the body must
    have; the message is the body, or what `value` makes of the delivery. A delivery is one message, however often it
    comes. One for a workflow that has not started yet waits for it; one that has ended takes none, and the answer
    says so. The other options are those of `webhook.post`.

    Raises DefinitionRefused for a declaration that cannot work.
    """
    where = f"webhook.signal({path!r})"

    def decorate(workflow: W) -> W:
        app = _app_of(where, workflow)
        try:
            codec = DeliveryCodec("delivery", body)
        except (TypeError, ValueError, NameError) as exc:
            raise DefinitionRefused(
                where, f"msgspec cannot decode body={body!r} ({exc})", "Use a msgspec.Struct."
            ) from exc
        called = name or f"{workflow.name}.{topic}"
        settings = _settings(
            where, path, called, verify, id, dedup, max_body, timeout, body_timeout, handshake
        )
        endpoint = SignalEndpoint(app, workflow, codec, settings)
        endpoint.topic, endpoint.to, endpoint.value = topic, to, value
        _connect(where, app, endpoint)
        return workflow

    return decorate


def _app_of(where: str, workflow: object) -> App:
    if not isinstance(workflow, Workflow):
        raise DefinitionRefused(
            where,
            f"it sits on {getattr(workflow, '__qualname__', workflow)!r}, which is no workflow",
            "Put @app.workflow below it, directly above the function.",
        )
    return cast(App, workflow.app)


def _settings(
    where: str,
    path: str,
    name: str,
    verifier: Verifier,
    identity: AnyIdentity | None,
    dedup: str | None,
    max_body: int | None,
    timeout: timedelta | float,
    body_timeout: timedelta | float,
    handshake: Echo | None,
) -> Settings:
    if not isinstance(path, str) or _PATH.match(path) is None or path in _OURS:
        raise DefinitionRefused(
            where, "that is no path of an endpoint", 'Write it like "/payments", without a slash at its end.'
        )
    if not all(hasattr(verifier, part) for part in ("kind", "is_signed", "secrets", "open")):
        raise DefinitionRefused(
            where,
            f"verify={type(verifier).__name__} is no verifier",
            'Give webhook.standard(secret="env:NAME") or like; webhook.none() believes everybody.',
        )
    if dedup not in (None, "body"):
        raise DefinitionRefused(where, f"dedup={dedup!r}", 'Give dedup="body", or leave it out.')
    size = max_body if max_body is not None else _MAX_BODY.get(verifier.kind, _MIB)
    times = [seconds(timeout) or 0, seconds(body_timeout) or 0]
    if size < 1 or min(times) <= 0 or not 1 <= len(name.encode()) <= _NAME_MAX:
        raise DefinitionRefused(
            where,
            f"name={name!r}, max_body={size}, timeout={times[0]:g}, body_timeout={times[1]:g}",
            f"Sizes and times are above 0; a name has 1 to {_NAME_MAX} bytes.",
        )
    return Settings(
        path=path,
        name=name,
        verifier=verifier,
        identity=choose_identity(where, identity, verifier, dedup),
        dedup_body=dedup == "body",
        max_body=size,
        timeout=times[0],
        body_timeout=times[1],
        handshake=handshake,
    )


def _connect(where: str, app: App, endpoint: Endpoint) -> None:
    others = [each for each in app.connectors if isinstance(each, Endpoint)]
    if any(other.path == endpoint.path for other in others):
        raise DefinitionRefused(
            where,
            f"app {app.name!r} has an endpoint at {endpoint.path} already",
            "Give one of them another path.",
        )
    if any(other.name == endpoint.name for other in others):
        raise DefinitionRefused(
            where,
            f"app {app.name!r} has a webhook called {endpoint.name!r} already",
            "Give one of them another name=: it is part of the IDs of the workflows.",
        )
    site_of(app)
    app.connect(endpoint)


__all__ = ["post", "signal"]
