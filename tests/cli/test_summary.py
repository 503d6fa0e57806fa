"""What `refold dev`, `refold worker` and `refold sources` say of connectors, whatever they are."""

import json
import os
import subprocess
import sys

import pytest

import refold
from fixtures.terminal import Terminal
from fixtures.workers import wait_for
from refold import App
from refold.core import Start

BEADS = '''\
"""A connector for beads on a string, as a third party could have written it."""

import refold
from refold.core import Move, SourceReport, Start

app = refold.App("beads")


@app.workflow
def on_bead(colour: str) -> str:
    return colour


class Beads:
    name = "beads"
    kind = "string"

    def start(self, app):
        lane = app.lane("beads")
        source = "beads:string"
        at = lane.read_positions([source]).result()[source]
        starts = [Start(on_bead, "beads:0", b\'{"colour": "red"}\'), Start(on_bead, "beads:1", b\'{"colour": "blue"}\')]
        lane.hand_over([Move(at, b\'{"next": 2, "knots": []}\', "beads", starts)]).result()

    def stop(self):
        pass

    def describe(self):
        return ["beads: the string on the desk"]

    def report(self):
        return [SourceReport("beads:string", "beads", "bead 2")]

    def try_next(self):
        return ["echo red >>string"]


app.connect(Beads())
'''


@pytest.fixture
def desk(terminal: Terminal, database_url: str) -> Terminal:
    """A terminal with the app above and a database."""
    terminal.write("beads.py", BEADS)
    terminal.environment["REFOLD_DATABASE_URL"] = database_url
    return terminal


def test_dev_and_worker_show_what_is_consumed_and_what_to_try(desk: Terminal) -> None:
    lines = ["string     beads: the string on the desk", "try        echo red >>string"]
    dev = desk.start("dev", "beads.py")
    dev.wait_for(["beads.py runs, ... workflows  on_bead", *lines])
    dev.interrupt()
    worker = desk.start("worker", "beads.py")
    worker.wait_for(["worker of beads: on_bead. Ctrl-C stops it. ...", *lines])
    worker.interrupt()


def test_a_worker_says_the_same_as_json(desk: Terminal) -> None:
    worker = desk.start("worker", "beads.py", "--json")
    worker.wait_for(["{", "...", "}"])
    worker.interrupt()
    assert json.loads(worker.output[worker.output.index("{") : worker.output.rindex("}") + 1]) == {
        "app": "beads",
        "workflows": ["on_bead"],
        "connectors": [
            {
                "kind": "string",
                "name": "beads",
                "text": ["beads: the string on the desk"],
                "try": ["echo red >>string"],
            }
        ],
    }


def test_a_connector_that_cannot_describe_itself_does_not_keep_the_app_from_running(desk: Terminal) -> None:
    desk.write("beads.py", BEADS.replace('return ["beads: the string on the desk"]', "return 1 / 0"))
    worker = desk.start("worker", "beads.py")
    worker.wait_for(
        ["worker of beads: ...", "string     beads: ZeroDivisionError: division by zero", "try ..."]
    )
    worker.interrupt()


LONG = """
from refold.core.cli._summary import print_lines

print_lines([("schedule", "report: next " + ", ".join(["Mon 23 Nov 09:00"] * 5)), ("try", "echo " + "x " * 60)])
"""


def test_on_a_terminal_what_is_too_long_goes_on_in_its_column_and_what_is_to_be_typed_stays_whole() -> None:
    reading, writing = os.openpty()
    subprocess.run(
        [sys.executable, "-c", LONG],
        stdout=writing,
        env={**os.environ, "COLUMNS": "80"},
        timeout=60,
        check=True,
    )
    os.close(writing)
    shown = os.read(reading, 10_000).decode().replace("\x1b[36m", "").replace("\x1b[0m", "")
    os.close(reading)
    first, second, *_, typed = shown.splitlines()
    assert first.startswith("  schedule   report: next Mon 23 Nov") and len(first) <= 80
    assert second.startswith(" " * 13) and second[13] != " "
    assert typed.split() == ["try", "echo", *["x"] * 60]


def test_sources_of_any_connector_are_listed(desk: Terminal) -> None:
    assert desk.type("sources").out == "no sources yet\n"
    dev = desk.start("dev", "beads.py")
    dev.wait_for(["beads.py runs, ...", "...completed", "...completed"])
    dev.interrupt()
    heading, row = desk.type("sources").out.splitlines()
    assert heading.split() == ["SOURCE", "LABEL", "POSITION", "IN", "FLIGHT", "HANDED", "OVER"]
    assert row.split()[:-1] == ["beads:string", "beads", "next", "2", "0"]
    desk.write(
        "beads.py", BEADS.replace('"knots": []', f'"knots": ["{"k" * 300}"]').replace("string", "tassel")
    )
    dev = desk.start("dev", "beads.py")
    dev.wait_for(["beads.py runs, ...", "try ..."])
    dev.interrupt()
    _, _, long = desk.type("sources").out.splitlines()
    assert long.startswith("beads:tassel  ") and len(long) <= 160  # the position is what may be cut
    found, _ = desk.type("sources", "--json").json
    assert {key: value for key, value in found.items() if key != "handed_over_at"} == {
        "source": "beads:string",
        "label": "beads",
        "position": {"next": 2, "knots": []},
        "in_flight": {},
    }
    assert desk.type("sources", "other:").out == "no sources like that: other:\n"


def test_what_is_in_flight_is_counted_also_for_sources_without_a_position(
    desk: Terminal, database_url: str
) -> None:
    with App("beads", database_url=database_url) as app:

        @app.workflow
        def on_ring(key: str) -> bool:
            return refold.recv("approval", bool)

        app.accept([Start(on_ring, f"bell:{n}", b'{"key": "x"}') for n in range(3)], label="bell")
        wait_for(lambda: app.in_flight() == {"bell": {"waiting": 3}}, "all three wait")
    _, row = desk.type("sources").out.splitlines()
    assert row.split() == ["-", "bell", "-", "3", "-"]
    assert desk.type("sources", "--json").json == [
        {
            "source": None,
            "label": "bell",
            "position": None,
            "in_flight": {"waiting": 3},
            "handed_over_at": None,
        }
    ]
