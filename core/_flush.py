"""Group commit: while one flush is on the wire, the next one fills."""

import asyncio
import itertools
from collections.abc import Callable, Mapping
from typing import Final, TypeAlias

from refold.eventlog._log import Append, Flushed, Lane

MOST_APPENDS: Final = 1_000  # of one flush: bounds its size, and so the latency of what is in it

MOST_BYTES: Final = 32 << 20  # Postgres ends a session that sends it a gigabyte at once

Batch: TypeAlias = Mapping[str, Append]


class Pump:
    """Sends what gathers under a key as one flush after the other. Used on the engine's thread.

    `sending(batch)` is called when a batch leaves, `flushed(batch, outcome)` from a plain callback of the loop (never
    from a task: workflow code has tasks of its own) when it is durable, `failed(error)` when no flush can be sent any
    more.
    """

    def __init__(
        self,
        lane: Lane,
        *,
        sending: Callable[[Batch], None],
        flushed: Callable[[Batch, Flushed], None],
        failed: Callable[[Exception], None],
    ) -> None:
        self._lane = lane
        self._sending, self._flushed, self._failed = sending, flushed, failed
        self._dirty: dict[str, Append] = {}
        self._on_the_wire = False
        self._filled = asyncio.Event()
        self._rested = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._task = asyncio.create_task(self._run(), name="refold-flush")

    def add(self, key: str, append: Append) -> None:
        """Let `append` go with the next flush. Rows can be added to it until `sending` names it."""
        self._dirty[key] = append
        self._filled.set()

    def discard(self, key: str, append: Append) -> None:
        """Take `append` back, if it has not left."""
        if self._dirty.get(key) is append:
            del self._dirty[key]

    @property
    def busy(self) -> bool:
        return bool(self._dirty) or self._on_the_wire

    async def rest(self, at_most: float) -> None:
        """Return when nothing waits and nothing is on the wire for a moment, or after `at_most` seconds."""
        self._rested.clear()
        try:
            await asyncio.wait_for(self._rested.wait(), at_most)
        except TimeoutError:
            return

    def stop(self) -> None:
        """Send nothing more."""
        self._task.cancel()

    async def _run(self) -> None:
        while True:
            await self._filled.wait()
            self._filled.clear()
            while self._dirty:
                batch = self._next_batch()
                self._sending(batch)
                self._on_the_wire = True
                try:
                    outcome = await self._lane.flush(list(batch.values()))
                except Exception as error:
                    self._loop.call_soon(self._failed, error)
                    return
                done = self._loop.create_future()
                self._loop.call_soon(self._deliver, batch, outcome, done)
                await done
                self._on_the_wire = False
            self._rested.set()

    def _next_batch(self) -> Batch:
        batch: dict[str, Append] = {}
        size = 0
        for key in list(itertools.islice(self._dirty, MOST_APPENDS)):
            batch[key] = append = self._dirty.pop(key)
            size += sum(len(event.body) for event in append.events)
            size += sum(len(new.body) for new in append.starts)
            if size > MOST_BYTES:
                break
        return batch

    def _deliver(self, batch: Batch, outcome: Flushed, done: "asyncio.Future[None]") -> None:
        # First, so that the next flush leaves as soon as this callback has filled it.
        done.set_result(None)
        self._flushed(batch, outcome)
