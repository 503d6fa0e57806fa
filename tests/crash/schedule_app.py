"""The program of the schedules' crash tests: what ticks, and what its workflows leave in tables.

SCHEDULES names what is declared: "every" (ticks for many workers), "missed" (each rule for ticks that were missed),
"overlap" (each rule for ticks that overlap).
"""

import os
from datetime import timedelta
from typing import Any, Literal

import psycopg

import refold
from refold import App
from refold.connectors import cron

TABLES = """
    create table ticks (schedule text not null, tick timestamptz not null, pid int not null);
    create table runs (schedule text not null, tick timestamptz not null, moment text not null,
                       at timestamptz not null default clock_timestamp());
"""
EVERY = timedelta(milliseconds=int(os.environ.get("EVERY_MS", "50")))
WINDOWS = {"none": timedelta(0), "some": 15 * EVERY, "hour": timedelta(hours=1)}
RULES: tuple[Literal["skip", "buffer_one", "buffer_all", "cancel_other", "allow"], ...] = (
    "skip",
    "buffer_one",
    "buffer_all",
    "cancel_other",
    "allow",
)

app = App("schedules")
chosen = os.environ.get("SCHEDULES", "")


@refold.step(transaction=True)
def record(conn: psycopg.Connection[Any], tick: cron.Tick) -> None:
    conn.execute("insert into ticks values (%s, %s, %s)", (tick.schedule, tick.scheduled, os.getpid()))


@refold.step(transaction=True)
def mark(conn: psycopg.Connection[Any], tick: cron.Tick, moment: str) -> None:
    conn.execute("insert into runs values (%s, %s, %s)", (tick.schedule, tick.scheduled, moment))


@app.workflow
def note(tick: cron.Tick) -> None:
    record(tick)


@app.workflow
def work(tick: cron.Tick) -> None:
    mark(tick, "began")
    try:
        refold.sleep(1.5 * EVERY)
    finally:
        mark(tick, "ended")


if chosen == "every":
    cron.schedule(every=EVERY, missed="all", overlap="allow", name="every")(note)
if chosen == "missed":
    for rule in ("latest", "all"):
        for window, catch_up in WINDOWS.items():
            name = f"{rule}-{window}"
            cron.schedule(every=EVERY, missed=rule, catch_up=catch_up, overlap="allow", name=name)(note)
if chosen == "overlap":
    for overlap in RULES:
        cron.schedule(every=EVERY, missed="all", overlap=overlap, name=overlap)(work)

if __name__ == "__main__":
    app.run(started=lambda: print("up", flush=True))
