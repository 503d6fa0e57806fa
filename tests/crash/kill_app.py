"""What the kill test's workers run: each Kafka record, delivery and tick becomes a workflow of the same steps, two
plain ones and a transactional one.

`refold worker tests/crash/kill_app.py --http 127.0.0.1:PORT`, with KILL_STYLE=def or async for the colour of workflow
and plain steps, KILL_STEP_MS for how long a plain step takes at most: kills shall find work in flight, KILL_SECRET for
what deliveries are signed with, and KILL_TICKS, two instants, for the seconds at which the schedule ticks. Traces go
into the tables that checker.py reads; they have no unique key, so a repetition shows.
"""

import asyncio
import os
import threading
import time
from datetime import datetime, timedelta

import msgspec
import psycopg

import refold
from refold import App
from refold.connectors import cron, kafka, webhook

app = App("kill")
STYLE = os.environ.get("KILL_STYLE", "def")
STEP_SECONDS = float(os.environ.get("KILL_STEP_MS", "150")) / 1000
TOPIC = "records"
FIRST_TICK, LAST_TICK = (datetime.fromisoformat(each) for each in os.environ["KILL_TICKS"].split())
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


# Every tick of the stretch is due, however late: a schedule that nobody could fire in time catches up with all.
on_records = kafka.consumer(TOPIC, name="on_record", config=_CONFIG)
on_deliveries = webhook.post("/deliveries", verify=webhook.standard(secret="env:KILL_SECRET"))
on_ticks = cron.schedule(
    "* * * * * *",
    name="on_tick",
    start=FIRST_TICK,
    end=LAST_TICK,
    missed="all",
    overlap="allow",
    catch_up=timedelta(hours=1),
)


def record_of(tick: cron.Tick) -> Record:
    return Record(f"tick-{tick.scheduled:%Y-%m-%dT%H:%M:%SZ}", 50)


if STYLE == "def":

    def process(record: Record) -> str:
        work(record)
        book(record)
        return work(record)

    @on_records
    @app.workflow
    def on_record(message: kafka.Message[Record]) -> str:
        return process(message.value)

    @on_deliveries
    @app.workflow
    def on_delivery(delivery: webhook.Delivery[Record]) -> str:
        return process(delivery.body)

    @on_ticks
    @app.workflow
    def on_tick(tick: cron.Tick) -> str:
        return process(record_of(tick))

else:

    async def aprocess(record: Record) -> str:
        await awork(record)
        await book.acall(record)
        return await awork(record)

    @on_records
    @app.workflow(name="on_record")
    async def aon_record(message: kafka.Message[Record]) -> str:
        return await aprocess(message.value)

    @on_deliveries
    @app.workflow(name="on_delivery")
    async def aon_delivery(delivery: webhook.Delivery[Record]) -> str:
        return await aprocess(delivery.body)

    @on_ticks
    @app.workflow(name="on_tick")
    async def aon_tick(tick: cron.Tick) -> str:
        return await aprocess(record_of(tick))
