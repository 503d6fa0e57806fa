"""The independent checker finds each way of not being exactly once. (That it passes is shown by the kill tests.)"""

import json
from pathlib import Path
from typing import LiteralString

import psycopg
import pytest
from crash.checker import check

RECORDS = 5
WORKFLOWS = ["on_order", "on_delivery", "on_tick"]
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
    "delete from refold.events where workflow_id = 'w-3'": "lost",
    "delete from refold.events where workflow_id = 'w-4'": "lost",
    "insert into refold.events select 'again-3', seq, type, at, body from refold.events where workflow_id = 'w-3'": (
        "several workflows"
    ),
    "insert into refold.events select 'again-4', seq, type, at, body from refold.events where workflow_id = 'w-4'": (
        "several workflows"
    ),
    "with moved as (delete from refold.events where workflow_id = 'w-3' returning *)"
    " insert into refold.events select 'w-33', seq, type, at, body from moved": "was told of another workflow",
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
    """Three Kafka records, a delivery and a tick, each processed exactly once, written into the tables by hand."""
    lines: list[dict[str, object]] = [
        *({"topic": "orders", "partition": i % 2, "offset": i} for i in range(3)),
        {"delivery": "msg-3", "workflow": "w-3"},
        {"tick": "2026-11-21T09:00:04Z"},
    ]
    inputs: list[tuple[str, dict[str, object]]] = [
        ("on_order", {"message": lines[0]}),
        ("on_order", {"message": lines[1]}),
        ("on_order", {"message": lines[2]}),
        ("on_delivery", {"delivery": {"id": "msg-3", "path": "/orders"}}),
        ("on_tick", {"tick": {"scheduled": "2026-11-21T09:00:04Z"}}),
    ]
    with psycopg.connect(database) as connection:
        connection.execute(TABLES)
        for i, (name, value) in enumerate(inputs):
            lines[i] |= {"record": f"r-{i}"}
            events: list[tuple[str, dict[str, object]]] = [
                ("WorkflowStarted", {"name": name, "input": value}),
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
                " values (%s, %s, 'completed', now(), now(), '')",
                (f"w-{i}", name),
            )
            connection.execute("insert into effects values (%s, %s)", (f"r-{i}", f"w-{i}"))
    path = tmp_path / "manifest.jsonl"
    path.write_text("\n".join(json.dumps(line) for line in lines))
    return path


@pytest.mark.parametrize(("damage", "finding"), DAMAGES.items(), ids=DAMAGES.values())
def test_each_damage_is_found(database: str, manifest: Path, damage: LiteralString, finding: str) -> None:
    with psycopg.connect(database) as connection:
        connection.execute(damage)
    verdict = check(database, [manifest], WORKFLOWS)
    assert not verdict.is_exactly_once
    assert any(finding in name for name in verdict.failures), str(verdict)


def test_no_records_at_all_prove_nothing(database: str, manifest: Path) -> None:
    manifest.write_text("")
    assert not check(database, [manifest], WORKFLOWS).is_exactly_once


def test_a_try_repeated_after_a_kill_is_counted_but_is_no_failure(database: str, manifest: Path) -> None:
    with psycopg.connect(database) as connection:
        connection.execute("insert into tries values ('w-1/0', 'w-1', 0, 1), ('w-1/0', 'w-1', 0, 2)")
    verdict = check(database, [manifest], WORKFLOWS)
    assert verdict.is_exactly_once
    assert verdict.counts["steps tried twice"] == 1
