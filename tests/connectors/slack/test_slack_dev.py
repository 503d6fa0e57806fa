"""`refold dev` serves the endpoint of a Slack mount, and says where; a worker leaves that to a server, and says so."""

import re
import sys
from pathlib import Path

from fixtures.slack import SECRET, FakeSlack
from fixtures.workers import Log, Programs

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


def test_dev_serves_the_endpoint_and_shows_its_url(
    slack: FakeSlack, programs: Programs, log: Log, tmp_path: Path
) -> None:
    (tmp_path / "helpdesk.py").write_text(PROGRAM)
    (tmp_path / "pyproject.toml").touch()
    command = [str(REFOLD), "dev", str(tmp_path / "helpdesk.py")]
    program = programs.start_command(command, SLACK_API=slack.api, SECRET=SECRET)
    program.wait_output("Request URL: ", 60)
    program.wait_output("slack: message starts on_message", 60)
    program.wait_output("slack: bolt's listeners get the rest, by HTTP under /slack\n", 60)
    found = re.search(
        r"Request URL: (http://127\.0\.0\.1:\d+/slack/events), behind your tunnel", program.output
    )
    assert found is not None, program.output
    slack.endpoint = found[1]
    payload = slack.message("hi")
    assert slack.send_event(payload).result(60).delivered
    id = f"slack:A0001:T0001:{payload['event_id']}"
    log.wait_status(id, "completed", 60)
    assert [call["text"] for call in slack.called("chat.postMessage")] == ["heard hi"]


def test_a_worker_does_not_say_that_it_serves_what_it_does_not(
    slack: FakeSlack, programs: Programs, log: Log, tmp_path: Path
) -> None:
    (tmp_path / "helpdesk.py").write_text(PROGRAM)
    command = [str(REFOLD), "worker", str(tmp_path / "helpdesk.py")]
    program = programs.start_command(command, SLACK_API=slack.api, SECRET=SECRET)
    program.wait_output("by HTTP where slack.asgi(app) is mounted\n", 60)
    assert "under /slack" not in program.output
