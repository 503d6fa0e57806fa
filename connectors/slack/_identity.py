"""The IDs of the workflows that Slack's payloads start: the payload's own identity, the same at every delivery.

An event has an `event_id`. An interaction has none; its `trigger_id` is new for each click, command or submission,
so two submissions of one modal (the first answered with errors) are two. Where there is no trigger, what names the
act stands in for it, and where nothing does, a hash of the payload.
"""

import hashlib
from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import quote

_ID_MAX: Final = 512


def workflow_id(kind: str, body: Mapping[str, Any]) -> str:
    """Return the ID of the workflow that a payload starts: `slack:{api_app_id}:{team_id}:{event_id}` for an event,
    `slack:{api_app_id}:{team_id}:{kind}:{trigger_id}` for an interaction."""
    app, team = text_of(body, "api_app_id") or "-", team_of(body) or "-"
    if kind == "event":
        act = [text_of(body, "event_id") or _digest(body)]
    else:
        act = [kind, *_act_of(body)]
    named = [app, team, *act]
    found = ":".join(["slack", *map(_part, named)])
    return found if len(found) <= _ID_MAX else f"slack:{kind}:{_digest(named)}"


def click_id(body: Mapping[str, Any], action: Mapping[str, Any]) -> str:
    """Return the ID of a click on a button that answers a workflow: once for a person, a message or view, a button."""
    container = mapping_of(body, "container")
    message = mapping_of(body, "message")
    parts = (
        text_of(body, "api_app_id"),
        team_of(body),
        text_of(container, "channel_id") or text_of(mapping_of(body, "channel"), "id"),
        text_of(container, "message_ts") or text_of(message, "ts") or text_of(container, "view_id"),
        text_of(mapping_of(body, "user"), "id"),
        text_of(action, "action_id"),
    )
    named = ":".join(_part(part or "-") for part in parts)
    return f"slack:{named}" if len(named) < 480 else f"slack:{hashlib.sha256(named.encode()).hexdigest()}"


def team_of(body: Mapping[str, Any]) -> str:
    """Return the workspace that a payload is from; an organisation's ID where it is from none."""
    team = body.get("team")
    found = text_of(body, "team_id") or text_of(team if isinstance(team, dict) else {}, "id")
    return found or text_of(body, "enterprise_id") or text_of(mapping_of(body, "enterprise"), "id")


def text_of(body: Mapping[str, Any], key: str) -> str:
    """Return a text field, "" where it is missing or no text."""
    value = body.get(key)
    return value if isinstance(value, str) else ""


def mapping_of(body: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """Return a field that is an object, an empty one where it is missing or none."""
    value = body.get(key)
    return value if isinstance(value, dict) else {}


def _act_of(body: Mapping[str, Any]) -> list[str]:
    if trigger := text_of(body, "trigger_id"):
        return [trigger]
    view = mapping_of(body, "view")
    if view_id := text_of(view, "id"):
        # The hash changes with the view, not with what was typed: two submissions of one view differ in its state.
        return [text_of(body, "type"), view_id, text_of(view, "hash"), _digest(view.get("state"))]
    actions = body.get("actions")
    first = actions[0] if isinstance(actions, list) and actions and isinstance(actions[0], dict) else {}
    stamp = text_of(first, "action_ts") or text_of(body, "action_ts")
    if stamp:
        user = text_of(mapping_of(body, "user"), "id")
        which = [text_of(first, "block_id"), text_of(first, "action_id") or text_of(body, "callback_id")]
        return [user, stamp, *which]
    return [_digest(body)]


def _digest(value: Any) -> str:
    import msgspec

    return hashlib.sha256(msgspec.json.encode(value, order="deterministic")).hexdigest()[:32]


def _part(text: str) -> str:
    return quote(text, safe="")
