"""The OpenAPI description of an app's endpoints: what fits, and every answer that there can be."""

from collections.abc import Sequence
from typing import Any, Final

import msgspec

from refold.connectors.webhook._answers import status_of
from refold.connectors.webhook._cloudevents import BATCH, STRUCTURED
from refold.connectors.webhook._endpoint import Endpoint, PostEndpoint, SignalEndpoint

_REF: Final = "#/components/schemas/{name}"
_ALWAYS: Final[tuple[str, ...]] = (
    "bad-request",
    "bad-body",
    "no-identity",
    "not-verified",
    "slow-body",
    "too-large",
    "unsupported-type",
    "not-recorded",
)
_PROBLEM: Final = {
    "type": "object",
    "required": ["type", "title", "status"],
    "properties": {
        "type": {"type": "string"},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "detail": {"type": "string"},
        "workflow": {"type": "string"},
    },
}
_TAKEN: Final = {
    "type": "object",
    "properties": {
        "workflow": {"type": "string", "description": "the ID of the workflow"},
        "same_body_as": {
            "type": "string",
            "description": "another workflow that was started by the same body",
        },
        "misfit": {
            "type": "string",
            "description": "why the body does not fit; the workflow has failed at once",
        },
        "delivered": {"type": "boolean"},
        "status": {"type": "string"},
        "result": {},
        "ignored": {"type": "string"},
        "challenge": {"type": "string"},
        "workflows": {"type": "array", "items": {"type": "object"}},
        "messages": {"type": "array", "items": {"type": "object"}},
    },
}


def describe_endpoints(title: str, endpoints: Sequence[Endpoint], root: str) -> dict[str, Any]:
    """Return the description, for GET /openapi.json."""
    schemas: dict[str, Any] = {"Problem": _PROBLEM, "Taken": _TAKEN}
    paths = {endpoint.path: {"post": _operation(endpoint, schemas)} for endpoint in endpoints}
    return {
        "openapi": "3.1.0",
        "info": {"title": f"Webhooks of {title}", "version": "1"},
        "servers": [{"url": root or "/"}],
        "paths": paths,
        "components": {"schemas": schemas},
    }


def _operation(endpoint: Endpoint, schemas: dict[str, Any]) -> dict[str, Any]:
    codes: list[str] = list(_ALWAYS)
    answers: dict[str, Any] = {"202": _taken("It is recorded.")}
    if isinstance(endpoint, SignalEndpoint):
        codes.append("no-target")
    if isinstance(endpoint, PostEndpoint) and endpoint.wait is not None:
        answers["200"] = _taken("It is recorded, and its workflow has ended.")
        if endpoint.on_inflight == "conflict":
            codes.append("in-flight")
    if endpoint.settings.verifier.kind in ("slack", "github"):
        answers["200"] = _taken("A handshake, or an event that is not wanted.")
    if endpoint.settings.identity.replays:
        codes.append("key-reused")
    for status in sorted({status_of(code) for code in codes}):
        answers[str(status)] = {
            "description": "Nothing was started.",
            "content": {"application/problem+json": {"schema": {"$ref": _REF.format(name="Problem")}}},
        }
    return {
        "operationId": endpoint.name,
        "summary": endpoint.becomes(),
        "parameters": _parameters(endpoint),
        "requestBody": {"required": True, "content": _content(endpoint, schemas)},
        "responses": answers,
    }


def _taken(description: str) -> dict[str, Any]:
    return {
        "description": description,
        "content": {"application/json": {"schema": {"$ref": _REF.format(name="Taken")}}},
    }


def _parameters(endpoint: Endpoint) -> list[dict[str, Any]]:
    header = endpoint.settings.identity.header
    if not header:
        return []
    return [{"name": header, "in": "header", "required": True, "schema": {"type": "string", "minLength": 1}}]


def _content(endpoint: Endpoint, schemas: dict[str, Any]) -> dict[str, Any]:
    if endpoint.takes_events:
        return {STRUCTURED: {"schema": {"type": "object"}}, BATCH: {"schema": {"type": "array"}}}
    if endpoint.codec.form == "bytes":
        return {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}
    if endpoint.codec.form == "text":
        return {"text/plain": {"schema": {"type": "string"}}}
    try:
        (schema,), components = msgspec.json.schema_components([endpoint.codec.type], ref_template=_REF)
    except TypeError:  # a type that msgspec decodes and can't describe
        schema, components = {}, {}
    schemas |= components
    return {"application/json": {"schema": schema}}
