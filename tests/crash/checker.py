"""Proves from the senders' manifests and the tables, by SQL, whether every record was processed exactly once.

It imports nothing of refold and shares no code with it: what it believes is what Postgres shows. A manifest is what
whoever sends wrote down when it was told that a record is safe: a line of JSON with `record` (a name that no other
record has) and where it came from, which is one of

    {"topic": ..., "partition": ..., "offset": ...}    a Kafka record, acknowledged by the broker
    {"delivery": ..., "workflow": ...}                 a webhook's ID, and the workflow that each 202 for it named
    {"tick": "2026-11-01T05:30:00Z"}                   an instant at which a schedule was due

The workflows under test leave two kinds of traces beside the log, in tables without any unique key, so that a
repetition shows:

    effects(record, workflow_id)        written by a transactional step: must be there once for each record
    tries(key, workflow_id, no, pid)    written by a step before it does its work: may be there twice, is only counted

    python checker.py --database URL --manifest FILE --workflow NAME      (both may be given several times)

Exit code 0: exactly once. 1: not, and which records. 2: it could not be checked.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, LiteralString

import psycopg

_SHOWN = 5

# The manifest, and what the log itself says about the workflow of each record: not the heads, which are derived.
PREPARE: tuple[LiteralString, ...] = (
    """
    create temporary table manifest (source text not null, record text not null, workflow_id text)
    """,
    """
    create temporary table started as
    select e.workflow_id,
           coalesce((input.value ->> 'topic') || '/' || (input.value ->> 'partition')
                    || '/' || (input.value ->> 'offset'),
                    'tick ' || (input.value ->> 'scheduled'),
                    'delivery ' || (input.value ->> 'id')) as source
      from refold.events e, lateral json_each(convert_from(e.body, 'UTF8')::json -> 'input') input
     where e.seq = 0 and e.type = 'WorkflowStarted'
       and convert_from(e.body, 'UTF8')::json ->> 'name' = any(%(workflows)s)
    """,
    """
    create temporary table ended as
    select e.workflow_id, e.seq, e.type
      from refold.events e join started using (workflow_id)
     where e.type in ('WorkflowCompleted', 'WorkflowFailed', 'WorkflowCancelled')
    """,
    "create index on manifest (source)",
    "create index on started (source)",
    "create index on ended (workflow_id)",
    "analyze manifest",
    "analyze started",
    "analyze ended",
)

# Each returns the offenders; none may. The text says what an offender means.
CHECKS: dict[str, LiteralString] = {
    "records that were produced twice (the manifest is no good)": """
        select record from manifest group by record having count(*) > 1
    """,
    "records that no workflow was started for: lost": """
        select m.record from manifest m where not exists (select from started s where s.source = m.source)
    """,
    "records that several workflows were started for: doubled": """
        select m.record from manifest m join started s using (source) group by m.record having count(*) > 1
    """,
    "records whose sender was told of another workflow": """
        select m.record from manifest m join started s using (source) where m.workflow_id <> s.workflow_id
    """,
    "workflows of records that nobody produced": """
        select s.workflow_id from started s where not exists (select from manifest m where s.source = m.source)
    """,
    "workflows without an end": """
        select s.workflow_id from started s where not exists (select from ended e where e.workflow_id = s.workflow_id)
    """,
    "workflows with more than one end": """
        select workflow_id from ended group by workflow_id having count(*) > 1
    """,
    "workflows that did not complete": """
        select workflow_id from ended where type <> 'WorkflowCompleted'
    """,
    "workflows with events after their end": """
        select distinct e.workflow_id from ended join refold.events e using (workflow_id) where e.seq > ended.seq
    """,
    "workflows whose events have gaps": """
        select e.workflow_id from refold.events e join started using (workflow_id)
         group by e.workflow_id having count(*) <> max(e.seq) + 1
    """,
    "steps with two recorded results": """
        select e.workflow_id || ', step ' || (convert_from(e.body, 'UTF8')::json ->> 'no')
          from refold.events e join started using (workflow_id)
         where e.type = 'StepCompleted'
         group by e.workflow_id, convert_from(e.body, 'UTF8')::json ->> 'no' having count(*) > 1
    """,
    "workflows that are stuck or parked": """
        select w.workflow_id from refold.workflows w join started using (workflow_id)
         where w.status in ('stuck', 'parked')
    """,
    "heads that don't say what the log says": """
        select w.workflow_id from refold.workflows w join ended using (workflow_id)
         where w.status <> 'completed' or w.finished_at is null
    """,
    "records without their effect": """
        select m.record from manifest m where not exists (select from effects f where f.record = m.record)
    """,
    "records whose effect happened twice": """
        select f.record from effects f join manifest using (record) group by f.record having count(*) > 1
    """,
    "effects of records that nobody produced": """
        select f.record from effects f where not exists (select from manifest m where m.record = f.record)
    """,
}

COUNTS: dict[str, LiteralString] = {
    "records": "select count(*) from manifest",
    "workflows": "select count(*) from started",
    "effects": "select count(*) from effects",
    "steps tried twice": "select count(*) from (select from tries group by key having count(*) > 1) t",
    "processes": "select count(distinct pid) from tries",
}


@dataclass
class Verdict:
    """What was counted, and for each check that failed how many offenders it has, with the first few."""

    counts: dict[str, int] = field(default_factory=dict)
    failures: dict[str, tuple[int, list[str]]] = field(default_factory=dict)

    @property
    def is_exactly_once(self) -> bool:
        return not self.failures and self.counts["records"] > 0

    def __str__(self) -> str:
        lines = [", ".join(f"{number:,} {name}" for name, number in self.counts.items())]
        for name, (number, some) in self.failures.items():
            more = ", ..." if number > len(some) else ""
            lines.append(f"  {number:,} {name}: {', '.join(some)}{more}")
        lines.append("exactly once" if self.is_exactly_once else "NOT exactly once")
        return "\n".join(lines)


def check(database: str, manifests: Sequence[Path], workflows: Sequence[str]) -> Verdict:
    """Judge the whole of `manifests` against `database`, in one snapshot."""
    records = [json.loads(line) for manifest in manifests for line in manifest.read_text().splitlines()]
    verdict = Verdict()
    with psycopg.connect(database) as connection:
        connection.execute("set transaction isolation level repeatable read")
        connection.execute(PREPARE[0])
        with connection.cursor().copy("copy manifest (source, record, workflow_id) from stdin") as copy:
            for record in records:
                copy.write_row([_source(record), record["record"], record.get("workflow")])
        for statement in PREPARE[1:]:
            connection.execute(statement, {"workflows": list(workflows)} if "%(" in statement else None)
        for name, counted in COUNTS.items():
            verdict.counts[name] = int(_rows(connection, counted)[0][0])
        for name, offenders in CHECKS.items():
            if found := _rows(connection, offenders):
                verdict.failures[name] = (len(found), sorted(str(row[0]) for row in found)[:_SHOWN])
    return verdict


def _source(record: dict[str, Any]) -> str:
    """Where a record came from, as PREPARE finds it in a workflow's input."""
    if "delivery" in record:
        return f"delivery {record['delivery']}"
    if "tick" in record:
        return f"tick {record['tick']}"
    return f"{record['topic']}/{record['partition']}/{record['offset']}"


def _rows(connection: psycopg.Connection[Any], statement: LiteralString) -> Sequence[tuple[Any, ...]]:
    return connection.execute(statement).fetchall()


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--database", required=True, help="a libpq URL")
    parser.add_argument("--manifest", required=True, type=Path, action="append")
    parser.add_argument(
        "--workflow", required=True, action="append", help="the name of a workflow that the records start"
    )
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    try:
        verdict = check(options.database, options.manifest, options.workflow)
    except (OSError, ValueError, KeyError, psycopg.Error) as exc:
        print(f"could not be checked: {exc}", file=sys.stderr)
        return 2
    if options.json:
        print(
            json.dumps(
                {"exactly_once": verdict.is_exactly_once, **verdict.counts, "failures": verdict.failures}
            )
        )
    else:
        print(verdict)
    return 0 if verdict.is_exactly_once else 1


if __name__ == "__main__":
    sys.exit(main())
