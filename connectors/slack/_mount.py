"""`slack.mount`: a bolt app on a refold app, and what is declared on it."""

import contextlib
import functools
import re
from collections.abc import Callable, Coroutine, Mapping, Sequence
from datetime import timedelta
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Final, TypeVar

from slack_bolt import App as Bolt
from slack_bolt import BoltResponse

from refold.connectors._http import server_of
from refold.connectors.slack import _listeners
from refold.connectors.slack._acks import Ack
from refold.connectors.slack._asking import Answer, button
from refold.connectors.slack._calls import AsyncClient, Calls, Client, plain
from refold.connectors.slack._endpoint import Endpoint, Receive, Scope, SendMessage, respond
from refold.connectors.slack._errors import CallFailed, NotAuthorized
from refold.connectors.slack._identity import mapping_of, text_of
from refold.connectors.slack._intake import (
    LISTENER_BROKE,
    Answering,
    Handler,
    Intake,
    Match,
    any_action_fits,
    fits,
    view_fits,
)
from refold.connectors.slack._listeners import Outcome
from refold.connectors.slack._payloads import Action, Command, Event, Payload, Shortcut, View
from refold.connectors.slack._threads import in_thread
from refold.core import (
    App,
    DefinitionRefused,
    SourceReport,
    TimedOut,
    Workflow,
    WrongCall,
    arecv,
    recv,
    step,
    step_info,
    uuid,
)

if TYPE_CHECKING:
    from slack_bolt.async_app import AsyncApp

    from refold.connectors.slack._socket import Socket

W = TypeVar("W", bound=Workflow[..., Any])

_MAX_BODY: Final = 1024 * 1024
_PLAIN_MESSAGES: Final = ("", "thread_broadcast", "file_share")
# An outage of Slack's auth.test is waited out: about three hours of tries.
_AUTHORIZE_RETRIES: Final = 40


def mount(
    app: App,
    bolt: "Bolt | AsyncApp",
    *,
    name: str = "slack",
    path: str = "/slack",
    signing_secret: str | Sequence[str] | None = None,
    app_token: str | None = None,
    retries: int = 0,
    own_events: bool = False,
    max_body: int = _MAX_BODY,
) -> "SlackApp":
    """Have every event, command, click, view and shortcut that Slack sends to `bolt` be one workflow of `app`.

    What a workflow is declared for (`@team.event("app_mention")` over `@app.workflow`) starts that; bolt's own
    listeners get the rest, in one step of a workflow of their own. Slack gets its 200 when the workflow is durable.
    `name` is the mount's identity, `path` where `refold dev` and `refold worker --http` serve it. `signing_secret`
    (default: bolt's) may be several while they are rotated. With `app_token` (xapp-...) Socket Mode is used as well,
    and needs no secret. `retries` is how often a step with bolt's listeners that failed is tried again. `own_events`:
    take the events of this app's own bot, too. From now on bolt's listeners run to their end before bolt answers.

    Raises DefinitionRefused when that can't work.
    """
    where = f"slack.mount(..., name={name!r})"
    if any(isinstance(other, SlackApp) and other.name == name for other in app.connectors):
        raise DefinitionRefused(
            where,
            f"app {app.name!r} has a Slack mount of that name already",
            "Give one of them another name=.",
        )
    found = signing_secret if signing_secret is not None else getattr(bolt, "_signing_secret", None)
    secrets = [found] if isinstance(found, str) else list(found or ())
    if not app_token and not any(secrets):
        raise DefinitionRefused(
            where,
            "there is no signing secret, so anybody could send",
            "Set SLACK_SIGNING_SECRET, give signing_secret=, or use Socket Mode with app_token=.",
        )
    if app_token and find_spec("aiohttp") is None:
        raise DefinitionRefused(where, "Socket Mode needs aiohttp", "pip install 'refold[slack]'")
    if retries < 0:
        raise DefinitionRefused(where, f"retries={retries}", "Give 0 or more.")
    mounted = SlackApp(
        app,
        bolt,
        name=name,
        path=path,
        secrets=[secret.encode() for secret in secrets if secret],
        app_token=app_token,
        retries=retries,
        own_events=own_events,
        max_body=max_body,
    )
    if mounted.takes_requests:
        server = server_of(app)
        if not any(isinstance(site, _Site) and site.prefix == mounted.mount_path for site in server.sites):
            server.add(_Site(app, mounted.mount_path))
    app.connect(mounted)
    return mounted


class SlackApp:
    """A mounted bolt app: the connector that the app's worker starts, and where workflows are declared for Slack.

    `client` and `aclient` call Slack's Web API in steps; `asgi` is the endpoint for Slack's requests.
    """

    kind = "slack"

    def __init__(
        self,
        app: App,
        bolt: "Bolt | AsyncApp",
        *,
        name: str,
        path: str,
        secrets: Sequence[bytes],
        app_token: str | None,
        retries: int,
        own_events: bool,
        max_body: int,
    ) -> None:
        self.name = name
        self.mount_path = f"/{path.strip('/')}".rstrip("/")
        self.bolt = bolt
        self._app = app
        self._app_token = app_token
        self.takes_requests = bool(secrets)
        self._calls = Calls(bolt, is_async=not isinstance(bolt, Bolt))
        self.client = Client(self._calls)
        self.aclient = AsyncClient(self._calls)
        self._intake = Intake(app, name, lambda: listeners, self._ask_bolt, own_events=own_events)
        self.asgi = Endpoint(self._intake, secrets, max_body)
        self._socket: Socket | None = None
        listeners = self._declare_listeners(retries)

    # Declaring. Each of these sits on a workflow that takes one payload of its kind.

    def event(self, type: str, *, subtype: str | None = None) -> Callable[[W], W]:
        """Have every event of `type` start one run of the workflow below, which takes one `slack.Event`.

        With `subtype` only those; "" means: only events without one.
        """

        def matches(body: dict[str, Any]) -> bool:
            event = mapping_of(body, "event")
            return text_of(event, "type") == type and subtype in (None, text_of(event, "subtype"))

        return self._declare("event", Event, matches, None, f"event {type}")

    def message(self, text: Match | None = None) -> Callable[[W], W]:
        """Have every message that people write start one run of the workflow below, which takes one `slack.Event`.

        `text` is a part of the message's text, or a pattern that is searched for in it. Edits, joins and the like
        are events with a subtype: `event("message", subtype="message_changed")`.
        """
        pattern = re.compile(re.escape(text)) if isinstance(text, str) else text

        def matches(body: dict[str, Any]) -> bool:
            event = mapping_of(body, "event")
            if text_of(event, "type") != "message" or text_of(event, "subtype") not in _PLAIN_MESSAGES:
                return False
            return pattern is None or pattern.search(text_of(event, "text")) is not None

        return self._declare("event", Event, matches, None, "message")

    def command(self, command: Match, *, ack: Answering = None) -> Callable[[W], W]:
        """Have every use of the slash command start one run of the workflow below, which takes one `slack.Command`.

        `ack` is what the person sees at once: a text, a message as a dict, or a function of the command that
        returns one. It is sent after the workflow is durable.
        """
        return self._declare(
            "command",
            Command,
            lambda body: fits(command, text_of(body, "command")),
            ack,
            f"command {_shown(command)}",
        )

    def action(self, action_id: Match) -> Callable[[W], W]:
        """Have every click or choice start one run of the workflow below, which takes one `slack.Action`."""
        return self._declare(
            "action",
            Action,
            functools.partial(any_action_fits, action_id),
            None,
            f"action {_shown(action_id)}",
        )

    def view(self, callback_id: Match, *, ack: Answering = None, closed: bool = False) -> Callable[[W], W]:
        """Have every submission of the modal start one run of the workflow below, which takes one `slack.View`.

        `ack` is the answer, or a function of the view that returns it: {"response_action": "update", "view": ...}.
        When it is {"response_action": "errors", "errors": {...}} the modal stays open and nothing is started. With
        `closed` it is about modals that were closed (and opened with `notify_on_close`).
        """
        return self._declare(
            "view",
            View,
            functools.partial(view_fits, callback_id, closed),
            ack,
            f"view {_shown(callback_id)}",
        )

    def shortcut(self, callback_id: Match) -> Callable[[W], W]:
        """Have every use of the shortcut start one run of the workflow below, which takes one `slack.Shortcut`."""
        return self._declare(
            "shortcut",
            Shortcut,
            lambda body: fits(callback_id, text_of(body, "callback_id")),
            None,
            f"shortcut {_shown(callback_id)}",
        )

    def _declare(
        self,
        kind: str,
        payload: type[Payload],
        matches: Callable[[dict[str, Any]], bool],
        ack: Answering,
        label: str,
    ) -> Callable[[W], W]:
        where = f"{self.name}.{label}"

        def decorate(workflow: W) -> W:
            if not isinstance(workflow, Workflow):
                raise DefinitionRefused(
                    where,
                    f"it sits on {getattr(workflow, '__qualname__', workflow)!r}, which is no workflow",
                    "Put @app.workflow below it, directly above the function; plain functions are for bolt's own.",
                )
            if workflow.app is not self._app:
                raise DefinitionRefused(
                    where, f"workflow {workflow.name!r} is of another app", "Mount the bolt app on that one."
                )
            parameter = _parameter_of(where, workflow, payload)
            self._intake.handlers.append(Handler(kind, matches, workflow, parameter, payload, ack, label))
            return workflow

        return decorate

    # Talking back, in workflows.

    def say(self, to: Payload | str, text: str = "", **message: Any) -> dict[str, Any]:
        """Post a message where `to` (a payload, or a channel) happened, in its thread if it has one; a step.

        `message` is what chat.postMessage takes. In an `async def` workflow: `asay`.
        """
        return self.client.chat_postMessage(**self._addressed(to, text, message))

    def asay(
        self, to: Payload | str, text: str = "", **message: Any
    ) -> Coroutine[object, None, dict[str, Any]]:
        """Do what `say` does, in an `async def` workflow."""
        return self.aclient.chat_postMessage(**self._addressed(to, text, message))

    def respond(self, to: Payload | Answer, text: str = "", **message: Any) -> None:
        """Answer a command, a click or a shortcut by its response_url, for its person alone; a step.

        `replace_original=True` replaces the message that was clicked in. In an `async def` workflow: `arespond`.
        """
        self._calls.respond.call(None, {"url": _url_of(to), "text": text, **plain(message)})

    async def arespond(self, to: Payload | Answer, text: str = "", **message: Any) -> None:
        """Do what `respond` does, in an `async def` workflow."""
        await self._calls.respond.acall(None, {"url": _url_of(to), "text": text, **plain(message)})

    def ask(
        self,
        to: Payload | str,
        text: str,
        choices: Sequence[str] | Mapping[str, Any] = ("Approve", "Reject"),
        *,
        timeout: timedelta | None = None,
        **message: Any,
    ) -> Answer:
        """Post a question with a button for each choice, wait for the first click, and return it.

        The value of the answer is the choice, or what a mapping has for it. The message, if it is still there, then
        says who chose what and has no buttons any more. Raises TimedOut when nobody clicked within `timeout`. In an
        `async def` workflow: `aask`.
        """
        question = _Question(text, choices)
        posted = self.say(to, text, **{**message, "blocks": question.blocks()})
        where = {"channel": posted["channel"], "ts": posted["ts"], "workspace": self._workspace_of(to)}
        try:
            answer = recv(question.topic, Answer, timeout=timeout)
        except TimedOut:
            with _cosmetic():
                self.client.chat_update(**where, **question.closed("Nobody answered in time."))
            raise
        with _cosmetic():
            self.client.chat_update(**where, **question.closed(question.verdict(answer)))
        return answer

    async def aask(
        self,
        to: Payload | str,
        text: str,
        choices: Sequence[str] | Mapping[str, Any] = ("Approve", "Reject"),
        *,
        timeout: timedelta | None = None,
        **message: Any,
    ) -> Answer:
        """Do what `ask` does, in an `async def` workflow."""
        question = _Question(text, choices)
        posted = await self.asay(to, text, **{**message, "blocks": question.blocks()})
        where = {"channel": posted["channel"], "ts": posted["ts"], "workspace": self._workspace_of(to)}
        try:
            answer = await arecv(question.topic, Answer, timeout=timeout)
        except TimedOut:
            with _cosmetic():
                await self.aclient.chat_update(**where, **question.closed("Nobody answered in time."))
            raise
        with _cosmetic():
            await self.aclient.chat_update(**where, **question.closed(question.verdict(answer)))
        return answer

    def _addressed(self, to: Payload | str, text: str, message: Mapping[str, Any]) -> dict[str, Any]:
        channel = to if isinstance(to, str) else to.channel or to.user
        thread = "" if isinstance(to, str) else to.thread_ts
        where = {"channel": channel, "text": text, "workspace": self._workspace_of(to)}
        return {**where, **({"thread_ts": thread} if thread else {}), **message}

    def _workspace_of(self, to: Payload | str) -> Any:
        # Written down with each call only where it says something: for an app with one token it is noise.
        return None if isinstance(to, str) or self._calls.has_own_token else to.workspace

    # Bolt's own listeners.

    def _declare_listeners(self, retries: int) -> Workflow[..., Any]:
        bolt = self.bolt
        tries = _Tries(self._intake, retries)
        options = step(
            name=f"{self.name}.listeners",
            retries=retries + _AUTHORIZE_RETRIES,
            retry_if=tries.is_not_the_last,
            max_delay=timedelta(minutes=5),
        )
        declare = self._app.workflow(name=f"{self.name}.listeners")
        if isinstance(bolt, Bolt):
            _listeners.prepare(bolt)

            def run_listeners(body: dict[str, Any]) -> Outcome:
                with _Telling(tries) as telling:
                    return telling.judge(_listeners.run(bolt, body, telling.tell))

            run_step = options(run_listeners)

            def listeners(payload: Payload) -> Outcome:
                return run_step(payload.body)

            return declare(listeners)

        from refold.connectors.slack import _alisteners

        abolt = bolt
        _alisteners.prepare(abolt)

        async def arun_listeners(body: dict[str, Any]) -> Outcome:
            with _Telling(tries) as telling:
                return telling.judge(await _alisteners.run(abolt, body, telling.tell))

        arun_step = options(arun_listeners)

        async def alisteners(payload: Payload) -> Outcome:
            return await arun_step(payload.body)

        return declare(alisteners)

    async def _ask_bolt(self, body: dict[str, Any]) -> Ack:
        """Answer a question of Slack's (the options of a menu): nothing to be done, so nothing to be remembered."""
        told: list[Ack] = []

        def tell(response: BoltResponse) -> None:
            told.append(_ack_of(response))

        if isinstance(self.bolt, Bolt):
            await in_thread(_listeners.run, self.bolt, body, tell)
        else:
            from refold.connectors.slack import _alisteners

            await _alisteners.run(self.bolt, body, tell)
        return told[0] if told else Ack(404, b'{"error":"nobody answers this"}')

    # The connector.

    def start(self, app: App) -> None:
        """Connect, when Socket Mode is used; a step's `ack` can be waited for from now on."""
        self._intake.steps_run_here = True
        if self._app_token:
            from refold.connectors.slack._socket import Socket

            self._socket = Socket(self._intake, self._app_token, self.bolt.client, f"refold-{self.name}")
            self._socket.start()

    def stop(self) -> None:
        """Disconnect; requests over HTTP are the server's to end."""
        self._intake.steps_run_here = False
        if self._socket is not None:
            self._socket.stop()
            self._socket = None

    def is_connected(self) -> bool:
        """Say whether Socket Mode has a connection now."""
        return self._socket is not None and self._socket.is_connected()

    def describe(self) -> list[str]:
        """Return lines: what starts which workflow."""
        lines = [
            f"{self.name}: {handler.label} starts {handler.workflow.name}"
            for handler in self._intake.handlers
        ]
        is_served = self.takes_requests and server_of(self._app).url is not None
        http = (
            f"HTTP under {self.mount_path or '/'}" if is_served else "HTTP where slack.asgi(app) is mounted"
        )
        ways = [http] * self.takes_requests + ["Socket Mode"] * bool(self._app_token)
        return [*lines, f"{self.name}: bolt's listeners get the rest, by {' and '.join(ways)}"]

    def report(self) -> list[SourceReport]:
        """Return one line: Slack keeps no position that anybody could ask for."""
        position = "" if self._app_token is None else "connected" if self.is_connected() else "not connected"
        return [SourceReport(source=f"slack:{self.name}", label=self.name, position=position)]

    def try_next(self) -> list[str]:
        """Return nothing: what comes next is typed in Slack."""
        return []


def asgi(app: App) -> "SlackServer":
    """Return the ASGI app with the endpoints of all Slack mounts of `app`, for a server of your own.

    Mount it where Slack's Request URLs point: `api.mount("/slack", slack.asgi(app))`. Every path below is the
    endpoint; with several mounts each one's name comes first, `/slack/{name}`.
    """
    return SlackServer(app)


class SlackServer:
    """The endpoints of an app's Slack mounts. Run alone, by a server that speaks lifespan, it runs the worker too."""

    def __init__(self, app: App) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: SendMessage) -> None:
        if scope["type"] == "lifespan":
            await self._live(receive, send)
        elif scope["type"] == "http":
            mounted = self._find(scope)
            if mounted is None:
                await respond(send, Ack(404, b'{"error":"no Slack app is mounted here"}'))
            else:
                await mounted.asgi(scope, receive, send)

    def _find(self, scope: Scope) -> SlackApp | None:
        mounts = _served(self._app)
        if len(mounts) == 1:
            return mounts[0]
        path = str(scope["path"])
        below = path.removeprefix(str(scope.get("root_path", ""))).strip("/").split("/")
        return next((each for each in mounts if each.name in below[:1]), None)

    async def _live(self, receive: Receive, send: SendMessage) -> None:
        await receive()
        try:
            await self._app.__aenter__()
        except Exception as error:
            # Said in its own words: a server that only sees an error takes it for an app without lifespan.
            await send({"type": "lifespan.startup.failed", "message": f"{type(error).__name__}: {error}"})
            return
        try:
            await send({"type": "lifespan.startup.complete"})
            await receive()
        finally:
            await self._app.__aexit__(None, None, None)
        await send({"type": "lifespan.shutdown.complete"})


class _Site:
    """The mounts with one path, as what the worker's own HTTP server has there."""

    mounted_by = "slack.asgi(app)"

    def __init__(self, app: App, prefix: str) -> None:
        self.prefix = prefix
        self._app = app

    def asgi(self) -> SlackServer:
        return asgi(self._app)

    def describe(self, url: str) -> list[str]:
        mounts = _served(self._app)
        names = [
            f"/{mount.name}" if len(mounts) > 1 else "" for mount in mounts if mount.mount_path == self.prefix
        ]
        return [f"{url}{name}/events, Slack's Request URL (by your tunnel or proxy)" for name in names]

    def try_next(self, url: str) -> list[str]:
        return []


def _served(app: App) -> list[SlackApp]:
    return [each for each in app.connectors if isinstance(each, SlackApp) and each.takes_requests]


class _Question:
    """A question with buttons, in a workflow: the topic is the workflow's own, the same in each replay."""

    def __init__(self, text: str, choices: Sequence[str] | Mapping[str, Any]) -> None:
        self.text = text
        self.topic = f"slack/{uuid().hex}"
        self.choices = (
            dict(choices) if isinstance(choices, Mapping) else {choice: choice for choice in choices}
        )

    def blocks(self) -> list[dict[str, Any]]:
        buttons = [button(label, value, topic=self.topic) for label, value in self.choices.items()]
        return [_section(self.text), {"type": "actions", "elements": buttons}]

    def verdict(self, answer: Answer) -> str:
        label = next((label for label, value in self.choices.items() if value == answer.value), answer.value)
        return f"*{label}*, by <@{answer.user}>"

    def closed(self, verdict: str) -> dict[str, Any]:
        said = {"type": "context", "elements": [{"type": "mrkdwn", "text": verdict}]}
        return {"text": f"{self.text}\n{verdict}", "blocks": [_section(self.text), said]}


def _url_of(to: Payload | Answer) -> str:
    if not to.response_url:
        raise WrongCall(
            "respond(...) was called with a payload that has no response_url",
            "Only commands, clicks and message shortcuts have one. Use say(...).",
        )
    return to.response_url


def _cosmetic() -> contextlib.AbstractContextManager[object]:
    """Go on when the message of a question can't be changed: somebody has deleted it, but the answer counts."""
    return contextlib.suppress(CallFailed, NotAuthorized)


class _Tries:
    """Which error of a mount's listeners was that of the last try: bolt's authorization is waited for besides."""

    def __init__(self, intake: Intake, retries: int) -> None:
        self.intake = intake
        self._retries = retries
        self._last: dict[int, Exception] = {}

    def is_last(self, error: BaseException) -> bool:
        """Say, in the step, whether the step is not tried again after `error`."""
        if isinstance(error, NotAuthorized) or step_info().attempt <= self._retries:
            return False
        if isinstance(error, Exception):  # others are not asked about
            self._last[id(error)] = error
        return True

    def is_not_the_last(self, error: Exception) -> bool:
        """Say the same, negated, when the step has ended: it is not known any more which try it was."""
        return self._last.pop(id(error), None) is None


class _Telling:
    """Passes on to Slack, while it waits, what a listener acknowledges; and that it failed, if it does first."""

    def __init__(self, tries: _Tries) -> None:
        self._tries = tries
        self._acks = tries.intake.acks
        self._id = step_info().workflow_id

    def __enter__(self) -> "_Telling":
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        # A step that is tried again has not failed: who hears so would click again, and have it done twice.
        if error is not None and self._tries.is_last(error):
            self._acks.tell(self._id, LISTENER_BROKE)

    def tell(self, response: BoltResponse) -> None:
        self._acks.tell(self._id, _ack_of(response))

    def judge(self, outcome: Outcome) -> Outcome:
        self._acks.tell(self._id, Ack() if outcome.handled else Ack(404, b'{"error":"nobody handles this"}'))
        return outcome


def _ack_of(response: BoltResponse) -> Ack:
    kinds = response.headers.get("content-type") or ["text/plain;charset=utf-8"]
    return Ack(response.status, (response.body or "").encode(), kinds[0])


def _parameter_of(where: str, workflow: Workflow[..., Any], payload: type[Payload]) -> str:
    found = dict(workflow.parameters)
    if len(found) == 1:
        [(parameter, hint)] = found.items()
        if hint in (payload, Payload):
            return parameter
    shown = ", ".join(f"{key}: {getattr(hint, '__name__', hint)}" for key, hint in found.items())
    raise DefinitionRefused(
        where,
        f"it calls workflow {workflow.name!r} with one slack.{payload.__name__}, but that takes ({shown})",
        f"Write `def {workflow.name}({payload.__name__.lower()}: slack.{payload.__name__})`.",
    )


def _section(text: str) -> dict[str, Any]:
    return {"type": "section", "text": {"type": "mrkdwn", "text": text}}


def _shown(match: Match) -> str:
    return match if isinstance(match, str) else f"/{match.pattern}/"
