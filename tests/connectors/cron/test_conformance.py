"""Schedules keep what every connector has to keep."""

from typing import ClassVar

import pytest

from fixtures.cron_harness import CronHarness
from refold.testing import Conformance, Harness


@pytest.mark.timeout(300)
class TestCron(Conformance):
    harness: ClassVar[type[Harness]] = CronHarness
