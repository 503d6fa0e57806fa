"""Calling what a user wrote for an answer to Slack: soon done, mostly, and never in the way of anything when it is not.

The default executor of a loop is no place for it: it has few threads, is shared with the host's own work, and whoever
closes the loop or leaves the program waits for what hangs in it.
"""

import asyncio
import contextlib
import contextvars
import threading
from collections.abc import Callable
from typing import Any, Final, ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")

# Far more than people click at once; who hangs for ever shall not take all the memory.
_AT_ONCE: Final = 200

_running = threading.BoundedSemaphore(_AT_ONCE)


async def in_thread(function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
    """Return what `function` returns, called in a thread of its own that nobody has to wait for.

    Raises RuntimeError when too many of them hang.
    """
    if not _running.acquire(blocking=False):
        raise RuntimeError(
            f"{_AT_ONCE} functions that answer Slack have not returned; do they wait for something?"
        )
    loop = asyncio.get_running_loop()
    future: asyncio.Future[R] = loop.create_future()
    context = contextvars.copy_context()

    def tell(set_outcome: Callable[[Any], None], outcome: Any) -> None:
        if not future.done():
            set_outcome(outcome)

    def work() -> None:
        try:
            outcome: Any = context.run(function, *args, **kwargs)
            told: tuple[Callable[[Any], None], Any] = (future.set_result, outcome)
        except Exception as error:
            told = (future.set_exception, error)
        finally:
            _running.release()
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits
            loop.call_soon_threadsafe(tell, *told)

    threading.Thread(target=work, name="refold-slack-answer", daemon=True).start()
    return await future
