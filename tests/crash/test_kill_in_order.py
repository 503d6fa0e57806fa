"""Order survives SIGKILL: no record of a key begins before the one before it has ended, whoever dies."""

import random
from collections.abc import Callable
from pathlib import Path

import msgspec
import psycopg
import pytest
from crash.fleet import running_fleet

from fixtures.brokers import Broker
from fixtures.workers import wait_for

APP = Path(__file__).with_name("order_app.py")
KEYS, EACH, KILLS = 12, 40, 6


@pytest.mark.timeout(300)
def test_keys_stay_in_order_while_workers_are_killed(
    dev_broker: Broker, database_url: str, tmp_path: Path
) -> None:
    topic = dev_broker.create_topic("entries", partitions=4)
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute(
            "create table trace (id bigint generated always as identity, key text, no int, what text)"
        )
        environment = {"REFOLD_DATABASE_URL": database_url, "REFOLD_KAFKA_BOOTSTRAP": dev_broker.bootstrap}
        choice = random.Random(11)
        with running_fleet(APP, 2, environment, tmp_path) as fleet:
            for no in range(EACH):
                for key in range(KEYS):
                    value = msgspec.json.encode({"key": f"key-{key}", "no": no})
                    dev_broker.produce(topic, value, key=f"key-{key}", partition=key % 4)

            def out() -> int:
                [(count,)] = connection.execute(
                    "select count(distinct (key, no)) from trace where what = 'out'"
                )
                return int(count)

            def progress(least: int) -> Callable[[], bool]:
                return lambda: out() >= least

            for kill in range(KILLS):
                wait_for(progress((kill + 1) * 50), f"progress before kill {kill}", 90)
                victim = choice.randrange(2)
                fleet.kill(victim)
                fleet.restart(victim)
            wait_for(lambda: out() == KEYS * EACH, "all records", 90)
        rows = connection.execute("select key, no, what from trace order by id").fetchall()
    latest: dict[str, tuple[int, str]] = {}
    for key, no, what in rows:
        before = latest.get(key, (-1, "out"))
        # A step that a death hit is tried again; never one of a record before, and never one out of turn.
        allowed = (
            {(before[0], before[1]), (before[0], "out")}
            if before[1] == "in"
            else {before, (before[0] + 1, "in")}
        )
        assert (no, what) in allowed, f"{key}: {no} {what} came after {before}"
        latest[key] = (no, what)
    assert latest == {f"key-{key}": (EACH - 1, "out") for key in range(KEYS)}
