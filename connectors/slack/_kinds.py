"""Which kind of thing a payload is, and how it is read from a request of Slack's."""

from collections.abc import Mapping
from typing import Any, Final, NamedTuple
from urllib.parse import parse_qsl

import msgspec

from refold.connectors.slack._identity import mapping_of, text_of

_KINDS: Final = {
    "event_callback": "event",
    "block_actions": "action",
    "interactive_message": "action",
    "view_submission": "view",
    "view_closed": "view",
    "shortcut": "shortcut",
    "message_action": "shortcut",
    "dialog_submission": "dialog",
    "dialog_cancellation": "dialog",
    "block_suggestion": "question",
    "dialog_suggestion": "question",
    "url_verification": "handshake",
    "app_rate_limited": "rate_limited",
}
_FIELDS_MAX: Final = 100


class Delivery(NamedTuple):
    """One payload, read: its kind, and the JSON that goes into the log."""

    kind: str
    body: dict[str, Any]
    raw: bytes


class Unreadable(Exception):
    """A request that is no payload; its text says why."""


def read_request(content_type: str, raw: bytes) -> Delivery:
    """Return the payload in the body of a request: JSON, or a form. Raises Unreadable."""
    try:
        if content_type == "application/x-www-form-urlencoded" or not raw.lstrip().startswith(b"{"):
            return _read_form(raw.decode("utf-8"))
        raw.decode("utf-8")  # what a string in JSON skips would make the log unreadable
        return delivery_of(_object(raw), raw)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise Unreadable(f"the body is neither JSON nor a form ({error})"[:200]) from error


def delivery_of(body: dict[str, Any], raw: bytes | None = None) -> Delivery:
    """Return a payload that came as JSON."""
    kind = (
        "command"
        if text_of(body, "command") and "type" not in body
        else _KINDS.get(text_of(body, "type"), "")
    )
    if not kind and text_of(body, "trigger_id"):
        kind = "other"
    return Delivery(kind, body, msgspec.json.encode(body) if raw is None else raw)


def is_own_event(body: Mapping[str, Any]) -> bool:
    """Say whether an event is this app's own doing: what its bot said or did comes back as an event.

    Bolt drops those too, but only in a listener's run, that is: in a workflow. As there, its joining and leaving of
    channels is kept.
    """
    event = mapping_of(body, "event")
    if text_of(event, "type") in ("member_joined_channel", "member_left_channel"):
        return False
    authorizations = body.get("authorizations")
    bots = {
        text_of(one, "user_id")
        for one in (authorizations if isinstance(authorizations, list) else [])
        if isinstance(one, dict) and one.get("is_bot")
    }
    app = text_of(body, "api_app_id")
    # An edit and a deletion have no user: bolt takes that of the message for it.
    for said in (event, mapping_of(event, "message"), mapping_of(event, "previous_message")):
        user = said.get("user")
        if isinstance(user, str):
            return user in bots or _is_of_app(said, app)
        if _is_of_app(said, app):
            return True
    return False


def _is_of_app(message: Mapping[str, Any], app: str) -> bool:
    own = (text_of(message, "app_id"), text_of(mapping_of(message, "bot_profile"), "app_id"))
    return bool(text_of(message, "bot_id")) and bool(app) and app in own


def _read_form(text: str) -> Delivery:
    pairs = parse_qsl(
        text, keep_blank_values=True, strict_parsing=bool(text), errors="strict", max_num_fields=_FIELDS_MAX
    )
    fields: dict[str, Any] = {}
    for name, value in pairs:
        fields.setdefault(name, value)
    if "payload" in fields:
        raw = fields["payload"].encode("utf-8")
        return delivery_of(_object(raw), raw)
    if fields.get("ssl_check") == "1":
        return Delivery("ssl_check", fields, b"{}")
    if not fields:
        raise ValueError("it is empty")
    return delivery_of(fields)


def _object(raw: bytes) -> dict[str, Any]:
    body = msgspec.json.decode(raw)
    if not isinstance(body, dict):
        raise ValueError("no object")
    return body
