"""Bookings of an account one after the other, accounts side by side; one that cannot be done stops its account only.

    refold dev examples/accounts_in_order/accounts.py
    refold kafka produce bookings '{"account": "ada", "cents": 500}' --key ada
    refold kafka produce bookings '{"account": "ada", "cents": -900}' '{"account": "ada", "cents": 100}' --key ada

The second booking overdraws the account: it is parked, the third one waits behind it, and other accounts go on.

    refold kafka parked
    refold kafka skip --key ada --yes

Each new balance is published, keyed by account, with an ID by which readers drop repeats.
"""

import msgspec
import psycopg

import refold
from refold.connectors import kafka

app = refold.App("accounts")


class Booking(msgspec.Struct):
    account: str
    cents: int


class Overdrawn(Exception):
    """The account has less than is to be taken from it."""


def _is_passing(error: Exception) -> bool:
    return isinstance(error, psycopg.Error)  # two first bookings at once may both want to create the table


@refold.step(transaction=True, retries=5, retry_if=_is_passing)
def book(conn: psycopg.Connection, booking: Booking) -> int:
    conn.execute("create table if not exists accounts (account text primary key, cents int not null)")
    row = conn.execute(
        "insert into accounts values (%s, %s) on conflict (account) do update"
        " set cents = accounts.cents + excluded.cents returning cents",
        (booking.account, booking.cents),
    ).fetchone()
    assert row is not None
    if row[0] < 0:  # raising rolls the booking back
        raise Overdrawn(f"{booking.account} would have {row[0] / 100:.2f}")
    return int(row[0])


@kafka.consumer("bookings", name="accounts", ordering="key")
@app.workflow
def on_booking(message: kafka.Message[Booking]) -> int:
    account = message.value.account
    cents = book(message.value)
    kafka.publish("balances", {"account": account, "cents": cents}, key=account)
    return cents
