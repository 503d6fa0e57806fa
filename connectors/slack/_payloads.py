"""What Slack sends, as workflow code sees it. `body` is the whole payload; the properties are what one mostly asks for.

Fields that Slack left out are "" or empty, so that a workflow about text needs no question about None.
"""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import msgspec

from refold.connectors.slack._identity import mapping_of, team_of, text_of


class Workspace(msgspec.Struct, frozen=True):
    """Where an app is installed: whose token a call takes, in an app that is installed in several workspaces."""

    team: str | None = None
    enterprise: str | None = None
    whole_enterprise: bool = False


class Payload(msgspec.Struct, frozen=True, kw_only=True):
    """Any payload of Slack: what a workflow gets that does not care which kind it is."""

    body: dict[str, Any] = {}

    @property
    def team_id(self) -> str:
        """The workspace that it is from."""
        return team_of(self.body)

    @property
    def app_id(self) -> str:
        """The Slack app that it was sent to."""
        return text_of(self.body, "api_app_id")

    @property
    def workspace(self) -> Workspace:
        """Where the app is installed that it was sent to."""
        return _workspace_of(self.body)

    @property
    def user(self) -> str:
        """The ID of who did it."""
        return _id_of(self._about, "user") or text_of(self.body, "user_id")

    @property
    def channel(self) -> str:
        """The ID of the channel where it was done; "" where there is none (a modal, a global shortcut)."""
        found = _id_of(self._about, "channel") or text_of(self.body, "channel_id")
        for place, key in (
            ("item", "channel"),
            ("assistant_thread", "channel_id"),
            ("container", "channel_id"),
        ):
            found = found or text_of(mapping_of(self._about, place), key)
        return found

    @property
    def trigger_id(self) -> str:
        """What opens a modal; valid for three seconds."""
        return text_of(self.body, "trigger_id")

    @property
    def response_url(self) -> str:
        """Where `respond` posts; good for half an hour and five answers."""
        urls = self.body.get("response_urls")  # of a modal that asks for a channel to answer in
        first = urls[0] if isinstance(urls, list) and urls and isinstance(urls[0], dict) else {}
        return text_of(self.body, "response_url") or text_of(first, "response_url")

    @property
    def thread_ts(self) -> str:
        """The thread that it happened in; "" outside of one."""
        found = text_of(self._about, "thread_ts")
        for place in ("assistant_thread", "message"):
            found = found or text_of(mapping_of(self._about, place), "thread_ts")
        return found

    @property
    def _about(self) -> Mapping[str, Any]:
        return self.body


class Event(Payload, frozen=True, kw_only=True):
    """An event of the Events API. `event` is the inner one, as Slack documents it."""

    @property
    def event(self) -> Mapping[str, Any]:
        """The event itself."""
        return mapping_of(self.body, "event")

    @property
    def type(self) -> str:
        """Its type: "message", "app_mention"."""
        return text_of(self.event, "type")

    @property
    def event_id(self) -> str:
        """Slack's ID of it, the same at each delivery."""
        return text_of(self.body, "event_id")

    @property
    def time(self) -> datetime:
        """When it happened, to the second."""
        at = self.body.get("event_time")
        return datetime.fromtimestamp(at if isinstance(at, int) else 0, UTC)

    @property
    def text(self) -> str:
        """The text of a message."""
        return text_of(self.event, "text")

    @property
    def ts(self) -> str:
        """The message's ID in its channel."""
        return text_of(self.event, "ts")

    @property
    def _about(self) -> Mapping[str, Any]:
        return self.event


class Command(Payload, frozen=True, kw_only=True):
    """A slash command."""

    @property
    def command(self) -> str:
        """The command: "/deploy"."""
        return text_of(self.body, "command")

    @property
    def text(self) -> str:
        """What was typed after it."""
        return text_of(self.body, "text")


class Action(Payload, frozen=True, kw_only=True):
    """A click on a button, a choice in a menu: `block_actions`."""

    @property
    def action(self) -> Mapping[str, Any]:
        """The element that was used, as Slack documents it."""
        return first_action(self.body)

    @property
    def action_id(self) -> str:
        """The `action_id` of the element."""
        return text_of(self.action, "action_id")

    @property
    def value(self) -> str:
        """The value of a button, or of the option that was chosen."""
        return text_of(self.action, "value") or text_of(mapping_of(self.action, "selected_option"), "value")

    @property
    def message(self) -> Mapping[str, Any]:
        """The message that the element is in."""
        return mapping_of(self.body, "message")


class View(Payload, frozen=True, kw_only=True):
    """A modal that was submitted, or closed."""

    @property
    def view(self) -> Mapping[str, Any]:
        """The view, as Slack documents it."""
        return mapping_of(self.body, "view")

    @property
    def callback_id(self) -> str:
        """The `callback_id` of the view."""
        return text_of(self.view, "callback_id")

    @property
    def private_metadata(self) -> str:
        """What was put into the view when it was opened."""
        return text_of(self.view, "private_metadata")

    @property
    def values(self) -> dict[str, Any]:
        """What was entered, by `action_id`: the text, the option's value, the list of those."""
        state = mapping_of(mapping_of(self.view, "state"), "values")
        found: dict[str, Any] = {}
        for block in state.values():
            for action_id, element in (block if isinstance(block, dict) else {}).items():
                found[action_id] = _entered(element) if isinstance(element, dict) else None
        return found


class Shortcut(Payload, frozen=True, kw_only=True):
    """A global shortcut, or one on a message."""

    @property
    def callback_id(self) -> str:
        """The `callback_id` of the shortcut."""
        return text_of(self.body, "callback_id")

    @property
    def message(self) -> Mapping[str, Any]:
        """The message that a message shortcut was used on."""
        return mapping_of(self.body, "message")


def first_action(body: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the element that a `block_actions` payload is about; an empty one where there is none."""
    actions = body.get("actions")
    return actions[0] if isinstance(actions, list) and actions and isinstance(actions[0], dict) else {}


def _workspace_of(body: Mapping[str, Any]) -> Workspace:
    """Return where bolt looks for the installation: in a shared channel an event's own workspace is another one."""
    authorizations = body.get("authorizations")
    first = authorizations[0] if isinstance(authorizations, list) and authorizations else None
    at: Mapping[str, Any] = first if isinstance(first, dict) else body
    teams = (
        text_of(mapping_of(body, "view"), "app_installed_team_id"),
        _id_of(body, "team"),
        text_of(at, "team_id"),
        text_of(
            mapping_of(at, "user"), "team_id"
        ),  # a click has no other where an organisation installed the app
        text_of(mapping_of(at, "view"), "team_id"),
    )
    enterprises = (
        _id_of(body, "enterprise"),
        text_of(at, "enterprise_id"),
        text_of(mapping_of(body, "team"), "enterprise_id"),
    )
    return Workspace(
        next(filter(None, teams), None),
        next(filter(None, enterprises), None),
        at.get("is_enterprise_install") in (True, "true"),
    )


def _id_of(body: Mapping[str, Any], key: str) -> str:
    value = body.get(key)
    return text_of(value, "id") if isinstance(value, dict) else text_of(body, key)


def _entered(element: Mapping[str, Any]) -> Any:
    """Return what one element of a modal holds, whichever kind of element it is."""
    for key in (
        "value",
        "rich_text_value",
        "files",
        "selected_date",
        "selected_time",
        "selected_date_time",
        "selected_user",
    ):
        if key in element:
            return element[key]
    for key in ("selected_conversation", "selected_channel", "selected_users", "selected_conversations"):
        if key in element:
            return element[key]
    if isinstance(option := element.get("selected_option"), dict):
        return option.get("value")
    if isinstance(options := element.get("selected_options"), list):
        return [option.get("value") for option in options if isinstance(option, dict)]
    return element.get("selected_channels")
