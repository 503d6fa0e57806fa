"""Where steps run: `def` steps in a pool of threads, `async def` steps on the loop that started the app.

Outcomes come back to the engine's thread in batches, since waking another thread costs more than a small step.
"""

import asyncio
import contextvars
import logging
import random
import threading
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from datetime import timedelta
from queue import SimpleQueue
from typing import Final, Protocol

from refold.core._definitions import StepInfo, running_step
from refold.core._engine import Mailbox
from refold.core._errors import TimedOut
from refold.core._failures import record_error
from refold.core._resident import StepCall
from refold.eventlog._events import RecordedError

log = logging.getLogger("refold.worker")

# How long the next attempt waits for the thread of an attempt that timed out, which nobody can stop.
GRACE: Final = 30.0
# A pool thread that is busy with one step for so long does not count as a helper for the others.
_STALL: Final = 0.002


class Outcomes(Protocol):
    """Where outcomes go, on the engine's thread: the executor."""

    def wants(self, call: StepCall) -> bool: ...
    def step_done(self, call: StepCall, result: bytes) -> None: ...
    def step_failed(
        self, call: StepCall, error: RecordedError, retry_in: int | None, *, not_before: int = 0
    ) -> None: ...


class ThreadPool:
    """Threads for `def` steps, started when needed, at most `most`.

    One thread works a batch of short steps off alone; others are woken only when it stands still in one, so
    that a hundred steps of ten microseconds do not cost a hundred changes of thread.
    """

    def __init__(self, most: int, work: Callable[[StepCall], None], loop: asyncio.AbstractEventLoop) -> None:
        self._most, self._work, self._loop = most, work, loop
        self._jobs: deque[StepCall] = deque()
        self._wake: SimpleQueue[bool] = SimpleQueue()
        self._lock = threading.Lock()
        self._threads = 0
        self._awake = 0
        self._taken = 0
        self._taken_before = -1
        self._check: asyncio.TimerHandle | None = None

    def submit(self, calls: Sequence[StepCall]) -> None:
        """Queue attempts; called on the engine's thread."""
        self._jobs.extend(calls)
        with self._lock:
            if self._awake == 0:
                self._rouse()
        if self._jobs and self._check is None:
            self._taken_before = self._taken
            self._check = self._loop.call_later(_STALL, self._more_hands)

    def remove(self, call: StepCall) -> bool:
        """Take an attempt out of the queue; False when a thread has it already."""
        try:
            self._jobs.remove(call)
        except ValueError:
            return False
        return True

    def close(self) -> None:
        """Let the threads end as they come to rest; the ones in a step are not waited for."""
        self._jobs.clear()
        for _ in range(self._threads):
            self._wake.put(False)

    def _more_hands(self) -> None:
        self._check = None
        if not self._jobs:
            return
        with self._lock:
            if self._taken == self._taken_before:
                for _ in range(min(len(self._jobs), self._most - self._awake)):
                    self._rouse()
            if self._awake >= self._most:
                return  # all are at it: each takes the next job itself
        self._taken_before = self._taken
        self._check = self._loop.call_later(_STALL, self._more_hands)

    def _rouse(self) -> None:
        self._awake += 1
        if self._awake > self._threads:
            self._threads += 1
            threading.Thread(target=self._run, name=f"refold-step-{self._threads}", daemon=True).start()
        else:
            self._wake.put(True)

    def _run(self) -> None:
        while True:
            try:
                while True:
                    call = self._jobs.popleft()
                    self._taken += 1
                    self._work(call)
            except IndexError:
                pass
            with self._lock:
                self._awake -= 1
                if self._jobs:  # came between our last look and now
                    self._awake += 1
                    continue
            if not self._wake.get():
                return


class StepRunner:
    """Runs attempts and brings back how they ended. `run` and `drop` are called on the engine's thread."""

    def __init__(
        self,
        outcomes: Outcomes,
        engine: asyncio.AbstractEventLoop,
        steps_loop: Callable[[], asyncio.AbstractEventLoop],
        mailbox_of: Callable[[asyncio.AbstractEventLoop], Mailbox],
        transaction: Callable[[StepCall], None],
        atransaction: Callable[[StepCall], Awaitable[None]],
        *,
        threads: int,
        grace: float = GRACE,
    ) -> None:
        self._outcomes = outcomes
        self._engine = engine
        self._steps_loop = steps_loop
        self._mailbox_of = mailbox_of
        self._grace = grace
        self._atransaction = atransaction
        self._transaction = transaction  # runs a transactional attempt in this thread, and records it
        self._pool = ThreadPool(threads, self._work, engine)
        self._back: deque[tuple[StepCall, bytes | None, BaseException | None]] = deque()
        self._collecting = False
        self._gathering = False
        self._tasks: set[asyncio.Task[None]] = set()
        self._timed_out: dict[tuple[str, int], StepCall] = {}
        self._behind: dict[tuple[str, int], StepCall] = {}
        self._closed = False

    def run(self, calls: Sequence[StepCall]) -> None:
        """Run these attempts."""
        in_threads: list[StepCall] = []
        on_loop: list[StepCall] = []
        for call in calls:
            step = call.command.step
            key = (call.workflow_id, call.command.no)
            if key in self._timed_out:
                self._behind[key] = call
                self._engine.call_later(self._grace, self._wait_no_longer, key)
            elif step.is_async:
                on_loop.append(call)
            else:
                in_threads.append(call)
        if on_loop:
            self._mailbox_of(self._steps_loop()).post(self._start_tasks, on_loop)
        if in_threads:
            self._pool.submit(in_threads)

    def drop(self, call: StepCall) -> None:
        """Cancel an attempt that nobody waits for, where that is possible."""
        if not call.command.step.is_async:
            self._pool.remove(call)
        elif call.handle is not None:
            self._steps_loop().call_soon_threadsafe(call.handle.cancel)

    def close(self) -> None:
        """Take no outcome any more; cancel what is on the loop, leave the threads to themselves."""
        self._closed = True
        self._pool.close()
        if self._tasks:
            loop = self._steps_loop()
            for task in list(self._tasks):
                loop.call_soon_threadsafe(task.cancel)

    # In a thread of the pool.

    def _work(self, call: StepCall) -> None:
        if call.over:
            return
        step = call.command.step
        timeout = step.options.timeout
        encoded: bytes | None = None
        try:
            if timeout is not None:
                # From now: waiting for a thread is not the step's time.
                self._engine.call_soon_threadsafe(
                    self._engine.call_later, timeout.total_seconds(), self._time_out, call
                )
            if step.options.transaction:
                contextvars.Context().run(self._transaction, call)
            else:
                encoded = contextvars.Context().run(_run_step, call)
        except BaseException as error:  # SystemExit in a step fails the step, not the thread
            self._bring_back(call, None, error)
        else:
            self._bring_back(call, encoded, None)

    # On the steps' loop.

    def _start_tasks(self, calls: Sequence[StepCall]) -> None:
        loop = asyncio.get_running_loop()
        for call in calls:
            if call.over or self._closed:
                continue
            task = loop.create_task(self._arun(call), context=contextvars.Context())
            call.handle = task
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _arun(self, call: StepCall) -> None:
        timeout = call.command.step.options.timeout
        try:
            if timeout is None:
                encoded = await self._attempt(call)
            else:
                limit = asyncio.timeout(timeout.total_seconds())
                try:
                    async with limit:
                        encoded = await self._attempt(call)
                except TimeoutError as error:
                    if limit.expired():
                        raise timed_out(call, timeout) from error
                    raise
        except asyncio.CancelledError as error:
            if call.over or self._closed:
                return
            self._bring_back_soon(call, None, error)  # the step cancelled itself
        except BaseException as error:
            self._bring_back_soon(call, None, error)
            if isinstance(error, SystemExit | KeyboardInterrupt):
                return
        else:
            self._bring_back_soon(call, encoded, None)

    def _bring_back_soon(self, call: StepCall, encoded: bytes | None, error: BaseException | None) -> None:
        """Bring it back with those that end in the same round of the loop: the engine is woken once for all."""
        self._back.append((call, encoded, error))
        if not self._gathering:
            self._gathering = True
            asyncio.get_running_loop().call_soon(self._gathered)

    def _gathered(self) -> None:
        self._gathering = False
        self._wake_engine()

    async def _attempt(self, call: StepCall) -> bytes | None:
        step = call.command.step
        if step.options.transaction:
            await self._atransaction(call)
            return None
        with running_step(info_of(call)):
            args, kwargs = step.decode_args(call.command.args)
            return step.encode_result(await step.fn(*args, **kwargs))

    # Back on the engine's thread.

    def _bring_back(self, call: StepCall, encoded: bytes | None, error: BaseException | None) -> None:
        self._back.append((call, encoded, error))
        self._wake_engine()

    def _wake_engine(self) -> None:
        # One wake-up for all that gathers until the engine looks. Set before the look, cleared by it first.
        if not self._collecting:
            self._collecting = True
            try:
                self._engine.call_soon_threadsafe(self._collect)
            except RuntimeError:  # the engine is closed: take-over runs this step again
                log.debug("steps ended after their worker")

    def _collect(self) -> None:
        self._collecting = False
        while self._back:
            call, encoded, error = self._back.popleft()
            self._release_follower(call)
            if self._closed or call.over or call.timed_out:
                continue
            if encoded is not None:
                self._outcomes.step_done(call, encoded)
            elif error is not None:
                self.fail(call, error)

    def fail(self, call: StepCall, error: BaseException) -> None:
        """Report a failed attempt, with the time of the next one as its options have it."""
        log.info(
            "step %s failed: %s",
            call.command.step.name,
            error,
            extra={"stream": call.workflow_id, "attempt": call.attempt},
        )
        self._outcomes.step_failed(call, record_error(error), retry_in(call, error))

    def _time_out(self, call: StepCall) -> None:
        timeout = call.command.step.options.timeout
        if call.over or call.timed_out or timeout is None or self._closed or not self._outcomes.wants(call):
            return
        call.timed_out = True
        self._timed_out[(call.workflow_id, call.command.no)] = call
        self.fail(call, timed_out(call, timeout))

    def _release_follower(self, call: StepCall) -> None:
        key = (call.workflow_id, call.command.no)
        if self._timed_out.get(key) is call:
            del self._timed_out[key]
            follower = self._behind.pop(key, None)
            if follower is not None:
                self.run([follower])

    def _wait_no_longer(self, key: tuple[str, int]) -> None:
        follower = self._behind.pop(key, None)
        if follower is not None:
            self._timed_out.pop(key, None)
            self.run([follower])


def _run_step(call: StepCall) -> bytes:
    step = call.command.step
    with running_step(info_of(call)):
        args, kwargs = step.decode_args(call.command.args)
        return step.encode_result(step.fn(*args, **kwargs))


def info_of(call: StepCall) -> StepInfo:
    """Return what `step_info()` says in this attempt."""
    return StepInfo(call.workflow_id, call.command.step.name, call.command.no, call.attempt)


def timed_out(call: StepCall, timeout: timedelta) -> TimedOut:
    """Return the error of an attempt that took longer than its step allows."""
    return TimedOut(f"step {call.command.step.name} of {call.workflow_id}", f"{timeout.total_seconds():g} s")


def retry_in(call: StepCall, error: BaseException) -> int | None:
    """Return after how many microseconds the step is tried again; None: never.

    An error that says so itself, by a `retry_after` (timedelta), is waited for at least that long: what another
    system asks for (Retry-After) is known only where its answer was read.
    """
    options = call.command.step.options
    if call.failures >= options.retries or not isinstance(error, Exception):
        return None
    if options.retry_if is not None:
        try:
            if not options.retry_if(error):
                return None
        except Exception:
            log.exception("retry_if of step %s failed; the step is not tried again", call.command.step.name)
            return None
    delay = options.delay(call.failures + 1, random.random())
    asked = getattr(error, "retry_after", None)
    if isinstance(asked, timedelta):
        delay = max(delay, asked)
    return delay // timedelta(microseconds=1)
