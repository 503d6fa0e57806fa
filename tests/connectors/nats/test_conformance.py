"""NATS JetStream keeps what every connector has to keep."""

from typing import ClassVar

import pytest

from fixtures.nats_harness import NatsHarness
from refold.testing import Conformance, Harness


@pytest.mark.timeout(300)
@pytest.mark.usefixtures("nats_server")
class TestNats(Conformance):
    harness: ClassVar[type[Harness]] = NatsHarness
