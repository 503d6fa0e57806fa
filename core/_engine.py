"""The engine's thread: one event loop of refold's own, and the one bridge between it and everybody else.

All of refold's own code that waits is async and runs here; sync callers block on it, async callers await it from
whatever loop they are on. Nothing of a user's runs on this loop but workflow code, driven from plain callbacks.
"""

import asyncio
import concurrent.futures
import contextlib
import threading
from collections import deque
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

from refold.core._errors import WrongCall

T = TypeVar("T")


class Mailbox:
    """Callbacks on their way to a loop from other threads; one wake-up for all that gathers until it looks.

    Waking a loop is a system call and a change of thread: at thousands of calls a second it would cost more than
    the calls. Where a whole flush is answered by callbacks of one loop, `sender`, not even the first wakes: it would
    take the interpreter away from the others. The wake-up leaves when that loop has come round.
    """

    __slots__ = ("_calls", "_loop", "_scheduled", "_sender")

    def __init__(
        self, loop: asyncio.AbstractEventLoop, sender: asyncio.AbstractEventLoop | None = None
    ) -> None:
        self._loop = loop
        self._sender = sender
        self._calls: deque[tuple[Callable[..., object], tuple[Any, ...]]] = deque()
        self._scheduled = False

    def post(self, callback: Callable[..., object], *arguments: Any) -> None:
        """Call `callback` on the loop, soon and in order. Raises RuntimeError when the loop is closed."""
        self._calls.append((callback, arguments))
        # The loop clears the flag before it looks, so what is appended after a look finds it cleared.
        if not self._scheduled:
            self._scheduled = True
            if self._sender is not None and asyncio._get_running_loop() is self._sender:
                self._sender.call_soon(self._wake_late)
            else:
                self._wake()

    def _wake(self) -> None:
        try:
            self._loop.call_soon_threadsafe(self._open)
        except RuntimeError:
            self._scheduled = False
            raise

    def _wake_late(self) -> None:
        with contextlib.suppress(RuntimeError):  # the loop was closed: nobody is left there to be told
            self._wake()

    def _open(self) -> None:
        self._scheduled = False
        while self._calls:
            callback, arguments = self._calls.popleft()
            try:
                callback(*arguments)
            except Exception as error:
                self._loop.call_exception_handler({"message": f"{callback!r} failed", "exception": error})


class Engine:
    """A daemon thread with a running event loop."""

    def __init__(self, name: str) -> None:
        self.loop = asyncio.new_event_loop()
        self._mail = Mailbox(self.loop)
        self._hosts: WeakKeyDictionary[asyncio.AbstractEventLoop, Mailbox] = WeakKeyDictionary()
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
        self._mail.post(callback, *arguments)

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

    def mailbox_of(self, host: asyncio.AbstractEventLoop) -> Mailbox:
        """Return the way back to another loop; called on that."""
        back = self._hosts.get(host)
        if back is None:
            back = self._hosts[host] = Mailbox(host, self.loop)
        return back

    async def acall(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run `coroutine` on the engine's loop and await it from another one. Cancelling this cancels that."""
        host = asyncio.get_running_loop()
        back = self.mailbox_of(host)
        answer: asyncio.Future[T] = host.create_future()
        tasks: list[asyncio.Task[T]] = []

        def begin() -> None:
            task = self.loop.create_task(coroutine)
            tasks.append(task)
            task.add_done_callback(ended)

        def ended(task: asyncio.Task[T]) -> None:
            with contextlib.suppress(RuntimeError):  # the host's loop is closed: nobody waits
                back.post(_answer, answer, task)

        self.post(begin)
        try:
            return await answer
        except asyncio.CancelledError:
            self.post(lambda: [task.cancel() for task in tasks])
            raise

    def _end(self) -> None:
        # Whoever waits for one of these from another thread must hear that it is over.
        for task in asyncio.all_tasks(self.loop):
            task.cancel()
        self.loop.call_later(0.05, self.loop.stop)

    def close(self) -> None:
        """End the thread; what still runs on the loop is dropped."""
        if self._thread.is_alive():
            self.loop.call_soon_threadsafe(self._end)
            self._thread.join(5)
        if not self.loop.is_running():
            self.loop.close()


def _answer(answer: "asyncio.Future[T]", task: "asyncio.Task[T]") -> None:
    if answer.cancelled():
        return
    if task.cancelled():
        answer.cancel()
    elif (error := task.exception()) is not None:
        answer.set_exception(error)
    else:
        answer.set_result(task.result())


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
