"""Fifty branches of three steps that end in a random order, in a process that dies at a chosen try of a step.

`python branches.py ID KIND DIE_AT`: starts the workflow KIND under ID, and kills itself at the DIE_AT-th try.
"""

import asyncio
import os
import random
import signal
import sys

import refold
from refold import App

BRANCHES = 50
app = App("branches")
tries = 0
die_at = 0


@refold.step
async def work(branch: int, stage: int, value: int) -> int:
    global tries
    # The chance is the process's own: no two of them see the same order.
    for _ in range(random.randrange(4)):
        await asyncio.sleep(random.random() / 200)
    tries += 1
    if tries == die_at:
        os.kill(os.getpid(), signal.SIGKILL)
    return value * 7 + branch + stage


async def branch(number: int) -> int:
    value = 1
    for stage in range(3):
        value = await work(number, stage, value)
    return value


async def numbered(number: int) -> int:
    await branch(number)
    return number


@app.workflow
async def gathered() -> list[int]:
    return await asyncio.gather(*(branch(number) for number in range(BRANCHES)))


@app.workflow
async def in_order_of_completion() -> list[int]:
    return [await done for done in asyncio.as_completed([numbered(n) for n in range(BRANCHES)])]


def main() -> None:
    global die_at
    die_at = int(sys.argv[3])
    workflow = {"gathered": gathered, "ordered": in_order_of_completion}[sys.argv[2]]
    with app:
        workflow.start(id=sys.argv[1]).result(60)


if __name__ == "__main__":
    main() if len(sys.argv) > 1 else app.run()
