"""Transactional steps: the user's SQL and the event that records the step commit together, exactly once (rule 15).

The step takes its seq last. While its SQL runs, the workflow's other branches go on; then the executor keeps the
stream's next seq for it until its commit is known. It rides in no group flush.
"""

import asyncio
import concurrent.futures
import itertools
import logging
import random
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any, Final, Protocol

from refold.core._definitions import running_step
from refold.core._engine import Engine
from refold.core._executor import Executor
from refold.core._resident import StepCall
from refold.core._steps import info_of
from refold.eventlog._errors import Fenced, StaleWriter
from refold.eventlog._events import StepCompleted
from refold.eventlog._log import NewEvent
from refold.eventlog._transactions import (
    AsyncTransactionLane,
    RolledBack,
    TransactionLane,
    is_worth_another_try,
)

log = logging.getLogger("refold.worker")

# A step without a time-out of its own may leave its transaction idle so long; then Postgres ends it, and with it the
# locks that a frozen process would hold for ever.
IDLE_LIMIT: Final = timedelta(seconds=60)

Reserved = tuple[str, NewEvent, StepCompleted]


class Outside(Protocol):
    """What becomes of the worker."""

    def fenced(self) -> None: ...


class TransactionalSteps:
    """Runs the transactional steps of one worker; sync ones in the pool's threads, async ones on the steps' loop."""

    def __init__(self, worker: str, url: str, engine: Engine, executor: Executor, outside: Outside) -> None:
        self._worker, self._url = worker, url
        self._engine, self._executor, self._outside = engine, executor, outside
        self._numbers = itertools.count(1)
        self._mine = threading.local()
        self._lanes: list[TransactionLane] = []
        self._free: list[AsyncTransactionLane] = []

    def run(self, call: StepCall) -> None:
        """Run a `def` attempt in this thread until it is committed, or raise its error."""
        step = call.command.step
        lane = self._lane()
        for attempt in itertools.count():
            reserved: list[Reserved] = []

            def work(connection: Any, reserved: list[Reserved] = reserved) -> tuple[str, NewEvent] | None:
                with running_step(info_of(call)):
                    args, kwargs = step.decode_args(call.command.args)
                    encoded = step.encode_result(step.fn(connection, *args, **kwargs))
                given = self._reserve(call, encoded).result()
                if given is None:
                    return None
                reserved.append(given)
                return given[:2]

            try:
                lane.commit(work)
            except BaseException as error:
                if not self._ended_badly(call, error, reserved):
                    return
                time.sleep(_pause(attempt))
            else:
                self._post(self._executor.release, call, reserved[0][1:])
                return

    async def arun(self, call: StepCall) -> None:
        """Run an `async def` attempt until it is committed, or raise its error."""
        step = call.command.step
        lane = self._free.pop() if self._free else AsyncTransactionLane(*self._next_lane())
        try:
            for attempt in itertools.count():
                reserved: list[Reserved] = []

                async def work(
                    connection: Any, reserved: list[Reserved] = reserved
                ) -> tuple[str, NewEvent] | None:
                    with running_step(info_of(call)):
                        args, kwargs = step.decode_args(call.command.args)
                        encoded = step.encode_result(await step.fn(connection, *args, **kwargs))
                    given = await asyncio.wrap_future(self._reserve(call, encoded))
                    if given is None:
                        return None
                    reserved.append(given)
                    return given[:2]

                try:
                    await lane.commit(work)
                except BaseException as error:
                    if not self._ended_badly(call, error, reserved):
                        return
                    await asyncio.sleep(_pause(attempt))
                else:
                    self._post(self._executor.release, call, reserved[0][1:])
                    return
        finally:
            self._free.append(lane)

    def close(self) -> None:
        """Close the connections that are at rest."""
        lanes, self._lanes = self._lanes, []
        for lane in lanes:
            lane.close()

    def _ended_badly(self, call: StepCall, error: BaseException, reserved: list[Reserved]) -> bool:
        """Decide after a rolled-back transaction. True: run it again. Raises the step's own error."""
        if isinstance(error, Fenced):
            self._post(self._outside.fenced)
            return False
        if isinstance(error, StaleWriter):
            log.warning("workflow %s: %s", call.workflow_id, error, extra={"stream": call.workflow_id})
            self._post(self._executor.lost_race, call)
            return False
        if reserved:
            self._post(self._executor.release, call, None)
        if isinstance(error, RolledBack):
            return False
        if is_worth_another_try(error) and not call.over:
            return True
        raise error

    def _reserve(self, call: StepCall, encoded: bytes) -> "concurrent.futures.Future[Reserved | None]":
        future: concurrent.futures.Future[Reserved | None] = concurrent.futures.Future()
        if not self._post(self._executor.reserve, call, encoded, future.set_result):
            future.set_result(None)
        return future

    def _post(self, callback: Callable[..., object], *arguments: Any) -> bool:
        try:
            self._engine.post(callback, *arguments)
        except RuntimeError:  # the engine is closed
            return False
        return True

    def _lane(self) -> TransactionLane:
        lane: TransactionLane | None = getattr(self._mine, "lane", None)
        if lane is None:
            lane = self._mine.lane = TransactionLane(*self._next_lane())
            self._lanes.append(lane)
        return lane

    def _next_lane(self) -> tuple[str, str, str, int]:
        return (
            self._url,
            self._worker,
            f"transaction-{next(self._numbers)}",
            IDLE_LIMIT // timedelta(milliseconds=1),
        )


def _pause(attempt: int) -> float:
    longest = min(0.005 * float(2 ** min(attempt, 10)), 1.0)
    return longest * (0.5 + random.random() / 2)
