"""What one process recorded, another replays: with other hashes of text, and other addresses of everything.

A replay in the same process cannot see an order that comes from hashes or addresses.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from fixtures.constructs import CONSTRUCTS, differences

TESTS = Path(__file__).parents[1]
# Python 3.12 wrote `asyncio.wait_for` anew: it makes no task any more, so commands inside are numbered differently.
OTHER_PYTHON = ".py312.json" if sys.version_info < (3, 12) else ".py311.json"
GOLDEN = [p for p in (Path(__file__).parent / "golden").glob("*.json") if not p.name.endswith(OTHER_PYTHON)]


def run(*args: str, hash_seed: int, stdin: str | None = None) -> str:
    """Run the recorder in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-m", "fixtures.constructs", *args],
        cwd=TESTS,
        env={
            **os.environ,
            "PYTHONHASHSEED": str(hash_seed),
            "PYTHONPATH": os.pathsep.join([str(TESTS), *sys.path[1:]]),
        },
        input=stdin,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_every_construct_replays_in_a_process_with_another_hash_seed(seed: int) -> None:
    recorded = run("record", str(seed), hash_seed=seed)
    assert len(json.loads(recorded)) == len(CONSTRUCTS)
    assert json.loads(run("replay", hash_seed=seed + 100, stdin=recorded)) == []


def test_two_processes_record_the_same_history() -> None:
    assert run("record", "9", hash_seed=11) == run("record", "9", hash_seed=12)


@pytest.mark.parametrize("path", sorted(GOLDEN), ids=lambda p: p.stem)
def test_a_golden_history_replays_for_ever(path: Path) -> None:
    assert differences(json.loads(path.read_text())) == []


def test_there_is_a_golden_history_of_every_construct() -> None:
    """New behaviour adds a file; none is ever edited. `python -m fixtures.constructs record 0` writes what goes in."""
    kept = {json.loads(path.read_text())["workflow"] for path in GOLDEN}
    assert sorted(set(CONSTRUCTS) - kept) == []
