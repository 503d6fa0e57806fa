"""A connector that is right keeps every clause."""

from typing import ClassVar

from fixtures.spool import SpoolHarness
from refold.testing import Conformance, Harness


class TestSpool(Conformance):
    harness: ClassVar[type[Harness]] = SpoolHarness
