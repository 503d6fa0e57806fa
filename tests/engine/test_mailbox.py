"""Callbacks go to another thread's loop in order, none is left behind, and a burst of them wakes it once."""

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextvars import Context
from typing import Any, TypeVarTuple

import pytest

from refold.core._engine import Mailbox

_Ts = TypeVarTuple("_Ts")


class Counted(asyncio.SelectorEventLoop):
    """A loop in a thread of its own that counts how often other threads wake it."""

    def __init__(self) -> None:
        super().__init__()
        self.wakes = 0
        self.thread = threading.Thread(target=self.run_forever, daemon=True)
        self.thread.start()

    def call_soon_threadsafe(
        self, callback: Callable[[*_Ts], object], *args: *_Ts, context: Context | None = None
    ) -> asyncio.Handle:
        self.wakes += 1
        return super().call_soon_threadsafe(callback, *args, context=context)

    def end(self) -> None:
        super().call_soon_threadsafe(self.stop)
        self.thread.join(10)
        self.close()


@pytest.fixture
def loop() -> Iterator[Counted]:
    counted = Counted()
    yield counted
    if not counted.is_closed():
        counted.end()


def test_what_one_round_of_the_senders_loop_posts_wakes_the_other_loop_once(loop: Counted) -> None:
    came: list[int] = []
    over = threading.Event()

    async def send() -> None:
        mailbox = Mailbox(loop, asyncio.get_running_loop())
        for i in range(100):
            mailbox.post(came.append, i)
        assert loop.wakes == 0
        mailbox.post(over.set)

    asyncio.run(send())
    assert over.wait(10)
    assert came == list(range(100))
    assert loop.wakes == 1


def test_a_post_from_anywhere_else_wakes_at_once(loop: Counted) -> None:
    sender = Counted()
    came, over = threading.Event(), threading.Event()
    mailbox = Mailbox(loop, sender)
    mailbox.post(came.set)
    assert came.wait(10)
    threading.Thread(target=mailbox.post, args=(over.set,)).start()
    assert over.wait(10)
    sender.end()


def test_the_mailbox_works_on_after_a_round_whose_wake_up_was_late(loop: Counted) -> None:
    came: list[int] = []

    async def send() -> None:
        mailbox = Mailbox(loop, asyncio.get_running_loop())
        for i in range(50):
            mailbox.post(came.append, i)
            await asyncio.sleep(0)
        done = threading.Event()
        mailbox.post(done.set)
        await asyncio.to_thread(done.wait, 10)

    asyncio.run(send())
    assert came == list(range(50))


def test_a_loop_that_was_closed_meanwhile_is_nobodys_error(loop: Counted) -> None:
    failures: list[dict[str, Any]] = []

    async def send() -> None:
        here = asyncio.get_running_loop()
        here.set_exception_handler(lambda _, context: failures.append(context))
        mailbox = Mailbox(loop, here)
        mailbox.post(print)
        loop.end()
        await asyncio.sleep(0)
        with pytest.raises(RuntimeError, match="closed"):
            await asyncio.to_thread(mailbox.post, print)

    asyncio.run(send())
    assert failures == []
