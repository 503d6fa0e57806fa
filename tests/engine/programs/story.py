"""A workflow with one of everything in it, in a process that kills itself at a chosen moment.

`python story.py NAME MOMENT NUMBER` starts the story NAME and dies, by SIGKILL: with MOMENT "event" after the
NUMBER-th event of it (its message not counted) is durable, with MOMENT "try" at the end of the NUMBER-th try of a step,
before refold has heard of it.
"""

import asyncio
import os
import signal
import sys
import threading
from datetime import timedelta
from typing import Any

import psycopg

import refold
from refold import App

TABLES = """
    create table tries (key text not null, pid int not null);
    create table bookings (who text not null);
"""
RESULT = ["effect first", "shaky", "booked", "child of 7", "effect left", "effect right", "hello"]
EVENTS = 13  # of a story that nothing disturbs
TRIES = 7  # of all its steps, its child's included

_traces = threading.local()


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)
    signal.pause()


class Story:
    """The story called `name`, declared on `app`; `moment(kind)` is told of every try when it has had its effect."""

    def __init__(self, app: App, name: str, moment: Any = lambda: None) -> None:
        self.id = name

        def trace() -> None:
            if not hasattr(_traces, "connection"):
                _traces.connection = psycopg.connect(os.environ["REFOLD_DATABASE_URL"], autocommit=True)
            _traces.connection.execute(
                "insert into tries values (%s, %s)", (refold.step_info().idempotency_key, os.getpid())
            )

        @refold.step
        def effect(what: str) -> str:
            trace()
            moment()
            return f"effect {what}"

        @refold.step(retries=3, retry_delay=timedelta(milliseconds=20))
        async def shaky() -> str:
            await asyncio.to_thread(trace)
            moment()
            if refold.step_info().attempt == 1:
                raise ConnectionError("the first try always fails")
            return "shaky"

        @refold.step(transaction=True)
        def book(conn: psycopg.Connection[Any], who: str) -> str:
            trace()
            conn.execute("insert into bookings values (%s)", (who,))
            moment()
            return "booked"

        @app.workflow(name=f"child-{name}")
        def child(n: int) -> str:
            effect("of a child")
            return f"child of {n}"

        @app.workflow(name=f"sync-{name}")
        def sync_story() -> list[str]:
            result = [effect("first"), shaky.call()]
            refold.sleep(0.05)
            result += [book(name), child(7)]
            refold.send(f"friend of {name}", "hi")
            result += refold.gather(effect.later("left"), effect.later("right"))
            return [*result, refold.recv("t", str)]

        @app.workflow(name=f"async-{name}")
        async def async_story() -> list[str]:
            result = [await effect.acall("first"), await shaky()]
            await asyncio.sleep(0.05)
            result += [await book.acall(name), await child.acall(7)]
            refold.send(f"friend of {name}", "hi")
            result += await asyncio.gather(effect.acall("left"), effect.acall("right"))
            return [*result, await refold.arecv("t", str)]

        self.workflow: Any = async_story if name.startswith("async") else sync_story


def main() -> None:
    name, kind, number = sys.argv[1], sys.argv[2], int(sys.argv[3])
    app = App("story")
    lock = threading.Lock()
    seen = 0

    def tried() -> None:
        nonlocal seen
        with lock:
            seen += 1
            if kind == "try" and seen == number:
                die()

    story = Story(app, name, tried)
    events = 0

    def committed(workflow_id: str, recorded: Any) -> None:
        nonlocal events
        # The message was sent before the start, and comes while the first step runs.
        if workflow_id == name and type(recorded.event).__name__ != "MessageReceived":
            events += 1
            if kind == "event" and events == number:
                die()

    app.observe(committed)
    app.send(name, "hello", "t")
    with app:
        result = story.workflow.start(id=name).result(60)
    assert result == RESULT, result
    print("the end")


if __name__ == "__main__":
    main()
