"""A workflow that is cancelled and undoes what it did, in a process that kills itself at a chosen moment.

`python cancelled.py NAME MOMENT NUMBER` starts the trip NAME, cancels it when its child waits, and dies, by SIGKILL:
with MOMENT "event" after the NUMBER-th event of it or its child is durable, with MOMENT "try" at the end of the
NUMBER-th try of a step, before refold has heard of it.
"""

import asyncio
import contextlib
import os
import signal
import sys
import threading
import time
from typing import Any

import psycopg

import refold
from refold import App

TABLES = """
    create table effects (what text not null, who text not null, key text not null);
    create table bookings (who text not null);
    create table unbooked (who text not null);
"""
EVENTS = 14  # of a trip and its child, when nothing disturbs them
TRIES = 6

_traces = threading.local()


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)
    signal.pause()


class Trip:
    """The trip called `name`, declared on `app`; `moment()` is told of every try when it has had its effect."""

    def __init__(self, app: App, name: str, moment: Any = lambda: None) -> None:
        self.id = name

        @refold.step
        def effect(what: str, who: str) -> None:
            if not hasattr(_traces, "connection"):
                _traces.connection = psycopg.connect(os.environ["REFOLD_DATABASE_URL"], autocommit=True)
            _traces.connection.execute(
                "insert into effects values (%s, %s, %s)", (what, who, refold.step_info().idempotency_key)
            )
            moment()

        @refold.step(transaction=True)
        def book(conn: psycopg.Connection[Any], who: str) -> None:
            conn.execute("insert into bookings values (%s)", (who,))
            moment()

        @refold.step(transaction=True)
        def unbook(conn: psycopg.Connection[Any], who: str) -> None:
            conn.execute("insert into unbooked select who from bookings where who = %s", (who,))
            moment()

        @app.workflow(name=f"child-{name}")
        def child() -> None:
            try:
                effect("charge", f"child of {name}")
                refold.recv("never")
            finally:
                effect("refund", f"child of {name}")

        @app.workflow(name=f"sync-{name}")
        def sync_trip() -> None:
            try:
                book(name)
                effect("charge", name)
                child()
            except refold.Cancelled:
                effect("refund", name)
                unbook(name)
                raise

        @app.workflow(name=f"async-{name}")
        async def async_trip() -> None:
            try:
                await book.acall(name)
                await effect.acall("charge", name)
                async with asyncio.TaskGroup() as group:
                    group.create_task(child.acall())
            except asyncio.CancelledError:
                await effect.acall("refund", name)
                await unbook.acall(name)
                raise

        self.workflow: Any = async_trip if name.startswith("async") else sync_trip


def main() -> None:
    name, kind, number = sys.argv[1], sys.argv[2], int(sys.argv[3])
    app = App("trip")
    lock = threading.Lock()
    seen = {"event": 0, "try": 0}

    def count(what: str) -> None:
        with lock:
            seen[what] += 1
            if kind == what and seen[what] == number:
                die()

    trip = Trip(app, name, lambda: count("try"))
    app.observe(lambda id, _: count("event") if id.startswith(name) else None)
    with app:
        handle = trip.workflow.start(id=name)
        while not any(type(r.event).__name__ == "StepCompleted" for r in _history(app, f"{name}/2")):
            time.sleep(0.01)
        handle.cancel("over")
        with contextlib.suppress(refold.WorkflowCancelled):
            handle.result(60)


def _history(app: App, id: str) -> list[refold.Recorded]:
    try:
        return app.history(id)
    except refold.WorkflowNotFound:
        return []


if __name__ == "__main__":
    main()
