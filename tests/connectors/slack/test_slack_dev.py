"""`refold dev` and `refold worker --http` serve the endpoint of a Slack mount, and say where."""

import re
import signal
import sys
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from fixtures.slack import SECRET, FakeSlack
from fixtures.workers import Log, Program, Programs, wait_for

REFOLD = Path(sys.executable).parent / "refold"
PROGRAM = """
import os
from slack_bolt import App as Bolt
from slack_sdk import WebClient
from refold import App
from refold.connectors import slack

app = App("helpdesk")
client = WebClient(token="xoxb-1", base_url=os.environ["SLACK_API"])
bolt = Bolt(client=client, signing_secret=os.environ["SECRET"], token_verification_enabled=False)
team = slack.mount(app, bolt)


@team.message()
@app.workflow
def on_message(event: slack.Event) -> None:
    team.say(event, f"heard {event.text}")
"""


HOOK = """

from refold.connectors import webhook


@webhook.post("/bells", verify=webhook.none(), dedup="body")
@app.workflow
def on_bell(delivery: webhook.Delivery[dict[str, str]]) -> None: ...
"""
SECOND = """

slack.mount(app, bolt, name="other")
slack.mount(app, bolt, name="socket", app_token="xapp-1", signing_secret=[])
"""


@pytest.mark.parametrize("command", ["dev", "worker"])
def test_dev_and_worker_serve_the_endpoint_and_show_its_url(
    slack: FakeSlack, programs: Programs, log: Log, tmp_path: Path, command: str
) -> None:
    program = _start(tmp_path, PROGRAM, programs, slack, command)
    [slack.endpoint] = _request_urls(program)
    program.wait_output("slack: message starts on_message", 60)
    program.wait_output("slack: bolt's listeners get the rest, by HTTP under /slack\n", 60)
    assert slack.endpoint.endswith("/slack/events")
    _hear(slack, log, "hi")
    assert [call["text"] for call in slack.called("chat.postMessage")] == ["heard hi"]
    slack.endpoint = slack.endpoint.replace("/slack/", "/other/")
    assert slack.send_once(slack.message("nobody")).result(60).attempts == ["http_error"]
    program.signal(signal.SIGTERM)
    assert program.wait(60) == 0


def test_slack_and_webhooks_are_served_at_one_address(
    slack: FakeSlack, programs: Programs, log: Log, tmp_path: Path
) -> None:
    program = _start(tmp_path, PROGRAM + HOOK, programs, slack, "worker")
    [slack.endpoint] = _request_urls(program)
    _hear(slack, log, "hi")
    base = slack.endpoint.removesuffix("/slack/events")
    request = urllib.request.Request(
        f"{base}/hooks/bells", data=b'{"a": "b"}', headers={"content-type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        assert answer.status == 202


def test_several_mounts_are_served_by_their_names(
    slack: FakeSlack, programs: Programs, log: Log, tmp_path: Path
) -> None:
    program = _start(tmp_path, PROGRAM + SECOND, programs, slack, "dev")
    one, other = _request_urls(program, 2)
    assert (one[-19:], other[-19:]) == ("/slack/slack/events", "/slack/other/events")
    slack.endpoint = one
    _hear(slack, log, "one")
    slack.endpoint = other
    payload = slack.message("other")
    assert slack.send_event(payload).result(60).delivered
    assert (
        log.one("select name from refold.workflows where workflow_id = %s", _id(payload)) == "other.listeners"
    )


def test_a_worker_does_not_say_that_it_serves_what_it_does_not(
    slack: FakeSlack, programs: Programs, log: Log, tmp_path: Path
) -> None:
    (tmp_path / "helpdesk.py").write_text(PROGRAM)
    command = [str(REFOLD), "worker", str(tmp_path / "helpdesk.py")]
    program = programs.start_command(command, SLACK_API=slack.api, SECRET=SECRET)
    program.wait_output("by HTTP where slack.asgi(app) is mounted\n", 60)
    assert "not served by this process: mount slack.asgi(app), or set REFOLD_HTTP=HOST:PORT" in program.output
    assert "under /slack" not in program.output


def _start(folder: Path, text: str, programs: Programs, slack: FakeSlack, command: str) -> Program:
    (folder / "helpdesk.py").write_text(text)
    (folder / "pyproject.toml").touch()
    address = ["--http", "127.0.0.1:0"] if command == "worker" else []
    return programs.start_command(
        [str(REFOLD), command, str(folder / "helpdesk.py"), *address], SLACK_API=slack.api, SECRET=SECRET
    )


def _request_urls(program: Program, count: int = 1) -> list[str]:
    def found() -> list[str]:
        return re.findall(r"(http://127\.0\.0\.1:\d+/\S+), Slack's Request URL", program.output)

    wait_for(lambda: len(found()) == count, "the Request URL is shown", 60)
    return found()


def _id(payload: dict[str, Any]) -> str:
    return f"slack:A0001:T0001:{payload['event_id']}"


def _hear(slack: FakeSlack, log: Log, text: str) -> None:
    payload = slack.message(text)
    assert slack.send_event(payload).result(60).delivered
    log.wait_status(_id(payload), "completed", 60)
