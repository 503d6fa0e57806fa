"""What the kill test's workers run: a record becomes a workflow of two plain steps and a transactional one.

`refold worker tests/crash/kill_app.py`, with KILL_STYLE=def or async for the colour of workflow and plain steps, and
KILL_STEP_MS for how long a plain step takes at most: kills shall find work in flight. Traces go into the tables that
checker.py reads; they have no unique key, so a repetition shows.
"""

import asyncio
import os
import threading
import time

import msgspec
import psycopg

import refold
from refold import App
from refold.connectors import kafka

app = App("kill")
STYLE = os.environ.get("KILL_STYLE", "def")
STEP_SECONDS = float(os.environ.get("KILL_STEP_MS", "150")) / 1000
TOPIC = "records"
WORKFLOW = "on_record"
# A member that was killed is missed after this time, and its partitions move.
_CONFIG = {"session.timeout.ms": 2000, "heartbeat.interval.ms": 300, "fetch.wait.max.ms": 10}


class Record(msgspec.Struct):
    name: str
    work: int  # per cent of the longest step


class _Outside:
    """One connection of this process, with which refold has nothing to do; several steps take turns on it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._connection: psycopg.Connection[tuple[object, ...]] | None = None

    def write(self, *values: object) -> None:
        """Insert into `tries`, durably: a kill can't undo it. Raises ConnectionError while Postgres is away."""
        with self._lock:
            for _ in range(2):  # it may have been restarted since the connection was last used
                try:
                    if self._connection is None:
                        self._connection = psycopg.connect(os.environ["REFOLD_DATABASE_URL"], autocommit=True)
                    self._connection.execute(
                        "insert into tries (key, workflow_id, no, pid) values (%s, %s, %s, %s)", values
                    )
                    return
                except psycopg.OperationalError:
                    self._connection = None
        raise ConnectionError("the trace could not be written: Postgres is away")


_outside = _Outside()


def trace() -> None:
    """Write down that this step is being tried."""
    info = refold.step_info()
    _outside.write(info.idempotency_key, info.workflow_id, info.no, os.getpid())


# The step fails while Postgres is being restarted; its retries outlast that.
@refold.step(retries=20)
def work(record: Record) -> str:
    trace()
    time.sleep(STEP_SECONDS * record.work / 100)
    return record.name


@refold.step(retries=20)
async def awork(record: Record) -> str:
    await asyncio.to_thread(trace)
    await asyncio.sleep(STEP_SECONDS * record.work / 100)
    return record.name


@refold.step(transaction=True)
def book(conn: psycopg.Connection, record: Record) -> None:
    conn.execute(
        "insert into effects (record, workflow_id) values (%s, %s)",
        (record.name, refold.step_info().workflow_id),
    )


if STYLE == "def":

    @kafka.consumer(TOPIC, name=WORKFLOW, config=_CONFIG)
    @app.workflow
    def on_record(message: kafka.Message[Record]) -> str:
        work(message.value)
        book(message.value)
        return work(message.value)

else:

    @kafka.consumer(TOPIC, name=WORKFLOW, config=_CONFIG)
    @app.workflow(name="on_record")
    async def aon_record(message: kafka.Message[Record]) -> str:
        await awork(message.value)
        await book.acall(message.value)
        return await awork(message.value)
