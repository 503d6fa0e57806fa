"""Workflows that only sleep, half of them `def`: the worker that keeps them, or the process that starts them."""

import argparse
import asyncio
import os
import sys
from datetime import datetime

import refold
from bench.peers._protocol import in_tasks
from refold import App

app = App("sleepers")


@app.workflow
def sleeper(until: datetime) -> None:
    refold.sleep_until(until)


@app.workflow
async def asleeper(until: datetime) -> None:
    await refold.asleep_until(until)


async def start_all(count: int, first: datetime, last: datetime) -> None:
    """Start `count` sleepers that come due evenly between `first` and `last`."""

    async def start(i: int) -> None:
        until = first + (last - first) * (i / count)
        await (sleeper if i % 2 else asleeper).astart(until)

    await in_tasks(start, count, 1_000)


if __name__ == "__main__":
    options = argparse.ArgumentParser()
    options.add_argument("url")
    options.add_argument("--start", nargs=3, metavar=("COUNT", "FIRST", "LAST"))
    given = options.parse_args()
    os.environ["REFOLD_DATABASE_URL"] = given.url
    if given.start:
        count, first, last = given.start
        asyncio.run(start_all(int(count), datetime.fromisoformat(first), datetime.fromisoformat(last)))
        sys.exit()
    app.run()
