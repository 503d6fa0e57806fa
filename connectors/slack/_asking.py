"""Buttons whose click is a message into a waiting workflow.

The button's value says which workflow waits, for which topic, and what it gets. A click comes back from Slack under
its signature, so nobody can make up an answer; who may answer is for the workflow to decide, by `Answer.user`.
"""

import hashlib
from collections.abc import Mapping
from typing import Any, Final

import msgspec

from refold.connectors.slack._identity import mapping_of, text_of

PREFIX: Final = "refold:"
_VALUE_MAX: Final = 2000  # Slack's limit for a button's value


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """What a click brings: the button's value, who clicked, and where."""

    value: Any
    user: str = ""
    name: str = ""
    channel: str = ""
    message_ts: str = ""
    response_url: str = ""


class _Waits(msgspec.Struct, frozen=True):
    """What a button knows. `to` is None until the step that posts it fills in its own workflow."""

    topic: str
    value: Any
    to: str | None = None


_waits: Final = msgspec.json.Decoder(_Waits)


def button(text: str, value: Any, *, topic: str, to: str | None = None, **options: Any) -> dict[str, Any]:
    """Return a button whose click sends `Answer(value=value)` to `topic` of workflow `to`.

    Without `to` it is the workflow that posts it. `options` are the element's own, such as `style="primary"`.
    Raises ValueError when the value is too long for Slack (2,000 characters as JSON, with topic and ID).
    """
    knows = _encode(_Waits(topic, value, to))
    label = hashlib.sha256(f"{topic}\0{knows}".encode()).hexdigest()[:16]
    return {
        "type": "button",
        "text": {"type": "plain_text", "text": text, "emoji": True},
        "action_id": f"{PREFIX}{label}",
        "value": knows,
        **options,
    }


def addressed(arguments: dict[str, Any], workflow_id: str) -> dict[str, Any]:
    """Return `arguments` with buttons that are to answer the posting workflow filled in with its ID."""
    return {key: _walk(item, workflow_id) for key, item in arguments.items()}


def find_answer(action: Mapping[str, Any], body: Mapping[str, Any]) -> tuple[str, str, bytes] | None:
    """Return workflow, topic and message for a click on a button of ours; None for any other."""
    if not text_of(action, "action_id").startswith(PREFIX):
        return None
    try:
        waits = _waits.decode(text_of(action, "value"))
    except msgspec.MsgspecError:
        return None
    if not waits.to:
        return None
    user = mapping_of(body, "user")
    container = mapping_of(body, "container")
    answer = Answer(
        value=waits.value,
        user=text_of(user, "id"),
        name=text_of(user, "username") or text_of(user, "name"),
        channel=text_of(container, "channel_id") or text_of(mapping_of(body, "channel"), "id"),
        message_ts=text_of(container, "message_ts") or text_of(mapping_of(body, "message"), "ts"),
        response_url=text_of(body, "response_url"),
    )
    return waits.to, waits.topic, msgspec.json.encode(answer)


def _walk(value: Any, workflow_id: str) -> Any:
    if isinstance(value, list):
        return [_walk(item, workflow_id) for item in value]
    if not isinstance(value, dict):
        return value
    if value.get("type") == "button" and text_of(value, "action_id").startswith(PREFIX):
        try:
            waits = _waits.decode(text_of(value, "value"))
        except msgspec.MsgspecError:
            return value
        return {**value, "value": _encode(_Waits(waits.topic, waits.value, waits.to or workflow_id or None))}
    return {key: _walk(item, workflow_id) for key, item in value.items()}


def _encode(waits: _Waits) -> str:
    text = msgspec.json.encode(waits).decode()
    if len(text) > _VALUE_MAX:
        raise ValueError(f"a button's value has {len(text)} characters; Slack takes {_VALUE_MAX}")
    return text
