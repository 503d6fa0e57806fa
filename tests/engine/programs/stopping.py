"""A worker with half a second of grace, and a step that lasts until its gate is open."""

import os
import time
from datetime import timedelta
from typing import Any

import psycopg

import refold
from refold import App

TABLES = (
    "create table tries (attempt int not null, pid int not null); create table gates (name text not null)"
)

app = App("stopping")
app.shutdown_grace = timedelta(seconds=0.5)


@refold.step
def stubborn() -> int:
    info = refold.step_info()
    with psycopg.connect(os.environ["REFOLD_DATABASE_URL"], autocommit=True) as connection:
        connection.execute("insert into tries values (%s, %s)", (info.attempt, os.getpid()))
        while not connection.execute("select 1 from gates").fetchall():
            time.sleep(0.02)
    return info.attempt


@app.workflow
def one() -> int:
    return stubborn()


def log_end(workflow_id: str, recorded: Any) -> None:
    print(workflow_id, type(recorded.event).__name__, flush=True)


if __name__ == "__main__":
    app.observe(log_end)
    app.run()
