"""The engine's thread: one event loop of refold's own, and the one bridge between it and everybody else.

All of refold's own code that waits is async and runs here; sync callers block on it, async callers await it from
whatever loop they are on. Nothing of a user's runs on this loop but workflow code, driven from plain callbacks.
"""

import asyncio
import concurrent.futures
import threading
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from refold.core._errors import WrongCall

T = TypeVar("T")


class Engine:
    """A daemon thread with a running event loop."""

    def __init__(self, name: str) -> None:
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name=f"refold-engine-{name}", daemon=True)
        self._thread.start()

    @property
    def thread_id(self) -> int | None:
        return self._thread.ident

    def _run(self) -> None:
        asyncio.set_event_loop(self.loop)
        self.loop.run_forever()

    def submit(self, coroutine: Coroutine[Any, Any, T]) -> concurrent.futures.Future[T]:
        """Run `coroutine` on the engine's loop; the future may be waited for from any thread."""
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop)

    def post(self, callback: Callable[..., object], *arguments: Any) -> None:
        """Call `callback` on the engine's thread, soon."""
        self.loop.call_soon_threadsafe(callback, *arguments)

    def call(
        self, coroutine: Coroutine[Any, Any, T], what: str, instead: str, timeout: float | None = None
    ) -> T:
        """Run `coroutine` on the engine's loop and block until it is done.

        Raises WrongCall where blocking would stop a running event loop; TimeoutError after `timeout` seconds.
        """
        refuse_on_a_loop(what, instead, coroutine)
        future = self.submit(coroutine)
        try:
            return future.result(timeout)
        except BaseException:
            future.cancel()
            raise

    async def acall(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run `coroutine` on the engine's loop and await it from another one."""
        return await asyncio.wrap_future(self.submit(coroutine))

    def close(self) -> None:
        """End the thread; what still runs on the loop is dropped."""
        if self._thread.is_alive():
            self.loop.call_soon_threadsafe(self.loop.stop)
            self._thread.join(5)
        if not self.loop.is_running():
            self.loop.close()


def refuse_on_a_loop(what: str, instead: str, coroutine: Coroutine[Any, Any, Any] | None = None) -> None:
    """Raise WrongCall when the caller runs on an event loop, which a blocking call would stop."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return
    if coroutine is not None:
        coroutine.close()
    raise WrongCall(
        f"{what} was called on a running event loop and would block it", f"Write {instead} there."
    )
