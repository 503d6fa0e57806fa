"""The conformance kit for connectors: what every connector has to keep, tried on real processes and a real Postgres.

Write a `Harness` for a connector, then `python -m refold.testing harness.py`, or derive `Conformance` in a test module.
docs/write-a-connector.md has an example, and says what each clause asks for.
"""

from refold.testing._clauses import CLAUSES, Clause
from refold.testing._conformance import Conformance
from refold.testing._harness import Harness, Kind
from refold.testing._kit import Kit, Verdict
from refold.testing._stage import Refused
from refold.testing._work import Work, aperform, perform

__all__ = [
    "CLAUSES",
    "Clause",
    "Conformance",
    "Harness",
    "Kind",
    "Kit",
    "Refused",
    "Verdict",
    "Work",
    "aperform",
    "perform",
]
