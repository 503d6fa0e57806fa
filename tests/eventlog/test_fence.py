"""A worker that was declared dead writes nothing more: every transaction passes the fence (rule 1, invariant 3)."""

import asyncio
from collections.abc import Callable
from typing import Any

import psycopg
import pytest

from fixtures.lanes import (
    FakeWorker,
    MakeWorker,
    Run,
    blocked_sessions,
    completed,
    contents,
    end,
    message,
    new_workflow,
    position_moved,
    step_done,
)
from fixtures.workers import Log, wait_for
from refold.eventlog import rebuild
from refold.eventlog._errors import Fenced
from refold.eventlog._log import Append, HeadChange, Lane
from refold.eventlog._transactions import TransactionLane

Session = Callable[[], psycopg.Connection[Any]]

_EVERY_KIND_OF_ROW = {
    "an event": Append("o-1", events=[step_done(1)]),
    "an end": Append("o-1", events=[completed(1)], head=end(1)),
    "a wait, without an event": Append("o-1", head=HeadChange("waiting", None)),
    "a start": Append("+o-2", starts=[new_workflow("o-2", owner="w1")]),
    "a message": Append("@", messages=[message("o-1", "m-2")]),
    "a folded message": Append("o-1", folded=["m-1"]),
    "a position": position_moved("shop", 0),
    "nothing": Append("o-1"),
}


@pytest.mark.raises_error("Fenced")
@pytest.mark.parametrize("kind", _EVERY_KIND_OF_ROW)
def test_a_dead_worker_is_refused_as_a_whole(
    worker: FakeWorker, make_worker: MakeWorker, log: Log, kind: str
) -> None:
    worker.start("o-1")
    worker.flush(Append("@", messages=[message("o-1", "m-1")]))
    assert make_worker("w2").declare_dead(worker) == 1
    before = contents(log)

    with pytest.raises(Fenced) as caught:
        worker.flush(_EVERY_KIND_OF_ROW[kind])

    assert str(caught.value) == (
        "worker w1 was declared dead by another one (its heartbeat stood still); its workflows go on elsewhere and "
        "nothing more of it is written. It starts again as a new worker."
    )
    assert contents(log) == before


def test_a_dead_worker_claims_nothing_and_does_not_beat(
    worker: FakeWorker, make_worker: MakeWorker, log: Log
) -> None:
    worker.start("o-1", owned=False)
    make_worker("w2").declare_dead(worker)
    with pytest.raises(Fenced):
        worker.claim()
    with pytest.raises(psycopg.Error, match="worker w1 was declared dead"):
        worker.tick()
    assert log.owner("o-1") is None


def test_a_flush_on_its_way_when_its_worker_is_declared_dead_is_whole_or_nothing(
    worker: FakeWorker, make_worker: MakeWorker, log: Log, run: Run[Any], session: Session
) -> None:
    """Whoever takes the worker's row first wins; the other one waits for it and then knows."""
    worker.start("o-1")
    other = make_worker("w2")
    between = session()
    between.execute("select from refold.workers where worker = 'w1' and lane = 'executor' for update")

    async def main() -> Any:
        flush = asyncio.ensure_future(worker.lane.flush([Append("o-1", events=[completed(1)], head=end(1))]))
        await asyncio.to_thread(wait_for, lambda: blocked_sessions(log) == 1, "the flush waits at the fence")
        dying = asyncio.ensure_future(asyncio.to_thread(other.declare_dead, worker))
        await asyncio.to_thread(wait_for, lambda: blocked_sessions(log) == 2, "the death waits behind it")
        between.rollback()
        freed = await dying
        return freed, (await asyncio.gather(flush, return_exceptions=True))[0]

    freed, outcome = run(main())
    if isinstance(outcome, Fenced):
        assert (freed, log.types("o-1")) == (1, ["WorkflowStarted"])
    else:
        assert (freed, log.status("o-1")) == (0, "completed")


def test_a_flush_number_passes_the_fence_once(worker: FakeWorker, log: Log, run: Run[Any]) -> None:
    """A copy of a flush can hang in a broken line, and arrive after the flush was sent again."""
    worker.start("o-1")
    number = log.one("select flush_no from refold.workers where worker = 'w1' and lane = 'executor'")
    fence = (worker.name, "executor", worker.lane.epoch)
    log.rows("select refold.fence(%s, %s, %s, %s)", *fence, number + 1)
    for late in (number + 1, number):
        with pytest.raises(psycopg.Error, match=f"flush {late} of worker w1 was committed before"):
            log.rows("select refold.fence(%s, %s, %s, %s)", *fence, late)


def test_a_flush_that_finds_its_number_committed_counts_as_done(
    worker: FakeWorker, log: Log, run: Run[Any]
) -> None:
    """The copy that hung in the line came first."""
    worker.start("o-1")
    number = log.one("select flush_no from refold.workers where worker = 'w1' and lane = 'executor'")
    log.rows("select refold.fence(%s, %s, %s, %s)", worker.name, "executor", worker.lane.epoch, number + 1)
    assert worker.flush(Append("o-1", events=[step_done(1)])).refused == {}
    assert worker.flush(Append("o-1", events=[step_done(1)])).refused == {}  # the next one is written again
    assert log.types("o-1") == ["WorkflowStarted", "StepCompleted"]


def test_a_worker_that_is_being_declared_dead_enters_no_new_lane(
    worker: FakeWorker, make_worker: MakeWorker, log: Log, run: Run[Any], session: Session
) -> None:
    """Such a lane would be missing among those that are fenced off, and its writer alive for ever."""
    other = make_worker("w2")
    dying = session()
    dying.execute("select refold.declare_dead('w2', %s, 'w1', %s)", (other.epoch, worker.beat))
    late = Lane(worker.url, "w1", "kafka")

    async def main() -> None:
        entering = asyncio.ensure_future(late.register())
        await asyncio.to_thread(wait_for, lambda: blocked_sessions(log) == 1, "the lane waits for the death")
        dying.commit()
        try:
            await entering
        finally:
            await late.close()

    with pytest.raises(Fenced):
        run(main())
    assert log.one("select count(*) from refold.workers where lane = 'kafka'") == 0


def test_a_worker_whose_rows_are_gone_enters_no_new_lane(worker: FakeWorker, log: Log, run: Run[Any]) -> None:
    """As after an hour of being dead, or a rebuild."""
    log.rows("delete from refold.workers")
    late = Lane(worker.url, "w1", "kafka")
    with pytest.raises(Fenced):
        run(late.register())
    run(late.close())


def test_a_lane_may_enter_again_and_what_it_sent_before_is_refused(
    worker: FakeWorker, log: Log, run: Run[Any]
) -> None:
    """The answer to the first try may have got lost."""
    worker.start("o-1")
    first = worker.lane.epoch
    run(worker.lane.register())
    assert worker.lane.epoch > first
    with pytest.raises(psycopg.Error, match="worker w1 was declared dead"):
        log.rows("select refold.fence('w1', 'executor', %s, 100)", first)
    worker.flush(Append("o-1", events=[step_done(1)]))


def test_no_epoch_of_before_a_rebuild_is_ever_valid_again(
    worker: FakeWorker, make_worker: MakeWorker, database_url: str, log: Log
) -> None:
    worker.start("o-1")
    log.rows("update refold.workers set dead_at = clock_timestamp()")  # nobody to wait for
    rebuild(database_url)
    before = contents(log)
    for _ in range(5):  # new workers come, and one that even has the old one's name
        again = make_worker("w1" if _ == 4 else f"new-{_}")
        assert again.epoch > worker.epoch
        with pytest.raises(Fenced):
            worker.flush(Append("o-1", events=[step_done(1)]))
    assert contents(log) == before


def test_a_dead_worker_s_transactional_step_is_rolled_back_with_the_user_s_sql(
    worker: FakeWorker, make_worker: MakeWorker, log: Log
) -> None:
    worker.start("o-1")
    log.rows("create table seats (taken_by text)")
    lane = TransactionLane(worker.url, "w1", "transaction-1", 5_000)
    other = make_worker("w2")

    def work(connection: psycopg.Connection[Any]) -> Any:
        connection.execute("insert into seats values ('o-1')")
        other.sql.execute("select refold.declare_dead('w2', %s, 'w1', %s)", (other.epoch, worker.beat))
        return "o-1", step_done(1)

    with pytest.raises(Fenced):
        lane.commit(work)
    lane.close()
    assert log.rows("select * from seats") == []
    assert log.types("o-1") == ["WorkflowStarted"]


@pytest.mark.parametrize("fenced", [True, False], ids=["a worker", "a client"])
def test_what_is_said_to_be_durable_is_where_the_database_turned_that_off(
    make_worker: MakeWorker, log: Log, database_name: str, run: Run[Any], fenced: bool
) -> None:
    """synchronous_commit = off as the default of a role or database would turn "durable on return" into a lie."""
    log.rows(f'alter database "{database_name}" set synchronous_commit = off')  # pyright: ignore[reportArgumentType]
    log.rows("create table seen (setting text)")
    log.rows(
        "create function look() returns trigger language plpgsql as"
        " $$ begin insert into seen values (current_setting('synchronous_commit')); return new; end $$"
    )
    log.rows("create trigger look after insert on refold.events for each row execute function look()")
    if fenced:
        make_worker("w1").start("o-1")
    else:
        from refold.eventlog._connect import connect
        from refold.eventlog._log import write_unfenced

        async def main() -> None:
            connection = await connect(log.url)
            await write_unfenced(connection, [Append("+o-1", starts=[new_workflow("o-1")])])
            await connection.close()

        run(main())
    assert log.rows("select * from seen") == [("on",)]
