"""Socket Mode: an envelope is acknowledged when its payload is in the log, and comes again when it was not."""

import functools
import json
import socket
import threading
from collections.abc import Iterator
from typing import Any

import aiohttp
import pytest
from slack_bolt import Ack, Say
from slack_bolt import App as Bolt
from slack_bolt.async_app import AsyncApp, AsyncSay

from fixtures.proxy import CutProxy, Direction
from fixtures.slack import APP_TOKEN, FakeSlack, Trouble
from fixtures.workers import Log, wait_for
from refold import App
from refold.connectors import slack as slack_
from refold.connectors.slack import _socket


@pytest.fixture
def team(app: App, bolt: Bolt, slack: FakeSlack) -> Iterator[slack_.SlackApp]:
    """The bolt app on a running app, connected by Socket Mode alone."""
    mounted = slack_.mount(app, bolt, app_token=APP_TOKEN, signing_secret=[])
    with app:
        slack.wait_connected()
        yield mounted


def test_an_event_is_acknowledged_and_runs_once(
    app: App, team: slack_.SlackApp, slack: FakeSlack, log: Log
) -> None:
    @team.message("hello")
    @app.workflow
    def greet(event: slack_.Event) -> None:
        team.say(event, "hello yourself")

    payload = slack.message("well, hello there")
    for _ in range(3):
        assert slack.send_envelope(payload).result(30).attempts == ["ok"]
    app.get(slack_.workflow_id("event", payload)).result(timeout=30)
    assert [call["text"] for call in slack.called("chat.postMessage")] == ["hello yourself"]
    assert log.one("select count(*) from refold.workflows") == 1


def test_bolts_listeners_get_the_rest(app: App, team: slack_.SlackApp, bolt: Bolt, slack: FakeSlack) -> None:
    @bolt.command("/deploy")
    def deploy(ack: Ack, command: dict[str, Any], say: Say) -> None:
        ack(f"deploying {command['text']}")
        say("deployed")

    payload = slack.command("/deploy", "shop")
    sent = slack.send_envelope(payload).result(30)
    assert json.loads(sent.body) == {"text": "deploying shop"}
    app.get(slack_.workflow_id("command", payload)).result(timeout=30)
    assert len(slack.called("chat.postMessage")) == 1


def test_an_async_app_is_connected_the_same_way(app: App, abolt: AsyncApp, slack: FakeSlack) -> None:
    slack_.mount(app, abolt, app_token=APP_TOKEN, signing_secret=[])

    @abolt.event("message")
    async def hear(event: dict[str, Any], say: AsyncSay) -> None:
        await say(f"heard {event['text']}")

    payload = slack.message("hi")
    with app:
        slack.wait_connected()
        assert slack.send_envelope(payload).result(30).delivered
        app.get(slack_.workflow_id("event", payload)).result(timeout=30)
    assert [call["text"] for call in slack.called("chat.postMessage")] == ["heard hi"]


def test_a_modal_is_answered_in_the_acknowledgement(
    app: App, team: slack_.SlackApp, slack: FakeSlack, log: Log
) -> None:
    errors = {"response_action": "errors", "errors": {"title": "say something"}}

    @team.view("ticket", ack=lambda view: None if view.values["title"] else errors)
    @app.workflow
    def ticket(view: slack_.View) -> None: ...

    sent = slack.send_envelope(slack.submission("ticket", {"title": ""})).result(30)
    assert json.loads(sent.body) == errors
    assert log.one("select count(*) from refold.workflows") == 0
    assert slack.send_envelope(slack.submission("ticket", {"title": "x"})).result(30).delivered
    assert log.one("select count(*) from refold.workflows") == 1


def _more_than(slack: FakeSlack, connections: int) -> bool:
    return slack.connections > connections


def test_slack_may_move_the_connection_whenever_it_wants(
    app: App, team: slack_.SlackApp, bolt: Bolt, slack: FakeSlack, log: Log
) -> None:
    @bolt.event("message")
    def hear() -> None: ...

    payloads = []
    for number in range(3):
        payloads.append(slack.message(f"{number}"))
        assert slack.send_envelope(payloads[-1]).result(60).delivered
        before = slack.connections
        slack.disconnect()
        wait_for(functools.partial(_more_than, slack, before), "a new connection", 60)
        slack.wait_connected()
    slack.drop_links()
    payloads.append(slack.message("after the cut"))
    assert slack.send_envelope(payloads[-1]).result(60).delivered
    for payload in payloads:
        app.get(slack_.workflow_id("event", payload)).result(timeout=30)
    assert log.one("select count(*) from refold.workflows") == 4


def test_a_slack_that_is_away_at_the_start_is_waited_for(
    app: App, bolt: Bolt, slack: FakeSlack, caplog: pytest.LogCaptureFixture
) -> None:
    slack.break_calls("apps.connections.open", times=2, status=500)
    mounted = slack_.mount(app, bolt, app_token=APP_TOKEN)
    with app:
        slack.wait_connected()
        wait_for(mounted.is_connected, "it is connected")
        assert mounted.report()[0].position == "connected"
    assert "can't connect to Slack, it goes on trying" in caplog.text
    assert not mounted.is_connected()


@pytest.mark.three_seconds
def test_an_envelope_is_not_acknowledged_before_its_payload_is_in_the_log(
    bolt: Bolt, slack: FakeSlack, cut_proxy: CutProxy
) -> None:
    handled: list[str] = []
    held = App("held", database_url=cut_proxy.url)
    mounted = slack_.mount(held, bolt, app_token=APP_TOKEN)

    @bolt.event("message")
    def hear(event: dict[str, Any]) -> None:
        handled.append(event["text"])

    with held:
        slack.wait_connected()
        slack.hold_retries()
        cut_proxy.hold(Direction.TO_SERVER)
        event = slack.send_envelope(payload := slack.message("hi"))
        command = slack.send_envelope(slack.command("/deploy")).result(60)
        assert command.attempts == ["timeout"]
        assert handled == []
        cut_proxy.release()
        mounted._intake.answer_within = mounted._intake.commit_within = slack.patience = 60.0
        slack.release_retries()
        assert event.result(60).delivered
        held.get(slack_.workflow_id("event", payload)).result(timeout=30)
    assert handled == ["hi"]
    held.close()


def test_it_can_be_started_again(app: App, bolt: Bolt, slack: FakeSlack) -> None:
    slack_.mount(app, bolt, app_token=APP_TOKEN)
    for number in (1, 2):
        with app:
            slack.wait_connected()
            assert slack.send_envelope(slack.message(f"{number}")).result(30).delivered
        wait_for(lambda: not slack.is_connected(), "the connection is closed")


@pytest.mark.parametrize("answer", [{"ok": True}, {"ok": True, "url": "no address"}, [], "ok"])
def test_whatever_slack_answers_it_is_asked_again(
    app: App, bolt: Bolt, slack: FakeSlack, answer: Any
) -> None:
    slack._trouble["apps.connections.open"] = [Trouble(200, answer)]
    slack_.mount(app, bolt, app_token=APP_TOKEN)
    with app:
        slack.wait_connected()


def test_a_connection_too_many_is_named(
    app: App, team: slack_.SlackApp, slack: FakeSlack, caplog: pytest.LogCaptureFixture
) -> None:
    before = slack.connections
    slack.disconnect("too_many_websockets")
    wait_for(functools.partial(_more_than, slack, before), "a new connection", 60)
    assert "this Slack app has as many connections open as Slack allows, ten" in caplog.text


def test_it_stops_while_slack_does_not_answer(app: App, bolt: Bolt, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_socket, "_HAND_SHAKE", aiohttp.ClientTimeout(total=3600))
    with socket.create_server(("127.0.0.1", 0)) as silent:
        silent.settimeout(60)
        bolt.client.base_url = f"http://127.0.0.1:{silent.getsockname()[1]}/api/"
        slack_.mount(app, bolt, app_token=APP_TOKEN)
        with app:
            line, _ = silent.accept()
        line.close()


@pytest.mark.three_seconds
def test_it_stops_while_an_ack_hangs(app: App, team: slack_.SlackApp, slack: FakeSlack) -> None:
    began, let_go, over = threading.Event(), threading.Event(), threading.Event()

    def answer(command: slack_.Command) -> str:
        began.set()
        let_go.wait(60)
        over.set()
        return ""

    @team.command("/x", ack=answer)
    @app.workflow
    def ran(command: slack_.Command) -> None: ...

    slack.send_envelope(slack.command("/x"))
    assert began.wait(30)
    app.close()
    assert not over.is_set()
    let_go.set()
