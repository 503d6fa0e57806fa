"""Who gets which workflow: claims, and what a death does to those that the dead worker had (rules 16 and 17)."""

import asyncio
from collections.abc import Callable
from typing import Any

import psycopg
import pytest

from fixtures.lanes import (
    BEGAN,
    FakeWorker,
    MakeWorker,
    Run,
    blocked_sessions,
    completed,
    end,
    message,
    new_workflow,
    parked,
    step_done,
)
from fixtures.workers import Log
from refold.eventlog._log import Append, HeadChange

Session = Callable[[], psycopg.Connection[Any]]

_CLAIM = "select workflow_id from refold.claim(%s, %s, %s, %s, %s, %s, %s, %s)"


def test_no_two_workers_are_given_the_same_workflow(
    worker: FakeWorker, make_worker: MakeWorker, log: Log, run: Run[Any]
) -> None:
    ids = [f"o-{number:03}" for number in range(300)]
    worker.start(*ids, owned=False)
    workers = [worker, *(make_worker(f"w{number}") for number in range(2, 6))]

    async def claim_all(worker: FakeWorker) -> list[str]:
        claimed: list[str] = []
        while rows := await worker.lane.run(_CLAIM, ["order"], ["v1"], 7, False):
            claimed += [row[0] for row in rows]
        return claimed

    async def main() -> list[list[str]]:
        return await asyncio.gather(*(claim_all(worker) for worker in workers))

    claimed = run(main())
    assert sorted(i for mine in claimed for i in mine) == ids
    assert sum(map(bool, claimed)) > 1, "one worker took all: nothing was shown"
    for worker, mine in zip(workers, claimed, strict=True):
        owned = log.rows("select workflow_id from refold.workflows where owner = %s", worker.name)
        assert sorted(row[0] for row in owned) == sorted(mine)


def test_a_claim_does_not_queue_behind_another(worker: FakeWorker, log: Log, session: Session) -> None:
    worker.start("o-1", "o-2", "o-3", owned=False)
    other = session()
    other.execute("select from refold.workflows where workflow_id = 'o-2' for update")
    assert worker.claim() == ["o-1", "o-3"]
    assert blocked_sessions(log) == 0


def test_what_waits_longest_is_claimed_first(worker: FakeWorker, log: Log) -> None:
    worker.start("o-1", "o-2", "o-3", owned=False)
    log.rows("update refold.workflows set due_at = due_at - interval '1 s' where workflow_id = 'o-2'")
    assert worker.claim(1) == ["o-2"]
    assert worker.claim(5) == ["o-1", "o-3"]


def test_what_is_not_due_is_not_claimed_and_the_tick_tells_when_it_will_be(
    worker: FakeWorker, log: Log
) -> None:
    worker.start("o-1")
    soon = log.one("select (extract(epoch from now()) * 1000000)::bigint") + 3_600_000_000
    worker.flush(Append("o-1", head=HeadChange("waiting", None, due_at=soon)))
    assert worker.claim() == []
    assert worker.tick() == {"now", "next"}


def test_a_worker_claims_only_names_that_it_has(worker: FakeWorker, log: Log) -> None:
    worker.start("o-1", owned=False, name="order")
    worker.start("r-1", owned=False, name="refund")
    assert worker.tick(["reminder"]) == {"now"}
    assert worker.claim(names=["reminder"]) == []
    assert worker.tick(["refund", "reminder"]) == {"now", "work"}
    assert worker.claim(names=["refund", "reminder"]) == ["r-1"]


def test_a_worker_without_workflows_claims_nothing(worker: FakeWorker) -> None:
    worker.start("o-1", owned=False)
    assert worker.claim(names=[]) == []
    assert worker.tick(names=[]) == {"now"}


def test_what_is_stuck_is_given_only_to_other_code(worker: FakeWorker, log: Log) -> None:
    worker.start("o-1")
    worker.flush(Append("o-1", head=HeadChange("stuck", None, due_at=BEGAN, fingerprint="v1")))
    assert worker.tick(code="v1") == {"now"}
    assert worker.claim(code="v1") == []
    assert worker.tick(code="v2") == {"now", "work"}
    assert worker.claim(code="v2") == ["o-1"]
    # Being claimed is not being healed; a head that says how it stands now is.
    worker.flush(Append("o-1", head=HeadChange("waiting", None)))
    assert log.rows("select status, fingerprint from refold.workflows") == [("waiting", None)]


@pytest.mark.parametrize("status", ["completed", "parked"])
def test_what_has_ended_or_is_parked_is_not_claimed_even_with_mail(
    worker: FakeWorker, log: Log, status: str
) -> None:
    worker.start("o-1")
    if status == "parked":
        worker.flush(Append("o-1", events=[parked(1)], head=HeadChange("parked", None)))
    else:
        worker.flush(Append("o-1", events=[completed(1)], head=end(1)))
    worker.flush(Append("@", messages=[message("o-1", "m-1")]))
    assert worker.claim() == []
    assert worker.tick() == {"now"}
    assert log.one("select count(*) from refold.inbox") == (1 if status == "parked" else 0)


def test_a_start_with_room_is_in_hand_at_once(worker: FakeWorker, make_worker: MakeWorker) -> None:
    worker.start("o-1")
    assert make_worker("w2").claim() == []


# The count of deaths: who is to blame.


def _suspicion(log: Log) -> list[tuple[Any, ...]]:
    return log.rows("select workflow_id, suspicion, alone_deaths from refold.workflows order by 1")


def _die(make_worker: MakeWorker, victim: FakeWorker) -> None:
    make_worker(f"witness-of-{victim.name}").declare_dead(victim)


def test_a_death_counts_only_against_workflows_that_made_no_progress(
    worker: FakeWorker, make_worker: MakeWorker, log: Log
) -> None:
    worker.start("moved", "stood", owned=False)
    worker.claim()
    worker.flush(Append("moved", events=[step_done(1)]))
    _die(make_worker, worker)
    assert _suspicion(log) == [("moved", 0, 0), ("stood", 1, 0)]
    assert log.rows("select distinct status, owner from refold.workflows") == [("pending", None)]


def test_any_progress_clears_of_suspicion(worker: FakeWorker, make_worker: MakeWorker, log: Log) -> None:
    worker.start("o-1", owned=False)
    worker.claim()
    _die(make_worker, worker)
    second = make_worker("w2")
    assert second.claim() == ["o-1"]
    second.flush(Append("o-1", events=[step_done(1)]))
    _die(make_worker, second)
    assert _suspicion(log) == [("o-1", 0, 0)]


def test_a_workflow_that_stood_still_in_three_deaths_is_only_given_out_alone(
    make_worker: MakeWorker, log: Log
) -> None:
    workers = [make_worker(f"w{number}") for number in range(4)]
    workers[0].start("o-1", owned=False)
    for worker in workers[:3]:
        assert worker.claim() == ["o-1"]
        _die(make_worker, worker)
    assert _suspicion(log) == [("o-1", 3, 0)]
    last = workers[3]
    assert last.tick() == {"now", "suspect", *_peers(last)}
    assert last.claim() == []
    last.start("o-2", owned=False)
    assert last.claim(alone=True) == ["o-1"], "and nothing with it"
    assert log.rows("select workflow_id from refold.workflows where alone") == [("o-1",)]


def _peers(worker: FakeWorker) -> set[str]:
    return worker.tick() & {"peer", "gone"}


def test_only_deaths_while_alone_count_towards_being_parked(make_worker: MakeWorker, log: Log) -> None:
    workers = [make_worker(f"w{number}") for number in range(6)]
    workers[0].start("o-1", owned=False)
    for number, worker in enumerate(workers):
        assert worker.claim(alone=number >= 3) == ["o-1"]
        _die(make_worker, worker)
    assert _suspicion(log) == [("o-1", 6, 3)]


def test_a_head_that_is_written_clears_of_suspicion(make_worker: MakeWorker, log: Log) -> None:
    first, second = make_worker("w1"), make_worker("w2")
    first.start("o-1", owned=False)
    first.claim()
    _die(make_worker, first)
    second.claim()
    second.flush(Append("o-1", head=HeadChange("waiting", None)))
    assert _suspicion(log) == [("o-1", 0, 0)]


def test_a_worker_that_gives_itself_up_blames_only_the_culprit(
    worker: FakeWorker, make_worker: MakeWorker, log: Log
) -> None:
    worker.start("culprit", "innocent", owned=False)
    worker.claim()
    log.rows("select refold.give_up('w1', 'culprit')")
    assert _suspicion(log) == [("culprit", 1, 0), ("innocent", 0, 0)]
    assert make_worker("w2").claim() == ["culprit", "innocent"]
    with pytest.raises(psycopg.Error, match="worker w1 was declared dead"):
        worker.tick()


def test_a_worker_that_leaves_in_order_takes_its_row_with_it(worker: FakeWorker, log: Log) -> None:
    log.rows("select refold.leave('w1')")
    assert log.rows("select * from refold.workers") == []


def test_children_in_a_flush_are_there_for_whoever_has_room(
    worker: FakeWorker, make_worker: MakeWorker
) -> None:
    worker.start("o-1")
    worker.flush(Append("o-1", events=[step_done(1)], starts=[new_workflow("o-1/0", parent="o-1")]))
    assert make_worker("w2").claim() == ["o-1/0"]
