"""`python -m refold.testing`: its reports for people and programs, its exit codes, and what it says of a wrong call."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from fixtures.postgres import PostgresServer
from refold.testing import CLAUSES

TESTS = Path(__file__).parents[1]
SPOOL = str(TESTS / "fixtures" / "spool.py")
WRONG = str(TESTS / "fixtures" / "wrong_connectors.py")


def judge(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Type the command and wait for its end."""
    return subprocess.run(
        [sys.executable, "-m", "refold.testing", *arguments],
        env={**os.environ, "PYTHONPATH": str(TESTS)},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )


def test_the_list_has_every_clause_and_what_it_promises() -> None:
    said = judge("--list")
    assert (said.returncode, said.stderr) == (0, "")
    assert said.stdout.splitlines() == [f"{clause.name:28} {clause.promise}" for clause in CLAUSES.values()]


@pytest.mark.timeout(300)
def test_a_report_for_people_and_one_for_programs(postgres_server: PostgresServer) -> None:
    journal = str(TESTS / "fixtures" / "journal.py")
    given = ("delivers", "redelivered", "--database-url", postgres_server.url)
    said = judge(journal, *given)
    assert said.returncode == 0, said.stdout + said.stderr
    kept, no_sense, sum_of_it = said.stdout.splitlines()
    assert kept.split()[:2] == ["kept", "delivers"]
    assert no_sense.split()[:5] == ["n/a", "redelivered", "a", "line", "is"]
    assert sum_of_it == "journal: 1 clauses kept, 0 refused, 1 not applicable"
    report = json.loads(judge(journal, *given, "--json").stdout)
    assert report["connector"] == "journal"
    assert [(one["clause"], one["result"]) for one in report["clauses"]] == [
        ("delivers", "kept"),
        ("redelivered", "not applicable"),
    ]


@pytest.mark.timeout(300)
def test_a_refusal_says_what_was_seen_and_is_an_exit_code(postgres_server: PostgresServer) -> None:
    said = judge(f"{WRONG}:TakesEverythingHarness", "backpressure", "--database-url", postgres_server.url)
    assert said.returncode == 1, said.stderr
    first, reason, *_ = said.stdout.splitlines()
    assert first.split()[:2] == ["REFUSED", "backpressure"]
    assert "workflows are runnable at once, with max_in_flight=10" in reason


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "expected a Python file with a Harness in it, like:  harness.py"),
        (
            ["nowhere.py"],
            "no file nowhere.py; expected a Python file with a Harness in it, like:  harness.py",
        ),
        ([f"{SPOOL}:Absent"], "has no Harness called Absent; it has: SpoolHarness"),
        ([__file__], "has 0 harnesses, and one is expected"),
        ([SPOOL, "magic"], "no clause is called magic; there are: delivers, remembers"),
        (
            [SPOOL, "delivers", "--database-url", "postgresql://127.0.0.1:1/none"],
            'connection to server at "127.0.0.1", port 1 failed',
        ),
    ],
)
def test_a_call_that_is_wrong_says_what_is_there(arguments: list[str], words: str) -> None:
    said = judge(*arguments)
    assert said.returncode == 2
    assert words in said.stderr
    assert "Traceback" not in said.stderr


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("kind = 'pull'", "it has no name for the report"),
        ("name = 'mine'", "kind is None, and it says who moves first"),
        ("name, kind = 'mine', 'poll'", "kind is 'poll', and it says who moves first"),
        (
            "name, kind, not_applicable = 'mine', 'pull', {'back-pressure': 'no bound'}",
            "not_applicable names 'back-pressure', which is no clause; there are: delivers",
        ),
        ("name, kind, max_in_flight = 'mine', 'pull', 0", "max_in_flight is 0; give the bound"),
    ],
)
def test_a_harness_that_says_too_little_is_told_what_to_write(body: str, words: str, tmp_path: Path) -> None:
    harness = tmp_path / "harness.py"
    harness.write_text(f"from refold.testing import Harness\n\n\nclass Mine(Harness):\n    {body}\n")
    said = judge(str(harness), "delivers")
    assert said.returncode == 2
    assert f"Mine: {words}" in said.stderr
    assert "Traceback" not in said.stderr
