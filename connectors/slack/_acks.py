"""Where a request of Slack's waits for the `ack(...)` of a listener that runs in a step of the same process.

The workflow is durable before anybody waits here. When nobody acks in time (the step runs in another process, or
takes long), Slack gets a plain 200, which is true: it will be done.
"""

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple


class Ack(NamedTuple):
    """What Slack gets as the answer to an interaction."""

    status: int = 200
    body: bytes = b""
    content_type: str = "application/json;charset=utf-8"


class Acks:
    """Meeting points by workflow ID. Its methods may be called from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiting: dict[str, list[tuple[asyncio.AbstractEventLoop, asyncio.Future[Ack]]]] = {}

    @contextmanager
    def expected(self, id: str) -> "Iterator[asyncio.Future[Ack]]":
        """Give the future of the ack of workflow `id`, from before it is started."""
        loop = asyncio.get_running_loop()
        waiter = (loop, loop.create_future())
        with self._lock:
            self._waiting.setdefault(id, []).append(waiter)
        try:
            yield waiter[1]
        finally:
            with self._lock:
                self._waiting[id].remove(waiter)
                if not self._waiting[id]:
                    del self._waiting[id]

    def tell(self, id: str, ack: Ack) -> None:
        """Answer whoever waits for workflow `id` in this process; the first answer counts."""
        with self._lock:
            waiting = list(self._waiting.get(id, ()))
        for loop, future in waiting:
            try:
                loop.call_soon_threadsafe(_answer, future, ack)
            except RuntimeError:  # that server has stopped
                continue


def _answer(future: "asyncio.Future[Ack]", ack: Ack) -> None:
    if not future.done():
        future.set_result(ack)
