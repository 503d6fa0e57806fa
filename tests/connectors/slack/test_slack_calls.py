"""Slack's Web API as steps: recorded, waited for when there were too many, and not called again by a replay."""

from datetime import datetime
from typing import Any

import pytest
from slack_bolt import App as Bolt
from slack_bolt.async_app import AsyncApp
from slack_sdk.models.blocks import SectionBlock
from slack_sdk.oauth.installation_store import Installation
from slack_sdk.oauth.installation_store.file import FileInstallationStore
from slack_sdk.web import WebClient
from slack_sdk.web.async_client import AsyncWebClient

from fixtures.postgres import free_port
from fixtures.slack import SECRET, TOKEN, FakeSlack
from fixtures.workers import Log
from refold import App, StepError, WrongCall
from refold.connectors import slack as slack_


def test_a_call_is_a_step_that_no_replay_repeats(app: App, bolt: Bolt, slack: FakeSlack, log: Log) -> None:
    team = slack_.mount(app, bolt)
    app.always_replay = True

    @app.workflow
    def three() -> list[str]:
        return [team.say("C1", f"{n}")["ts"] for n in range(3)]

    with app:
        stamps = three.start(id="t").result(timeout=30)
    assert [call["ts"] for call in slack.called("chat.postMessage")] == stamps
    assert {call.token for call in slack.calls} == {TOKEN}
    assert log.types("t") == ["WorkflowStarted", *["StepCompleted"] * 3, "WorkflowCompleted"]
    [first, *_] = log.events("t", "StepCompleted")
    assert first["name"] == "slack.chat_postMessage"
    assert first["args"] == {"workspace": None, "arguments": {"channel": "C1", "text": "0"}}


def test_a_call_that_was_one_too_many_comes_again_when_slack_says_so(
    app: App, bolt: Bolt, slack: FakeSlack, log: Log
) -> None:
    team = slack_.mount(app, bolt)

    @app.workflow
    def say() -> None:
        team.say("C1", "hi")

    slack.break_calls("chat.postMessage", status=429, error="ratelimited", retry_after=3)
    with app:
        say.start(id="s").result(timeout=60)
    [failed] = log.events("s", "StepFailed")
    assert failed["error"]["message"].startswith("Slack's chat_postMessage failed: ratelimited")
    waited = failed["retry_at"] / 1e6 - _seconds(failed["at"])
    assert waited > 2.9
    assert len(slack.called("chat.postMessage")) == 1


def _seconds(at: datetime) -> float:
    return at.timestamp()


@pytest.mark.parametrize(
    ("status", "error"), [(500, "internal_error"), (503, ""), (200, "service_unavailable")]
)
def test_slacks_own_trouble_is_waited_out(
    app: App, bolt: Bolt, slack: FakeSlack, log: Log, status: int, error: str
) -> None:
    team = slack_.mount(app, bolt)

    @app.workflow
    def say() -> None:
        team.say("C1", "hi")

    slack.break_calls("chat.postMessage", status=status, error=error)
    with app:
        say.start(id="s").result(timeout=60)
    assert log.types("s") == ["WorkflowStarted", "StepFailed", "StepCompleted", "WorkflowCompleted"]


def test_what_slack_refuses_is_an_error_that_code_can_catch(
    app: App, bolt: Bolt, slack: FakeSlack, log: Log
) -> None:
    team = slack_.mount(app, bolt)

    @app.workflow
    def say() -> str:
        try:
            team.say("C1", "hi")
        except slack_.CallFailed as error:
            return error.error
        return "said"

    slack.break_calls("chat.postMessage", error="channel_not_found")
    with app:
        assert say.start(id="s").result(timeout=30) == "channel_not_found"
    assert log.types("s") == ["WorkflowStarted", "StepFailed", "WorkflowCompleted"]


def test_a_slack_that_does_not_answer_is_tried_again(app: App, slack: FakeSlack, log: Log) -> None:
    client = WebClient(token=TOKEN, base_url=f"http://127.0.0.1:{free_port()}/api/")
    team = slack_.mount(app, Bolt(client=client, signing_secret=SECRET, token_verification_enabled=False))

    @app.workflow
    def say() -> None:
        team.say("C1", "hi")

    with app:
        say.start(id="s")
        log_of = app.get("s")
        client.base_url = slack.api  # it is there again
        log_of.result(timeout=60)
    assert len(slack.called("chat.postMessage")) == 1


def test_blocks_may_be_slack_sdks_models(app: App, bolt: Bolt, slack: FakeSlack) -> None:
    team = slack_.mount(app, bolt)

    @app.workflow
    def say() -> None:
        team.client.chat_postMessage(channel="C1", text="hi", blocks=[SectionBlock(text="*hi*")])

    with app:
        say.start(id="s").result(timeout=30)
    [said] = slack.called("chat.postMessage")
    assert said["blocks"] == [{"type": "section", "text": {"type": "mrkdwn", "text": "*hi*"}}]


def test_a_method_that_does_not_exist_is_named(app: App, bolt: Bolt) -> None:
    team = slack_.mount(app, bolt)
    with pytest.raises(WrongCall, match=r"WebClient has no method 'chat_postMesage'. Its names are Slack's"):
        team.client.chat_postMesage(channel="C1")


def test_outside_of_a_workflow_a_call_is_just_a_call(app: App, bolt: Bolt, slack: FakeSlack) -> None:
    team = slack_.mount(app, bolt)
    assert team.say("C1", "hi")["ok"] is True
    assert len(slack.called("chat.postMessage")) == 1


def test_async_workflows_call_with_an_async_app(
    app: App, abolt: AsyncApp, slack: FakeSlack, log: Log
) -> None:
    team = slack_.mount(app, abolt)

    @app.workflow
    async def say() -> str:
        slack.break_calls("chat.postMessage", error="channel_not_found")
        try:
            await team.asay("C1", "hi")
        except slack_.CallFailed as error:
            await team.aclient.chat_postMessage(channel="C2", text=error.error)
        return "said"

    with app:
        assert say.start(id="s").result(timeout=30) == "said"
    assert [call["channel"] for call in slack.called("chat.postMessage")] == ["C2"]


def test_def_workflows_call_with_an_async_app_too(app: App, abolt: AsyncApp, slack: FakeSlack) -> None:
    team = slack_.mount(app, abolt)

    @app.workflow
    def say() -> None:
        team.say("C1", "hi")

    with app:
        say.start(id="s").result(timeout=30)
    assert len(slack.called("chat.postMessage")) == 1


def _installed(team: str, token: str) -> Installation:
    return Installation(
        app_id="A0001", team_id=team, user_id="U1", bot_token=token, bot_id="B", bot_user_id="UB"
    )


def test_each_workspace_is_called_with_its_own_token(
    app: App, slack: FakeSlack, tmp_path: Any, log: Log
) -> None:
    store = FileInstallationStore(base_dir=str(tmp_path), client_id="c")
    store.save(_installed("T1", "xoxb-one"))
    store.save(_installed("T2", "xoxb-two"))
    bolt = Bolt(
        client=WebClient(base_url=slack.api), signing_secret=SECRET, installation_store=store,
        authorize=None, oauth_settings=None,
    )  # fmt: skip
    team = slack_.mount(app, bolt)

    @app.workflow
    def say(payload: slack_.Payload) -> None:
        team.say(payload, "hi", channel="C1")

    def payload(workspace: str) -> slack_.Event:
        # In a channel that is shared with another workspace, where the event itself is of.
        here = {"team_id": workspace, "enterprise_id": None, "is_enterprise_install": False, "is_bot": True}
        return slack_.Event(body=slack.message("hi") | {"team_id": "T9", "authorizations": [here]})

    with app:
        for workspace in ("T1", "T2"):
            say.start(slack_.Payload(body=payload(workspace).body), id=workspace).result(timeout=30)
        with pytest.raises((slack_.NotAuthorized, StepError), match="no installation is stored for it"):
            say.start(slack_.Payload(body=payload("T3").body), id="T3").result(timeout=30)
    assert [call.token for call in slack.calls if call.method == "chat.postMessage"] == [
        "xoxb-one",
        "xoxb-two",
    ]


def test_where_installations_are_stored_no_other_token_is_used(
    app: App, slack: FakeSlack, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A SLACK_BOT_TOKEN that is left in the environment is ignored by bolt, but stays in its client."""
    monkeypatch.setenv("SLACK_BOT_TOKEN", "xoxb-left")
    store = FileInstallationStore(base_dir=str(tmp_path), client_id="c")
    store.save(_installed("T1", "xoxb-one"))
    bolt = Bolt(signing_secret=SECRET, installation_store=store)
    assert bolt.client.token == "xoxb-left"
    bolt.client.base_url = slack.api
    team = slack_.mount(app, bolt)

    @app.workflow
    def say(payload: slack_.Payload) -> None:
        team.say(payload, "hi", channel="C1")

    with app:
        say.start(slack_.Payload(body={"team_id": "T1"}), id="s").result(timeout=30)
    assert [call.token for call in slack.calls if call.method == "chat.postMessage"] == ["xoxb-one"]


@pytest.mark.parametrize("kind", ["def", "async def"])
def test_calls_go_by_the_proxy_of_bolts_client(app: App, slack: FakeSlack, tmp_path: Any, kind: str) -> None:
    proxy, api = f"http://127.0.0.1:{slack.port}", "http://slack.invalid/api/"
    bolt: Bolt | AsyncApp
    if kind == "def":
        store = FileInstallationStore(base_dir=str(tmp_path), client_id="c")
        store.save(_installed("T1", "xoxb-one"))
        bolt = Bolt(
            client=WebClient(base_url=api, proxy=proxy), signing_secret=SECRET, installation_store=store
        )
    else:
        astore = FileInstallationStore(base_dir=str(tmp_path), client_id="c")
        astore.save(_installed("T1", "xoxb-one"))
        aclient = AsyncWebClient(base_url=api, proxy=proxy)
        bolt = AsyncApp(client=aclient, signing_secret=SECRET, installation_store=astore)
    team = slack_.mount(app, bolt)

    @app.workflow
    def answer(command: slack_.Command) -> None:
        team.say(command, "said")
        team.respond(command, "responded")

    body = {"team_id": "T1", "channel_id": "C1", "response_url": "http://hooks.slack.invalid/respond/1"}
    with app:
        answer.start(slack_.Command(body=body), id="a").result(timeout=60)
    assert [call["text"] for call in slack.called("chat.postMessage")] == ["said"]
    assert slack.responses == [{"text": "responded"}]


def test_respond_needs_a_response_url(app: App, bolt: Bolt) -> None:
    team = slack_.mount(app, bolt)
    with pytest.raises(WrongCall, match=r"a payload that has no response_url\. Only commands, clicks and"):
        team.respond(slack_.View(body={}), "hi")
