"""Steps and workflows as definitions: names, options, IDs of starts, and what tells one release from another."""

import asyncio
import os
import subprocess
import sys
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import refold
from fixtures.driving import workflow
from refold.core._definitions import StepInfo, StepOptions, define_workflow, running_step


class Recording:
    """A runtime that keeps what it was asked to start."""

    def __init__(self) -> None:
        self.started: list[tuple[str, bytes, str | None]] = []

    def start(self, workflow: Any, input: bytes, digest: str, *, id: str | None) -> Any:
        self.started.append((workflow.name, input, id))
        return self

    async def astart(self, workflow: Any, input: bytes, digest: str, *, id: str | None) -> Any:
        return self.start(workflow, input, digest, id=id)

    def result(self, timeout: float | None = None) -> str:
        return "the result"

    async def aresult(self, timeout: float | None = None) -> str:
        return "the result"


def checkout(order: str, id: int = 0) -> str:
    return order


async def fulfil(order: str) -> str:
    return order


def test_a_start_outside_goes_to_the_app_with_its_id() -> None:
    app = Recording()
    checkout_, fulfil_ = define_workflow(checkout, app), define_workflow(fulfil, app)
    checkout_.start("a")
    checkout_.start("b", id="order-b")
    checkout_.options(id="order-c").start("c", id=5)
    asyncio.run(checkout_.astart("d", 7, id="order-d"))
    assert checkout_("e") == "the result"
    assert asyncio.run(fulfil_("f")) == "the result"
    assert fulfil_.call("g") == "the result"
    assert app.started == [
        ("checkout", b'{"order":"a","id":0}', None),
        ("checkout", b'{"order":"b","id":0}', "order-b"),
        ("checkout", b'{"order":"c","id":5}', "order-c"),
        ("checkout", b'{"order":"d","id":7}', "order-d"),
        ("checkout", b'{"order":"e","id":0}', None),
        ("fulfil", b'{"order":"f"}', None),
        ("fulfil", b'{"order":"g"}', None),
    ]


def test_a_workflow_started_inside_a_step_has_the_same_id_on_each_try() -> None:
    app = Recording()
    checkout_ = define_workflow(checkout, app)
    for attempt in (1, 2):
        with running_step(StepInfo("wf-1", "begin", 4, attempt)):
            assert refold.step_info().idempotency_key == "wf-1/4"
            checkout_.start("a")
            checkout_.start("b")
            checkout_.start("c", id="mine")
    ids = [id for _, _, id in app.started]
    assert ids == ["wf-1/4/checkout/0", "wf-1/4/checkout/1", "mine"] * 2


def test_a_step_inside_a_step_is_a_plain_call() -> None:
    @refold.step
    def inner(n: int) -> int:
        return n + 1

    with running_step(StepInfo("wf-1", "outer", 0, 1)):
        assert inner(1) == 2


def test_a_step_looks_like_its_function() -> None:
    @refold.step(name="kept-name")
    def charge(order: str) -> str:
        """Charge it."""
        return order

    assert (charge.name, charge.__name__, charge.__doc__, repr(charge)) == (
        "kept-name",
        "charge",
        "Charge it.",
        "<step 'kept-name'>",
    )
    assert not charge.is_async


@given(st.integers(1, 2_000), st.floats(0, 1, exclude_max=True))
def test_a_retry_waits_longer_each_time_and_never_longer_than_the_most(failures: int, draw: float) -> None:
    options = StepOptions(
        retry_delay=timedelta(seconds=1), backoff=2, max_delay=timedelta(hours=1), jitter=0.2
    )
    delay = options.delay(failures, draw)
    whole = min(2.0 ** min(failures - 1, 60), 3600)
    assert timedelta(seconds=whole * 0.8) <= delay <= timedelta(seconds=whole)
    assert options.delay(failures + 1, draw) >= delay


PROGRAM = """
import refold
from refold.core._definitions import define_workflow
LIMIT = {"b", "a", "c", "d"}

class Order:
    amount: %(amount)s

def helper(n):
    return %(helper)s

@refold.step
def charge(n: int) -> int:
    return helper(n)

def main(n: int) -> int:
    # %(comment)s
    if "x" in {"b", "a", "c", "d"}:
        return 0
    order = Order()
    return charge(n)

print(define_workflow(main, None).fingerprint)
"""


def fingerprint(tmp_path: Path, hash_seed: int = 0, **changes: str) -> str:
    program = tmp_path / "program.py"
    program.write_text(PROGRAM % {"amount": "int", "helper": "n + 1", "comment": "", **changes})
    done = subprocess.run(
        [sys.executable, str(program)],
        env={**os.environ, "PYTHONHASHSEED": str(hash_seed), "PYTHONPATH": os.pathsep.join(sys.path[1:])},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_fingerprint_changes_with_all_that_the_workflow_uses_and_with_nothing_else(tmp_path: Path) -> None:
    first = fingerprint(tmp_path)
    assert fingerprint(tmp_path, hash_seed=1) == first
    assert fingerprint(tmp_path, comment="said otherwise") == first
    assert fingerprint(tmp_path, helper="n + 2") != first
    assert fingerprint(tmp_path, amount="float") != first


def test_hints_written_as_text_are_found_where_the_function_stands() -> None:
    class Local:
        pass

    make: Callable[..., Any] = workflow
    with pytest.raises(refold.DefinitionRefused, match="msgspec cannot decode Local"):

        @make
        def take(local: "Local") -> None: ...
