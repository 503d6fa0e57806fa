"""A refund that a person must approve within three days; what was set aside for it goes back if they don't.

    refold dev examples/refund_with_approval/refund.py
    refold start examples/refund_with_approval/refund.py refund '{"order": "o-1", "cents": 9900}' --id refund-o-1
    refold send refund-o-1 true --topic approval

The account is a table in refold's own Postgres, so each movement of money happens exactly once.
"""

from datetime import timedelta

import msgspec
import psycopg

import refold

app = refold.App("refunds")


class Refund(msgspec.Struct):
    order: str
    cents: int


class AccountClosed(Exception):
    pass


@refold.step(transaction=True, retries=5)
def move(conn: psycopg.Connection, order: str, cents: int, why: str) -> None:
    conn.execute("create table if not exists movements (order_id text, cents int, why text)")
    conn.execute("insert into movements values (%s, %s, %s)", (order, cents, why))


@refold.step(retries=3, retry_if=lambda error: not isinstance(error, AccountClosed))
def pay_out(order: str, cents: int) -> str:
    if cents > 1_000_000:
        raise AccountClosed(order)
    return f"paid {cents / 100:.2f} for {order}"  # bank.transfer(..., idempotency_key=...)


@app.workflow
def refund(wanted: Refund) -> str:
    move(wanted.order, wanted.cents, "set aside")
    try:
        approved = refold.recv("approval", bool, timeout=timedelta(days=3))
        if approved:
            return pay_out(wanted.order, wanted.cents)
        outcome = "refused"
    except refold.TimedOut:
        outcome = "nobody approved it"
    except AccountClosed as closed:
        outcome = f"account of {closed} is closed"
    move(wanted.order, -wanted.cents, "undone")
    return outcome
