"""Webhooks keep every clause of the kit for connectors."""

from typing import ClassVar

import pytest

from fixtures.webhook_harness import WebhookHarness
from refold.testing import Conformance, Harness

pytestmark = pytest.mark.timeout(300)


class TestWebhook(Conformance):
    harness: ClassVar[type[Harness]] = WebhookHarness
