"""Fifty branches, killed at random points, are finished by a process with other hashes as if nothing had been."""

import random
import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from engine.programs import branches
from engine.programs.branches import BRANCHES

from fixtures.workers import Log, Programs, wait_for

PROGRAM = Path(branches.__file__)
STEPS = 3 * BRANCHES
UNDISTURBED = [((7 + n) * 7 + n + 1) * 7 + n + 2 for n in range(BRANCHES)]


def completed_branches(log: Log, workflow_id: str) -> list[int]:
    """Return the branches whose last step is in the log, in its order."""
    return [
        event["args"]["branch"]
        for event in log.events(workflow_id, "StepCompleted")
        if event["args"]["stage"] == 2
    ]


@pytest.mark.timeout(110)
def test_branches_killed_at_random_points_end_as_if_nothing_had_been(log: Log, programs: Programs) -> None:
    choice = random.Random(50)
    kinds = {f"{kind}-{n}": kind for n in range(10) for kind in ("gathered", "ordered")}

    def kill_one(workflow_id: str) -> int:
        die_at = choice.randint(1, STEPS)
        seed = str(choice.randint(1, 4_000_000_000))
        return programs.start(
            PROGRAM, workflow_id, kinds[workflow_id], str(die_at), PYTHONHASHSEED=seed
        ).wait()

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(kill_one, kinds)) == [-signal.SIGKILL] * len(kinds)
    # The victims take over one another's branches while they live; whatever happened, it is in the log.
    before = {each: completed_branches(log, each) for each in kinds}
    assert sum(0 < len(log.events(each, "StepCompleted")) < STEPS for each in kinds) >= 10, "few were hit"

    heir = programs.start(PROGRAM, PYTHONHASHSEED="4294967295")
    wait_for(
        lambda: (
            log.one("select count(*) from refold.workflows where finished_at is null and status <> 'stuck'")
            == 0
        ),
        "all have ended",
        60,
    )
    assert log.rows("select workflow_id from refold.workflows where status <> 'completed'") == []
    for each, kind in kinds.items():
        result = log.events(each, "WorkflowCompleted")[0]["result"]
        if kind == "gathered":
            assert result == UNDISTURBED
        else:
            assert sorted(result) == list(range(BRANCHES))
            assert result[: len(before[each])] == before[each], "the past was rewritten"
            assert result == completed_branches(log, each)
    heir.signal(signal.SIGTERM)
    assert heir.wait() == 0, heir.output
