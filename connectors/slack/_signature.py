"""Is this request Slack's? The signature over the raw body, by any of the secrets that are valid now."""

import hashlib
import hmac
import re
from collections.abc import Sequence
from typing import Final

# Slack's own advice; both ways, since clocks differ.
TOLERANCE: Final = 300

_STAMP: Final = re.compile(rb"[0-9]{1,12}")


def is_signed(
    secrets: Sequence[bytes], stamp: bytes | None, signature: bytes | None, body: bytes, *, now: float
) -> bool:
    """Say whether `signature` is one of `secrets`' over `stamp` and `body`, and `stamp` not too far from `now`.

    Whatever a stranger sends as headers is only wrong, never an error.
    """
    if stamp is None or signature is None or _STAMP.fullmatch(stamp) is None:
        return False
    if abs(int(stamp) - now) > TOLERANCE:
        return False
    # All of them, found or not: how long it takes tells nothing of which one fits.
    fits = [hmac.compare_digest(sign(secret, stamp, body), signature) for secret in secrets]
    return any(fits)


def sign(secret: bytes, stamp: bytes, body: bytes) -> bytes:
    """Return the signature that Slack sends with a body: `v0=` and the HMAC-SHA256 of `v0:{stamp}:{body}` in hex."""
    digest = hmac.new(secret, b"v0:" + stamp + b":" + body, hashlib.sha256).hexdigest()
    return b"v0=" + digest.encode()
