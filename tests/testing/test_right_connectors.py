"""Connectors that are right keep every clause, whoever moves first in their system."""

from typing import ClassVar

from fixtures.bell import BellHarness
from fixtures.journal import JournalHarness
from fixtures.spool import SpoolHarness
from refold.testing import Conformance, Harness


class TestSpool(Conformance):
    """Messages that are acknowledged."""

    harness: ClassVar[type[Harness]] = SpoolHarness


class TestJournal(Conformance):
    """A log, with a position in Postgres."""

    harness: ClassVar[type[Harness]] = JournalHarness


class TestBell(Conformance):
    """A sender who waits for the answer."""

    harness: ClassVar[type[Harness]] = BellHarness
