"""refold as it comes: `App(name)`, a worker in the background of this process, no option set.

`style` "def" is sync workflows with sync steps, "async" the async ones. Both are started from one asyncio
loop, as a web server would; the worker is the same for both.
"""

import argparse
import asyncio
import os
import time
from typing import Any

import refold
from bench.peers._protocol import PAYLOAD, LoopThread, Marks, in_tasks, milliseconds, serve, timed
from refold import App

marks = Marks()
app = App("bench")


@refold.step
def step(n: int) -> str:
    return PAYLOAD


@refold.step
async def astep(n: int) -> str:
    return PAYLOAD


@app.workflow
def three(n: int) -> str:
    step(n)
    step(n)
    return step(n)


@app.workflow
async def athree(n: int) -> str:
    await astep(n)
    await astep(n)
    return await astep(n)


@app.workflow
def one(n: int) -> str:
    return step(n)


@app.workflow
async def aone(n: int) -> str:
    return await astep(n)


@app.workflow
def row(steps: int) -> int:
    marks.add("row began")
    for i in range(steps):
        step(i)
    marks.add("row ended")
    return steps


@app.workflow
async def arow(steps: int) -> int:
    marks.add("row began")
    for i in range(steps):
        await astep(i)
    marks.add("row ended")
    return steps


@app.workflow
def child(n: int) -> int:
    marks.add("child")
    return n


@app.workflow
async def achild(n: int) -> int:
    marks.add("child")
    return n


@app.workflow
def parent(children: int) -> int:
    return sum(refold.gather(*(child.later(i) for i in range(children))))


@app.workflow
async def aparent(children: int) -> int:
    return sum(await asyncio.gather(*(achild(i) for i in range(children))))


@app.workflow
def waiter(messages: int) -> None:
    marks.add("waiting")
    for _ in range(messages):
        refold.recv("go", int)
        marks.add("woken")


@app.workflow
async def awaiter(messages: int) -> None:
    marks.add("waiting")
    for _ in range(messages):
        await refold.arecv("go", int)
        marks.add("woken")


@app.workflow
def history(steps: int) -> None:
    marks.add("began")
    for i in range(steps):
        step(i)
    marks.add("caught up")
    while True:  # a message makes an evicted history claimable: each recovery of the bench sends one
        refold.recv("go", int)


@app.workflow
async def ahistory(steps: int) -> None:
    marks.add("began")
    for i in range(steps):
        await astep(i)
    marks.add("caught up")
    while True:
        await refold.arecv("go", int)


class RefoldPeer:
    def __init__(self) -> None:
        self._loop = LoopThread()
        self._working = False

    def start_working(self) -> None:
        app.start_worker()
        self._working = True

    def listen(self) -> None:
        """Nothing to do: a worker works on whatever is pending."""

    def stop(self) -> None:
        if self._working:
            app.stop_worker()

    def warm_up(self, style: str) -> None:
        self.throughput(style, 50, 10)

    def throughput(self, style: str, count: int, in_flight: int) -> dict[str, Any]:
        workflow = three if style == "def" else athree

        async def call(i: int) -> None:
            handle = await workflow.astart(i)
            assert await handle.aresult() == PAYLOAD

        return dict(timed(lambda: self._loop.run(in_tasks(call, count, in_flight))))

    def latency(self, style: str, count: int) -> dict[str, Any]:
        took: list[float] = []

        async def calls() -> None:
            for i in range(count):
                began = time.perf_counter()
                await aone(i)
                took.append(time.perf_counter() - began)

        if style == "async":
            self._loop.run(calls())
        else:
            for i in range(count):
                began = time.perf_counter()
                one(i)
                took.append(time.perf_counter() - began)
        return {"ms": milliseconds(took)}

    def row(self, style: str, steps: int, count: int) -> dict[str, Any]:
        for _ in range(count):
            (row if style == "def" else arow).start(steps).result()
        began, ended = marks.get("row began")[-count:], marks.get("row ended")[-count:]
        return {"ms_per_step": [1000 * (e - b) / steps for b, e in zip(began, ended, strict=True)]}

    def fan_out(self, style: str, children: int) -> dict[str, Any]:
        def call() -> None:
            handle = (parent if style == "def" else aparent).start(children)
            assert handle.result() == sum(range(children))

        return dict(timed(call))

    def start_waiter(self, style: str, workflow_id: str, messages: int) -> None:
        (waiter if style == "def" else awaiter).options(id=workflow_id).start(messages)
        marks.wait("waiting")

    def build_history(self, style: str, workflow_id: str, steps: int) -> None:
        (history if style == "def" else ahistory).options(id=workflow_id).start(steps)
        marks.wait("caught up")

    def marks(self, name: str) -> list[float]:
        return marks.get(name)

    def wait_for_mark(self, name: str, count: int = 1) -> list[float]:
        marks.wait(name, count)
        return marks.get(name)

    def enqueue(self, style: str, count: int) -> None:
        workflow = child if style == "def" else achild

        async def start(i: int) -> None:
            await workflow.astart(i)

        self._loop.run(in_tasks(start, count, 500))

    def send(self, workflow_id: str, value: int) -> float:
        sent_at = time.monotonic()
        app.send(workflow_id, value, topic="go")
        return sent_at


if __name__ == "__main__":
    options = argparse.ArgumentParser()
    options.add_argument("url")
    os.environ["REFOLD_DATABASE_URL"] = options.parse_args().url
    peer = RefoldPeer()
    serve(peer)
    peer.stop()
