"""Every call that api.md shows, as users type it: this file is held to mypy --strict and pyright, and never run.

The wrong uses are in test_types.py.
"""

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any, assert_type

import msgspec
import psycopg

import refold
from refold.core import Handle
from refold.core._definitions import AsyncWorkflow, Runtime, SyncWorkflow, define_workflow


class Order(msgspec.Struct):
    id: str
    amount: int


@refold.step(retries=5)
def charge(order: Order) -> str:
    return refold.step_info().idempotency_key


@refold.step
async def ship(order: Order, *, fast: bool = False) -> int:
    return order.amount


@refold.step(transaction=True)
def book(conn: psycopg.Connection, order: Order) -> None:
    conn.execute("select 1")


@refold.step(transaction=True)
async def abook(conn: psycopg.AsyncConnection, order: Order) -> int:
    await conn.execute("select 1")
    return 1


def workflows(app: Runtime) -> tuple[SyncWorkflow[[Order], str], AsyncWorkflow[[Order, int], list[str]]]:
    def checkout(order: Order) -> str:
        receipt = charge(order)
        assert_type(receipt, str)
        book(order)
        parcels = ship.call(order, fast=True)
        assert_type(parcels, int)
        one, two, three = refold.gather(charge.later(order), ship.later(order), refold.later(len, "x"))
        assert_type(one, str)
        assert_type(two, int)
        assert_type(three, int)
        many = refold.gather(*(charge.later(order) for _ in range(9)))
        assert_type(many, tuple[str, ...])
        tried = refold.gather(charge.later(order), charge.later(order), return_exceptions=True)
        assert_type(tried, tuple[str | BaseException, ...])
        verdict = refold.recv("approval", bool, timeout=timedelta(days=3))
        assert_type(verdict, bool)
        anything = refold.recv("approval")
        assert_type(anything, Any)
        refold.sleep(timedelta(hours=24))
        refold.sleep(1.5)
        refold.sleep_until(datetime(2030, 1, 1, tzinfo=UTC))
        refold.send("other", order, "topic")
        refold.logger.info("at %s", refold.now())
        return receipt + str(refold.uuid()) + refold.random().choice(["a", "b"])

    async def fulfil(order: Order, copies: int) -> list[str]:
        parcels = await ship(order)
        assert_type(parcels, int)
        receipt = await charge.acall(order)
        assert_type(receipt, str)
        await book.acall(order)
        booked = await abook(order)
        assert_type(booked, int)
        a, b = await asyncio.gather(ship(order), charge.acall(order))
        assert_type(a, int)
        assert_type(b, str)
        async with asyncio.TaskGroup() as group:
            task = group.create_task(ship(order))
        assert_type(task.result(), int)
        verdict = await refold.arecv("approval", bool, timeout=timedelta(days=3))
        assert_type(verdict, bool)
        await refold.asleep(5)
        await asyncio.sleep(5)
        return [receipt]

    sync = define_workflow(checkout, app)
    async_ = define_workflow(fulfil, app)
    return sync, async_


def outside(app: Runtime, order: Order) -> None:
    checkout, fulfil = workflows(app)
    result = checkout(order)
    assert_type(result, str)
    handle = checkout.start(order)
    assert_type(handle, Handle[str])
    named = checkout.start(order, id=f"order-{order.id}")
    assert_type(named.result(timeout=60), str)
    assert_type(checkout.options(id="x").start(order).result(), str)
    assert_type(fulfil.call(order, 2), list[str])
    assert_type(charge(order), str)


async def outside_async(app: Runtime, order: Order) -> None:
    checkout, fulfil = workflows(app)
    results = await fulfil(order, 2)
    assert_type(results, list[str])
    handle = await checkout.astart(order, id=f"order-{order.id}")
    assert_type(handle, Handle[str])
    assert_type(await handle.aresult(), str)
    assert_type(await checkout.acall(order), str)
    assert_type(await ship(order), int)
