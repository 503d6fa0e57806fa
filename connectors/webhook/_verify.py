"""Who sent this? What every verifier is made of; the senders' own schemes are in `_schemes`.

A verifier is declared with its secrets by name and opened when the program starts. What it gives then, a check, is
pure: headers and raw bytes in, None or the reason of the refusal out. It never raises, whatever it is shown, and it
compares every secret with every signature in constant time, so that nothing is learned from how long it takes.
"""

import hmac
import re
from collections.abc import Iterable, Sequence
from typing import Final, Protocol

from refold.connectors.webhook._headers import Headers

# More signatures than any rotation needs; each costs a comparison.
MOST_SIGNATURES: Final = 16

_TIMESTAMP: Final = re.compile(rb"[0-9]{1,12}\Z")

NO_SIGNATURE: Final = "it has no signature, or more than one header for it"
NO_MATCH: Final = "its signature fits none of the secrets"
NO_TIMESTAMP: Final = "its timestamp is missing, or no number of seconds"
TOO_OLD: Final = "its timestamp is outside of the tolerance"


class Check(Protocol):
    """A verifier with its secrets at hand."""

    def refuses(self, headers: Headers, body: bytes, now: float) -> str | None:
        """Return why the request is not believed, for the log; None when it is. Never raises."""
        ...

    def sign(self, body: bytes, delivery_id: str, now: int) -> list[tuple[str, str]]:
        """Return the headers with which the sender would send `body`, by the first secret."""
        ...


class Verifier(Protocol):
    """How an endpoint tells its sender from everybody else."""

    @property
    def kind(self) -> str:
        """What people call it: `github`."""
        ...

    @property
    def is_signed(self) -> bool:
        """Say whether what passes comes from the sender for sure. What does not fit the type is then kept, as a
        workflow that has failed, and not refused."""
        ...

    @property
    def secrets(self) -> Sequence[str]:
        """The secrets as they were declared; those from the environment by name."""
        ...

    @property
    def secret_headers(self) -> frozenset[bytes]:
        """Headers that no history may keep."""
        ...

    def open(self, where: str) -> Check:
        """Resolve the secrets. Raises SecretMissing, DefinitionRefused."""
        ...


def matches(expected: Sequence[bytes], presented: Iterable[bytes]) -> bool:
    """Say whether any of `presented` is one of `expected`; all are compared, in constant time each."""
    found = 0
    for given in presented:
        for right in expected:
            found |= hmac.compare_digest(right, given)
    return bool(found)


def timestamp_of(raw: bytes | None) -> int | None:
    """Return the seconds that a timestamp header says, None for anything but up to twelve digits."""
    if raw is None or _TIMESTAMP.match(raw) is None:
        return None
    return int(raw)
