"""A transactional step's SQL and the event that records it commit together, exactly once (rule 15)."""

import asyncio
import threading
from datetime import timedelta
from typing import Any

import psycopg
import pytest
from psycopg import errors

import refold
from fixtures.proxy import CutProxy, Direction
from fixtures.workers import Log, wait_for
from refold import App


@pytest.fixture
def books(log: Log) -> Log:
    """The log, and beside it a table of the user's; without a unique key, so that a repetition shows."""
    log.rows("create table bookings (who text not null, seats int not null default 1)")
    return log


@refold.step(transaction=True)
def book(conn: psycopg.Connection[Any], who: str) -> int:
    conn.execute("insert into bookings (who) values (%s)", (who,))
    row = conn.execute("select count(*) from bookings where who = %s", (who,)).fetchone()
    assert row is not None
    return int(row[0])


@refold.step(transaction=True)
async def abook(conn: psycopg.AsyncConnection[Any], who: str) -> int:
    await conn.execute("insert into bookings (who) values (%s)", (who,))
    row = await (await conn.execute("select count(*) from bookings where who = %s", (who,))).fetchone()
    assert row is not None
    return int(row[0])


def booked(books: Log, who: str) -> int:
    found = books.one("select count(*) from bookings where who = %s", who)
    assert isinstance(found, int)
    return found


def test_the_users_rows_and_the_event_have_one_transaction(app: App, books: Log) -> None:
    @app.workflow
    def sync(who: str) -> int:
        return book(who)

    @app.workflow
    async def coro(who: str) -> int:
        return await abook(who)

    with app:
        assert sync.start("ann", id="ann").result(10) == 1
        assert coro.start("bob", id="bob").result(10) == 1
    for who in ("ann", "bob"):
        assert books.types(who) == ["WorkflowStarted", "StepCompleted", "WorkflowCompleted"]
        assert books.one(
            "select b.xmin::text::bigint = e.xid::text::bigint %% 4294967296 from bookings b, refold.events e"
            " where b.who = %s and e.workflow_id = %s and e.type = 'StepCompleted'",
            who,
            who,
        ), "two transactions"


@pytest.mark.parametrize("colour", ["def", "async"])
def test_an_error_rolls_the_users_rows_back_and_is_recorded(app: App, books: Log, colour: str) -> None:
    @refold.step(transaction=True, retries=1, retry_delay=timedelta(milliseconds=5))
    def fail(conn: psycopg.Connection[Any]) -> None:
        conn.execute("insert into bookings (who) values ('nobody')")
        raise ValueError("full")

    @refold.step(transaction=True, retries=1, retry_delay=timedelta(milliseconds=5))
    async def afail(conn: psycopg.AsyncConnection[Any]) -> None:
        await conn.execute("insert into bookings (who) values ('nobody')")
        raise ValueError("full")

    @app.workflow
    def sync() -> None:
        fail()

    @app.workflow
    async def coro() -> None:
        await afail()

    with app, pytest.raises(ValueError, match="full"):
        (sync if colour == "def" else coro).start(id="w").result(10)
    assert books.types("w") == ["WorkflowStarted", "StepFailed", "StepFailed", "WorkflowFailed"]
    assert booked(books, "nobody") == 0


@pytest.mark.parametrize("what", ["commit", "rollback"])
def test_a_step_cannot_end_its_transaction_itself(app: App, books: Log, what: str) -> None:
    @refold.step(transaction=True)
    def early(conn: psycopg.Connection[Any]) -> None:
        conn.execute("insert into bookings (who) values ('early')")
        getattr(conn, what)()

    @app.workflow
    def sync() -> None:
        early()

    with app, pytest.raises(Exception, match=r"forbidden within a Transaction"):
        sync.start(id="w").result(10)
    assert booked(books, "early") == 0
    assert books.types("w") == ["WorkflowStarted", "StepFailed", "WorkflowFailed"]


@pytest.mark.parametrize("colour", ["def", "async"])
def test_a_serialization_failure_is_tried_again_and_is_no_attempt(app: App, books: Log, colour: str) -> None:
    tries = 0

    def conflict() -> None:
        nonlocal tries
        tries += 1
        if tries < 3:
            raise errors.SerializationFailure("could not serialize access")

    @refold.step(transaction=True)
    def once(conn: psycopg.Connection[Any]) -> int:
        conn.execute("insert into bookings (who) values ('once')")
        conflict()
        return refold.step_info().attempt

    @refold.step(transaction=True)
    async def aonce(conn: psycopg.AsyncConnection[Any]) -> int:
        await conn.execute("insert into bookings (who) values ('once')")
        conflict()
        return refold.step_info().attempt

    @app.workflow
    def sync() -> int:
        return once()

    @app.workflow
    async def coro() -> int:
        return await aonce()

    with app:
        assert (sync if colour == "def" else coro).start(id="w").result(10) == 1
    assert tries == 3
    assert booked(books, "once") == 1
    assert books.types("w") == ["WorkflowStarted", "StepCompleted", "WorkflowCompleted"]


def test_real_deadlocks_between_transactional_steps_are_resolved(app: App, books: Log) -> None:
    books.rows("insert into bookings (who) values ('left'), ('right')")
    met = threading.Barrier(2, timeout=20)
    tries = 0

    @refold.step(transaction=True)
    def cross(conn: psycopg.Connection[Any], first: str, second: str) -> None:
        nonlocal tries
        tries += 1
        conn.execute("update bookings set seats = seats + 1 where who = %s", (first,))
        if tries <= 2:
            met.wait()
        conn.execute("update bookings set seats = seats + 1 where who = %s", (second,))

    @app.workflow
    def one(first: str, second: str) -> None:
        cross(first, second)

    with app:
        handles = [one.start("left", "right", id="a"), one.start("right", "left", id="b")]
        for handle in handles:
            handle.result(20)
    assert tries == 3
    assert books.rows("select seats from bookings order by who") == [(3,), (3,)]


@pytest.mark.parametrize("colour", ["def", "async"])
def test_other_steps_of_the_workflow_finish_while_a_transaction_is_open(
    app: App, books: Log, colour: str
) -> None:
    """`gather(book(a), charge(b))`: charge takes its seq while book's SQL runs; book comes after it."""
    charged = threading.Event()
    tries: list[str] = []

    @refold.step
    def charge() -> str:
        tries.append("charge")
        return "charged"

    @refold.step(transaction=True)
    def slow_book(conn: psycopg.Connection[Any]) -> str:
        tries.append("book")
        conn.execute("insert into bookings (who) values ('gathered')")
        assert charged.wait(20)
        return "booked"

    @refold.step(transaction=True)
    async def aslow_book(conn: psycopg.AsyncConnection[Any]) -> str:
        tries.append("book")
        await conn.execute("insert into bookings (who) values ('gathered')")
        assert await asyncio.to_thread(charged.wait, 20)
        return "booked"

    @app.workflow
    def sync() -> tuple[str, str]:
        return refold.gather(slow_book.later(), charge.later())

    @app.workflow
    async def coro() -> tuple[str, str]:
        first, second = await asyncio.gather(aslow_book(), charge.acall())
        return first, second

    def see(workflow_id: str, recorded: Any) -> None:
        if type(recorded.event).__name__ == "StepCompleted":
            charged.set()

    app.observe(see)
    with app:
        result = (sync if colour == "def" else coro).start(id="w").result(20)
    assert tuple(result) == ("booked", "charged")
    assert sorted(tries) == ["book", "charge"], "a step ran twice"
    assert [event["name"] for event in books.events("w", "StepCompleted")] == [
        "charge",
        "slow_book" if colour == "def" else "aslow_book",
    ]
    assert booked(books, "gathered") == 1


@pytest.mark.parametrize("colour", ["def", "async"])
def test_many_transactional_and_plain_steps_of_one_workflow_race_for_their_seqs(
    app: App, books: Log, colour: str
) -> None:
    tries: list[str] = []

    @refold.step
    def plain(n: int) -> int:
        tries.append(f"plain {n}")
        return n

    @refold.step(transaction=True)
    def count(conn: psycopg.Connection[Any], n: int) -> int:
        tries.append(f"count {n}")
        conn.execute("insert into bookings (who, seats) values ('race', %s)", (n,))
        return n

    @refold.step(transaction=True)
    async def acount(conn: psycopg.AsyncConnection[Any], n: int) -> int:
        tries.append(f"count {n}")
        await conn.execute("insert into bookings (who, seats) values ('race', %s)", (n,))
        return n

    @app.workflow
    def sync() -> int:
        return sum(refold.gather(*(one for n in range(20) for one in (count.later(n), plain.later(n)))))

    @app.workflow
    async def coro() -> int:
        return sum(await asyncio.gather(*(one for n in range(20) for one in (acount(n), plain.acall(n)))))

    with app:
        assert (sync if colour == "def" else coro).start(id="w").result(30) == 2 * sum(range(20))
    assert len(tries) == 40, "a step ran twice"
    assert books.one("select count(*) from bookings") == 20
    assert len(books.events("w", "StepCompleted")) == 40


def test_messages_that_come_while_a_transaction_commits_keep_their_place(app: App, books: Log) -> None:
    @app.workflow
    async def busy() -> list[int]:
        counts: list[int] = []
        for _ in range(5):
            _, got = await asyncio.gather(abook("m"), refold.arecv("n", int))
            counts.append(got)
        return counts

    with app:
        handle = busy.start(id="w")
        for n in range(5):
            app.send("w", n, "n")
        assert handle.result(20) == list(range(5))
    assert booked(books, "m") == 5


def held_up(books: Log) -> bool:
    """Whether a session waits for the advisory lock that a test holds."""
    return bool(
        books.rows(
            "select 1 from pg_stat_activity where datname = current_database() and wait_event = 'advisory'"
        )
    )


@pytest.mark.parametrize("colour", ["def", "async"])
def test_while_a_steps_commit_is_under_way_nothing_else_takes_its_place(
    app: App, books: Log, colour: str
) -> None:
    """A message and a step's result come while the transaction commits: they are kept back, then follow it."""
    books.rows(
        "create function hold() returns trigger language plpgsql as"
        " 'begin perform pg_advisory_xact_lock(42); return null; end'"
    )
    books.rows(
        "create constraint trigger held_at_commit after insert on bookings deferrable initially deferred"
        " for each row execute function hold()"
    )
    go_on = threading.Event()

    @refold.step
    def charge() -> int:
        assert go_on.wait(20)
        return 5

    @app.workflow
    async def one() -> list[int]:
        booking = book.acall("slow") if colour == "def" else abook("slow")
        return list(await asyncio.gather(booking, charge.acall(), refold.arecv("t", int)))

    @app.workflow
    async def neighbour() -> str:
        return await refold.arecv("t", str)

    with app, psycopg.connect(books.url) as blocker:
        blocker.execute("select pg_advisory_xact_lock(42)")
        handle = one.start(id="w")
        wait_for(lambda: held_up(books), "the booking's commit waits")
        go_on.set()
        app.send("w", 7, "t")
        other = neighbour.start()
        app.send(other.id, "flows on", "t")
        assert other.result(10) == "flows on"
        assert books.types("w") == ["WorkflowStarted"]
        blocker.rollback()
        assert handle.result(20) == [1, 5, 7]
    assert books.events("w")[1]["name"] in ("book", "abook")
    assert booked(books, "slow") == 1


@pytest.mark.parametrize("colour", ["def", "async"])
def test_a_transaction_commits_only_after_all_that_comes_before_it_in_the_log(
    app: App, books: Log, colour: str
) -> None:
    """The charge's event is on the wire when the booking is done: the booking waits until that is durable."""
    books.rows(
        "create function hold() returns trigger language plpgsql as"
        " 'begin perform pg_advisory_xact_lock(42); return new; end'"
    )
    books.rows(
        "create trigger held_at_insert before insert on refold.events for each row"
        " when (convert_from(new.body, 'UTF8') like '%%\"charge\"%%') execute function hold()"
    )
    begun, go_on = threading.Event(), threading.Event()

    @refold.step
    def charge() -> int:
        return 5

    @refold.step(transaction=True)
    def slow(conn: psycopg.Connection[Any]) -> int:
        conn.execute("insert into bookings (who) values ('slow')")
        begun.set()
        assert go_on.wait(20)
        return 1

    @refold.step(transaction=True)
    async def aslow(conn: psycopg.AsyncConnection[Any]) -> int:
        await conn.execute("insert into bookings (who) values ('slow')")
        begun.set()
        assert await asyncio.to_thread(go_on.wait, 20)
        return 1

    @app.workflow
    async def one() -> list[int]:
        booking = slow.acall() if colour == "def" else aslow()
        return list(await asyncio.gather(booking, charge.acall()))

    with app, psycopg.connect(books.url) as blocker:
        blocker.execute("select pg_advisory_xact_lock(42)")
        handle = one.start(id="w")
        assert begun.wait(10)
        wait_for(lambda: held_up(books), "the charge's event is on the wire")
        go_on.set()
        executor: Any = app._worker._term.executor  # type: ignore[union-attr]
        wait_for(lambda: executor.residents["w"].held is not None, "the booking has asked for its place")
        assert books.types("w") == ["WorkflowStarted"]
        books.check()
        blocker.rollback()
        assert handle.result(20) == [1, 5]
    assert books.events("w", "StepCompleted")[0]["name"] == "charge"


def test_a_transaction_that_loses_its_connection_is_run_again(app: App, books: Log) -> None:
    tries = 0

    @refold.step(transaction=True)
    def cut(conn: psycopg.Connection[Any]) -> int:
        nonlocal tries
        tries += 1
        conn.execute("insert into bookings (who) values ('cut')")
        if tries == 1:
            books.rows("select pg_terminate_backend(%s)", conn.info.backend_pid)
            conn.execute("select 1")
        return tries

    @app.workflow
    def sync() -> int:
        return cut()

    with app:
        assert sync.start(id="w").result(20) == 2
    assert booked(books, "cut") == 1
    assert books.types("w") == ["WorkflowStarted", "StepCompleted", "WorkflowCompleted"]


def test_a_commit_whose_answer_is_lost_is_not_made_twice(books: Log, cut_proxy: CutProxy) -> None:
    """The line breaks after the step's last statement has reached Postgres: the flush number tells what happened."""
    app = App("cut", database_url=cut_proxy.url)
    tries = 0
    holding = threading.Event()
    go_on = threading.Event()

    @refold.step(transaction=True)
    def book_it(conn: psycopg.Connection[Any]) -> int:
        nonlocal tries
        tries += 1
        conn.execute("insert into bookings (who) values ('lost')")
        if tries == 1:
            holding.set()
            assert go_on.wait(20)
        return tries

    @app.workflow
    def sync() -> int:
        return book_it()

    with app:
        sync.start(id="w")
        assert holding.wait(20)
        cut_proxy.hold(Direction.TO_CLIENT)
        go_on.set()
        # Postgres has got `record` and waits with an open transaction for the commit; or it is committed already.
        cut_proxy.wait_until_holding(Direction.TO_CLIENT)
        cut_proxy.cut()
        books.wait_status("w", "completed")
    assert booked(books, "lost") == 1
    assert len(books.events("w", "StepCompleted")) == 1


def test_a_transactional_step_that_is_dropped_meanwhile_writes_nothing(app: App, books: Log) -> None:
    entered = threading.Event()
    leave = threading.Event()

    @refold.step(transaction=True)
    def late(conn: psycopg.Connection[Any]) -> None:
        conn.execute("insert into bookings (who) values ('late')")
        entered.set()
        leave.wait(20)

    @refold.step
    async def soon() -> None:
        assert await asyncio.to_thread(entered.wait, 20)

    @app.workflow
    async def first_wins() -> str:
        done, pending = await asyncio.wait(
            [asyncio.ensure_future(late.acall()), asyncio.ensure_future(soon())],
            return_when=asyncio.FIRST_COMPLETED,
        )
        for task in pending:
            task.cancel()
        return str(len(done))

    with app:
        assert first_wins.start(id="w").result(20) == "1"
        leave.set()
        wait_for(
            lambda: (
                books.one(
                    "select count(*) from pg_stat_activity where state = 'idle in transaction'"
                    " and datname = current_database()"
                )
                == 0
            ),
            "the transaction is over",
        )
    assert booked(books, "late") == 0
    assert books.types("w") == ["WorkflowStarted", "StepCompleted", "WorkflowCompleted"]
