"""What a worker process is told when it starts."""

from typing import Final

import msgspec

from refold.testing._probe import Moment

ORDERS: Final = "REFOLD_TESTING_ORDERS"
"""The environment variable that holds them, as JSON."""


class Orders(msgspec.Struct):
    """What a worker process has to do. `tell` is the file descriptor for what happens in it."""

    harness: str
    settings: dict[str, str]
    worker: int
    database_url: str
    folder: str
    tell: int
    die: Moment | None = None


__all__ = ["ORDERS", "Orders"]
