"""A workflow that kills or blocks its worker is found out by counting, and its neighbours come to no harm (rule 17)."""

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from engine.programs import poison

from fixtures.workers import Log, Program, Programs, wait_for
from refold import App

PROGRAM = Path(poison.__file__)


@pytest.fixture
def client(database_url: str) -> Iterator[App]:
    """The program's app, in this process and without a worker: it starts and looks."""
    poison.app.database_url = database_url
    yield poison.app
    poison.app.close()


@pytest.mark.timeout(110)
@pytest.mark.usefixtures("client")
def test_poison_is_parked_after_its_count_and_innocent_neighbours_finish(
    log: Log, programs: Programs
) -> None:
    log.rows(poison.TABLES)
    innocents = [f"i{n}" for n in range(40)]
    for n, each in enumerate(innocents):
        poison.innocent.start(n, id=each)
    for n in range(3):
        poison.long_innocent.start(n, id=f"l{n}")
    poison.poison.start(id="poison")

    # Two workers, each started again as often as it dies, as a supervisor does it.
    workers: list[Program] = [programs.start(PROGRAM) for _ in range(2)]
    deaths = 0

    def supervise() -> bool:
        nonlocal deaths
        for place, worker in enumerate(workers):
            if not worker.running:
                deaths += 1
                assert worker.wait() == -signal.SIGKILL, worker.output
                workers[place] = programs.start(PROGRAM)
        return log.status("poison") == "parked"

    wait_for(supervise, "the poison is parked", 80)
    late = poison.innocent.start(7, id="late")
    for each in (*innocents, "l0", "l1", "l2", "late"):
        log.wait_status(each, "completed", 40)
    assert late.result(5) == 21

    tries = log.one("select count(*) from tries where key = 'poison/0'")
    # Three times in company, until it is a suspect; then alone, until that is proof.
    assert tries == deaths == 3 + 3
    parked = log.events("poison", "Parked")
    assert len(parked) == 1 and "while running it" in parked[0]["reason"]
    assert log.types("poison") == ["WorkflowStarted", "Parked"]
    assert log.one("select count(*) from refold.workflows where status = 'parked'") == 1
    for worker in workers:
        assert worker.running, worker.output
        worker.signal(signal.SIGTERM)
        assert worker.wait() == 0, worker.output


@pytest.mark.timeout(110)
@pytest.mark.usefixtures("client")
def test_code_that_blocks_its_worker_is_named_and_the_others_go_on_elsewhere(
    log: Log, programs: Programs, tmp_path: Path
) -> None:
    log.rows(poison.TABLES)
    end = tmp_path / "end"
    blocked = programs.start(PROGRAM, BLOCK=str(end))
    poison.blocker.start(id="blocker")
    for n in range(20):
        poison.innocent.start(n, id=f"i{n}")
    blocked.wait_output("workflow blocker has kept its worker busy")
    assert "in blocker" in blocked.output and "poison.py" in blocked.output, "the line is not named"
    free = programs.start(PROGRAM)
    for n in range(20):
        log.wait_status(f"i{n}", "completed")
    log.wait_status("blocker", "completed")
    assert log.events("blocker", "WorkflowCompleted")[0]["result"] == str(free.pid)
    suspicion = dict(log.rows("select workflow_id, suspicion from refold.workflows where suspicion > 0"))
    assert suspicion in ({}, {"blocker": 1}), "innocents came under suspicion"

    # Let go of, the process finds that its name is over, writes nothing, and works on under a new one.
    events = log.one("select count(*) from refold.events")
    end.touch()
    blocked.wait_output("was declared dead")
    assert log.one("select count(*) from refold.events") == events
    free.signal(signal.SIGTERM)
    assert free.wait() == 0, free.output
    poison.innocent.start(7, id="after")
    log.wait_status("after", "completed")
    assert log.one("select count(*) from refold.workers where worker like %s", f"%-{blocked.pid}-%") > 0
    blocked.signal(signal.SIGTERM)
    assert blocked.wait() == 0, blocked.output
