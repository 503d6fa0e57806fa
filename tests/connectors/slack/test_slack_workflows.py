"""Slack's payloads as workflows: each one once, the answer after the commit, calls back as steps."""

from collections.abc import Callable
from typing import Any

from slack_bolt import Ack, Say
from slack_bolt import App as Bolt

from fixtures.slack import APP, TEAM, FakeSlack, Served
from fixtures.workers import Log
from refold import App
from refold.connectors import slack as slack_

Serve = Callable[[Any], Served]


def test_an_event_starts_the_workflow_that_is_declared_for_it_and_says_back_by_a_step(
    app: App, bolt: Bolt, slack: FakeSlack, serve: Serve, log: Log
) -> None:
    team = slack_.mount(app, bolt)

    @team.event("app_mention")
    @app.workflow
    def mentioned(event: slack_.Event) -> str:
        team.say(event, f"you said {event.text}")
        return event.user

    serve(slack_.asgi(app))
    payload = slack.event(
        {"type": "app_mention", "text": "hi", "user": "U7", "channel": "C7", "thread_ts": "1.2"}
    )
    with app:
        assert slack.send_event(payload).result(30) == slack_sent("ok")
        id = f"slack:{APP}:{TEAM}:{payload['event_id']}"
        assert app.get(id).result(timeout=30) == "U7"
        assert slack.send_event(payload).result(30).delivered  # once more: the same workflow
        [said] = slack.called("chat.postMessage")
        assert (said["channel"], said["text"], said["thread_ts"]) == ("C7", "you said hi", "1.2")
    assert log.types(id) == ["WorkflowStarted", "StepCompleted", "WorkflowCompleted"]
    assert log.one("select count(*) from refold.workflows") == 1


def test_bolts_own_listeners_run_in_a_step(
    app: App, bolt: Bolt, slack: FakeSlack, serve: Serve, log: Log
) -> None:
    slack_.mount(app, bolt)

    @bolt.event("app_mention")
    def mentioned(event: dict[str, Any], say: Say) -> None:
        say(f"you said {event['text']}")

    serve(slack_.asgi(app))
    payload = slack.event({"type": "app_mention", "text": "hi", "user": "U7", "channel": "C7"})
    with app:
        assert slack.send_event(payload).result(30).delivered
        outcome = app.get(slack_.workflow_id("event", payload)).result(timeout=30)
    assert outcome == slack_.Outcome(handled=True)
    assert [call["text"] for call in slack.called("chat.postMessage")] == ["you said hi"]


def test_the_ack_of_a_bolt_listener_reaches_slack_while_the_listener_goes_on(
    app: App, bolt: Bolt, slack: FakeSlack, serve: Serve, log: Log
) -> None:
    import threading

    slack_.mount(app, bolt)
    answered = threading.Event()

    @bolt.command("/deploy")
    def deploy(ack: Ack, command: dict[str, Any], say: Say) -> None:
        ack(f"deploying {command['text']}")
        assert answered.wait(30)
        say("deployed")

    serve(slack_.asgi(app))
    payload = slack.command("/deploy", "shop")
    with app:
        sent = slack.send_interaction(payload).result(30)
        answered.set()
        assert sent.delivered and sent.body == "deploying shop"
        app.get(slack_.workflow_id("command", payload)).result(timeout=30)
    assert [call["text"] for call in slack.called("chat.postMessage")] == ["deployed"]


def slack_sent(*attempts: str) -> Any:
    from fixtures.slack import Sent

    return Sent(attempts=list(attempts), delivered=True, body="")
