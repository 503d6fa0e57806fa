"""Every record of the topic `orders` becomes one workflow: charge the card, book the order, thank the customer.

    refold dev examples/orders_from_kafka/orders.py
    refold kafka produce orders '{"id": "o-1", "customer": "ada", "cents": 450}'

`book` is SQL in refold's own Postgres: it commits together with the event that records it, exactly once, whatever is
killed. `charge` is an effect outside: it may be tried twice, so it hands over a key by which the bank drops the repeat.
"""

from datetime import timedelta

import msgspec
import psycopg

import refold
from refold.connectors import kafka

app = refold.App("orders")


class Order(msgspec.Struct):
    id: str
    customer: str
    cents: int


@refold.step(retries=5)
def charge(order: Order) -> str:
    key = refold.step_info().idempotency_key
    return f"receipt {order.id}, paid once as {key}"  # bank.charge(order.cents, idempotency_key=key)


@refold.step(transaction=True, retries=5)  # of several first orders at once, only one can make the table
def book(conn: psycopg.Connection, order: Order) -> None:
    conn.execute("create table if not exists bookings (order_id text, customer text, cents int)")
    conn.execute("insert into bookings values (%s, %s, %s)", (order.id, order.customer, order.cents))


@refold.step
def thank(customer: str, receipt: str) -> str:
    return f"Dear {customer}, thank you. {receipt}"


@kafka.consumer("orders", name="orders")
@app.workflow
def on_order(message: kafka.Message[Order]) -> str:
    order = message.value
    receipt = charge(order)
    book(order)
    refold.sleep(timedelta(seconds=1))  # mails go out a little later
    return thank(order.customer, receipt)
