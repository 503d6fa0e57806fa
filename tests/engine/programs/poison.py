"""Workflows that harm the worker that runs them, beside innocent ones. Workers notice all of it sooner than they would.

`poison` kills its process each time; `blocker` keeps its process busy without waiting, in processes that have
BLOCK set to a file, until that file exists.
"""

import asyncio
import os
import signal
from pathlib import Path

import psycopg

import refold
from refold import App
from refold.core import _worker
from refold.eventlog._workers import Heartbeat

TABLES = "create table tries (key text not null, pid int not null)"

# Only faster: the counts and their order are the shipped ones.
(Heartbeat.__init__.__kwdefaults__ or {}).update(every=0.2)
_worker.EXCLUSIVE_AFTER = 0.5  # type: ignore[misc]
_worker.BLOCKED_WARN = 0.3  # type: ignore[misc]
_worker.BLOCKED_GIVE_UP = 1.5  # type: ignore[misc]

app = App("poison")


async def note() -> None:
    async with await psycopg.AsyncConnection.connect(
        os.environ["REFOLD_DATABASE_URL"], autocommit=True
    ) as connection:
        await connection.execute(
            "insert into tries values (%s, %s)", (refold.step_info().idempotency_key, os.getpid())
        )


def blocked() -> bool:
    end = os.environ.get("BLOCK")
    return end is not None and not Path(end).exists()


@refold.step
async def drink() -> None:
    await note()
    os.kill(os.getpid(), signal.SIGKILL)


@app.workflow
async def poison() -> None:
    await drink()


@refold.step
async def work(n: int) -> int:
    await asyncio.sleep(0.05)
    return n


@app.workflow
async def innocent(n: int) -> int:
    return sum([await work(n) for _ in range(3)])


@refold.step(timeout=None)
async def long_work() -> str:
    """Longer than the life of a worker while there is poison about."""
    await note()
    await asyncio.sleep(3)
    return "done"


@app.workflow
async def long_innocent(n: int) -> str:
    return await long_work()


@app.workflow
async def blocker() -> str:
    await work(0)
    while blocked():
        pass
    return str(os.getpid())


if __name__ == "__main__":
    app.run()
