"""The independent checker finds each way of not being exactly once. (That it passes is shown by the kill tests.)"""

import json
from pathlib import Path
from typing import LiteralString

import psycopg
import pytest
from crash.checker import check

RECORDS = 5
TABLES = """
    create table effects (record text, workflow_id text);
    create table tries (key text, workflow_id text, no int, pid int);
"""
SCHEMA = Path(__file__).resolve().parents[2] / "eventlog" / "sql" / "schema.sql"
DAMAGES: dict[LiteralString, str] = {
    "delete from refold.events where workflow_id = 'w-2'": "lost",
    "insert into refold.events select 'again', seq, type, at, body from refold.events where workflow_id = 'w-2'": (
        "several workflows"
    ),
    "insert into refold.events select 'odd', seq, type, at, replace(convert_from(body, 'UTF8'), '\"offset\": 2',"
    " '\"offset\": 99')::bytea from refold.events where workflow_id = 'w-2'": "records that nobody produced",
    "delete from refold.events where workflow_id = 'w-2' and seq = 2": "workflows without an end",
    "insert into refold.events select workflow_id, 3, type, at, body from refold.events"
    " where workflow_id = 'w-2' and seq = 2": "more than one end",
    "insert into refold.events values ('w-2', 3, 'TimerFired', now(), '{}')": "events after their end",
    "delete from refold.events where workflow_id = 'w-2' and seq = 1": "have gaps",
    "insert into refold.events select workflow_id, 3, type, at, body from refold.events"
    " where workflow_id = 'w-2' and seq = 1": "two recorded results",
    "update refold.workflows set status = 'parked' where workflow_id = 'w-2'": "stuck or parked",
    "update refold.workflows set finished_at = null where workflow_id = 'w-2'": "heads",
    "delete from effects where record = 'r-2'": "without their effect",
    "insert into effects values ('r-2', 'w-2')": "effect happened twice",
    "insert into effects values ('r-99', 'w-2')": "effects of records that nobody produced",
}


@pytest.fixture
def database(empty_database_url: str) -> str:
    with psycopg.connect(empty_database_url) as connection:
        connection.execute(SCHEMA.read_bytes())
    return empty_database_url


@pytest.fixture
def manifest(database: str, tmp_path: Path) -> Path:
    """Five records, each processed exactly once, written into the tables by hand."""
    lines = []
    with psycopg.connect(database) as connection:
        connection.execute(TABLES)
        for i in range(RECORDS):
            record = {"topic": "orders", "partition": i % 2, "offset": i}
            lines.append(json.dumps({**record, "record": f"r-{i}"}))
            events: list[tuple[str, dict[str, object]]] = [
                ("WorkflowStarted", {"name": "on_order", "input": {"message": record}}),
                ("StepCompleted", {"no": 0, "name": "book"}),
                ("WorkflowCompleted", {"result": None}),
            ]
            for seq, (kind, body) in enumerate(events):
                connection.execute(
                    "insert into refold.events (workflow_id, seq, type, at, body) values (%s, %s, %s, now(), %s)",
                    (f"w-{i}", seq, kind, json.dumps({"type": kind, **body}).encode()),
                )
            connection.execute(
                "insert into refold.workflows (workflow_id, name, status, created_at, finished_at, digest)"
                " values (%s, 'on_order', 'completed', now(), now(), '')",
                (f"w-{i}",),
            )
            connection.execute("insert into effects values (%s, %s)", (f"r-{i}", f"w-{i}"))
    path = tmp_path / "manifest.jsonl"
    path.write_text("\n".join(lines))
    return path


def test_records_processed_once_each_are_judged_exactly_once(database: str, manifest: Path) -> None:
    verdict = check(database, manifest, "on_order")
    assert verdict.is_exactly_once, str(verdict)
    assert verdict.counts == {
        "records": RECORDS, "workflows": RECORDS, "effects": RECORDS, "steps tried twice": 0, "processes": 0
    }  # fmt: skip


@pytest.mark.parametrize(("damage", "finding"), DAMAGES.items(), ids=DAMAGES.values())
def test_each_damage_is_found(database: str, manifest: Path, damage: LiteralString, finding: str) -> None:
    with psycopg.connect(database) as connection:
        connection.execute(damage)
    verdict = check(database, manifest, "on_order")
    assert not verdict.is_exactly_once
    assert any(finding in name for name in verdict.failures), str(verdict)


def test_no_records_at_all_prove_nothing(database: str, manifest: Path) -> None:
    manifest.write_text("")
    assert not check(database, manifest, "on_order").is_exactly_once


def test_a_try_repeated_after_a_kill_is_counted_but_is_no_failure(database: str, manifest: Path) -> None:
    with psycopg.connect(database) as connection:
        connection.execute("insert into tries values ('w-1/0', 'w-1', 0, 1), ('w-1/0', 'w-1', 0, 2)")
    verdict = check(database, manifest, "on_order")
    assert verdict.is_exactly_once
    assert verdict.counts["steps tried twice"] == 1
