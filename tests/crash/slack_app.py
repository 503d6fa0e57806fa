"""A Slack app as a user could have written it, and a process that is killed where a message's text asks for it.

`die:before` before the payload is accepted, `die:committed` between the commit and the answer, `die:answered` after the
answer, `die:step` in a step, `die:said` after a call of Slack's API and before the record of it. Each message kills
once; a file in the folder remembers it.
"""

import os
import re
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import aiohttp
import psycopg
import uvicorn
from slack_bolt import Ack, Say
from slack_bolt import App as Bolt
from slack_sdk.web import WebClient

import refold
from refold import App
from refold.connectors import slack
from refold.connectors.slack import _intake

FOLDER = Path(os.environ["KILL_FOLDER"])
armed = False


def die_at(point: str, text: str) -> bool:
    """Kill this process when `text` asks for `point` and has not killed yet; say whether it would have."""
    found = re.search(rf"(\w+) die:{point}\b", text)
    if found is None:
        return False
    try:
        (FOLDER / found[1]).touch(exist_ok=False)
    except FileExistsError:
        return False
    if point != "answered":
        os.kill(os.getpid(), signal.SIGKILL)
    return True


class DyingApp(App):
    """Dies around the commit of what it accepts."""

    async def aaccept(self, items: Sequence[Any], **options: Any) -> Any:
        global armed
        text = "".join(item.input.decode() for item in items)
        die_at("before", text)
        accepted = await super().aaccept(items, **options)
        die_at("committed", text)
        armed = die_at("answered", text) or armed
        return accepted


def after_an_answer() -> None:
    """Die after the answer that went out just now, when that was asked for."""
    if armed:
        os.kill(os.getpid(), signal.SIGKILL)


app = DyingApp("dying")
bolt = Bolt(
    client=WebClient(token="xoxb-1", base_url=os.environ["SLACK_API"]),
    signing_secret="8f742231b10e8888abcd99yyyzzz85a5",
    token_verification_enabled=False,
)
if "PATIENT" in os.environ:  # the test is about deaths, not about Slack's three seconds
    _intake.__dict__.update(ANSWER_WITHIN=50.0, COMMIT_WITHIN=40.0)
team = slack.mount(app, bolt, app_token=os.environ.get("APP_TOKEN"))


@refold.step(transaction=True)
def book(conn: psycopg.Connection[Any], text: str) -> None:
    conn.execute("insert into handled (text) values (%s)", (text.split()[0],))
    die_at("step", text)


@team.message(re.compile("^workflow"))
@app.workflow
def on_message(event: slack.Event) -> None:
    book(event.text)
    team.say(event, event.text)


@team.command("/book", ack="booked")
@app.workflow
def on_command(command: slack.Command) -> None:
    book(command.text)


@bolt.event("message")
def listen(event: dict[str, Any], say: Say) -> None:
    die_at("step", event["text"])
    say(event["text"])
    die_at("said", event["text"])


@bolt.command("/listen")
def listen_to_command(ack: Ack, command: dict[str, Any], say: Say) -> None:
    ack("heard")
    say(command["text"])


async def endpoint(scope: Any, receive: Any, send: Any) -> None:
    async def answer(message: Any) -> None:
        await send(message)
        if message["type"] == "http.response.body":
            after_an_answer()

    await slack.asgi(app)(scope, receive, answer)


send_str = aiohttp.ClientWebSocketResponse.send_str


async def acknowledge(link: aiohttp.ClientWebSocketResponse, data: str, compress: int | None = None) -> None:
    await send_str(link, data, compress)
    after_an_answer()


if __name__ == "__main__":
    aiohttp.ClientWebSocketResponse.send_str = acknowledge  # type: ignore[method-assign, assignment]
    uvicorn.run(endpoint, host="127.0.0.1", port=int(sys.argv[1]), log_level="warning")
