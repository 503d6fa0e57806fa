"""`refold schedule ...`, beside no worker at all: it works on what is in the log."""

import re
import shlex
import subprocess
import sys

import pytest
from click import Group

from fixtures.terminal import Terminal
from refold.connectors._cron_cli import schedule
from refold.core.cli._main import cli

APP = """\
from datetime import timedelta
import refold
from refold.connectors import cron

app = refold.App("reports")

@cron.schedule("0 9 * * MON-FRI", timezone="Europe/Berlin", start=START)
@app.workflow
def report(tick: cron.Tick) -> str:
    return f"{tick.local:%A}{' by hand' if tick.manual else ''}"

@cron.schedule(every=timedelta(minutes=90), overlap="allow", paused=True, name="sync/eu")
@app.workflow
def sync(tick: cron.Tick) -> None: ...
"""


@pytest.fixture
def desk(terminal: Terminal, database_url: str) -> Terminal:
    """A terminal with two schedules that a worker has recorded, which has stopped since."""
    terminal.environment["REFOLD_DATABASE_URL"] = database_url
    _release(terminal, 2031)
    return terminal


def _release(terminal: Terminal, year: int) -> None:
    """Run a worker for a moment, with a schedule that begins in `year`."""
    start = f"__import__('datetime').datetime({year}, 1, 1, tzinfo=__import__('datetime').UTC)"
    terminal.write("reports.py", APP.replace("START", start))
    _run(terminal, "pass")


def _run(terminal: Terminal, what: str) -> None:
    program = f"from reports import app\nwith app:\n    {what}\n"
    subprocess.run(
        [sys.executable, "-c", program], cwd=terminal.folder, env=terminal.environment, check=True, timeout=60
    )


def test_the_examples_in_the_help_work_as_they_stand(desk: Terminal) -> None:
    assert isinstance(schedule, Group) and cli.get_command(None, "schedule") is not None  # type: ignore[arg-type]
    for command in schedule.commands.values():
        [line] = [line.strip() for line in (command.epilog or "").splitlines() if "refold " in line]
        said = desk.type(*shlex.split(line)[1:])
        assert (said.code, said.err) == (0, ""), line


def test_list_and_next_show_the_ticks_to_come(desk: Terminal) -> None:
    said = desk.type("schedule", "list")
    assert said.out.splitlines()[0].split() == ["SCHEDULE", "WHEN", "LAST", "NEXT", "OVERLAP", "MADE", "BY"]
    found = {info["name"]: info for info in desk.type("schedule", "list", "--json").json}
    assert found["report"]["next"] == ["2031-01-01T08:00:00.000000Z"]
    assert (found["sync/eu"]["when"], found["sync/eu"]["paused"], found["sync/eu"]["next"]) == (
        "every 90 min",
        True,
        [],
    )
    assert desk.type("schedule", "next", "report", "-n", "3").out.splitlines() == [
        "Wed 2031-01-01 09:00 CET   2031-01-01T08:00:00Z",
        "Thu 2031-01-02 09:00 CET   2031-01-02T08:00:00Z",
        "Fri 2031-01-03 09:00 CET   2031-01-03T08:00:00Z",
    ]
    assert len(desk.type("schedule", "next", "sync/eu", "--json").json) == 10


def test_pause_and_resume_say_what_they_changed(desk: Terminal) -> None:
    assert desk.type("schedule", "pause", "report", "--reason", "audit").out == "paused report\n"
    assert desk.type("schedule", "pause", "report").out == "report was paused already\n"
    [info] = [i for i in desk.type("schedule", "list", "--json").json if i["name"] == "report"]
    assert info["paused"] is True
    assert desk.type("schedule", "resume", "report").out.splitlines() == [
        "report goes on",
        "next   Wed 2031-01-01 09:00 CET",
    ]
    assert desk.type("schedule", "resume", "report", "--json").json["changed"] is False


def test_what_is_triggered_and_backfilled_is_run_by_the_next_worker(desk: Terminal) -> None:
    assert desk.type("schedule", "backfill", "report", "2031-01-01", "2031-01-03").out == (
        "started 0 workflows of report\n"
    ), "they are the schedule's own, when they come"
    _release(desk, 2025)
    said = desk.type("schedule", "trigger", "report")
    triggered = re.match(r"started (\S+)\nlook: {3}refold show \S+\n", said.out)
    assert triggered, said
    assert desk.type("schedule", "backfill", "report", "2025-01-01", "2025-01-03").out == (
        "started 3 workflows of report\n"
    )
    assert (
        desk.type("schedule", "backfill", "report", "2025-01-01", "2025-01-03", "--json").json["started"] == 0
    )
    ids = [triggered[1], *(f"cron:report:1:2025-01-0{day}T08:00:00Z" for day in (1, 2, 3))]
    _run(desk, f"[app.get(id).result(30) for id in {ids!r}]")
    results = [desk.type("show", id, "--json").json["history"][-1]["result"] for id in ids]
    assert results[1:] == ["Wednesday", "Thursday", "Friday"] and results[0].endswith(" by hand")


def test_what_is_wrong_is_said_in_words(desk: Terminal) -> None:
    said = desk.type("schedule", "pause", "repot")
    assert (said.code, said.err) == (1, "refold: there is no schedule 'repot'. Did you mean report?\n")
    said = desk.type("schedule", "backfill", "report", "yesterday", "2031-01-01")
    assert (said.code, said.err) == (
        2,
        "refold: START 'yesterday' is no time\n  expected an ISO time, like:  2026-11-01T09:00\n",
    )
