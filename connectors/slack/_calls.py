"""Slack's Web API as steps: `team.client.chat_postMessage(...)` in a workflow is called once and recorded.

A call that Slack turned away because there were too many is made again when Slack says so. A crash between a call
and the record of it makes it again: Slack has no idempotency key, so that one message may be there twice.
"""

import functools
import json
from collections.abc import Callable, Coroutine, Mapping
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final, cast

from slack_sdk.errors import SlackApiError

from refold.connectors.slack._asking import addressed
from refold.connectors.slack._errors import CallFailed, NotAuthorized
from refold.connectors.slack._payloads import Workspace
from refold.core import Step, WrongCall, step, step_info

if TYPE_CHECKING:
    from slack_bolt import App as Bolt
    from slack_bolt.async_app import AsyncApp
    from slack_sdk.web import WebClient
    from slack_sdk.web.async_client import AsyncWebClient

    AnyBolt = Bolt | AsyncApp

# What Slack calls its own trouble, and ours for a call that brought no answer.
_PASSING: Final = frozenset(
    {
        "ratelimited", "rate_limited", "internal_error", "fatal_error", "service_unavailable",
        "request_timeout", "team_added_to_org", "no_answer",
    }
)  # fmt: skip
_RETRIES: Final = 10


def _is_passing(error: Exception) -> bool:
    return isinstance(error, CallFailed) and error.error in _PASSING


class Calls:
    """The steps of one bolt app, one for each method that is called."""

    def __init__(self, bolt: "AnyBolt", *, is_async: bool) -> None:
        self._bolt = bolt
        self._is_async = is_async
        self._steps: dict[str, Step[..., dict[str, Any]]] = {}

    @property
    def has_own_token(self) -> bool:
        """Whether one token is for all calls. Where installations are stored bolt does not look at its own."""
        return self._bolt.client.token is not None and self._bolt.installation_store is None

    def step(self, method: str) -> Step[..., dict[str, Any]]:
        """Return the step that calls `method` of bolt's client. Raises WrongCall when the client has none."""
        found = self._steps.get(method)
        if found is None:
            if not callable(getattr(self._bolt.client, method, None)):
                raise WrongCall(
                    f"slack_sdk's WebClient has no method {method!r}",
                    "Its names are Slack's with underscores: chat_postMessage, views_open.",
                )
            found = self._steps[method] = self._declare(method, functools.partial(self._call, method))
        return found

    @functools.cached_property
    def respond(self) -> Step[..., dict[str, Any]]:
        """The step that posts to a response_url."""
        return self._declare("respond", self._respond)

    def _declare(
        self, name: str, call: Callable[[Workspace | None, dict[str, Any]], Any]
    ) -> Step[..., dict[str, Any]]:
        options = step(
            name=f"slack.{name}", retries=_RETRIES, retry_if=_is_passing, max_delay=timedelta(minutes=5)
        )
        if self._is_async:

            async def acall(workspace: Workspace | None, arguments: dict[str, Any]) -> dict[str, Any]:
                with _translated(name):
                    found = plain(await call(workspace, addressed(arguments, _own_id())))
                return cast(dict[str, Any], found)

            return options(acall)

        def scall(workspace: Workspace | None, arguments: dict[str, Any]) -> dict[str, Any]:
            with _translated(name):
                found = plain(call(workspace, addressed(arguments, _own_id())))
            return cast(dict[str, Any], found)

        return options(scall)

    def _call(self, method: str, workspace: Workspace | None, arguments: dict[str, Any]) -> Any:
        if self._is_async:
            return self._acall(method, workspace, arguments)
        client = self._bolt.client if self.has_own_token else self._installed(workspace)
        return getattr(client, method)(**arguments).data

    async def _acall(self, method: str, workspace: Workspace | None, arguments: dict[str, Any]) -> Any:
        client = self._bolt.client if self.has_own_token else await self._ainstalled(workspace)
        return (await getattr(client, method)(**arguments)).data

    def _installed(self, workspace: Workspace | None) -> "WebClient":
        from slack_sdk.web import WebClient

        store: Any = self._bolt.installation_store
        bot = None if store is None or workspace is None else store.find_bot(**_found_by(workspace))
        return WebClient(token=_token_of(bot, workspace), **self._as_configured())

    async def _ainstalled(self, workspace: Workspace | None) -> "AsyncWebClient":
        from slack_sdk.web.async_client import AsyncWebClient

        store: Any = self._bolt.installation_store
        bot = (
            None if store is None or workspace is None else await store.async_find_bot(**_found_by(workspace))
        )
        return AsyncWebClient(token=_token_of(bot, workspace), **self._as_configured())

    def _as_configured(self) -> dict[str, Any]:
        """Return how bolt's client is configured, for another one: all but its token."""
        client: Any = self._bolt.client
        same = ["base_url", "timeout", "ssl", "proxy", "headers", "retry_handlers"]
        if self._is_async:
            same += ["session", "trust_env_in_session"]
        return {name: getattr(client, name) for name in same}

    def _respond(self, _: Workspace | None, arguments: dict[str, Any]) -> Any:
        url = arguments.pop("url")
        if self._is_async:
            return self._arespond(url, arguments)
        from slack_sdk.webhook import WebhookClient

        client = self._bolt.client
        return _responded(WebhookClient(url, proxy=client.proxy, ssl=client.ssl).send_dict(arguments))

    async def _arespond(self, url: str, arguments: dict[str, Any]) -> Any:
        from slack_sdk.webhook.async_client import AsyncWebhookClient

        client = self._bolt.client
        hook = AsyncWebhookClient(url, proxy=client.proxy, ssl=client.ssl)
        return _responded(await hook.send_dict(arguments))


class Client:
    """Slack's methods for a `def` workflow, named as in slack_sdk's WebClient: `client.chat_postMessage(...)`.

    Each call is a step and returns what Slack answered. Blocks may be dicts or slack_sdk's models. `workspace=` says
    whose token to use, in an app that is installed in several.
    """

    def __init__(self, calls: Calls) -> None:
        self._calls = calls

    def __getattr__(self, method: str) -> Callable[..., dict[str, Any]]:
        if method.startswith("_"):
            raise AttributeError(method)
        found = self._calls.step(method)

        def call(*, workspace: Workspace | None = None, **arguments: Any) -> dict[str, Any]:
            return found.call(workspace, plain(arguments))

        return call


class AsyncClient:
    """The same for an `async def` workflow: `await client.chat_postMessage(...)`."""

    def __init__(self, calls: Calls) -> None:
        self._calls = calls

    def __getattr__(self, method: str) -> Callable[..., Coroutine[object, None, dict[str, Any]]]:
        if method.startswith("_"):
            raise AttributeError(method)
        found = self._calls.step(method)

        def call(
            *, workspace: Workspace | None = None, **arguments: Any
        ) -> Coroutine[object, None, dict[str, Any]]:
            return found.acall(workspace, plain(arguments))

        return call


def plain(value: Any) -> Any:
    """Return `value` as JSON has it: slack_sdk's models and tuples are written out, what is None is left out."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items() if item is not None}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    to_dict = getattr(value, "to_dict", None)
    return plain(to_dict()) if callable(to_dict) else value


class _translated:
    """Makes a CallFailed of whatever a call of `method` raises."""

    def __init__(self, method: str) -> None:
        self._method = method

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, SlackApiError):
            raise _refused(self._method, error.response) from error
        if isinstance(error, OSError | TimeoutError | json.JSONDecodeError) or _is_of_aiohttp(error):
            raise CallFailed(self._method, "no_answer", f"{type(error).__name__}: {error}"[:200]) from error


def _own_id() -> str:
    """Return the workflow that is calling; "" outside, where a call is just a call."""
    try:
        return step_info().workflow_id
    except WrongCall:
        return ""


def _is_of_aiohttp(error: BaseException | None) -> bool:
    return type(error).__module__.partition(".")[0] == "aiohttp"


def _refused(method: str, response: Any) -> CallFailed:
    status = getattr(response, "status_code", None)
    data = getattr(response, "data", None)
    said = data.get("error") if isinstance(data, dict) else None
    word = (
        str(said)
        if said
        else "service_unavailable"
        if isinstance(status, int) and status >= 500
        else "no_answer"
    )
    if status == 429:
        word = "ratelimited"
    headers = {str(key).lower(): value for key, value in (getattr(response, "headers", None) or {}).items()}
    after = str(headers.get("retry-after", ""))
    needed = str(data.get("needed") or "") if isinstance(data, dict) else ""
    return CallFailed(
        method, word, f"needs {needed}" if needed else "", float(after) if after.isdigit() else None
    )


def _responded(response: Any) -> dict[str, Any]:
    if response.status_code == 200:
        return {"ok": True}
    raise CallFailed(
        "respond",
        "ratelimited" if response.status_code == 429
        else "service_unavailable" if response.status_code >= 500
        else str(response.body)[:200] or f"status {response.status_code}",
        "",
        float(after) if (after := str(dict(response.headers or {}).get("Retry-After", ""))).isdigit() else None,
    )  # fmt: skip


def _found_by(workspace: Workspace) -> dict[str, Any]:
    return {
        "enterprise_id": workspace.enterprise,
        "team_id": workspace.team,
        "is_enterprise_install": workspace.whole_enterprise,
    }


def _token_of(bot: Any, workspace: Workspace | None) -> str:
    token = getattr(bot, "bot_token", None)
    if isinstance(token, str):
        return token
    if workspace is None:
        raise WrongCall(
            "a call was made without saying whose token to take, and the bolt app has none of its own",
            "Give it workspace=event.workspace.",
        )
    raise NotAuthorized(f"workspace {workspace.team}", "no installation is stored for it")
