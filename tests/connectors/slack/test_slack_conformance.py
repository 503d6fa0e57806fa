"""The conformance kit on the Slack connector, each way that its payloads come."""

from typing import ClassVar

import pytest

from fixtures.slack_harness import SlackHarness, SlackInteractionHarness, SlackSocketHarness
from refold.testing import Conformance, Harness

pytestmark = pytest.mark.timeout(300)


class TestEvents(Conformance):
    harness: ClassVar[type[Harness]] = SlackHarness


class TestInteractions(Conformance):
    harness: ClassVar[type[Harness]] = SlackInteractionHarness


class TestSocketMode(Conformance):
    harness: ClassVar[type[Harness]] = SlackSocketHarness
