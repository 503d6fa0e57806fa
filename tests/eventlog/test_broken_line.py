"""What became of a commit in a broken line is found out, never guessed (rule 11)."""

import asyncio
import random
import threading
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
    position_moved,
    step_done,
)
from fixtures.proxy import CutProxy, Direction
from fixtures.workers import Log, wait_for
from refold.eventlog._errors import Fenced, StaleWriter
from refold.eventlog._log import UNKNOWN, Append, Flushed, HeadChange
from refold.eventlog._read import Reader
from refold.eventlog._transactions import (
    AsyncTransactionLane,
    LineBroke,
    TransactionLane,
    is_worth_another_try,
)

Session = Callable[[], psycopg.Connection[Any]]

CUTS = 200

# The primary keys keep most rows from being there twice. What has none is counted here: each change of a head.
_AUDIT = """
    create table changes (workflow_id text, due_at timestamptz);
    create function note_change() returns trigger language plpgsql as $$
    begin
        insert into changes values (new.workflow_id, new.due_at);
        return new;
    end $$;
    create trigger note_change after update on refold.workflows for each row execute function note_change();
"""


def test_however_the_line_breaks_each_append_is_done_or_not_done_and_never_twice(
    make_worker: MakeWorker, cut_proxy: CutProxy, log: Log, run: Run[Any]
) -> None:
    """Cut at 200 random moments of a commit, a moment being a byte of either direction."""
    log.rows(_AUDIT)  # pyright: ignore[reportArgumentType]
    other = make_worker("w2")
    worker = make_worker("w1", cut_proxy.url)
    worker.start("o-1", "o-stale", "o-head")
    chance = random.Random(11)
    size = _bytes_of_a_flush(worker, cut_proxy)
    told: dict[str, bool] = {}
    unknown = 0

    async def main() -> None:
        nonlocal unknown
        cut = 0
        number = 0
        theirs = 1
        while cut < CUTS:
            number += 1
            if number % 3 == 0:  # somebody else is first with the stale one's next event
                await other.lane.flush([Append("o-stale", events=[step_done(theirs)])])
                theirs += 1
            if chance.random() < 0.8:  # else the line is made within the moments in question
                await worker.lane.flush([])
            direction = chance.choice(list(Direction))
            cut_proxy.cut_after(
                chance.randrange(size[direction]), direction, server_learns=chance.random() < 0.7
            )
            flushed: Flushed = await worker.lane.flush(
                [
                    Append("o-1", events=[step_done(number)], messages=[message("o-2", f"m-{number}")]),
                    Append("o-stale", events=[step_done(1 if number < 3 else theirs - 1)])
                    if number % 3 == 0
                    else Append("o-idle"),
                    Append("o-head", head=HeadChange("running", "w1", due_at=BEGAN + number)),
                    Append(f"+s-{number}", starts=[new_workflow(f"s-{number}")]),
                    position_moved("shop", number - 1, str(number).encode()),
                ]
            )
            cut = cut_proxy.cuts
            told[f"o-1/{number}"] = "o-1" not in flushed.refused
            told[f"stale/{number}"] = "o-stale" not in flushed.refused
            assert all(isinstance(error, StaleWriter) for error in flushed.refused.values())
            assert flushed.existing <= {UNKNOWN}
            unknown += UNKNOWN in flushed.existing
        told["flushes"] = bool(number)

    run(main())
    flushes = sum(key.startswith("o-1/") for key in told)
    assert all(done for key, done in told.items() if key.startswith("o-1/"))
    assert all(
        done is (int(key.removeprefix("stale/")) % 3 != 0)
        for key, done in told.items()
        if key.startswith("stale/")
    )
    events = [event["no"] for event in log.events("o-1", "StepCompleted")]
    assert events == list(range(flushes))
    assert log.one("select count(*) from refold.inbox") == flushes
    assert log.one("select count(*) from refold.workflows where workflow_id like 's-%%'") == flushes
    assert log.rows("select next_seq, position from refold.positions") == [(flushes, str(flushes).encode())]
    changes = log.rows(
        "select due_at, count(*) from changes where workflow_id = 'o-head' group by 1 having count(*) > 1"
    )
    assert changes == [], "a flush was committed twice"
    assert log.one("select count(*) from changes where workflow_id = 'o-head'") == flushes
    # The moments were not all of one kind: some commits were done and nobody heard, others were not.
    assert 20 < unknown < CUTS - 20
    worker.close()


def _bytes_of_a_flush(worker: FakeWorker, proxy: CutProxy) -> dict[Direction, int]:
    """Return how many bytes go which way in a flush like those that will be cut."""
    before = dict(proxy.passed)
    worker.flush(Append("o-idle", messages=[message("o-2", "m-0")]), Append("o-head"))
    worker.sql.execute("delete from refold.inbox")
    return {direction: proxy.passed[direction] - before[direction] for direction in Direction}


def test_a_commit_that_takes_place_after_the_client_gave_up_is_waited_for(
    make_worker: MakeWorker, cut_proxy: CutProxy, log: Log, run: Run[Any], session: Session
) -> None:
    """The old backend is still at it: reading back at once would see nothing, and then it appears."""
    worker = make_worker("w1", cut_proxy.url)
    worker.start("o-1")
    holder = session()
    holder.execute("lock table refold.inbox in exclusive mode")

    async def main() -> Flushed:
        flush = asyncio.ensure_future(
            worker.lane.flush([Append("o-1", events=[step_done(1)], messages=[message("o-2", "m")])])
        )
        await asyncio.to_thread(wait_for, lambda: blocked_sessions(log) == 1, "the commit hangs on a lock")
        await asyncio.to_thread(lambda: cut_proxy.cut(server_learns=False))
        await asyncio.to_thread(
            wait_for, lambda: blocked_sessions(log) == 2, "the new line waits for the old"
        )
        assert log.types("o-1") == ["WorkflowStarted"]
        holder.rollback()
        return await flush

    flushed = run(main())
    assert (flushed.refused, flushed.existing) == ({}, {UNKNOWN})
    assert log.types("o-1") == ["WorkflowStarted", "StepCompleted"]
    assert log.one("select count(*) from refold.inbox") == 1
    worker.close()


def test_two_writers_of_identical_rows_do_not_both_believe_that_they_won(
    make_worker: MakeWorker, cut_proxy: CutProxy, run: Run[Any]
) -> None:
    """Two that replay the same code write the same bytes, so what is found there proves nothing."""
    worker = make_worker("w1", cut_proxy.url)
    worker.start("o-1")
    make_worker("w2").flush(Append("o-1", events=[step_done(1)]))
    cut_proxy.cut_after(0, Direction.TO_CLIENT)
    assert isinstance(worker.flush(Append("o-1", events=[step_done(1)])).refused["o-1"], StaleWriter)
    assert cut_proxy.cuts == 1
    worker.close()


def test_a_worker_declared_dead_while_its_line_was_broken_is_fenced(
    make_worker: MakeWorker, cut_proxy: CutProxy, log: Log, run: Run[Any]
) -> None:
    worker = make_worker("w1", cut_proxy.url)
    other = make_worker("w2")
    worker.start("o-1")

    async def main() -> Any:
        cut_proxy.hold(Direction.TO_CLIENT)
        flush = asyncio.ensure_future(worker.lane.flush([Append("o-1", events=[step_done(1)])]))
        await asyncio.to_thread(cut_proxy.wait_until_holding, Direction.TO_CLIENT)
        cut_proxy.refuse()
        cut_proxy.cut()
        await asyncio.to_thread(
            other.sql.execute, "select refold.declare_dead('w2', %s, 'w1', 0)", (other.epoch,)
        )
        cut_proxy.refuse(False)
        return await flush

    with pytest.raises(Fenced):
        run(main())
    assert log.types("o-1") == ["WorkflowStarted", "StepCompleted"]  # it was committed before the death
    assert log.status("o-1") == "pending"
    worker.close()


def test_a_claim_whose_answer_was_lost_is_done_once_and_says_that_it_does_not_know(
    make_worker: MakeWorker, cut_proxy: CutProxy, log: Log, run: Run[Any]
) -> None:
    worker = make_worker("w1", cut_proxy.url)
    worker.start("o-1", "o-2", "o-3", owned=False)
    assert worker.claim(0) == []  # the next one is prepared, so its first answer is the last
    cut_proxy.cut_after(0, Direction.TO_CLIENT)
    rows = run(
        worker.lane.run(
            "select workflow_id from refold.claim(%s, %s, %s, %s, %s, %s, %s, %s)",
            ["order"],
            ["v1"],
            2,
            False,
        )
    )
    assert rows is None
    assert log.one("select count(*) from refold.workflows where owner = 'w1'") == 2
    worker.close()


@pytest.mark.parametrize("form", ["def", "async def"])
@pytest.mark.parametrize("heard", [True, False], ids=["before the commit", "after the commit"])
def test_a_transactional_step_whose_line_breaks_is_committed_once_or_run_again(
    make_worker: MakeWorker, cut_proxy: CutProxy, log: Log, run: Run[Any], form: str, heard: bool
) -> None:
    worker = make_worker("w1")
    worker.start("o-1")
    log.rows("create table seats (taken_by text)")
    cut_once = [cut_proxy.cut] if heard else []

    def cut() -> None:
        while cut_once:
            cut_once.pop()()

    if form == "def":
        lane = TransactionLane(cut_proxy.url, "w1", "transaction-1", 5_000)

        def work(connection: psycopg.Connection[Any]) -> Any:
            connection.execute("insert into seats values ('o-1')")
            cut()
            return "o-1", step_done(1)

        def commit() -> None:
            lane.commit(work)

        def close() -> None:
            lane.close()
    else:
        alane = AsyncTransactionLane(cut_proxy.url, "w1", "transaction-1", 5_000)

        async def awork(connection: psycopg.AsyncConnection[Any]) -> Any:
            await connection.execute("insert into seats values ('o-1')")
            await asyncio.to_thread(cut)
            return "o-1", step_done(1)

        def commit() -> None:
            run(alane.commit(awork))

        def close() -> None:
            run(alane.close())

    if not heard:
        _cut_at_commit(log, cut_proxy)
    if heard:
        with pytest.raises(LineBroke) as broken:
            commit()
        assert is_worth_another_try(broken.value)
    commit()
    close()
    assert log.rows("select * from seats") == [("o-1",)]
    assert log.types("o-1") == ["WorkflowStarted", "StepCompleted"]


def _cut_at_commit(log: Log, proxy: CutProxy) -> None:
    """Have the line to the client go dead once the server has been asked for the COMMIT of a step."""
    log.rows("create table gate ()")
    log.rows(
        "create function at_commit() returns trigger language plpgsql as"
        " $$ begin perform from gate; return null; end $$"
    )
    log.rows(
        "create constraint trigger at_commit after insert on seats deferrable initially deferred"
        " for each row execute function at_commit()"
    )
    holder = psycopg.connect(log.url)
    holder.execute("lock table gate in access exclusive mode")

    def cut() -> None:
        look = Log(log.url)
        wait_for(lambda: blocked_sessions(look) == 1, "the COMMIT hangs in its trigger")
        proxy.cut(server_learns=False)
        wait_for(lambda: blocked_sessions(look) == 2, "the new line waits for the old one's outcome")
        holder.rollback()
        holder.close()
        look.close()

    threading.Thread(target=cut, daemon=True).start()


def test_a_deletion_whose_answer_was_lost_has_deleted(
    make_worker: MakeWorker, cut_proxy: CutProxy, log: Log, run: Run[Any]
) -> None:
    worker = make_worker("w1")
    ids = [f"o-{number}" for number in range(20)]
    worker.start(*ids)
    worker.flush(*(Append(i, events=[completed(1)], head=end(1)) for i in ids))
    reader = Reader(cut_proxy.url)

    async def main() -> None:
        for number, workflow_id in enumerate(ids):
            await reader.heads([workflow_id])
            cut_proxy.cut_after(number * 12, Direction.TO_CLIENT)
            await reader.delete(workflow_id)
        await reader.close()

    run(main())
    assert cut_proxy.cuts > 10
    assert [log.types(i) for i in ids] == [["IdentitySealed"]] * len(ids)
    assert {log.status(i) for i in ids} == {"deleted"}
