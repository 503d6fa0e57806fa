"""What bolt does by itself loses events: each of these is a trap of bolt's, and the test that holds it shut."""

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from slack_bolt import Ack, BoltRequest, BoltResponse, Respond, Say
from slack_bolt import App as Bolt
from slack_bolt.async_app import AsyncAck, AsyncApp, AsyncSay
from slack_sdk.oauth.installation_store import Installation
from slack_sdk.oauth.installation_store.file import FileInstallationStore
from slack_sdk.web import WebClient

from fixtures.postgres import free_port
from fixtures.proxy import CutProxy, Direction
from fixtures.slack import SECRET, TOKEN, FakeSlack, Sent, Served
from fixtures.workers import Log, wait_for
from refold import App, StepError
from refold.connectors import slack as slack_

Serve = Callable[[Any], Served]
OK = Sent(attempts=["ok"], delivered=True)


class ShopClosed(Exception):
    """What a listener raises."""


@pytest.fixture
def running(app: App, bolt: Bolt, slack: FakeSlack, serve: Serve) -> Iterator[App]:
    """The app with `bolt` mounted, worker and server running."""
    slack_.mount(app, bolt)
    serve(slack_.asgi(app))
    with app:
        yield app


@pytest.fixture
def arunning(app: App, abolt: AsyncApp, slack: FakeSlack, serve: Serve) -> Iterator[App]:
    """The app with `abolt` mounted, worker and server running."""
    slack_.mount(app, abolt)
    serve(slack_.asgi(app))
    with app:
        yield app


def test_a_listener_that_raises_is_a_failed_workflow_with_its_error(
    running: App, bolt: Bolt, slack: FakeSlack, log: Log
) -> None:
    """Left to itself bolt answers 200 before the listener runs, and logs what it raised."""

    @bolt.event("message")
    def broken() -> None:
        raise ShopClosed("till nine")

    payload = slack.message("hi")
    assert slack.send_event(payload).result(30) == OK
    with pytest.raises(ShopClosed, match="till nine"):
        running.get(slack_.workflow_id("event", payload)).result(timeout=30)


def test_a_listener_that_raises_is_tried_again_where_that_is_asked_for(
    app: App, bolt: Bolt, slack: FakeSlack, serve: Serve, log: Log
) -> None:
    slack_.mount(app, bolt, retries=1)
    tries: list[int] = []

    @bolt.event("message")
    def shaky() -> None:
        tries.append(1)
        if len(tries) == 1:
            raise ShopClosed

    serve(slack_.asgi(app))
    payload = slack.message("hi")
    with app:
        slack.send_event(payload).result(30)
        outcome = app.get(slack_.workflow_id("event", payload)).result(timeout=30)
    assert outcome == slack_.Outcome(handled=True)
    assert len(tries) == 2


@pytest.mark.parametrize(
    ("status", "error"), [(500, "internal_error"), (200, "invalid_auth"), (429, "ratelimited")]
)
def test_an_event_is_handled_when_bolt_is_authorized_again(
    running: App, bolt: Bolt, slack: FakeSlack, log: Log, status: int, error: str
) -> None:
    """Left to itself bolt answers 200 when auth.test fails, and no listener ever runs."""
    handled: list[str] = []

    @bolt.event("message")
    def hear(event: dict[str, Any]) -> None:
        handled.append(event["text"])

    slack.break_calls("auth.test", status=status, error=error, retry_after=1)
    payload = slack.message("hi")
    assert slack.send_event(payload).result(30) == OK
    id = slack_.workflow_id("event", payload)
    assert running.get(id).result(timeout=30) == slack_.Outcome(handled=True)
    assert handled == ["hi"]
    [failed] = log.events(id, "StepFailed")
    assert failed["error"]["qualname"] == "NotAuthorized"
    assert failed["retry_at"] is not None


def test_the_same_for_an_async_app(arunning: App, abolt: AsyncApp, slack: FakeSlack, log: Log) -> None:
    @abolt.event("message")
    async def hear(event: dict[str, Any], say: AsyncSay) -> None:
        await say(f"heard {event['text']}")

    slack.break_calls("auth.test", status=500)
    payload = slack.message("hi")
    assert slack.send_event(payload).result(30) == OK
    id = slack_.workflow_id("event", payload)
    assert arunning.get(id).result(timeout=30) == slack_.Outcome(handled=True)
    assert [call["text"] for call in slack.called("chat.postMessage")] == ["heard hi"]
    assert log.types(id) == ["WorkflowStarted", "StepFailed", "StepCompleted", "WorkflowCompleted"]


def test_an_event_is_handled_when_slack_can_be_reached_again(
    running: App, bolt: Bolt, slack: FakeSlack, log: Log
) -> None:
    """Left to itself bolt answers 500 for this one; then it is no error of a middleware's, but waited for as well."""
    handled: list[str] = []

    @bolt.event("message")
    def hear(event: dict[str, Any]) -> None:
        handled.append(event["text"])

    bolt.client.base_url = f"http://127.0.0.1:{free_port()}/api/"
    payload = slack.message("hi")
    assert slack.send_event(payload).result(30) == OK
    id = slack_.workflow_id("event", payload)
    wait_for(lambda: "StepFailed" in log.types(id), "a try has failed", 30)
    bolt.client.base_url = slack.api
    assert running.get(id).result(timeout=30) == slack_.Outcome(handled=True)
    assert handled == ["hi"]
    [failed, *_] = log.events(id, "StepFailed")
    assert failed["error"]["qualname"] == "NotAuthorized"
    assert "Connection refused" in failed["error"]["message"]


def test_the_same_for_an_async_app_that_can_not_reach_slack(
    arunning: App, abolt: AsyncApp, slack: FakeSlack, log: Log
) -> None:
    @abolt.event("message")
    async def hear(event: dict[str, Any], say: AsyncSay) -> None:
        await say(f"heard {event['text']}")

    abolt.client.base_url = f"http://127.0.0.1:{free_port()}/api/"
    payload = slack.message("hi")
    assert slack.send_event(payload).result(30) == OK
    id = slack_.workflow_id("event", payload)
    wait_for(lambda: "StepFailed" in log.types(id), "a try has failed", 30)
    abolt.client.base_url = slack.api
    assert arunning.get(id).result(timeout=30) == slack_.Outcome(handled=True)
    assert [call["text"] for call in slack.called("chat.postMessage")] == ["heard hi"]


def test_a_command_waits_for_an_installation_too_and_nobody_is_told_that_there_is_none(
    app: App, slack: FakeSlack, serve: Serve, tmp_path: Path
) -> None:
    """Left to itself bolt apologizes by the response_url, answers an empty 200, and no listener ever runs."""
    store = FileInstallationStore(base_dir=str(tmp_path), client_id="c")
    store.save(Installation(app_id="A0001", team_id="T0001", user_id="U1", bot_token="xoxb-one", bot_id="B"))
    bolt = Bolt(
        client=WebClient(base_url=slack.api), signing_secret=SECRET, installation_store=store,
        authorize=None, oauth_settings=None,
    )  # fmt: skip
    slack_.mount(app, bolt)

    @bolt.command("/deploy")
    def deploy(ack: Ack, respond: Respond) -> None:
        ack("deploying")
        respond("deployed")

    serve(slack_.asgi(app))
    slack.break_calls("auth.test", status=500)
    payload = slack.command("/deploy")
    with app:
        assert slack.send_interaction(payload).result(60).body == "deploying"
        outcome = app.get(slack_.workflow_id("command", payload)).result(timeout=30)
    assert outcome == slack_.Outcome(handled=True)
    assert [response["text"] for response in slack.responses] == ["deployed"]


def test_a_middleware_before_the_authorization_may_answer_by_itself(
    app: App, slack: FakeSlack, serve: Serve, log: Log
) -> None:
    """Bolt's answer when it is not authorized looks the same."""

    def skip(body: dict[str, Any], next: Callable[[], None]) -> BoltResponse | None:
        if body["event"]["text"] == "skip me":
            return BoltResponse(status=200, body="not for us")
        next()
        return None

    client = WebClient(token=TOKEN, base_url=slack.api)
    bolt = Bolt(client=client, signing_secret=SECRET, token_verification_enabled=False, before_authorize=skip)
    slack_.mount(app, bolt)
    serve(slack_.asgi(app))
    payload = slack.message("skip me")
    with app:
        assert slack.send_event(payload).result(30) == OK
        id = slack_.workflow_id("event", payload)
        assert app.get(id).result(timeout=30) == slack_.Outcome(handled=True)
    assert log.types(id) == ["WorkflowStarted", "StepCompleted", "WorkflowCompleted"]


def test_the_wait_for_an_authorization_is_no_retry_of_the_listeners(
    app: App, bolt: Bolt, slack: FakeSlack, serve: Serve
) -> None:
    slack_.mount(app, bolt, retries=1)
    slack.break_calls("auth.test", times=2, status=500)
    payload = slack.message("hi")
    serve(slack_.asgi(app))

    @bolt.event("message")
    def hear() -> None: ...

    with app:
        slack.send_event(payload).result(30)
        outcome = app.get(slack_.workflow_id("event", payload)).result(timeout=60)
    assert outcome == slack_.Outcome(handled=True)


def test_a_person_is_not_told_of_a_failure_that_is_tried_again(
    app: App, bolt: Bolt, slack: FakeSlack, serve: Serve
) -> None:
    """They would click once more, and have it done twice."""
    slack_.mount(app, bolt, retries=1)
    serve(slack_.asgi(app))
    tries: list[int] = []

    @bolt.command("/shaky")
    def shaky(ack: Ack) -> None:
        tries.append(1)
        if len(tries) == 1:
            raise ShopClosed
        ack("done")

    with app:
        sent = slack.send_interaction(slack.command("/shaky")).result(60)
    assert (sent.attempts, sent.body) == (["ok"], "done")


def test_bolts_own_adapters_may_go_on_beside_the_mount(app: App, bolt: Bolt, slack: FakeSlack) -> None:
    slack_.mount(app, bolt)
    ran = threading.Event()

    def acknowledge(ack: Ack) -> None:
        ack("on it")

    def work() -> None:
        ran.set()

    bolt.command("/work")(ack=acknowledge, lazy=[work])
    answer = bolt.dispatch(BoltRequest(body=slack.command("/work"), mode="socket_mode"))
    assert (answer.status, answer.body) == (200, "on it")
    assert ran.wait(30)


def test_an_event_that_nobody_listens_to_is_answered_with_200(running: App, slack: FakeSlack) -> None:
    """Left to itself bolt answers 404; Slack sends it three times more, and ends by disabling the endpoint."""
    payload = slack.event({"type": "team_join", "user": {"id": "U5"}})
    assert slack.send_event(payload).result(30) == OK
    outcome = running.get(slack_.workflow_id("event", payload)).result(timeout=30)
    assert outcome == slack_.Outcome(handled=False, status=404)


def test_a_lazy_listener_that_fails_is_seen(running: App, bolt: Bolt, slack: FakeSlack, log: Log) -> None:
    """Left to itself bolt runs it on a thread that nobody waits for, and logs its error."""

    def acknowledge(ack: Ack) -> None:
        ack("on it")

    def work(command: dict[str, Any]) -> None:
        raise ShopClosed(command["text"])

    bolt.command("/work")(ack=acknowledge, lazy=[work])
    payload = slack.command("/work", "till nine")
    sent = slack.send_interaction(payload).result(30)
    assert (sent.delivered, sent.body) == (True, "on it")
    with pytest.raises(ShopClosed, match="till nine"):
        running.get(slack_.workflow_id("command", payload)).result(timeout=30)


def test_a_lazy_listener_runs_in_the_step(running: App, bolt: Bolt, slack: FakeSlack) -> None:
    def acknowledge(ack: Ack) -> None:
        ack()

    def work(say: Say, command: dict[str, Any]) -> None:
        say(f"did {command['text']}")

    bolt.command("/work")(ack=acknowledge, lazy=[work])
    payload = slack.command("/work", "this")
    slack.send_interaction(payload).result(30)
    running.get(slack_.workflow_id("command", payload)).result(timeout=30)
    assert [call["text"] for call in slack.called("chat.postMessage")] == ["did this"]


def test_an_async_lazy_listener_runs_in_the_step(arunning: App, abolt: AsyncApp, slack: FakeSlack) -> None:
    async def acknowledge(ack: AsyncAck) -> None:
        await ack("on it")

    async def work(say: AsyncSay, command: dict[str, Any]) -> None:
        await say(f"did {command['text']}")
        if command["text"] == "badly":
            raise ShopClosed("badly")

    abolt.command("/work")(ack=acknowledge, lazy=[work])
    well, badly = slack.command("/work", "well"), slack.command("/work", "badly")
    assert slack.send_interaction(well).result(30).body == "on it"
    arunning.get(slack_.workflow_id("command", well)).result(timeout=30)
    slack.send_interaction(badly).result(30)
    with pytest.raises(ShopClosed, match="badly"):
        arunning.get(slack_.workflow_id("command", badly)).result(timeout=30)
    assert [call["text"] for call in slack.called("chat.postMessage")] == ["did well", "did badly"]


def test_a_listener_that_forgets_to_ack_has_run_all_the_same(
    running: App, bolt: Bolt, slack: FakeSlack
) -> None:
    """Left to itself bolt calls that unhandled."""

    @bolt.command("/quiet")
    def quiet(say: Say) -> None:
        say("said")

    payload = slack.command("/quiet")
    sent = slack.send_interaction(payload).result(30)
    assert (sent.delivered, sent.body) == (True, "")
    outcome = running.get(slack_.workflow_id("command", payload)).result(timeout=30)
    assert outcome == slack_.Outcome(handled=True)


def test_a_person_sees_that_a_listener_failed(running: App, bolt: Bolt, slack: FakeSlack) -> None:
    @bolt.command("/broken")
    def broken() -> None:
        raise ShopClosed("till nine")

    payload = slack.command("/broken")
    assert slack.send_interaction(payload).result(30).attempts == ["http_error"]
    with pytest.raises(ShopClosed):
        running.get(slack_.workflow_id("command", payload)).result(timeout=30)


def test_an_error_handler_of_the_apps_own_decides_what_is_an_error(
    running: App, bolt: Bolt, slack: FakeSlack
) -> None:
    seen: list[Exception] = []

    @bolt.event("message")
    def broken(event: dict[str, Any]) -> None:
        raise ShopClosed(event["text"])

    @bolt.error
    def handler(error: Exception, body: dict[str, Any]) -> BoltResponse | None:
        seen.append(error)
        return BoltResponse(status=200) if body["event"]["text"] == "fine" else None

    fine, bad = slack.message("fine"), slack.message("bad")
    for payload in (fine, bad):
        assert slack.send_event(payload).result(30) == OK
    assert running.get(slack_.workflow_id("event", fine)).result(timeout=30) == slack_.Outcome(handled=True)
    with pytest.raises(ShopClosed, match="bad"):
        running.get(slack_.workflow_id("event", bad)).result(timeout=30)
    assert sorted(str(error) for error in seen) == ["bad", "fine"]


def test_a_middleware_that_fails_is_an_error_of_the_workflow(
    running: App, bolt: Bolt, slack: FakeSlack
) -> None:
    @bolt.middleware
    def broken() -> None:
        raise ShopClosed

    payload = slack.message("hi")
    assert slack.send_event(payload).result(30) == OK
    with pytest.raises((slack_.ListenerFailed, StepError), match=r"bolt answered 500"):
        running.get(slack_.workflow_id("event", payload)).result(timeout=30)


def test_a_menu_that_asks_for_its_options_gets_them_and_starts_nothing(
    running: App, bolt: Bolt, slack: FakeSlack, log: Log
) -> None:
    @bolt.options("pick")
    def options(ack: Ack, payload: dict[str, Any]) -> None:
        ack(options=[{"text": {"type": "plain_text", "text": payload["value"]}, "value": "1"}])

    asked = slack.click({}, type="block_suggestion", action_id="pick", block_id="b", value="ab", actions=[])
    sent = slack.send_interaction(asked).result(30)
    assert sent.delivered
    assert '"text": "ab"' in sent.body
    assert log.one("select count(*) from refold.workflows") == 0


@pytest.mark.three_seconds
def test_nothing_is_acknowledged_that_is_not_in_the_log(
    app: App, bolt: Bolt, slack: FakeSlack, serve: Serve, cut_proxy: CutProxy, log: Log
) -> None:
    """Postgres stands still: Slack gets a failure within its three seconds, and its retry is what runs."""
    handled: list[str] = []
    held = App("held", database_url=cut_proxy.url)
    mounted = slack_.mount(held, bolt)

    @bolt.event("message")
    def hear(event: dict[str, Any]) -> None:
        handled.append(event["text"])

    @bolt.command("/deploy")
    def deploy(ack: Ack, respond: Respond) -> None:
        handled.append("deploy")
        ack()

    serve(slack_.asgi(held))
    with held:
        cut_proxy.hold(Direction.TO_SERVER)
        slack.hold_retries()
        event = slack.send_event(payload := slack.message("hi"))
        command = slack.send_interaction(slack.command("/deploy")).result(60)
        assert command.attempts == ["http_error"]
        assert handled == []
        cut_proxy.release()
        mounted._intake.answer_within = mounted._intake.commit_within = slack.patience = 60.0
        slack.release_retries()
        sent = event.result(60)
        assert sent.delivered
        assert sent.attempts[0] == "http_error"
        assert held.get(slack_.workflow_id("event", payload)).result(timeout=30) == slack_.Outcome(
            handled=True
        )
    assert handled.count("hi") == 1
