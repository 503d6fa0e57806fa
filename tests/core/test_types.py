"""What a type checker says of users' code: api.md's calls pass as typed (typed_use.py), wrong ones are refused."""

from pathlib import Path

import mypy.api
import pytest

TYPED_USE = Path(__file__).parent / "typed_use.py"
ROOT = Path(__file__).parents[2]

PRELUDE = """
import asyncio
from datetime import timedelta
import psycopg
import refold
from refold.core._definitions import Runtime, define_workflow

@refold.step
def charge(order: str) -> str:
    return order

@refold.step
async def ship(order: str) -> int:
    return 1

@refold.step(transaction=True)
def book(conn: psycopg.Connection, order: str) -> None: ...

def _checkout(order: str) -> str:
    return order

async def _fulfil(order: str) -> str:
    return order

def main(app: Runtime) -> None:
    checkout = define_workflow(_checkout, app)
    fulfil = define_workflow(_fulfil, app)
"""

WRONG = {
    "charge(5)": "arg-type",
    "n1: int = charge('x')": "assignment",
    "charge()": "call-arg",
    "n2: int = ship('x')": "assignment",
    "book(5)": "arg-type",
    "book()": "call-arg",
    "refold.gather(charge('x'), charge('y'))": "call-overload",
    "one, two = refold.gather(charge.later('x'), ship.later('y'), charge.later('z'))": "misc",
    "n3: str = refold.recv('topic', bool)": "assignment",
    "refold.step(retries='5')": "call-overload",
    "refold.recv('topic', bool, 5)": "call-overload",
    "checkout(5)": "arg-type",
    "n4: int = checkout('x')": "assignment",
    "n5: int = checkout.start('x').result()": "assignment",
    "checkout.start(5)": "call-overload",
    "checkout.start(5, id='x')": "call-overload",
    "checkout.start('x', id=5)": "call-overload",
    "fulfil.start(5, id='x')": "call-overload",
    "fulfil('x').upper()": "attr-defined",
    "fulfil.call('x').real": "attr-defined",
    "refold.step(transaction=True)(_checkout)": "arg-type",
}


@pytest.mark.timeout(300)  # a cold cache reads psycopg and all of typeshed
def test_wrong_uses_are_refused_and_right_ones_pass(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = tmp_path / "wrong.py"
    wrong.write_text(PRELUDE + "".join(f"    {line}\n" for line in WRONG))
    first = PRELUDE.count("\n") + 1
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("MYPYPATH", str(ROOT / "src"))
    out, err, _ = mypy.api.run(
        ["--strict", "--no-error-summary", "--hide-error-context", "--no-pretty", str(TYPED_USE), str(wrong)]
    )
    assert err == ""
    found: dict[int, list[str]] = {}
    for line in out.splitlines():
        path, number, kind, message = (part.strip() for part in line.split(":", 3))
        if kind == "error":
            assert path.endswith("wrong.py"), line
            found.setdefault(int(number), []).append(message)
    said = {line: found.get(first + index, []) for index, line in enumerate(WRONG)}
    assert {line for line, code in WRONG.items() if code not in " ".join(said[line])} == set(), said
