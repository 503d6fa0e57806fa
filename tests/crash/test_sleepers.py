"""A hundred thousand workflows asleep in one worker."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.long
@pytest.mark.timeout(600)
def test_a_hundred_thousand_sleepers_cost_few_threads_and_little_memory_and_wake_in_time() -> None:
    run = subprocess.run([sys.executable, "-m", "bench.sleepers"], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
    assert json.loads(run.stdout)["completed"] == 100_000
