"""The endpoint over real HTTP: only what Slack has signed is taken, and nothing else starts anything or breaks it."""

import asyncio
import json
import socket
import time
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import urlencode

import aiohttp
import pytest
from slack_bolt import App as Bolt

from fixtures.postgres import free_port
from fixtures.slack import SECRET, FakeSlack, Served
from fixtures.workers import Log
from refold import App, DefinitionRefused
from refold.connectors import slack as slack_

Serve = Callable[[Any], Served]
JSON = "application/json"
FORM = "application/x-www-form-urlencoded"


@pytest.fixture
def endpoint(app: App, bolt: Bolt, slack: FakeSlack, serve: Serve) -> Iterator[str]:
    """The URL of an endpoint that is up, its worker running."""
    slack_.mount(app, bolt, signing_secret=[SECRET, "the one before"], max_body=100_000)
    served = serve(slack_.asgi(app))
    with app:
        yield f"{served.url}/events"


def post(url: str, body: Any, headers: dict[str, str], method: str = "POST") -> tuple[int, str]:
    """Send one request and return status and body of the answer."""

    async def go() -> tuple[int, str]:
        async with (
            aiohttp.ClientSession() as session,
            session.request(method, url, data=body, headers=headers) as answer,
        ):
            return answer.status, await answer.text()

    return asyncio.run(go())


def test_what_is_not_signed_starts_nothing(endpoint: str, slack: FakeSlack, log: Log) -> None:
    body = json.dumps(slack.message("hi")).encode()
    good = slack.headers(body)
    for wrong in (
        {**good, "x-slack-signature": "v0=" + "0" * 64},
        {**good, "x-slack-signature": "é"},
        {key: value for key, value in good.items() if key != "x-slack-signature"},
        {key: value for key, value in good.items() if key != "x-slack-request-timestamp"},
        {**good, "x-slack-request-timestamp": "now"},  # bolt: int() of it, and a 500
        {**good, "x-slack-request-timestamp": "1e9"},
        {**good, "x-slack-request-timestamp": "9" * 5000},
        slack.headers(body, at=time.time() - 400),
        slack.headers(body, at=time.time() + 400),
        slack.headers(body + b" "),
    ):
        assert post(endpoint, body, wrong) == (401, '{"error":"not signed by Slack"}')
    assert log.one("select count(*) from refold.workflows") == 0
    assert post(endpoint, body, good) == (200, "")
    assert log.one("select count(*) from refold.workflows") == 1


def test_a_secret_that_is_being_replaced_is_still_good(endpoint: str, slack: FakeSlack) -> None:
    slack.secret = "the one before"
    body = json.dumps(slack.message("hi")).encode()
    assert post(endpoint, body, slack.headers(body))[0] == 200


@pytest.mark.parametrize(
    ("body", "content_type"),
    [
        (b'{"type":"event_callback","x":"\xff\xfe"}', JSON),  # bolt: a 500
        (b'{"type":', JSON),
        (b"[]", JSON),
        (b"payload=%ff", FORM),
        (b"payload={", FORM),
        (b"", FORM),
    ],
)
def test_a_signed_body_that_is_no_payload_is_refused(
    endpoint: str, slack: FakeSlack, log: Log, body: bytes, content_type: str
) -> None:
    status, answer = post(endpoint, body, slack.headers(body, content_type=content_type))
    assert (status, answer) == (400, '{"error":"the body is no payload of Slack\'s"}')
    assert log.one("select count(*) from refold.workflows") == 0


def test_a_body_that_is_too_large_is_refused_announced_or_not(
    endpoint: str, slack: FakeSlack, log: Log
) -> None:
    body = json.dumps(slack.message("x" * 200_000)).encode()
    assert post(endpoint, body, slack.headers(body))[0] == 413

    async def chunked() -> Any:
        for start in range(0, len(body), 10_000):
            yield body[start : start + 10_000]

    assert post(endpoint, chunked(), slack.headers(body))[0] == 413
    assert log.one("select count(*) from refold.workflows") == 0


@pytest.mark.three_seconds
def test_a_body_that_does_not_come_is_not_waited_for(endpoint: str, slack: FakeSlack) -> None:
    host, port = endpoint.removeprefix("http://").split("/")[0].split(":")
    with socket.create_connection((host, int(port)), timeout=30) as line:
        line.sendall(b"POST /events HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\nhalf")
        assert line.recv(1000).startswith(b"HTTP/1.1 408")


def test_only_post_is_taken(endpoint: str) -> None:
    for method in ("GET", "PUT", "DELETE"):
        assert post(endpoint, None, {}, method)[0] == 405


def test_slacks_handshakes_are_answered(endpoint: str, slack: FakeSlack, log: Log) -> None:
    body = json.dumps({"token": "x", "challenge": "3eZbrw1aB", "type": "url_verification"}).encode()
    assert post(endpoint, body, slack.headers(body)) == (200, '{"challenge":"3eZbrw1aB"}')
    assert post(endpoint, body, {})[0] == 401
    assert post(f"{endpoint}?ssl_check=1&token=x", None, {}, "GET") == (200, "")
    checked = b"ssl_check=1&token=x"
    assert post(endpoint, checked, slack.headers(checked, content_type=FORM)) == (200, "")
    assert log.one("select count(*) from refold.workflows") == 0


def test_what_is_nobodys_is_answered_so_that_slack_does_not_send_it_again(
    endpoint: str, slack: FakeSlack, log: Log
) -> None:
    for payload in (
        {"type": "app_rate_limited", "team_id": "T1", "minute_rate_limited": 1, "api_app_id": "A1"},
        {"type": "something_new"},
        {"no": "type"},
    ):
        body = json.dumps(payload).encode()
        assert post(endpoint, body, slack.headers(body)) == (200, "")
    assert log.one("select count(*) from refold.workflows") == 0


def test_the_apps_own_events_start_nothing_unless_asked_for(
    app: App, bolt: Bolt, slack: FakeSlack, serve: Serve, log: Log
) -> None:
    slack_.mount(app, bolt)
    serve(slack_.asgi(app))
    own = slack.message("I said", user="U0BOT")
    with app:
        assert slack.send_event(own).result(30).delivered
        assert log.one("select count(*) from refold.workflows") == 0
        assert slack.send_event(slack.message("you said")).result(30).delivered
        assert log.one("select count(*) from refold.workflows") == 1
    other = App("other", database_url=log.url)
    slack_.mount(other, bolt, own_events=True)
    serve(slack_.asgi(other))
    with other:
        assert slack.send_event(own).result(30).delivered
        assert log.one("select count(*) from refold.workflows") == 2


def test_several_mounts_are_told_apart_by_their_names(
    app: App, bolt: Bolt, slack: FakeSlack, serve: Serve, log: Log
) -> None:
    slack_.mount(app, bolt, name="one")
    slack_.mount(app, bolt, name="two")
    served = serve(slack_.asgi(app))
    command = urlencode(slack.command("/x")).encode()
    with app:
        assert (
            post(f"{served.url}/three/events", command, slack.headers(command, content_type=FORM))[0] == 404
        )
        assert log.one("select count(*) from refold.workflows") == 0
        post(f"{served.url}/two/events", command, slack.headers(command, content_type=FORM))
    assert log.one("select name from refold.workflows") == "two.listeners"


def test_a_server_that_runs_it_alone_runs_the_worker_and_hears_why_it_can_not(
    app: App, bolt: Bolt, slack: FakeSlack
) -> None:
    def live(served: App) -> list[dict[str, Any]]:
        slack_.mount(served, bolt)
        said: list[dict[str, Any]] = []

        async def receive() -> dict[str, Any]:
            return {"type": "lifespan.shutdown" if said else "lifespan.startup"}

        async def send(message: Any) -> None:
            said.append(message)

        asyncio.run(slack_.asgi(served)({"type": "lifespan"}, receive, send))
        return said

    assert [message["type"] for message in live(app)] == [
        "lifespan.startup.complete",
        "lifespan.shutdown.complete",
    ]
    away = App("away", database_url=f"postgresql://postgres@127.0.0.1:{free_port()}/x")
    [failed] = live(away)
    assert failed["type"] == "lifespan.startup.failed"
    assert failed["message"].startswith("DatabaseUnreachable: ")
    away.close()


def test_a_mount_without_a_secret_is_refused(app: App, bolt: Bolt) -> None:
    with pytest.raises(DefinitionRefused, match=r"there is no signing secret, so anybody could send"):
        slack_.mount(app, bolt, signing_secret=[])
    slack_.mount(app, bolt)
    with pytest.raises(DefinitionRefused, match=r"has a Slack mount of that name already"):
        slack_.mount(app, bolt)


def test_a_workflow_that_does_not_take_the_payload_is_refused(app: App, bolt: Bolt) -> None:
    team = slack_.mount(app, bolt)

    @app.workflow
    def takes_text(text: str) -> None: ...

    def no_workflow(event: slack_.Event) -> None: ...

    with pytest.raises(DefinitionRefused, match=r"with one slack.Event, but that takes \(text: str\)"):
        team.event("message")(takes_text)
    with pytest.raises(DefinitionRefused, match=r"which is no workflow"):
        team.event("message")(no_workflow)  # type: ignore[type-var]
