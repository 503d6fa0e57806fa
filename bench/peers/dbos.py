"""DBOS Transact as it comes: its own defaults, only the log level lowered.

Run by the bench in a virtual environment of its own (bench/constraints-dbos.txt). `style` "def" uses sync
workflows and steps called from threads, "async" the async ones on one loop.
"""

import argparse
import asyncio
import importlib
import time
from typing import Any

from bench.peers._protocol import (
    PAYLOAD,
    LoopThread,
    Marks,
    in_tasks,
    in_threads,
    milliseconds,
    serve,
    timed,
)

# Not installed where the types are checked, hence by name and untyped; decorators are applied as calls.
_dbos: Any = importlib.import_module("dbos")
DBOS: Any = _dbos.DBOS
marks = Marks()
QUEUE = "bench"
DAY = 86_400


def _step(n: int) -> str:
    return PAYLOAD


async def _astep(n: int) -> str:
    return PAYLOAD


step: Any = DBOS.step(name="step")(_step)
astep: Any = DBOS.step(name="astep")(_astep)


def _three(n: int) -> str:
    step(n)
    step(n)
    result: str = step(n)
    return result


async def _athree(n: int) -> str:
    await astep(n)
    await astep(n)
    result: str = await astep(n)
    return result


def _one(n: int) -> str:
    result: str = step(n)
    return result


async def _aone(n: int) -> str:
    result: str = await astep(n)
    return result


def _row(steps: int) -> float:
    began = time.perf_counter()
    for i in range(steps):
        step(i)
    return time.perf_counter() - began


async def _arow(steps: int) -> float:
    began = time.perf_counter()
    for i in range(steps):
        await astep(i)
    return time.perf_counter() - began


def _child(n: int) -> int:
    marks.add("child")
    return n


async def _achild(n: int) -> int:
    marks.add("child")
    return n


def _waiter(messages: int) -> None:
    marks.add("waiting")
    for _ in range(messages):
        DBOS.recv("go", timeout_seconds=DAY)
        marks.add("woken")


async def _awaiter(messages: int) -> None:
    marks.add("waiting")
    for _ in range(messages):
        await DBOS.recv_async("go", timeout_seconds=DAY)
        marks.add("woken")


def _history(steps: int) -> None:
    marks.add("began")
    for i in range(steps):
        step(i)
    marks.add("caught up")
    DBOS.recv("never", timeout_seconds=DAY)


async def _ahistory(steps: int) -> None:
    marks.add("began")
    for i in range(steps):
        await astep(i)
    marks.add("caught up")
    await DBOS.recv_async("never", timeout_seconds=DAY)


three: Any = DBOS.workflow(name="three")(_three)
athree: Any = DBOS.workflow(name="athree")(_athree)
one: Any = DBOS.workflow(name="one")(_one)
aone: Any = DBOS.workflow(name="aone")(_aone)
row: Any = DBOS.workflow(name="row")(_row)
arow: Any = DBOS.workflow(name="arow")(_arow)
child: Any = DBOS.workflow(name="child")(_child)
achild: Any = DBOS.workflow(name="achild")(_achild)
waiter: Any = DBOS.workflow(name="waiter")(_waiter)
awaiter: Any = DBOS.workflow(name="awaiter")(_awaiter)
history: Any = DBOS.workflow(name="history")(_history)
ahistory: Any = DBOS.workflow(name="ahistory")(_ahistory)


def _parent(children: int) -> int:
    handles = [DBOS.start_workflow(child, i) for i in range(children)]
    return sum(handle.get_result() for handle in handles)


async def _aparent(children: int) -> int:
    return sum(await asyncio.gather(*(achild(i) for i in range(children))))


parent: Any = DBOS.workflow(name="parent")(_parent)
aparent: Any = DBOS.workflow(name="aparent")(_aparent)


class DbosPeer:
    def __init__(self, url: str) -> None:
        self._url = url
        self._threads = LoopThread()
        self._client: Any = None

    def start_working(self) -> None:
        DBOS(
            config={
                "name": "bench",
                "system_database_url": self._url,
                "log_level": "ERROR",
                "application_version": "bench",
            }
        )

        # Launched on the loop, so that it knows which one the async workflows run on.
        async def launch() -> None:
            DBOS.launch()

        self._threads.run(launch())

    def listen(self) -> None:
        """Work on what `enqueue` left; no concurrency limit, DBOS's own poll interval."""
        DBOS.register_queue(QUEUE)

    def warm_up(self, style: str) -> None:
        self.throughput(style, 20, 4)

    def throughput(self, style: str, count: int, in_flight: int) -> dict[str, Any]:
        if style == "def":
            return dict(timed(lambda: in_threads(three, count, in_flight)))
        return dict(timed(lambda: self._threads.run(in_tasks(athree, count, in_flight))))

    def latency(self, style: str, count: int) -> dict[str, Any]:
        took: list[float] = []

        async def calls() -> None:
            for i in range(count):
                began = time.perf_counter()
                await aone(i)
                took.append(time.perf_counter() - began)

        if style == "async":
            self._threads.run(calls())
        else:
            for i in range(count):
                began = time.perf_counter()
                one(i)
                took.append(time.perf_counter() - began)
        return {"ms": milliseconds(took)}

    def row(self, style: str, steps: int, count: int) -> dict[str, Any]:
        async def calls() -> list[float]:
            return [await arow(steps) for _ in range(count)]

        took = self._threads.run(calls()) if style == "async" else [row(steps) for _ in range(count)]
        return {"ms_per_step": [1000 * seconds / steps for seconds in took]}

    def fan_out(self, style: str, children: int) -> dict[str, Any]:
        async def call() -> None:
            assert await aparent(children) == sum(range(children))

        def direct() -> None:
            assert parent(children) == sum(range(children))

        return dict(timed(direct if style == "def" else lambda: self._threads.run(call())))

    def start_waiter(self, style: str, workflow_id: str, messages: int) -> None:
        self._start(waiter if style == "def" else awaiter, style, workflow_id, messages)
        marks.wait("waiting")

    def build_history(self, style: str, workflow_id: str, steps: int) -> None:
        self._start(history if style == "def" else ahistory, style, workflow_id, steps)
        marks.wait("caught up")

    def marks(self, name: str) -> list[float]:
        return marks.get(name)

    def wait_for_mark(self, name: str, count: int = 1) -> list[float]:
        marks.wait(name, count)
        return marks.get(name)

    def enqueue(self, style: str, count: int) -> None:
        if self._client is None:
            self._client = _dbos.DBOSClient(system_database_url=self._url)
        options = {"queue_name": QUEUE, "workflow_name": "child" if style == "def" else "achild"}
        in_threads(lambda i: self._client.enqueue(options, i), count, 8)

    def send(self, workflow_id: str, value: int) -> float:
        if self._client is None:
            self._client = _dbos.DBOSClient(system_database_url=self._url)
        sent_at = time.monotonic()
        self._client.send(workflow_id, value, "go")
        return sent_at

    def _start(self, workflow: Any, style: str, workflow_id: str, argument: int) -> None:
        async def start() -> None:
            with _dbos.SetWorkflowID(workflow_id):
                await DBOS.start_workflow_async(workflow, argument)

        if style == "async":
            self._threads.run(start())
            return
        with _dbos.SetWorkflowID(workflow_id):
            DBOS.start_workflow(workflow, argument)


if __name__ == "__main__":
    options = argparse.ArgumentParser()
    options.add_argument("url")
    serve(DbosPeer(options.parse_args().url))
