"""What the workers of the kill test of orders run: a record in its key's order, with a trace of when its steps ran."""

import os
import time

import msgspec
import psycopg

import refold
from refold import App
from refold.connectors import kafka

app = App("order")
_CONFIG = {"session.timeout.ms": 2000, "heartbeat.interval.ms": 300, "fetch.wait.max.ms": 10}


class Entry(msgspec.Struct):
    key: str
    no: int


def _trace(entry: Entry, what: str) -> None:
    with psycopg.connect(os.environ["REFOLD_DATABASE_URL"], autocommit=True) as connection:
        connection.execute(
            "insert into trace (key, no, what) values (%s, %s, %s)", (entry.key, entry.no, what)
        )


@refold.step
def enter(entry: Entry) -> None:
    _trace(entry, "in")
    time.sleep(0.02)  # so that kills find work in hand


@refold.step
def leave(entry: Entry) -> None:
    _trace(entry, "out")


@kafka.consumer("entries", name="on_entry", ordering="key", batch_size=20, config=_CONFIG)
@app.workflow
def on_entry(message: kafka.Message[Entry]) -> None:
    enter(message.value)
    leave(message.value)
