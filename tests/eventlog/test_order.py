"""Of one key one runs at a time, in order, and nobody is forgotten: not by a race, a person's decision or a rebuild."""

import asyncio
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
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
    step_done,
)
from fixtures.orders import Shop, ordered
from fixtures.workers import Log, wait_for
from refold.eventlog._connect import Line
from refold.eventlog._log import BEHIND, TAKEN, Append, HeadChange
from refold.eventlog._settle import Held, settle

Session = Callable[[], psycopg.Connection[Any]]


def test_of_one_key_one_is_due_at_a_time_and_in_order(orders: Shop) -> None:
    orders.start(ordered("a", "k", 1))
    orders.start(ordered("b", "k", 2), ordered("z", "other", 1))
    orders.start(ordered("c", "k", 3))
    assert orders.behind() == ["b", "c"]
    assert orders.claim() == ["a", "z"]
    assert orders.claim() == []
    orders.end("a", "z")
    assert orders.claim() == ["b"]
    assert orders.claim() == []
    orders.end("b")
    assert orders.claim() == ["c"]
    orders.end("c")
    orders.start(ordered("d", "k", 4))
    assert orders.claim() == ["d"], "an idle key begins anew"


def test_a_chain_in_one_batch_is_a_chain_whatever_the_ids_sort_like(orders: Shop) -> None:
    orders.start(ordered("c", "k", 1), ordered("b", "k", 2), ordered("a", "k", 3), ordered("x", "l", 7))
    for id in ("c", "b", "a"):
        assert [each for each in orders.claim() if each != "x"] == [id]
        orders.end(id)


def test_the_first_of_a_key_is_in_the_starter_s_hands_at_once_and_the_others_in_nobody_s(
    orders: Shop,
) -> None:
    flushed = orders.start(*(ordered(id, "k", no, owner="w1") for no, id in enumerate("abc")))
    assert flushed.existing == {BEHIND + "b", BEHIND + "c"}
    assert orders.log.rows("select workflow_id, owner, status from refold.workflows order by 1") == [
        ("a", "w1", "running"),
        ("b", None, "pending"),
        ("c", None, "pending"),
    ]


def test_duplicates_take_no_place(orders: Shop) -> None:
    orders.start(ordered("a", "k", 1, owner="w1"), ordered("b", "k", 2))
    orders.end("a")
    again = orders.start(
        ordered("a", "k", 1, owner="w1"), ordered("b", "k", 2, owner="w1"), ordered("c", "k", 3)
    )
    assert again.existing == {"a", "b"}
    assert orders.behind() == ["c"]
    orders.claim()
    orders.end("b")
    again = orders.start(
        ordered("a", "k", 1), ordered("b", "k", 2), ordered("c", "k", 3), ordered("d", "k", 4)
    )
    assert (again.existing, orders.behind()) == ({"a", "b", "c"}, ["d"])


def test_mail_does_not_bring_one_forward(orders: Shop) -> None:
    orders.start(ordered("a", "k", 1, owner="w1"), ordered("b", "k", 2))
    orders.worker.flush(Append("@", messages=[message("b", "m")]))
    assert (orders.claim(), "work" in orders.worker.tick()) == ([], False)
    orders.park("a")
    assert orders.status("b") == ["waiting"]
    assert (orders.claim(), "work" in orders.worker.tick()) == ([], False)
    orders.skip("a")
    assert orders.claim() == ["b"]


def test_a_late_one_with_a_lower_number_is_next(orders: Shop) -> None:
    orders.start(ordered("a", "k", 5, owner="w1"), ordered("b", "k", 6))
    orders.start(ordered("late", "k", 1))
    assert orders.behind() == ["b", "late"]
    orders.end("a")
    assert orders.claim() == ["late"]


def test_the_death_of_a_worker_changes_no_order(orders: Shop, make_worker: MakeWorker) -> None:
    orders.start(ordered("a", "k", 1, owner="w1"), ordered("b", "k", 2))
    other = make_worker("w2")
    other.declare_dead(orders.worker)
    assert other.claim() == ["a"]
    assert other.claim() == []


def test_who_ends_one_may_have_the_next_in_hand_at_once(orders: Shop) -> None:
    soon = _now(orders.log) + 3_600_000_000
    nexts = [
        ordered("b1", "k1", 2),
        ordered("b2", "k2", 2, poison=True),
        ordered("b3", "k3", 2, not_before=soon),
        ordered("b4", "k4", 2, name="other"),
        ordered("b5", "k5", 2),
    ]
    orders.start(*(ordered(f"a{n}", f"k{n}", 1, owner="w1") for n in range(1, 6)), *nexts)
    heads = [HeadChange("completed", None, finished_at=BEGAN + 1, takes_next=n < 5) for n in range(1, 6)]
    flushed = orders.worker.flush(
        *(Append(f"a{n}", events=[completed(1)], head=head) for n, head in enumerate(heads, 1))
    )
    assert flushed.existing == {TAKEN + "b1" + TAKEN + "order"}
    assert orders.status("b1", "b2", "b3", "b4", "b5") == [
        "running",
        "parked",
        "pending",
        "pending",
        "pending",
    ]
    assert orders.log.rows("select workflow_id from refold.workflows where owner = 'w1'") == [("b1",)]
    assert orders.claim() == ["b5"]


# Parked ones, and what a person decides of them.


def test_behind_a_parked_one_all_wait_and_do_not_count_as_runnable(orders: Shop) -> None:
    orders.start(ordered("a", "k", 1, owner="w1"), *(ordered(f"b-{n}", "k", n) for n in range(2, 6)))
    assert orders.runnable() == 5
    orders.park("a")
    assert orders.status("a", "b-2", "b-5") == ["parked", "waiting", "waiting"]
    assert orders.runnable() == 0
    orders.start(ordered("c", "k", 9), ordered("z", "other", 1))
    assert orders.status("c", "z") == ["waiting", "pending"]
    assert orders.claim() == ["z"], "another key goes on"


def test_a_retried_one_runs_again_before_those_behind_it(orders: Shop) -> None:
    orders.start(ordered("a", "k", 1, owner="w1"), ordered("b", "k", 2))
    orders.park("a")
    assert orders.retry("a") is True
    assert orders.status("a", "b") == ["pending", "waiting"]
    assert orders.claim() == ["a"]
    assert orders.retry("a") is False, "it is not parked any more"
    orders.end("a")
    assert orders.claim() == ["b"]


def test_a_skipped_one_has_failed_and_the_next_goes_on(orders: Shop) -> None:
    orders.start(ordered("a", "k", 1, owner="w1"), ordered("b", "k", 2), ordered("c", "k", 3))
    orders.worker.flush(Append("@", messages=[message("a", "m")]))
    orders.park("a")
    assert orders.skip("a") is True
    assert orders.status("a", "b", "c") == ["failed", "pending", "waiting"]
    assert orders.log.one("select count(*) from refold.inbox") == 0
    assert orders.claim() == ["b"]


def test_to_release_a_key_changes_its_first_alone_however_many_are_behind(orders: Shop) -> None:
    """And those behind go on not to count as runnable: they would stop their source until all of them had run."""
    orders.start(ordered("a", "k", 1, owner="w1"), *(ordered(f"b-{n}", "k", n) for n in range(2, 300)))
    orders.park("a")
    touched = "select count(*) from refold.workflows where xmin::text::bigint > %s"
    before = orders.log.one("select pg_current_xact_id()::xid::text::bigint")
    assert orders.retry("a") is True
    assert (orders.log.one(touched, before), orders.runnable()) == (1, 1)
    orders.claim()
    orders.park("a")
    assert orders.log.one(touched, before) == 1
    assert orders.skip("a") is True
    assert (orders.log.one(touched, before), orders.runnable()) == (2, 1)
    orders.start(ordered("late", "k", 999))
    assert orders.runnable() == 2
    assert orders.claim() == ["b-2"]


def test_of_each_parked_one_it_is_told_how_many_are_behind_it(orders: Shop, run: Run[Any]) -> None:
    orders.start(*(ordered(f"a-{n:02}", "k", n, poison=n % 3 == 0) for n in range(20)))
    orders.start(*(ordered(f"b-{n}", "l", n, poison=n == 1) for n in range(3)))
    every = run(orders.reader.parked("", 100))
    assert [(one.id, one.waiting) for one in every] == [
        *((f"a-{n:02}", 19 - n) for n in range(0, 20, 3)),
        ("b-1", 1),
    ]
    paged: list[Any] = []
    while page := run(orders.reader.parked("", 2, paged[-1] if paged else None)):
        paged += page
    assert paged == every


def test_one_that_is_cancelled_before_its_turn_is_passed_over(orders: Shop) -> None:
    orders.start(ordered("a", "k", 1, owner="w1"), ordered("b", "k", 2), ordered("c", "k", 3))
    orders.cancel("b")
    assert orders.status("b") == ["cancelled"]
    orders.end("a")
    assert orders.claim() == ["c"]


def test_poison_at_the_start_parks_its_key_when_its_turn_comes(orders: Shop) -> None:
    orders.start(
        ordered("a", "k", 1, owner="w1"), ordered("b", "k", 2), ordered("bad", "k", 3, poison=True),
        ordered("c", "k", 4),
    )  # fmt: skip
    orders.start(ordered("d", "k", 5), ordered("worse", "l", 1, poison=True), ordered("e", "l", 2))
    assert orders.log.types("bad") == ["WorkflowStarted", "Parked"]
    assert orders.status("a", "b", "bad", "c", "d", "worse", "e") == [
        *("running", "pending", "parked", "waiting", "waiting", "parked", "waiting"),
    ]
    orders.end("a")
    assert orders.claim() == ["b"]
    orders.end("b")
    assert orders.claim() == []
    assert orders.behind() == ["c", "d", "e"]
    orders.skip("bad")
    assert (orders.status("c", "d"), orders.claim()) == (["pending", "waiting"], ["c"])


def test_poison_that_a_person_settles_before_its_turn(orders: Shop) -> None:
    orders.start(
        ordered("a", "k", 1, owner="w1"), ordered("bad", "k", 2, poison=True), ordered("b", "k", 3),
        ordered("worse", "k", 4, poison=True), ordered("c", "k", 5),
    )  # fmt: skip
    assert orders.retry("bad")
    assert orders.status("a", "bad", "b", "c") == ["running", "waiting", "waiting", "waiting"]
    assert orders.skip("worse")
    for id in ("a", "bad", "b", "c"):
        assert id == "a" or orders.claim() == [id]
        orders.end(id)


def test_what_fails_at_the_start_without_parking_holds_nobody_up(orders: Shop) -> None:
    orders.start(
        ordered("bad", "k", 1, failed=True), ordered("a", "k", 2), ordered("worse", "k", 3, failed=True)
    )
    assert orders.status("bad", "worse") == ["failed", "failed"]
    assert orders.claim() == ["a"]


# Races, held open.


def _in_thread(pool: ThreadPoolExecutor, log: Log, what: Callable[[], Any], why: str) -> "Future[Any]":
    """Begin `what`, and return when it waits for a lock."""
    before = blocked_sessions(log)
    future = pool.submit(what)
    wait_for(lambda: blocked_sessions(log) > before or future.done(), why)
    assert not future.done(), f"it did not wait: {future.result()}"
    return future


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    """Threads for what waits."""
    with ThreadPoolExecutor(4) as pool:
        yield pool


def _flush_in(session: psycopg.Connection[Any], append: Append) -> None:
    """Write what nobody owns in a session's open transaction."""
    from refold.eventlog._arrays import adapt
    from refold.eventlog._log import _FLUSH, _columns

    adapt(session)
    session.execute(_FLUSH, (None, None, None, None, *_columns([append])), binary=True)


def test_a_start_that_meets_the_end_of_the_one_before_waits_and_then_is_the_first(
    orders: Shop, session: Session, pool: ThreadPoolExecutor
) -> None:
    orders.start(ordered("a", "k", 1))
    ending = session()
    _flush_in(ending, Append("a", events=[completed(1)], head=end(1)))
    starting = _in_thread(
        pool, orders.log, lambda: orders.start(ordered("b", "k", 2)), "the start waits for the end"
    )
    ending.commit()
    starting.result(20)
    assert (orders.behind(), orders.claim()) == ([], ["b"])


def test_an_end_that_meets_a_start_waits_and_then_makes_that_one_due(
    orders: Shop, session: Session, pool: ThreadPoolExecutor
) -> None:
    orders.start(ordered("a", "k", 1, owner="w1"))
    starting = session()
    _flush_in(starting, Append("+", starts=[ordered("b", "k", 2)]))
    ending = _in_thread(pool, orders.log, lambda: orders.end("a"), "the end waits for the start")
    starting.commit()
    ending.result(20)
    assert (orders.behind(), orders.claim()) == ([], ["b"])


def test_an_end_that_releases_the_next_while_a_start_waits(
    orders: Shop, session: Session, pool: ThreadPoolExecutor
) -> None:
    orders.start(ordered("a", "k", 1), ordered("b", "k", 2))
    ending = session()
    _flush_in(ending, Append("a", events=[completed(1)], head=end(1)))
    starting = _in_thread(
        pool, orders.log, lambda: orders.start(ordered("c", "k", 3)), "the start waits for the end"
    )
    ending.commit()
    starting.result(20)
    assert orders.behind() == ["c"]
    for id in ("b", "c"):
        assert orders.claim() == [id]
        orders.end(id)


def test_a_park_that_meets_a_start_makes_it_wait_too(
    orders: Shop, session: Session, pool: ThreadPoolExecutor
) -> None:
    orders.start(ordered("a", "k", 1, owner="w1"))
    starting = session()
    _flush_in(starting, Append("+", starts=[ordered("b", "k", 2)]))
    parking = _in_thread(pool, orders.log, lambda: orders.park("a"), "the park waits for the start")
    starting.commit()
    parking.result(20)
    assert orders.status("b") == ["waiting"]


@pytest.mark.parametrize("other", ["b", "a"], ids=["others", "the same again"])
def test_two_hand_overs_that_begin_one_key_make_one_first(
    orders: Shop, session: Session, pool: ThreadPoolExecutor, other: str
) -> None:
    first = session()
    _flush_in(first, Append("+", starts=[ordered("a", "k", 1)]))
    starts = [ordered(other, "k", 2 if other == "b" else 1), ordered("c", "k", 3)]
    second = _in_thread(pool, orders.log, lambda: orders.start(*starts), "the second waits for the first")
    first.commit()
    second.result(20)
    assert orders.behind() == (["b", "c"] if other == "b" else ["c"])
    for id in ("a", "b", "c") if other == "b" else ("a", "c"):
        assert orders.claim() == [id]
        orders.end(id)


def test_a_first_that_a_start_holds_is_not_passed_over_by_claims_for_good(
    orders: Shop, session: Session, make_worker: MakeWorker
) -> None:
    """A claim leaves locked rows alone. Whoever held the lock tells that there may be work after all."""
    orders.start(ordered("a", "k", 1))
    listening = session()
    listening.autocommit = True
    listening.execute("listen refold_work")
    starting = session()
    _flush_in(
        starting, Append("+", starts=[ordered("b", "k", 2, owner="x")])
    )  # owned: itself no news for anybody
    assert orders.claim() == []
    starting.commit()
    assert [n.channel for n in listening.notifies(timeout=20, stop_after=1)] == ["refold_work"]
    assert orders.claim() == ["a"]


def test_a_person_s_decision_meets_the_end_of_the_one_before(
    orders: Shop, session: Session, pool: ThreadPoolExecutor
) -> None:
    """The end would have made the skipped one the first."""
    orders.start(ordered("a", "k", 1), ordered("bad", "k", 2, poison=True), ordered("c", "k", 3))
    ending = session()
    _flush_in(ending, Append("a", events=[completed(1)], head=end(1)))
    skipping = _in_thread(pool, orders.log, lambda: orders.skip("bad"), "the decision waits for the end")
    ending.commit()
    assert skipping.result(20) is True
    assert orders.claim() == ["c"]


def test_a_person_who_is_stopped_while_deciding_holds_up_nobody_for_long(
    orders: Shop, pool: ThreadPoolExecutor, database_url: str
) -> None:
    """A frozen process keeps its locks, and hand-overs of that key wait for them, with all other keys in them."""
    orders.start(ordered("bad", "k", 1, poison=True))
    frozen, asked = threading.Event(), []

    def decide(now: int, found: Mapping[str, Held]) -> Sequence[Append]:
        asked.append(found["bad"].status)
        assert frozen.wait(60)
        return []

    async def main() -> None:
        line = Line(database_url)
        try:
            await line.run(lambda connection: settle(connection, ["bad"], decide))
        finally:
            await line.drop()

    deciding = pool.submit(asyncio.run, main())
    try:
        wait_for(lambda: bool(asked), "it has locked the head")
        pool.submit(lambda: orders.start(ordered("b", "k", 2))).result(30)
        assert not deciding.done()
    finally:
        frozen.set()
    deciding.result(30)
    assert asked == ["parked", "parked"], "it began again"


def test_hand_overs_ends_and_decisions_at_once_never_lock_each_other_out(
    orders: Shop, make_worker: MakeWorker, log: Log, database_url: str
) -> None:
    """Every thread finishes; no deadlock was found by Postgres; and in the end everything has run, in order."""
    before = log.one("select deadlocks from pg_stat_database where datname = current_database()")
    keys, rounds = [f"k{n}" for n in range(12)], 15
    errors: list[BaseException] = []
    ran: dict[str, list[int]] = {key: [] for key in keys}
    noted = threading.Lock()
    over = threading.Event()

    def guarded(work: Callable[[FakeWorker], None], name: str) -> threading.Thread:
        def main() -> None:
            try:
                with asyncio.Runner() as runner:
                    worker = FakeWorker(name, database_url, runner)
                    try:
                        work(worker)
                    finally:
                        worker.close()
            except BaseException as error:
                errors.append(error)
                over.set()

        return threading.Thread(target=main)

    def hand_over(parity: int) -> Callable[[FakeWorker], None]:
        def work(worker: FakeWorker) -> None:
            for n in range(rounds):
                # IDs sort against the keys, so that orders of locking differ.
                starts = [
                    ordered(f"{99 - i:02}-{n:03}-{parity}", key, n * 2 + parity) for i, key in enumerate(keys)
                ]
                worker.flush(Append("+", starts=starts[:: 1 if parity else -1]))

        return work

    def run_all(worker: FakeWorker) -> None:
        while not over.is_set():
            ids = worker.claim(5)
            with noted:
                for id in ids:
                    ran[keys[99 - int(id[:2])]].append(int(id[3:6]) * 2 + int(id[-1]))
            worker.flush(*(Append(id, events=[completed(1)], head=end(1)) for id in ids))
            if not ids and sum(map(len, ran.values())) == len(keys) * rounds * 2:
                over.set()

    threads = [guarded(hand_over(0), "h0"), guarded(hand_over(1), "h1")]
    threads += [guarded(run_all, f"r{n}") for n in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    over.set()
    assert errors == []
    assert not any(thread.is_alive() for thread in threads)
    for key in keys:
        for parity in (0, 1):
            mine = [no for no in ran[key] if no % 2 == parity]
            assert mine == list(range(parity, rounds * 2, 2)), (
                "each hand-over's own are in order, and all ran once"
            )
    assert log.one("select deadlocks from pg_stat_database where datname = current_database()") == before


# Time.


def _now(log: Log) -> int:
    return int(log.one("select (extract(epoch from refold.log_now()) * 1000000)::bigint"))


def _later(log: Log, hours: int) -> None:
    log.rows(
        "create or replace function refold.log_now() returns timestamptz language sql volatile as"  # pyright: ignore[reportArgumentType]
        f" $$ select clock_timestamp() + interval '{hours} hours' $$"
    )


def test_nothing_runs_before_its_time(orders: Shop, database_url: str) -> None:
    soon = _now(orders.log) + 3_600_000_000
    orders.start(
        ordered("a", "k", 1, not_before=soon),
        ordered("b", "l", 1, owner="w1"),
        ordered("c", "l", 2, not_before=soon),
    )
    orders.worker.flush(Append("@", messages=[message("a", "m")]))
    assert (orders.claim(), "work" in orders.worker.tick(), "next" in orders.worker.tick()) == (
        [],
        False,
        True,
    )
    orders.end("b")
    assert orders.claim() == []
    orders.begin_again()
    assert orders.claim() == []
    _later(orders.log, 2)
    assert orders.claim() == ["a", "c"]


def test_a_start_for_later_tells_when_so_that_nobody_sleeps_past_it(orders: Shop, session: Session) -> None:
    soon = _now(orders.log) + 3_600_000_000
    listening = session()
    listening.autocommit = True
    listening.execute("listen refold_work")
    orders.start(ordered("a", "k", 1, not_before=soon, owner="w1"))
    told = [n.payload for n in listening.notifies(timeout=20, stop_after=1)]
    assert str(soon) in told


# Projections.


def test_a_rebuild_makes_the_same_order_again(orders: Shop, database_url: str, log: Log) -> None:
    orders.start(*(ordered(f"a-{n}", "a", n, owner="w1") for n in range(3)))
    orders.start(*(ordered(f"b-{n}", "b", n, owner="w1") for n in range(3)))
    orders.start(*(ordered(f"c-{n}", "c", n, poison=n == 1) for n in range(4)))
    orders.start(*(ordered(f"d-{n}", "d", n, poison=n == 0) for n in range(3)))
    orders.end("a-0")
    orders.park("b-0")
    orders.start(ordered("e-5", "e", 5, owner="w1"))
    orders.worker.flush(Append("e-5", events=[step_done(1)]))
    orders.start(ordered("e-1", "e", 1))  # late; the one that has begun goes on first
    heads = "select workflow_id, status, behind, order_key, order_no, due_at is null from refold.workflows order by 1"
    orders.start(*(ordered(f"f-{n}", "f", n, poison=n == 1) for n in range(3)))
    orders.retry("f-1")  # it has more events than the one before it, and that one is first all the same
    log.rows(
        "update refold.workflows set owner = null, status = 'pending', due_at = created_at where owner = 'w1'"
    )
    before = log.rows(heads)
    orders.begin_again()
    # What has waited for a parked one says so until it is its turn; that is no event.
    released = {"f-1": "pending", "f-2": "pending"}
    assert log.rows(heads) == [(row[0], released.get(row[0], row[1]), *row[2:]) for row in before]
    assert [row[0] for row in before if not row[2]] == [
        *("a-0", "a-1", "b-0", "c-0", "d-0", "e-5", "f-0"),
    ]


def test_a_deleted_history_leaves_no_place_in_the_order(orders: Shop, run: Run[Any]) -> None:
    orders.start(ordered("a", "k", 1, owner="w1"), ordered("b", "k", 2))
    orders.end("a")
    assert run(orders.reader.delete("a")) is True
    assert orders.start(ordered("a", "k", 1)).existing == {"a"}
    assert orders.log.rows("select order_key, order_no from refold.workflows where workflow_id = 'a'") == [
        (None, None)
    ]
    assert orders.claim() == ["b"]
