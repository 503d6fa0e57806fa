"""The kit under pytest: one test for each clause. pytest itself is not imported; unittest's skip serves it."""

import unittest
from typing import ClassVar

from refold.testing._clauses import CLAUSES
from refold.testing._harness import Harness
from refold.testing._kit import Kit
from refold.testing._stage import Refused


class Conformance:
    """Derive a `class TestMine(Conformance)` with a `harness` in a test module, and each clause is a test of it.

    A clause that makes no sense for the connector is a skipped test that says why.
    """

    harness: ClassVar[type[Harness]]
    database_url: ClassVar[str | None] = None
    """A Postgres of your own in which databases may be made; by default an embedded one."""
    _kit: ClassVar[Kit | None] = None

    @classmethod
    def teardown_class(cls) -> None:
        """Stop what the tests have started."""
        kit, cls._kit = cls._kit, None
        if kit is not None:
            kit.__exit__(None, None, None)

    def _judge(self, clause: str) -> None:
        cls = type(self)
        if cls._kit is None:
            kit = Kit(cls.harness, database_url=cls.database_url)
            cls._kit = kit.__enter__()
        verdict = cls._kit.judge(clause)
        if verdict.result == "refused":
            raise Refused(f"{cls.harness.name} does not keep {clause!r}: {verdict.promise}\n{verdict.text}")
        if verdict.result == "not applicable":
            raise unittest.SkipTest(f"not applicable to {cls.harness.name}: {verdict.text}")


def _add_tests() -> None:
    for clause in CLAUSES.values():

        def test(self: Conformance, name: str = clause.name) -> None:
            self._judge(name)

        test.__name__ = f"test_{clause.name.replace('-', '_')}"
        test.__doc__ = clause.promise
        # pytest would take the default of `name` for what it is; a fixture it is not.
        setattr(Conformance, test.__name__, test)


_add_tests()

__all__ = ["Conformance"]
