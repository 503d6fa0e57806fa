"""Commands, clicks, modals and shortcuts: durable before the person hears anything, and done once."""

import asyncio
import json
import os
import re
import threading
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import pytest
from slack_bolt import Ack
from slack_bolt import App as Bolt
from slack_bolt.async_app import AsyncAck, AsyncApp

import refold
from fixtures.slack import FakeSlack, Sent, Served
from fixtures.workers import Log, wait_for
from refold import App
from refold.connectors import slack as slack_

Serve = Callable[[Any], Served]


@pytest.fixture
def team(app: App, bolt: Bolt, serve: Serve) -> slack_.SlackApp:
    """The mounted bolt app, served; `with app:` runs the worker."""
    mounted = slack_.mount(app, bolt)
    serve(slack_.asgi(app))
    return mounted


def test_a_command_answers_with_its_text_and_starts_its_workflow_once(
    app: App, team: slack_.SlackApp, slack: FakeSlack, log: Log
) -> None:
    @team.command("/deploy", ack=lambda command: f"deploying {command.text}")
    @app.workflow
    def deploy(command: slack_.Command) -> str:
        team.respond(command, f"{command.text} is out", replace_original=True)
        return command.user

    payload = slack.command("/deploy", "shop")
    with app:
        for _ in range(2):
            sent = slack.send_interaction(payload).result(30)
            assert (sent.delivered, json.loads(sent.body)) == (True, {"text": "deploying shop"})
        assert app.get(slack_.workflow_id("command", payload)).result(timeout=30) == "U1"
    assert slack.responses == [{"text": "shop is out", "replace_original": True}]
    assert log.one("select count(*) from refold.workflows") == 1


@pytest.mark.parametrize(
    ("ack", "answer"),
    [
        (None, ""),
        ("soon", '{"text":"soon"}'),
        ({"response_type": "in_channel", "text": "all"}, '{"response_type":"in_channel","text":"all"}'),
    ],
)
def test_what_a_command_is_answered_with(
    app: App, team: slack_.SlackApp, slack: FakeSlack, ack: Any, answer: str
) -> None:
    @team.command("/x", ack=ack)
    @app.workflow
    def ran(command: slack_.Command) -> None: ...

    with app:
        assert slack.send_interaction(slack.command("/x")).result(30).body == answer


def test_an_ack_can_be_async(app: App, team: slack_.SlackApp, slack: FakeSlack) -> None:
    async def answer(command: slack_.Command) -> str:
        await asyncio.sleep(0)
        return "later"

    @team.command(re.compile("^/x"), ack=answer)
    @app.workflow
    def ran(command: slack_.Command) -> None: ...

    with app:
        assert slack.send_interaction(slack.command("/xyz")).result(30).body == '{"text":"later"}'


@pytest.mark.three_seconds
def test_an_ack_that_breaks_or_takes_too_long_starts_nothing(
    app: App, team: slack_.SlackApp, slack: FakeSlack, log: Log
) -> None:
    let_go = threading.Event()

    def answer(command: slack_.Command) -> str:
        if command.text == "break":
            raise ZeroDivisionError
        let_go.wait(60)
        return "too late"

    @team.command("/x", ack=answer)
    @app.workflow
    def ran(command: slack_.Command) -> None: ...

    with app:
        assert slack.send_interaction(slack.command("/x", "break")).result(30).attempts == ["http_error"]
        assert slack.send_interaction(slack.command("/x", "slow")).result(30).attempts != ["ok"]
        let_go.set()
        assert log.one("select count(*) from refold.workflows") == 0


def test_acks_that_hang_are_in_nobodys_way(
    app: App, team: slack_.SlackApp, slack: FakeSlack, log: Log
) -> None:
    """A loop's default executor has few threads, and the program's own work needs them too."""
    let_go = threading.Event()

    def answer(command: slack_.Command) -> str:
        if command.text == "hang":
            let_go.wait(60)
        return command.text

    @team.command("/x", ack=answer)
    @app.workflow
    def ran(command: slack_.Command) -> None: ...

    with app:
        hanging = [
            slack.send_interaction(slack.command("/x", "hang"))
            for _ in range(min(32, (os.cpu_count() or 1) + 4))
        ]
        assert slack.send_interaction(slack.command("/x", "soon")).result(60).body == '{"text":"soon"}'
        let_go.set()
        assert all(sent.result(60).delivered for sent in hanging)


def test_a_modal_with_errors_stays_open_and_starts_nothing(
    app: App, team: slack_.SlackApp, slack: FakeSlack, log: Log
) -> None:
    def check(view: slack_.View) -> dict[str, Any] | None:
        if not view.values["title"]:
            return {"response_action": "errors", "errors": {"title": "say something"}}
        return {"response_action": "clear"}

    @team.view("ticket", ack=check)
    @app.workflow
    def ticket(view: slack_.View) -> str:
        return str(view.values["title"])

    with app:
        sent = slack.send_interaction(slack.submission("ticket", {"title": ""})).result(30)
        assert json.loads(sent.body) == {"response_action": "errors", "errors": {"title": "say something"}}
        assert log.one("select count(*) from refold.workflows") == 0
        again = slack.submission(
            "ticket", {"title": "fire"}
        )  # the same view, the same hash: Slack has not changed it
        assert json.loads(slack.send_interaction(again).result(30).body) == {"response_action": "clear"}
        assert app.get(slack_.workflow_id("view", again)).result(timeout=30) == "fire"


def test_two_submissions_of_one_modal_to_a_bolt_listener_are_two(
    app: App, team: slack_.SlackApp, bolt: Bolt, slack: FakeSlack
) -> None:
    got: list[str] = []

    @bolt.view("ticket")
    def ticket(ack: Ack, view: dict[str, Any]) -> None:
        title = view["state"]["values"]["title"]["title"]["value"]
        got.append(title)
        if title:
            ack()
        else:
            ack(response_action="errors", errors={"title": "say something"})

    with app:
        first = slack.send_interaction(slack.submission("ticket", {"title": ""})).result(30)
        assert json.loads(first.body)["errors"] == {"title": "say something"}
        assert slack.send_interaction(slack.submission("ticket", {"title": "fire"})).result(30).body == ""
        wait_for(lambda: got == ["", "fire"], "both were handled")


def test_clicks_shortcuts_and_closed_modals_start_what_is_declared_for_them(
    app: App, team: slack_.SlackApp, slack: FakeSlack, log: Log
) -> None:
    @team.action("pick")
    @app.workflow
    def picked(action: slack_.Action) -> str:
        return f"{action.action_id}={action.value} in {action.channel} by {action.user}"

    @team.shortcut("help")
    @app.workflow
    def helped(shortcut: slack_.Shortcut) -> str:
        return shortcut.callback_id

    @team.view("ticket", closed=True)
    @app.workflow
    def closed(view: slack_.View) -> str:
        return view.callback_id

    click = slack.click({"action_id": "pick", "value": "v"})
    shortcut = slack.shortcut("help")
    closing = slack.submission("ticket", type="view_closed", is_cleared=False)
    with app:
        for payload in (click, shortcut, closing):
            assert slack.send_interaction(payload).result(30) == Sent(attempts=["ok"], delivered=True)
        assert app.get(slack_.workflow_id("action", click)).result(timeout=30) == "pick=v in C1 by U1"
        assert app.get(slack_.workflow_id("shortcut", shortcut)).result(timeout=30) == "help"
        assert app.get(slack_.workflow_id("view", closing)).result(timeout=30) == "ticket"


def test_an_action_may_open_a_modal_while_its_trigger_is_good(
    app: App, team: slack_.SlackApp, slack: FakeSlack
) -> None:
    @team.action("edit")
    @app.workflow
    def edit(action: slack_.Action) -> None:
        team.client.views_open(trigger_id=action.trigger_id, view={"type": "modal", "callback_id": "c"})

    click = slack.click({"action_id": "edit"})
    with app:
        assert slack.send_interaction(click).result(30).delivered
        app.get(slack_.workflow_id("action", click)).result(timeout=30)
    [opened] = slack.called("views.open")
    assert opened["trigger_id"] == click["trigger_id"]


@pytest.fixture
def asking(app: App, team: slack_.SlackApp, slack: FakeSlack) -> Iterator[Any]:
    """A workflow that asks in a channel whether a sum may be paid back, on a running app."""

    @app.workflow
    def refund(amount: int) -> str:
        answer = team.ask(
            "C9", f"Refund {amount}?", {"Approve": True, "Reject": False}, timeout=timedelta(days=3)
        )
        return f"{answer.value} by {answer.user} ({answer.name})"

    with app:
        yield refund


def _posted(slack: FakeSlack, count: int = 1) -> list[dict[str, Any]]:
    wait_for(lambda: len(slack.called("chat.postMessage")) >= count, "the question is posted")
    return slack.called("chat.postMessage")


def test_a_click_answers_the_workflow_that_asked(asking: Any, slack: FakeSlack, log: Log) -> None:
    handle = asking.start(70, id="r-1")
    [question] = _posted(slack)
    assert question["channel"] == "C9"
    slack.send_interaction(slack.click_on(question, "Reject", user="U3")).result(30)
    assert handle.result(timeout=30) == "False by U3 (u3)"
    [closed] = slack.called("chat.update")
    assert closed["ts"] == question["ts"]
    assert closed["text"] == "Refund 70?\n*Reject*, by <@U3>"
    assert not any(block["type"] == "actions" for block in closed["blocks"])


def test_each_click_reaches_the_workflow_whose_message_it_was_on(asking: Any, slack: FakeSlack) -> None:
    handles = [asking.start(amount, id=f"r-{amount}") for amount in (1, 2, 3)]
    questions = {question["text"]: question for question in _posted(slack, 3)}
    for amount, label in ((3, "Approve"), (1, "Reject"), (2, "Approve")):
        slack.send_interaction(
            slack.click_on(questions[f"Refund {amount}?"], label, user=f"U{amount}")
        ).result(30)
    assert [handle.result(timeout=30) for handle in handles] == [
        "False by U1 (u1)",
        "True by U2 (u2)",
        "True by U3 (u3)",
    ]


def test_the_same_click_of_one_person_is_delivered_once(
    app: App, team: slack_.SlackApp, slack: FakeSlack, log: Log
) -> None:
    @app.workflow
    def vote() -> list[str]:
        team.client.chat_postMessage(
            channel="C9",
            text="go?",
            blocks=[{"type": "actions", "elements": [slack_.button("Go", 1, topic="votes")]}],
        )
        return [refold.recv("votes", slack_.Answer).user for _ in range(2)]

    with app:
        handle = vote.start(id="v")
        [question] = _posted(slack)
        for user in ("U1", "U1", "U2"):  # the impatient one is heard once
            assert slack.send_interaction(slack.click_on(question, "Go", user=user)).result(30).delivered
        assert handle.result(timeout=30) == ["U1", "U2"]
        late = slack.send_interaction(slack.click_on(question, "Go", user="U3")).result(30)
        assert late.delivered  # nobody waits any more; Slack need not send it again
    assert log.one("select count(*) from refold.workflows") == 1


def test_a_question_that_nobody_answers_times_out(app: App, team: slack_.SlackApp, slack: FakeSlack) -> None:
    @app.workflow
    def ask() -> str:
        try:
            team.ask("C9", "Anybody?", ["Here"], timeout=timedelta(milliseconds=50))
        except refold.TimedOut:
            return "nobody"
        return "somebody"

    with app:
        assert ask.start(id="a").result(timeout=30) == "nobody"
    [closed] = slack.called("chat.update")
    assert closed["text"] == "Anybody?\nNobody answered in time."


@pytest.mark.parametrize("clicked", [True, False])
def test_an_answer_counts_though_the_question_is_gone(
    app: App, team: slack_.SlackApp, slack: FakeSlack, clicked: bool
) -> None:
    @app.workflow
    def ask() -> str:
        timeout = timedelta(days=3) if clicked else timedelta(milliseconds=50)
        try:
            return f"{team.ask('C9', 'Anybody?', ['Here'], timeout=timeout).value}"
        except refold.TimedOut:
            return "nobody"

    slack.break_calls("chat.update", error="message_not_found")
    with app:
        handle = ask.start(id="a")
        if clicked:
            [question] = _posted(slack)
            slack.send_interaction(slack.click_on(question, "Here")).result(30)
        assert handle.result(timeout=30) == ("Here" if clicked else "nobody")


def test_an_async_workflow_asks_as_well(app: App, abolt: AsyncApp, serve: Serve, slack: FakeSlack) -> None:
    team = slack_.mount(app, abolt)
    serve(slack_.asgi(app))

    @app.workflow
    async def refund() -> str:
        answer = await team.aask("C9", "Refund?")
        await team.asay("C9", "thanks")
        return str(answer.value)

    @abolt.command("/x")
    async def x(ack: AsyncAck) -> None:
        await ack("an async ack")

    with app:
        slack.break_calls("chat.update", error="message_not_found")
        handle = refund.start(id="r")
        [question] = _posted(slack)
        slack.send_interaction(slack.click_on(question, "Approve")).result(30)
        assert handle.result(timeout=30) == "Approve"
        assert slack.send_interaction(slack.command("/x")).result(30).body == "an async ack"
    assert [call["text"] for call in slack.called("chat.postMessage")] == ["Refund?", "thanks"]


def test_an_interaction_is_answered_without_a_worker_in_the_process(
    app: App, team: slack_.SlackApp, bolt: Bolt, slack: FakeSlack, log: Log
) -> None:
    """A web process takes what comes in; the workers are elsewhere."""

    @bolt.command("/x")
    def x(ack: Ack) -> None:
        ack("never heard here")

    @team.command("/y", ack="soon")
    @app.workflow
    def y(command: slack_.Command) -> None: ...

    assert slack.send_interaction(slack.command("/x")).result(30) == Sent(attempts=["ok"], delivered=True)
    assert slack.send_interaction(slack.command("/y")).result(30).body == '{"text":"soon"}'
    assert log.one("select count(*) from refold.workflows where status = 'pending'") == 2
