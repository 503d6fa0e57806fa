"""`refold dev` with neither Postgres nor Kafka on the machine."""

import time

import pytest

from fixtures.terminal import SHOP, Terminal
from fixtures.workers import wait_for
from refold.eventlog import embedded_postgres

ORDER = '{"id": "o-1", "amount": 5}'
SUMMARY = [
    "shop.py runs, ... s after its start. Ctrl-C ends all of it.",
    "database   embedded PostgreSQL ..., data in .refold/",
    "workflows  approval, broken, checkout",
    "try        refold start shop.py approval",
]


@pytest.fixture
def desk(terminal: Terminal) -> Terminal:
    """A terminal with a shop.py, and nothing else."""
    terminal.write("shop.py", SHOP)
    return terminal


@pytest.mark.timeout(180)
def test_dev_says_what_runs_shows_events_and_goes_on_where_it_was(desk: Terminal) -> None:
    began = time.monotonic()
    dev = desk.start("dev", "shop.py")
    dev.wait_for(SUMMARY)
    assert time.monotonic() - began < 10

    said = desk.type("start", "shop.py", "checkout", ORDER, "--id", "order-1", "--wait", "10", "--json")
    assert said.json["result"] == "receipt-o-1"
    dev.wait_for([*SUMMARY, "...order-1 ... started", "...step charge", '...completed -> "receipt-o-1"'])
    assert dev.interrupt() < 3

    again = desk.start("dev", "shop.py")
    again.wait_for(SUMMARY)
    listed = desk.type("list", "--json").json["workflows"]
    assert [(item["id"], item["status"]) for item in listed] == [("order-1", "completed")]
    assert again.interrupt() < 3


@pytest.mark.timeout(180)
def test_keep_leaves_the_embedded_postgres_up_and_the_next_run_takes_that_back(desk: Terminal) -> None:
    desk.start("dev", "shop.py", "--keep").wait_for(SUMMARY)
    first = _server(desk)
    desk.running[-1].interrupt()
    assert _server(desk) == first
    desk.start("dev", "shop.py").wait_for(SUMMARY)
    desk.running[-1].interrupt()
    assert _server(desk) != first


def _server(desk: Terminal) -> int:
    """The process number of the embedded server, which this starts if it is not up."""
    with embedded_postgres(desk.folder) as server:
        return server.pid


BUSY = """\
import threading

import refold

app = refold.App("busy")


@refold.step
def wait_for_ever() -> None:
    threading.Event().wait(60)


@app.workflow
def stubborn() -> None:
    wait_for_ever()
"""


@pytest.mark.timeout(180)
def test_ctrl_c_does_not_wait_for_a_step_that_goes_on(desk: Terminal) -> None:
    desk.write("busy.py", BUSY)
    dev = desk.start("dev", "busy.py")
    dev.wait_for(["busy.py runs, ... try refold start busy.py stubborn"])
    desk.type("start", "busy.py", "stubborn", "--id", "one")
    wait_for(lambda: desk.type("list", "--json").json["workflows"][0]["status"] == "running", "it runs")
    assert dev.interrupt() < 3
