"""A few daemon threads for questions that wait for the network, beside the thread that polls.

Not a ThreadPoolExecutor: its threads are joined when the interpreter ends, and a broker or a Postgres that does not
answer would hold up the end of the program.
"""

import queue
import threading
from collections.abc import Callable
from concurrent.futures import CancelledError, Future
from typing import Any, Final, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

_THREADS: Final = 3
_LOOK: Final = 0.2


class Aside:
    """Runs functions on its own threads; after `close` whatever they wait for is given up."""

    def __init__(self, name: str) -> None:
        self._closed = threading.Event()
        self._work: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        for number in range(_THREADS):
            threading.Thread(target=self._run, name=f"{name}-{number}", daemon=True).start()

    def submit(self, fn: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> "Future[T]":
        """Run `fn` soon; its outcome is in the future."""
        future: Future[T] = Future()

        def work() -> None:
            if not future.set_running_or_notify_cancel():
                return
            try:
                future.set_result(fn(*args, **kwargs))
            except BaseException as exc:
                future.set_exception(exc)

        self._work.put(work)
        return future

    def wait(self, future: "Future[T]") -> T:
        """Return the result of `future`; raises CancelledError when this is closed first."""
        while True:
            try:
                return future.result(_LOOK)
            except TimeoutError:
                if future.done():
                    return future.result()
                if self._closed.is_set():
                    raise CancelledError from None

    def pause(self, seconds: float) -> None:
        """Wait that long, or until this is closed."""
        self._closed.wait(seconds)

    def close(self) -> None:
        """Let the threads end; returns at once."""
        self._closed.set()
        for _ in range(_THREADS):
            self._work.put(None)

    def _run(self) -> Any:
        while (work := self._work.get()) is not None:
            work()
