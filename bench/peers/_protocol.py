"""How the bench speaks with a peer: one JSON object a line, a question on stdin, its answer on stdout.

Both peers answer the same questions with the same shape of code, so that what differs is the engine. Times
that are compared between two processes are `time.monotonic()`, which on Linux is one clock for the whole
machine.
"""

import asyncio
import json
import os
import sys
import threading
import time
import traceback
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol, TypeVar

_T = TypeVar("_T")

# What every step returns: 200 bytes, so that both sides write a result of realistic size.
PAYLOAD = "x" * 200


class Peer(Protocol):
    """What a peer can be asked. `style` is "def" or "async": the colour of workflow and steps."""

    def warm_up(self, style: str) -> None: ...
    def throughput(self, style: str, count: int, in_flight: int) -> dict[str, Any]: ...
    def latency(self, style: str, count: int) -> dict[str, Any]: ...
    def row(self, style: str, steps: int, count: int) -> dict[str, Any]: ...
    def fan_out(self, style: str, children: int) -> dict[str, Any]: ...
    def start_waiter(self, style: str, workflow_id: str, messages: int) -> None: ...
    def marks(self, name: str) -> list[float]: ...
    def wait_for_mark(self, name: str, count: int = 1) -> list[float]: ...
    def build_history(self, style: str, workflow_id: str, steps: int) -> None: ...
    def start_working(self) -> None: ...
    def listen(self) -> None: ...
    def enqueue(self, style: str, count: int) -> None: ...
    def send(self, workflow_id: str, value: int) -> float: ...


class Marks:
    """Moments that workflow code passed, by name."""

    def __init__(self) -> None:
        self._moments: dict[str, list[float]] = {}
        self._passed = threading.Condition()

    def add(self, name: str) -> None:
        with self._passed:
            self._moments.setdefault(name, []).append(time.monotonic())
            self._passed.notify_all()

    def get(self, name: str) -> list[float]:
        with self._passed:
            return list(self._moments.get(name, ()))

    def wait(self, name: str, count: int = 1, timeout: float = 120.0) -> None:
        with self._passed:
            if not self._passed.wait_for(lambda: len(self._moments.get(name, ())) >= count, timeout):
                found = len(self._moments.get(name, ()))
                raise TimeoutError(
                    f"mark {name!r} was passed {found} times in {timeout:g} s, expected {count}"
                )


class LoopThread:
    """An asyncio loop in a thread of its own, where the async questions run."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        threading.Thread(target=self.loop.run_forever, name="bench-loop", daemon=True).start()

    def run(self, work: Coroutine[Any, Any, _T]) -> _T:
        return asyncio.run_coroutine_threadsafe(work, self.loop).result()


def timed(work: Callable[[], object]) -> dict[str, float]:
    """Run `work` and return the wall seconds and the CPU seconds (all threads of this process) it took."""
    cpu, wall = time.process_time(), time.perf_counter()
    work()
    return {"seconds": time.perf_counter() - wall, "cpu_seconds": time.process_time() - cpu}


def in_threads(work: Callable[[int], object], count: int, threads: int) -> None:
    """Call `work(0)` to `work(count - 1)` from `threads` threads; one thread is the caller's own."""
    if threads == 1:
        for i in range(count):
            work(i)
        return
    with ThreadPoolExecutor(threads) as pool:
        for _ in pool.map(work, range(count)):
            pass


async def in_tasks(work: Callable[[int], Awaitable[object]], count: int, tasks: int) -> None:
    """Await `work(0)` to `work(count - 1)`, `tasks` of them at a time."""
    numbers = iter(range(count))

    async def lane() -> None:
        for i in numbers:
            await work(i)

    await asyncio.gather(*(lane() for _ in range(tasks)))


def milliseconds(moments: Sequence[float]) -> list[float]:
    return [1000 * seconds for seconds in moments]


def serve(peer: object) -> None:
    """Answer questions until stdin ends. Prints of the measured system go to stderr, never between the
    answers.
    """
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    print(json.dumps({"ready": True}), file=answers)
    for line in sys.stdin:
        question = json.loads(line)
        try:
            answer = {"answer": getattr(peer, question.pop("ask"))(**question)}
        except Exception:
            answer = {"error": traceback.format_exc()}
        print(json.dumps(answer), file=answers)
