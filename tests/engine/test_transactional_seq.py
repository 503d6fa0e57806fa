"""A transactional step takes its seq when its SQL is done, not before (rule 15)."""

import asyncio
import threading
from typing import Any

import psycopg
import pytest

import refold
from fixtures.workers import Log
from refold import App


@pytest.mark.parametrize("colour", ["def", "async"])
def test_what_ends_while_a_transaction_is_open_is_recorded_meanwhile(app: App, log: Log, colour: str) -> None:
    """The charge ends while the booking's SQL runs; the booking sees the charge in the log before it goes on."""
    booking, charged = threading.Event(), threading.Event()

    @refold.step
    def charge() -> None:
        assert booking.wait(20)

    @refold.step(transaction=True)
    def book(conn: psycopg.Connection[Any]) -> bool:
        conn.execute("select 1")
        booking.set()
        return charged.wait(5)

    @refold.step(transaction=True)
    async def abook(conn: psycopg.AsyncConnection[Any]) -> bool:
        await conn.execute("select 1")
        booking.set()
        return await asyncio.to_thread(charged.wait, 5)

    @app.workflow
    def sync() -> bool:
        return refold.gather(book.later(), charge.later())[0]

    @app.workflow
    async def coro() -> bool:
        return (await asyncio.gather(abook(), charge.acall()))[0]

    def see(workflow_id: str, recorded: Any) -> None:
        if getattr(recorded.event, "name", "") == "charge":
            charged.set()

    app.observe(see)
    with app:
        result = (sync if colour == "def" else coro).start(id="w").result(20)
    assert result, "the charge was not recorded while the booking's transaction was open"
    assert next(iter(log.events("w", "StepCompleted")))["name"] == "charge"
