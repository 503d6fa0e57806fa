"""Workflow IDs: what one may be, and fresh ones."""

import secrets
import time
from typing import Final

from refold.core._errors import InvalidId

_OURS: Final = ("source:", "schedule:", "queue:")
_BASE32: Final = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"  # Crockford's: no I, L, O, U


def new_id() -> str:
    """Return a fresh workflow ID, a ULID: 48 bits of milliseconds, 80 of chance, 26 characters, in the order of time.

    A random one would put each workflow's events on a page of their own of the index, and split pages in the middle;
    a UUID in its usual form is ten characters longer, in every event and every index: together a tenth of the WAL.
    Source: https://github.com/ulid/spec
    """
    number = (time.time_ns() // 1_000_000 << 80) | secrets.randbits(80)
    return "".join([_BASE32[number >> shift & 31] for shift in range(125, -1, -5)])


def check_id(workflow_id: str) -> None:
    """Raise InvalidId for an ID that the log could not keep."""
    size = len(workflow_id.encode("utf-8", "surrogatepass"))
    if not 1 <= size <= 512:
        raise InvalidId(workflow_id, f"has {size} bytes")
    if not workflow_id.isprintable():
        raise InvalidId(workflow_id, "holds a character that can't be printed")
    if workflow_id.startswith(_OURS):
        raise InvalidId(workflow_id, "begins like a stream of refold's own")
