"""Workers are killed with work in their hands, Postgres is restarted, and all that was sent is processed exactly once.

Kafka records, webhook deliveries from a sender that retries, and the ticks of a schedule, side by side.
"""

from pathlib import Path
from typing import Any

import psycopg
import pytest
from crash.fleet import TABLES, TOPIC, Report, kill_run

from fixtures.brokers import Broker
from fixtures.postgres import OwnPostgres


def run(own_postgres: OwnPostgres, broker: Broker, folder: Path, **options: Any) -> Report:
    database = own_postgres.url_of(own_postgres.create_database(own_postgres.template()))
    with psycopg.connect(database) as connection:
        connection.execute(TABLES)
    broker.create_topic(TOPIC, 3)
    report = kill_run(
        database=database,
        restart_postgres=own_postgres.restart,
        bootstrap=broker.bootstrap,
        folder=folder,
        workers=3,
        seed=20,
        **options,
    )
    print(report)
    assert report.verdict.is_exactly_once, str(report)
    assert (
        report.verdict.counts["records"]
        == options["records"] + options["deliveries"] + options["tick_seconds"] + 1
    )
    assert not report.ended_by_themselves, str(report)
    assert set(report.exit_codes) == {0}, str(report)
    return report


@pytest.mark.timeout(600)
def test_records_deliveries_and_ticks_are_processed_once_each_though_workers_are_killed(
    own_postgres: OwnPostgres, dev_broker: Broker, tmp_path: Path
) -> None:
    report = run(
        own_postgres, dev_broker, tmp_path,
        records=1_500, deliveries=500, seconds=20, tick_seconds=10, between_kills=(3.0, 4.5), restarts=1, style="def",
    )  # fmt: skip
    assert report.hits >= 1, str(report)


@pytest.mark.long
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(("style", "broker"), [("def", "dev_broker"), ("async", "apache_broker")])
def test_twenty_kills_with_work_in_flight_and_two_restarts_of_postgres(
    own_postgres: OwnPostgres, tmp_path: Path, style: str, broker: str, request: pytest.FixtureRequest
) -> None:
    report = run(
        own_postgres, request.getfixturevalue(broker), tmp_path,
        records=20_000, deliveries=6_000, seconds=180, tick_seconds=160, between_kills=(3.0, 6.0), restarts=2,
        style=style,
    )  # fmt: skip
    assert report.kills >= 20, str(report)
    assert report.hits >= 20, str(report)
