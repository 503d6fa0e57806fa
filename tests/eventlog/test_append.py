"""A flush is all or nothing in Postgres; that its members do one another no harm is our doing (rules 2 and 3)."""

import asyncio
import random
import re
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
    contents,
    end,
    message,
    new_workflow,
    position_moved,
    step_done,
)
from fixtures.workers import Log, wait_for
from refold.eventlog._errors import AppendRefused, HeadsMissing, StaleWriter
from refold.eventlog._log import Append, HeadChange, NewEvent, write_unfenced

Session = Callable[[], psycopg.Connection[Any]]


@pytest.mark.raises_error("StaleWriter")
def test_one_stale_append_does_no_harm_to_the_99_good_ones_in_its_flush(
    worker: FakeWorker, make_worker: MakeWorker, log: Log
) -> None:
    ids = [f"o-{number:02}" for number in range(100)]
    worker.start(*ids)
    make_worker("w2").flush(Append("o-50", events=[step_done(1, b'"theirs"')]))

    flushed = worker.flush(
        *(
            Append(
                workflow_id,
                events=[step_done(1, b'"ours"'), completed(2)],
                head=end(2),
                starts=[new_workflow(f"{workflow_id}/0", parent=workflow_id)],
                messages=[message("somebody", f"from-{workflow_id}")],
                position=position_moved(workflow_id, 0).position,
            )
            for workflow_id in ids
        )
    )

    assert flushed.existing == set()
    assert list(flushed.refused) == ["o-50"]
    error = flushed.refused["o-50"]
    assert isinstance(error, StaleWriter)
    assert (error.stream, error.expected, error.actual) == ("o-50", 1, 2)
    assert str(error) == (
        "stream 'o-50' already has event 1, this writer wanted to add event 1: another worker took the workflow over. "
        "Drop this copy; it goes on there."
    )
    good = [workflow_id for workflow_id in ids if workflow_id != "o-50"]
    count = "select count(*) from refold."
    assert log.rows("select workflow_id from refold.workflows where status = 'completed' order by 1") == [
        (workflow_id,) for workflow_id in good
    ]
    assert log.types("o-50") == ["WorkflowStarted", "StepCompleted"]
    # Of the stale one nothing is left, in no table; of the others all.
    assert log.one(count + "events where type = 'WorkflowCompleted'") == 99  # pyright: ignore[reportArgumentType]
    assert log.rows("select workflow_id from refold.workflows where parent is not null order by 1") == [
        (f"{workflow_id}/0",) for workflow_id in good
    ]
    assert log.rows("select message_id from refold.inbox order by 1") == [
        (f"from-{workflow_id}",) for workflow_id in good
    ]
    assert log.rows("select source from refold.positions order by 1") == [(i,) for i in good]
    log.rows("delete from refold.positions")  # they stood for rows of another table; no stream says them


def test_the_text_of_a_stale_writer_says_what_to_do(worker: FakeWorker) -> None:
    worker.start("order-42")
    worker.flush(Append("order-42", events=[step_done(1), step_done(2)]))
    flushed = worker.flush(Append("order-42", events=[step_done(1)]))
    assert str(flushed.refused["order-42"]) == (
        "stream 'order-42' already has event 2, this writer wanted to add event 1: another worker took the workflow "
        "over. Drop this copy; it goes on there."
    )


def test_a_history_is_never_mixed_of_two_writers(
    worker: FakeWorker, make_worker: MakeWorker, log: Log
) -> None:
    worker.start("o-1")
    make_worker("w2").flush(Append("o-1", events=[step_done(1, b'"theirs"')]))
    ours = [step_done(seq, b'"ours"') for seq in (1, 2, 3)]

    assert isinstance(worker.flush(Append("o-1", events=ours)).refused["o-1"], StaleWriter)

    assert [event["result"] for event in log.events("o-1", "StepCompleted")] == ["theirs"]


@pytest.mark.parametrize(
    ("stream", "event"),
    [
        pytest.param("o-bad", NewEvent(1, "a\0b", BEGAN, b"{}"), id="NUL in a text"),
        pytest.param("o" * 3000, step_done(0), id="too long for the index"),
        pytest.param("o-bad", NewEvent(-1, "StepCompleted", BEGAN, b"{}"), id="a check constraint"),
        pytest.param("o-bad", NewEvent(1, "StepCompleted", -(2**62), b"{}"), id="a time that Postgres lacks"),
        pytest.param("o-bad\ud800", step_done(0), id="text that is no UTF-8"),
        pytest.param("o-bad", NewEvent(1, "StepCompleted", 2**65, b"{}"), id="a time beyond 64 bits"),
        pytest.param("o-bad", NewEvent(2**40, "StepCompleted", BEGAN, b"{}"), id="a number beyond 32 bits"),
    ],
)
def test_rows_that_postgres_refuses_for_their_own_sake_fall_out_alone(
    worker: FakeWorker, log: Log, stream: str, event: NewEvent
) -> None:
    ids = [f"o-{number}" for number in range(9)]
    worker.start(*ids, "o-bad")
    if stream.startswith("o" * 100):  # random letters: Postgres would compress the same one
        stream = "".join(random.Random(1).choices("abcdefghijklmnopqrstuvwxyz0123456789", k=6000))
    bad = Append(stream, events=[event], messages=[message("somebody", "from-bad")])

    flushed = worker.flush(
        *(Append(i, events=[step_done(1)]) for i in ids[:4]),
        bad,
        *(Append(i, events=[step_done(1)]) for i in ids[4:]),
    )

    assert list(flushed.refused) == [stream]
    assert isinstance(flushed.refused[stream], AppendRefused)
    assert str(flushed.refused[stream]).startswith("Postgres refused the rows of ")
    assert all(log.types(i) == ["WorkflowStarted", "StepCompleted"] for i in ids)
    assert log.types("o-bad") == ["WorkflowStarted"]
    assert log.one("select count(*) from refold.inbox") == 0
    assert worker.flush(Append("o-0", events=[step_done(2)])).refused == {}  # the lane goes on


def test_a_stale_and_a_refused_append_in_one_flush_fall_out_each_for_its_reason(
    worker: FakeWorker, log: Log
) -> None:
    worker.start("stale", "good", "bad")
    worker.flush(Append("stale", events=[step_done(1)]))
    flushed = worker.flush(
        Append("stale", events=[step_done(1)]),
        Append("bad", events=[NewEvent(1, "a\0b", BEGAN, b"{}")]),
        Append("good", events=[step_done(1)]),
    )
    assert {stream: type(error) for stream, error in flushed.refused.items()} == {
        "stale": StaleWriter,
        "bad": AppendRefused,
    }
    assert log.types("good") == ["WorkflowStarted", "StepCompleted"]


def test_a_client_s_starts_do_not_share_a_fault(run: Run[Any], database_url: str, log: Log) -> None:
    """What several callers of one process start at the same moment is one transaction."""
    from refold.core._client import Client

    async def main() -> list[Any]:
        client = Client(database_url, None)
        # A bad row gets there by the name of a workflow only, which is checked nowhere else.
        appends = [Append(f"+s-{number}", starts=[new_workflow(f"s-{number}")]) for number in range(5)]
        appends[2] = Append("+s-2", starts=[new_workflow("s-2", name="a\0b")])
        try:
            return await asyncio.gather(
                *(client._write(append.stream, append) for append in appends), return_exceptions=True
            )
        finally:
            await client.close()

    outcomes = run(main())
    assert [type(outcome) for outcome in outcomes] == [
        set,
        set,
        psycopg.errors.CharacterNotInRepertoire,
        set,
        set,
    ]
    assert log.rows("select workflow_id from refold.workflows order by 1") == [
        ("s-0",),
        ("s-1",),
        ("s-3",),
        ("s-4",),
    ]


def test_an_id_is_started_once_and_the_second_start_says_so(
    worker: FakeWorker, make_worker: MakeWorker, log: Log
) -> None:
    worker.start("o-1")
    before = contents(log)
    again = make_worker("w2").flush(Append("+o-1", starts=[new_workflow("o-1", owner="w2", name="other")]))
    assert (again.refused, again.existing) == ({}, {"o-1"})
    assert contents(log) == before


@pytest.mark.raises_error("HeadsMissing")
def test_a_start_that_meets_events_without_a_head_says_what_to_do(worker: FakeWorker, log: Log) -> None:
    worker.start("o-1")
    log.rows("delete from refold.workflows")
    with pytest.raises(HeadsMissing) as caught:
        worker.flush(Append("+o-1", starts=[new_workflow("o-1")]))
    assert str(caught.value) == (
        "o-1: there are events in refold.events, but no row in refold.workflows.\n"
        "Stop the workers, then run: refold rebuild"
    )
    log.rows("delete from refold.events")


@pytest.mark.parametrize(
    "statement", ["update refold.events set at = now()", "update refold.events set seq = 7 where false"]
)
def test_no_event_is_ever_updated(worker: FakeWorker, log: Log, statement: Any) -> None:
    worker.start("o-1")
    with pytest.raises(
        psycopg.Error, match=r"refold\.events is append-only: an event is never updated"
    ) as caught:
        log.rows(statement)
    assert caught.value.sqlstate == "RF002"


def test_a_flush_is_one_transaction_and_one_round_trip(worker: FakeWorker, log: Log) -> None:
    worker.start("o-1", "o-2")
    connection = worker._run(worker.lane._line.open())
    sent = _count_round_trips(connection)
    worker.flush(
        Append("o-1", events=[step_done(1), completed(2)], head=end(2), messages=[message("o-2", "m-1")]),
        Append("o-2", events=[step_done(1)], starts=[new_workflow("o-3")]),
        position_moved("shop", 0),
    )
    assert sent == [1]
    assert log.one("select count(distinct xid) from refold.events where seq > 0 or workflow_id = 'o-3'") == 1


def _count_round_trips(connection: Any) -> list[int]:
    """Return a list of one number: how often `connection` has waited for an answer from now on."""
    waited = [0]
    wait = connection.wait

    async def counted(*args: Any, **kwargs: Any) -> Any:
        waited[0] += 1
        return await wait(*args, **kwargs)

    connection.wait = counted
    return waited


def test_flushes_of_the_same_rows_in_any_order_never_wait_in_a_ring(
    worker: FakeWorker, make_worker: MakeWorker, log: Log, run: Run[Any]
) -> None:
    other = make_worker("w2")
    ids = [f"s-{number:03}" for number in range(60)]
    deadlocks = "select deadlocks from pg_stat_database where datname = current_database()"
    before = log.one(deadlocks)
    # Both begin at the same moment, and take a while for each row.
    log.rows(
        "create function slow() returns trigger language plpgsql as"
        " $$ begin perform pg_sleep(0.001); return new; end $$"
    )
    log.rows("create trigger slow after insert on refold.workflows for each row execute function slow()")

    async def main() -> tuple[Any, Any]:
        return await asyncio.gather(
            worker.lane.flush([Append(f"+{i}", starts=[new_workflow(i)]) for i in ids]),
            # One append with many starts, as a connector's: they are sorted as well.
            other.lane.flush([Append("source:shop/0", starts=[new_workflow(i) for i in reversed(ids)])]),
        )

    first, second = run(main())
    assert first.existing | second.existing == set(ids)
    assert not first.existing & second.existing
    worker.close()
    other.close()
    assert log.one(deadlocks) == before


def test_a_deadlock_with_somebody_else_is_tried_again(
    worker: FakeWorker, log: Log, run: Run[Any], session: Session
) -> None:
    worker.start("o-1")
    other = session()
    other.execute("insert into refold.inbox (workflow_id, message_id, type, body) values ('x', 'm', 'T', '')")

    async def main() -> Any:
        flush = asyncio.ensure_future(
            worker.lane.flush([Append("o-1", events=[step_done(1)], messages=[message("x", "m")])])
        )
        await asyncio.to_thread(wait_for, lambda: blocked_sessions(log) == 1, "the flush waits for the row")

        def close_the_ring() -> None:
            # Whoever waited longest is the victim: its check comes first.
            other.execute("set local deadlock_timeout = '1h'")
            other.execute("update refold.workers set beat = beat where worker = 'w1'")
            other.rollback()

        await asyncio.to_thread(close_the_ring)
        return await flush

    flushed = run(main())
    assert flushed.refused == {}
    assert log.types("o-1") == ["WorkflowStarted", "StepCompleted"]


def test_an_unfenced_write_may_be_repeated(run: Run[Any], database_url: str, log: Log) -> None:
    from refold.eventlog._connect import connect

    async def main() -> list[set[str]]:
        connection = await connect(database_url)
        appends = [Append("+o-1", starts=[new_workflow("o-1")]), Append("@", messages=[message("o-1", "m")])]
        outcomes = [(await write_unfenced(connection, appends))[1] for _ in range(2)]
        await connection.close()
        return outcomes

    assert run(main()) == [set(), {"o-1"}]
    assert log.types("o-1") == ["WorkflowStarted"]
    assert log.one("select count(*) from refold.inbox") == 1


def test_a_head_changes_only_for_the_worker_that_owns_it(
    worker: FakeWorker, make_worker: MakeWorker, log: Log
) -> None:
    worker.start("o-1")
    make_worker("w2").flush(Append("o-1", head=HeadChange("waiting", None)))
    assert log.owner("o-1") == "w1"


@pytest.mark.raises_error("AppendRefused")
def test_a_refused_append_says_whose_rows_they_were_and_what_postgres_said(worker: FakeWorker) -> None:
    worker.start("o-1")
    flushed = worker.flush(Append("o-1", events=[NewEvent(1, "a\0b", BEGAN, b"{}")]))
    said = re.sub(r"\$\d+", "$n", str(flushed.refused["o-1"]))  # which parameter it was is nobody's promise
    assert said == (
        "Postgres refused the rows of 'o-1': invalid byte sequence for encoding \"UTF8\": 0x00\n"
        "CONTEXT:  unnamed portal parameter $n"
    )
