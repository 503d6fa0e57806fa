"""Nothing is visible before it is durable (invariant 4): while the log cannot be written, nobody hears what happened.

A lock on `events` holds every commit back; what is asked meanwhile must not be answered.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
import pytest

import refold
from fixtures.workers import Log, wait_for
from refold import App

# How long an answer that must not come is given to come. What comes too early comes at once.
_MOMENT = 0.3


@contextmanager
def log_closed(log: Log) -> Iterator[None]:
    """Let nobody write events; they can be read."""
    with psycopg.connect(log.url) as connection:
        connection.execute("lock table refold.events in exclusive mode")
        yield
        connection.rollback()


def wait_until_held(log: Log) -> None:
    """Wait until a flush stands before the lock."""
    wait_for(
        lambda: log.one(
            "select count(*) from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock'"
        ),
        "a flush waits for the lock",
    )


def is_awaited(app: App, workflow_id: str) -> bool:
    """Whether a caller in this process waits for the workflow's end."""
    worker = app._worker
    return worker is not None and workflow_id in worker.ends._waiting


def test_a_result_is_given_when_it_is_durable_and_not_before(app: App, log: Log) -> None:
    gate = threading.Event()

    @refold.step
    def work() -> str:
        assert gate.wait(20)
        return "done"

    @app.workflow
    def one() -> str:
        return work()

    results: list[str] = []
    with app:
        handle = one.start(id="w")
        waiting = threading.Thread(target=lambda: results.append(handle.result(20)))
        waiting.start()
        wait_for(lambda: is_awaited(app, "w"), "somebody waits for the result")
        with log_closed(log):
            gate.set()
            wait_until_held(log)
            waiting.join(_MOMENT)
            assert results == [], "given before it was in the log"
        waiting.join(10)
    assert results == ["done"]


def test_a_step_begins_when_the_result_before_it_is_durable_and_not_before(app: App, log: Log) -> None:
    gate, began = threading.Event(), threading.Event()

    @refold.step
    def first() -> None:
        assert gate.wait(20)

    @refold.step
    def second() -> None:
        began.set()

    @app.workflow
    def one() -> None:
        first()
        second()

    with app:
        handle = one.start(id="w")
        with log_closed(log):
            gate.set()
            wait_until_held(log)
            assert not began.wait(_MOMENT), "the second step began before the first was in the log"
        handle.result(10)
    assert began.is_set()


@pytest.mark.parametrize("what", ["start", "observe"])
def test_a_start_is_told_when_it_is_durable_and_not_before(app: App, log: Log, what: str) -> None:
    told = threading.Event()

    @app.workflow
    def one() -> None: ...

    def start() -> None:
        one.start(id="w")
        if what == "start":
            told.set()

    def see(workflow_id: str, recorded: Any) -> None:
        if what == "observe":
            told.set()

    app.observe(see)
    with app:
        with log_closed(log):
            caller = threading.Thread(target=start)
            caller.start()
            wait_until_held(log)
            assert not told.wait(_MOMENT), "told before it was in the log"
        assert told.wait(10)
        caller.join()
    assert log.types("w") == ["WorkflowStarted", "WorkflowCompleted"]
