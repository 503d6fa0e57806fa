"""A bolt app on the fake Slack, of both kinds, an app on the test's database, and a real server between them."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from slack_bolt import App as Bolt
from slack_bolt.async_app import AsyncApp
from slack_sdk.web import WebClient
from slack_sdk.web.async_client import AsyncWebClient

from fixtures.slack import SECRET, TOKEN, FakeSlack, Served
from refold import App
from refold.connectors.slack import _intake

Serve = Callable[[Any], Served]


@pytest.fixture(autouse=True)
def patient(request: pytest.FixtureRequest, slack: FakeSlack, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a slow machine have more than Slack's three seconds, except where a test is about those."""
    if request.node.get_closest_marker("three_seconds") is None:
        slack.patience = 60.0
        monkeypatch.setattr(_intake, "ANSWER_WITHIN", 50.0)
        monkeypatch.setattr(_intake, "COMMIT_WITHIN", 40.0)


def pytest_configure(config: pytest.Config) -> None:
    """Name the mark."""
    config.addinivalue_line("markers", "three_seconds: Slack waits as long as it does, and no longer")


@pytest.fixture
def app(database_url: str) -> Iterator[App]:
    """An app on the test's database, with no worker yet; `with app:` runs one."""
    made = App("helpdesk", database_url=database_url)
    yield made
    made.close()


@pytest.fixture
def bolt(slack: FakeSlack) -> Bolt:
    """A bolt app whose Slack is the fake one, made as its docs say."""
    client = WebClient(token=TOKEN, base_url=slack.api)
    return Bolt(client=client, signing_secret=SECRET, token_verification_enabled=False)


@pytest.fixture
def abolt(slack: FakeSlack) -> AsyncApp:
    """The same as `bolt`, with async listeners."""
    return AsyncApp(client=AsyncWebClient(token=TOKEN, base_url=slack.api), signing_secret=SECRET)


@pytest.fixture
def serve(slack: FakeSlack) -> Iterator[Serve]:
    """Serves an ASGI app; Slack sends there."""
    served: list[Served] = []

    def begin(asgi: Any) -> Served:
        served.append(Served(asgi))
        slack.endpoint = f"{served[-1].url}/slack/events"
        return served[-1]

    yield begin
    for one in served:
        one.close()
