"""The log is the truth: all other tables can be lost (invariant 1), and no identity opens again with them (rule 7)."""

from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest

import refold
from fixtures.lanes import (
    BEGAN,
    FakeWorker,
    MakeWorker,
    Run,
    completed,
    contents,
    end,
    message,
    new_workflow,
    parked,
    position_moved,
    step_done,
)
from fixtures.workers import Log, wait_for
from refold import App
from refold.core import Move, PositionMoved, Start
from refold.eventlog import Rebuilt, WorkersAlive, rebuild
from refold.eventlog._events import RecordedError, WorkflowFailed, encode_event
from refold.eventlog._log import Append, HeadChange, NewWorkflow
from refold.eventlog._read import Reader
from refold.eventlog._workers import Heartbeat

_LOSE_ALL = (
    "drop table refold.meta, refold.workflows, refold.workers, refold.positions, refold.waiters cascade"
)
_HEADS = "select workflow_id, name, status, owner, due_at = created_at from refold.workflows order by 1"


def test_every_kind_of_stream_gets_its_head_back(
    worker: FakeWorker, log: Log, database_url: str, run: Run[Any]
) -> None:
    worker.start("running", "waiting", "stuck", "parked", "done", "deleted")
    worker.start("pending", owned=False)
    failed = NewWorkflow(
        "undecodable",
        "order",
        "",
        BEGAN,
        new_workflow("undecodable").body,
        source="shop",
        failed=encode_event(WorkflowFailed(error=RecordedError("shop", "Bad", "not JSON"))),
    )
    worker.flush(
        Append("running", events=[step_done(1)], starts=[new_workflow("running/0", parent="running")]),
        Append("waiting", head=HeadChange("waiting", None)),
        Append("stuck", head=HeadChange("stuck", None, due_at=BEGAN, fingerprint="v1")),
        Append("parked", events=[parked(1)], head=HeadChange("parked", None)),
        Append("done", events=[completed(1)], head=end(1)),
        Append("deleted", events=[completed(1)], head=end(1)),
        Append("+undecodable", starts=[failed]),
        position_moved("kafka/orders/0", 0),
        Append("@", messages=[message("waiting", "m-1"), message("unborn", "m-2")]),
    )
    _delete(run, database_url, "deleted")
    before = contents(log)
    log.rows(_LOSE_ALL)

    assert rebuild(database_url) == Rebuilt(workflows=9, positions=1, events=14)

    assert log.rows(_HEADS) == [
        ("deleted", "order", "deleted", None, None),
        ("done", "order", "completed", None, None),
        ("parked", "order", "parked", None, None),
        ("pending", "order", "pending", None, True),
        ("running", "order", "pending", None, True),
        ("running/0", "order", "pending", None, True),
        ("stuck", "order", "pending", None, True),
        ("undecodable", "order", "failed", None, None),
        ("waiting", "order", "pending", None, True),
    ]
    after = contents(log)
    for table in ("events", "inbox", "positions"):
        assert after[table] == before[table]


def test_a_rebuild_of_whole_tables_changes_nothing_that_is_in_the_log(
    worker: FakeWorker, log: Log, database_url: str
) -> None:
    worker.start("o-1", owned=False)
    log.rows("select refold.leave('w1')")
    log.rows("update refold.workflows set claimed_seq = 1")  # nobody knows any more: all of them may have run
    before = contents(log)
    rebuild(database_url)
    assert contents(log) == before


def test_of_two_generations_of_a_position_the_later_counts(
    worker: FakeWorker, log: Log, database_url: str
) -> None:
    """The old one is deleted after the new one was opened; a crash between the two leaves both."""
    worker.flush(position_moved("shop", 0, b"1"))
    old = position_moved("shop", 1, b"2")
    new = position_moved("shop", 0, b"2")
    new.stream = "source:shop/1"
    assert new.position is not None
    new.position = type(new.position)("shop", "source:shop/1", 1, b"2", "shop", BEGAN)
    worker.flush(Append(old.stream, events=old.events), new)
    log.rows("select refold.leave('w1')")
    rebuild(database_url)
    assert log.rows("select stream, next_seq, position from refold.positions") == [("source:shop/1", 1, b"2")]


def test_what_is_rebuilt_is_claimed_at_once_and_goes_on_in_its_stream(
    worker: FakeWorker, make_worker: MakeWorker, log: Log, database_url: str
) -> None:
    worker.start("o-1")
    worker.flush(Append("o-1", events=[step_done(1)]))
    log.rows(_LOSE_ALL)
    rebuild(database_url)
    again = make_worker("w2")
    assert again.claim() == ["o-1"]
    again.flush(Append("o-1", events=[step_done(2), completed(3)], head=end(3)))
    assert log.types("o-1") == ["WorkflowStarted", "StepCompleted", "StepCompleted", "WorkflowCompleted"]


@pytest.mark.raises_error("WorkersAlive")
def test_a_rebuild_is_refused_while_a_worker_lives(log: Log, database_url: str) -> None:
    heartbeat = Heartbeat(
        database_url,
        "w1",
        can_run=lambda: ([], []),
        on_tick=lambda tick: None,
        on_fenced=lambda: None,
        every=0.05,
    )
    heartbeat.register()
    heartbeat.start()
    before = contents(log)
    with pytest.raises(WorkersAlive) as caught:
        rebuild(database_url)
    heartbeat.stop()
    assert str(caught.value) == (
        "1 worker(s) are running (w1); a rebuild needs the database to itself.\n"
        "Stop them (SIGTERM is enough), then run `refold rebuild` again."
    )
    assert contents(log) == before


def test_a_rebuild_does_not_wait_for_a_worker_that_was_killed(
    worker: FakeWorker, log: Log, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("refold.eventlog._rebuild.DEAD_AFTER", 0.6)
    worker.start("o-1")
    rebuild(database_url)
    assert log.rows("select * from refold.workers") == []
    assert log.status("o-1") == "pending"


def test_a_deleted_workflow_s_id_stays_sealed(
    worker: FakeWorker, make_worker: MakeWorker, log: Log, database_url: str, run: Run[Any]
) -> None:
    worker.start("o-1")
    worker.flush(Append("o-1", events=[completed(1)], head=end(1)))
    assert _delete(run, database_url, "o-1") is True
    assert log.types("o-1") == ["IdentitySealed"]
    assert log.events("o-1")[0] | {"at": None} == {
        "type": "IdentitySealed",
        "name": "order",
        "digest": "d",
        "status": "completed",
        "seq": 0,
        "at": None,
    }
    for tables in ("whole", "made again"):
        if tables == "made again":
            log.rows(_LOSE_ALL)
            rebuild(database_url)
        started = make_worker(f"w-{tables[0]}").flush(Append("+o-1", starts=[new_workflow("o-1")]))
        assert started.existing == {"o-1"}, f"with tables {tables} the ID is taken"
        assert log.status("o-1") == "deleted"
    assert log.types("o-1") == ["IdentitySealed"]


@pytest.mark.parametrize("status", ["pending", "running", "waiting"])
def test_only_what_has_ended_is_deleted(
    worker: FakeWorker, log: Log, database_url: str, run: Run[Any], status: str
) -> None:
    worker.start("o-1", owned=status != "pending")
    if status == "waiting":
        worker.flush(Append("o-1", head=HeadChange("waiting", None)))
    before = contents(log)
    assert _delete(run, database_url, "o-1") is False
    assert contents(log) == before


def _delete(run: Run[Any], url: str, workflow_id: str) -> bool:
    async def main() -> bool:
        reader = Reader(url)
        try:
            return await reader.delete(workflow_id)
        finally:
            await reader.close()

    return bool(run(main()))


# Once for all: an app that goes on.


@pytest.fixture
def app(database_url: str) -> Iterator[App]:
    """An app on the test's database."""
    made = App("shop", database_url=database_url)
    yield made
    made.close()


def test_after_the_loss_of_every_table_but_two_an_app_goes_on_where_it_was(
    app: App, log: Log, database_url: str
) -> None:
    charged: list[int] = []

    @refold.step
    def charge(number: int) -> int:
        charged.append(number)
        return number

    @app.workflow
    def record(number: int) -> int:
        return charge(number)

    @app.workflow
    def approval(number: int) -> str:
        return f"{charge(number)}: {refold.recv('verdict', str)}"

    @app.workflow
    def reminder(number: int) -> int:
        refold.sleep(timedelta(hours=1))
        return charge(number)

    def hand_over(hand: Any, first: int, last: int) -> Any:
        starts = [Start(record, f"r-{n}", b'{"number":%d}' % n) for n in range(first, last)]
        return Move(hand, str(last).encode(), "orders", starts)

    with app:
        lane = app.lane("kafka")
        beginning = lane.read_positions(["orders/0"]).result(20)["orders/0"]
        lane.hand_over([hand_over(beginning, 0, 8)]).result(20)
        waiting = approval.start(100, id="waiting")
        reminder.start(200, id="sleeping")
        approval.start(300, id="mailed")
        for handle in [app.get(f"r-{n}") for n in range(8)]:
            handle.result(20)
        wait_for(lambda: log.types("waiting") == ["WorkflowStarted", "StepCompleted"], "it waits")
        wait_for(lambda: log.types("mailed") == ["WorkflowStarted", "StepCompleted"], "it waits")
        for n in range(8):
            app.delete(f"r-{n}")
    app.send("mailed", "yes", "verdict")  # nobody runs: it lies in the inbox
    app.close()

    log.rows(_LOSE_ALL)
    assert rebuild(database_url).positions == 1

    log.rows(
        "create or replace function refold.log_now() returns timestamptz language sql volatile as"
        " $$ select clock_timestamp() + interval '2 hours' $$"
    )
    with app:
        assert app.get("mailed").result(20) == "300: yes"
        assert app.get("sleeping").result(20) == 200
        app.send("waiting", "no", "verdict")
        assert waiting.result(20) == "100: no"
        lane = app.lane("kafka")
        position = lane.read_positions(["orders/0"]).result(20)["orders/0"]
        assert (position.position, position.label) == (b"8", "orders")
        with pytest.raises(PositionMoved):
            lane.hand_over([hand_over(beginning, 0, 8)]).result(20)
        # A broker that delivers old records again: all that were deleted are known, the new ones are started.
        handed = lane.hand_over([hand_over(position, 4, 12)]).result(20)
        assert (handed.started, handed.duplicates) == (4, 4)
        for n in range(8, 12):
            assert app.get(f"r-{n}").result(20) == n
    assert sorted(charged) == [*range(12), 100, 200, 300]
