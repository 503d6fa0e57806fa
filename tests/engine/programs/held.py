"""Steps that last until the test opens their gate, and note each try before; run it as often as you like."""

import asyncio
import os
import threading
import time
from typing import Any

import psycopg

import refold
from refold import App

TABLES = """
    create table tries (key text not null, pid int not null, at timestamptz not null default clock_timestamp());
    create table gates (name text not null);
    create table seats (room text primary key, taken int not null);
    create table bookings (who text not null, pid int not null);
    insert into seats values ('hall', 0);
"""

app = App("held")
_own = threading.local()


def sql(statement: Any, *arguments: Any) -> list[Any]:
    """Run a statement on a connection of this thread's own; a restart of Postgres is waited out."""
    while True:
        try:
            connection: psycopg.Connection[Any] | None = getattr(_own, "connection", None)
            if connection is None:
                connection = psycopg.connect(os.environ["REFOLD_DATABASE_URL"], autocommit=True)
                _own.connection = connection
            cursor = connection.execute(statement, arguments)
            return cursor.fetchall() if cursor.description else []
        except psycopg.OperationalError:
            _own.connection = None
            time.sleep(0.05)


def wait_at(gate: str) -> None:
    """Note the try, then wait until the gate is open."""
    sql("insert into tries values (%s, %s)", refold.step_info().idempotency_key, os.getpid())
    while not sql("select 1 from gates where name = %s", gate):
        time.sleep(0.02)


@refold.step
def hold(gate: str) -> int:
    wait_at(gate)
    return os.getpid()


@app.workflow
def held(gate: str, then: str) -> list[int]:
    return [hold(gate), hold(then)]


@refold.step(transaction=True)
def book(conn: psycopg.Connection[Any], who: str, gate: str) -> int:
    conn.execute("update seats set taken = taken + 1 where room = 'hall'")
    conn.execute("insert into bookings values (%s, %s)", (who, os.getpid()))
    wait_at(gate)
    return os.getpid()


@app.workflow
def booking(who: str, gate: str) -> int:
    return book(who, gate)


@refold.step
async def tick(n: int) -> int:
    await asyncio.sleep(0.05)
    return os.getpid()


@app.workflow
async def ticker(ticks: int) -> int:
    return len({await tick(n) for n in range(ticks)})


@app.workflow
def letter() -> str:
    return refold.recv("t", str)


if __name__ == "__main__":
    app.run()
