"""A payment provider's webhooks: each payment is booked once, and a shipment waits for it.

    refold dev examples/payments_by_webhook/payments.py
    refold start examples/payments_by_webhook/payments.py ship o-1 --id ship-o-1

then one of the `curl` lines that it prints, or

    echo '{"payment": "p-1", "order": "o-1", "cents": 450}' | refold webhook send /payments -

The provider sends a payment until it hears 202, which is after the commit; however often, it is one workflow. `book` is
SQL in refold's own Postgres, so it happens exactly once, whatever is killed.
"""

from datetime import timedelta

import msgspec
import psycopg

import refold
from refold.connectors import webhook

app = refold.App("payments")
PROVIDER = webhook.standard(secret="env:PAYMENTS_SECRET")  # refold dev makes one up


class Payment(msgspec.Struct):
    payment: str
    order: str
    cents: int


@refold.step(transaction=True, retries=5)  # of several first payments at once, only one can make the table
def book(conn: psycopg.Connection, payment: Payment) -> None:
    conn.execute("create table if not exists booked (payment text, cents int)")
    conn.execute("insert into booked values (%s, %s)", (payment.payment, payment.cents))


@webhook.post("/payments", verify=PROVIDER)
@app.workflow
def on_payment(delivery: webhook.Delivery[Payment]) -> str:
    book(delivery.body)
    refold.send(f"ship-{delivery.body.order}", delivery.body.cents, topic="paid")
    return f"booked {delivery.body.payment}"


@webhook.signal("/refusals", to=lambda refusal: f"ship-{refusal.body.order}", topic="paid",
                value=lambda refusal: 0, body=Payment, verify=PROVIDER)  # fmt: skip
@app.workflow
def ship(order: str) -> str:
    cents = refold.recv("paid", int, timeout=timedelta(days=7))
    return f"{order} is on its way" if cents else f"{order} was not paid"
