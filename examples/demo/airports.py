"""What the demo's workers run: one workflow for each airport of the world, each started by a Kafka record.

    refold worker examples/demo/airports.py

`tries` and `effects` are ordinary tables of the application, without any unique key: if refold did something twice,
it would show in them.
"""

import math
import os
import threading

import msgspec
import psycopg

import refold
from refold import App
from refold.connectors import kafka

app = App("demo")

HOME = (52.37, 4.90)  # Amsterdam
TOPIC = "airports"
CONSUMER = "survey"

TABLES = """
    create table tries (key text not null, workflow_id text not null, no int not null, pid int not null);
    create table effects (record text not null, workflow_id text not null, country text, distance_km int);
"""


class Airport(msgspec.Struct):
    icao: str
    name: str
    city: str
    country: str
    lat: float
    lon: float


# A connection with which refold has nothing to do: what a step does with it may repeat. The steps take turns on it.
_outside: psycopg.Connection[tuple[object, ...]] | None = None
_turn = threading.Lock()


def leave_trace(key: str, workflow_id: str, no: int) -> None:
    global _outside
    with _turn:
        if _outside is None:
            _outside = psycopg.connect(os.environ["REFOLD_DATABASE_URL"], autocommit=True)
        _outside.execute(
            "insert into tries (key, workflow_id, no, pid) values (%s, %s, %s, %s)",
            (key, workflow_id, no, os.getpid()),
        )


@refold.step
def survey(airport: Airport) -> int:
    """Leave a trace of this try, as a call to another company's system would, and return the distance in km."""
    info = refold.step_info()
    leave_trace(info.idempotency_key, info.workflow_id, info.no)
    return round(distance(HOME, (airport.lat, airport.lon)))


@refold.step(transaction=True)
def book(conn: psycopg.Connection, airport: Airport, distance_km: int) -> None:
    """Commits together with the event that records it: exactly once."""
    conn.execute(
        "insert into effects (record, workflow_id, country, distance_km) values (%s, %s, %s, %s)",
        (airport.icao, refold.step_info().workflow_id, airport.country, distance_km),
    )


@kafka.consumer(
    TOPIC,
    name=CONSUMER,
    # A killed worker's partitions go to the other one after this time; Kafka's own default is 45 s.
    config={"session.timeout.ms": 4000, "heartbeat.interval.ms": 500},
)
@app.workflow
def on_airport(message: kafka.Message[Airport]) -> int:
    distance_km = survey(message.value)
    book(message.value, distance_km)
    return distance_km


def distance(one: tuple[float, float], other: tuple[float, float]) -> float:
    """Great-circle distance in km between two (latitude, longitude) in degrees."""
    (lat1, lon1), (lat2, lon2) = ((math.radians(lat), math.radians(lon)) for lat, lon in (one, other))
    haversine = (
        math.sin((lat2 - lat1) / 2) ** 2 + math.cos(lat1) * math.cos(lat2) * math.sin((lon2 - lon1) / 2) ** 2
    )
    return 2 * 6371 * math.asin(math.sqrt(haversine))
