"""Tests of the driver run without a database, and with everything patched that a replay could not repeat."""

import builtins
import os
import random
import socket
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from refold.core._driver import Instance

_FORBIDDEN: list[tuple[Any, str]] = [
    (builtins, "open"),
    (os, "open"),
    (os, "urandom"),
    (os, "getrandom"),
    (socket, "socket"),
    (socket, "create_connection"),
    (time, "time"),
    (time, "time_ns"),
    (time, "monotonic"),
    (time, "perf_counter"),
    (time, "sleep"),
    (random, "random"),
    (random, "randrange"),
    (random, "choice"),
    (uuid, "uuid1"),
    (uuid, "uuid4"),
    (threading.Thread, "start"),
]


@pytest.fixture(autouse=True, scope="module")
def sealed() -> Iterator[None]:
    """While the driver advances a workflow: no socket, file, clock, chance or thread.

    Only the thread that is driving is held to it, and only while it is, so that pytest and Hypothesis can go on
    around it. Log records are stamped by the clock, so logging is let through.
    """
    driving = threading.local()
    patch = pytest.MonkeyPatch()

    def forbid(owner: Any, name: str) -> None:
        real = getattr(owner, name)

        def forbidden(*args: Any, **kwargs: Any) -> Any:
            if getattr(driving, "depth", 0) and sys._getframe(1).f_globals.get("__name__") != "logging":
                raise AssertionError(f"the driver used {name}")
            return real(*args, **kwargs)

        patch.setattr(owner, name, forbidden)

    def seal(method: Callable[..., Any]) -> Callable[..., Any]:
        def sealed_method(*args: Any, **kwargs: Any) -> Any:
            driving.depth = getattr(driving, "depth", 0) + 1
            try:
                return method(*args, **kwargs)
            finally:
                driving.depth -= 1

        return sealed_method

    for owner, name in _FORBIDDEN:
        if name != "socket":  # a class: its constructor is what is forbidden
            forbid(owner, name)
    forbid(socket.socket, "__init__")
    for name in ("deliver", "take_commands", "evict"):
        patch.setattr(Instance, name, seal(getattr(Instance, name)))
    yield
    patch.undo()
