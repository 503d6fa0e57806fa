"""Every scan of a parcel, a message in the JetStream stream `SCANS`, becomes one workflow: where it is, and who hears.

    nats-server -js
    nats stream add SCANS --subjects 'scans.>' --defaults
    REFOLD_NATS_URL=nats://127.0.0.1:4222 refold dev examples/parcels_from_nats/parcels.py
    nats pub scans.berlin '{"parcel": "p-1", "place": "Berlin", "delivered": true}'

`note` is SQL in refold's own Postgres, exactly once. `tell` is an effect outside, and may be tried twice.
"""

import msgspec
import psycopg

import refold
from refold.connectors import nats

app = refold.App("parcels")


class Scan(msgspec.Struct):
    parcel: str
    place: str
    delivered: bool = False


@refold.step(transaction=True, retries=5)  # of several first scans at once, only one can make the table
def note(conn: psycopg.Connection, scan: Scan) -> int:
    conn.execute("create table if not exists scans (parcel text, place text)")
    conn.execute("insert into scans values (%s, %s)", (scan.parcel, scan.place))
    found = conn.execute("select count(*) from scans where parcel = %s", (scan.parcel,)).fetchone()
    return int(found[0]) if found else 0


@refold.step(retries=5)
def tell(scan: Scan, scans: int) -> str:
    key = refold.step_info().idempotency_key
    return f"{scan.parcel} has arrived in {scan.place}, scan {scans}; told once as {key}"  # mail.send(..., key=key)


@nats.consumer("SCANS", name="parcels", subject="scans.>")
@app.workflow
def on_scan(message: nats.Message[Scan]) -> str:
    scan = message.value
    scans = note(scan)
    return tell(scan, scans) if scan.delivered else f"{scan.parcel} is in {scan.place}"
