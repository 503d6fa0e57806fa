"""Slack: every event, command, click, view and shortcut becomes one workflow, and is acknowledged when that is durable.

`mount` puts a slack-bolt app on a refold app. Workflows are declared on what it returns, and talk back through its
`client`; bolt's own listeners go on as they are, inside of a step. `button` makes a click a message to a workflow.
"""

try:
    import slack_bolt as _client  # noqa: F401
except ImportError as exc:
    raise ImportError(
        "refold.connectors.slack needs its client library: pip install 'refold[slack]'"
    ) from exc

from refold.connectors.slack._asking import Answer, button
from refold.connectors.slack._calls import AsyncClient, Client
from refold.connectors.slack._errors import CallFailed, ListenerFailed, NotAuthorized
from refold.connectors.slack._identity import workflow_id
from refold.connectors.slack._listeners import Outcome
from refold.connectors.slack._mount import SlackApp, SlackServer, asgi, mount
from refold.connectors.slack._payloads import Action, Command, Event, Payload, Shortcut, View, Workspace

__all__ = [
    "Action",
    "Answer",
    "AsyncClient",
    "CallFailed",
    "Client",
    "Command",
    "Event",
    "ListenerFailed",
    "NotAuthorized",
    "Outcome",
    "Payload",
    "Shortcut",
    "SlackApp",
    "SlackServer",
    "View",
    "Workspace",
    "asgi",
    "button",
    "mount",
    "workflow_id",
]
