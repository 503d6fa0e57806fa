"""What is accepted is durable, once for each identity, and whoever gave up waiting has taken it back."""

import asyncio
import concurrent.futures
from collections.abc import Callable
from typing import Any

import msgspec
import psycopg
import pytest

import refold
from fixtures.lanes import blocked_sessions
from fixtures.postgres import OwnPostgres
from fixtures.workers import Log, wait_for
from refold import App
from refold.core import Accepted, NotAccepted, Send, Start, Workflow
from refold.eventlog import migrate
from refold.eventlog._errors import AppendRefused

Session = Callable[[], psycopg.Connection[Any]]


def _note(app: App) -> Workflow[..., Any]:
    @app.workflow
    def note(n: int) -> int:
        return n

    return note


def _waits(app: App) -> Workflow[..., Any]:
    @app.workflow
    def waits(n: int) -> str:
        return refold.recv("say", str) + refold.recv("say", str)

    return waits


def _start(workflow: Workflow[..., Any], id: str, n: int = 1, **more: Any) -> Start:
    return Start(workflow, id, msgspec.json.encode({"n": n}), **more)


def test_what_is_accepted_is_in_the_log_and_runs_here_at_once(app: App, log: Log) -> None:
    note = _note(app)
    with app:
        assert app.accept([_start(note, "a", 1), _start(note, "b", 2)], label="hook") == [
            Accepted("a", True),
            Accepted("b", True),
        ]
        assert [app.get(id).result(20) for id in "ab"] == [1, 2]
    assert log.rows("select source, claimed_seq from refold.workflows") == [("hook", 1)] * 2, "claimed again"


def test_a_process_without_a_worker_accepts_too(app: App, log: Log) -> None:
    note = _note(app)
    assert app.accept([_start(note, "a")], label="hook") == [Accepted("a", True)]
    assert log.status("a") == "pending"
    with app:
        assert app.get("a").result(20) == 1


@pytest.mark.parametrize("worker", [True, False], ids=["with a worker", "without"])
def test_the_same_identity_is_the_same_workflow_whatever_the_body(app: App, worker: bool) -> None:
    note = _note(app)
    if worker:
        app.start_worker()
    [first, again] = app.accept([_start(note, "a", 1), _start(note, "a", 2)], label="hook")
    assert (first.new, again.new, again.digest) == (True, False, note.digest(b'{"n":1}'))
    [other] = app.accept([_start(note, "a", 3)], label="hook")
    assert other == again
    [signed] = app.accept([_start(note, "b", digest="sha256:x")], label="hook")
    [signed] = app.accept([_start(note, "b", digest="sha256:y")], label="hook")
    assert signed == Accepted("b", False, "sha256:x")


def test_a_deleted_identity_stays_taken(app: App) -> None:
    note = _note(app)
    with app:
        app.accept([_start(note, "a", digest="d")], label="hook")
        app.get("a").result(20)
        app.delete("a")
        assert app.accept([_start(note, "a", 2)], label="hook") == [Accepted("a", False, "d")]


def test_the_same_body_under_another_identity_is_reported_if_asked_for(app: App) -> None:
    note = _note(app)

    def accept(id: str, n: int, label: str = "hook", *, find: bool = True) -> str | None:
        [accepted] = app.accept([_start(note, id, n, find_same=find)], label=label)
        return accepted.same

    with app:
        assert accept("a", 1) is None
        assert accept("b", 1) == "a"
        assert accept("c", 1) == "a", "the earliest is meant"
        assert accept("a", 1) == "b", "another one is meant"
        assert accept("d", 2) is None
        assert accept("e", 1, "other hook") is None
        assert accept("f", 3, find=False) is None
        assert accept("g", 3) is None, "one that did not ask is not found: it costs no index entry"


def test_many_that_come_at_once_share_their_transactions(app: App, log: Log) -> None:
    note = _note(app)

    async def many() -> list[list[Accepted]]:
        calls = [app.aaccept([_start(note, f"n-{i}", i)], label="hook") for i in range(300)]
        return await asyncio.gather(*calls)

    with app:
        answers = asyncio.run(many())
        assert [answer[0] for answer in answers] == [Accepted(f"n-{i}", True) for i in range(300)]
        assert [app.get(f"n-{i}").result(30) for i in range(300)] == list(range(300))
    transactions = log.one("select count(distinct xid) from refold.events where type = 'WorkflowStarted'")
    assert transactions < 150


def test_messages_are_kept_once_and_told_from_those_to_the_dead(app: App) -> None:
    waits = _waits(app)

    def send(id: str, value: bytes = b'"x"') -> Accepted:
        [accepted] = app.accept([Send("w", id, "say", value)], label="hook")
        return accepted

    with app:
        assert send("m-1") == Accepted("w", True), "it is not started yet: the message waits for it"
        assert send("m-1") == Accepted("w", False)
        app.accept([_start(waits, "w")], label="hook")
        wait_for(
            lambda: [e for e in app.history("w") if type(e.event).__name__ == "MessageReceived"], "it read"
        )
        assert send("m-1") == Accepted("w", False), "it was read, and is not given twice"
        two = app.accept([Send("w", "m-2", "say", b'"y"'), Send("w", "m-2", "say", b'"y"')], label="hook")
        assert two == [Accepted("w", True), Accepted("w", False)]
        assert app.get("w").result(20) == "xy"
        assert send("m-3") == Accepted("w", False, ended=True)


def test_one_that_postgres_refuses_harms_no_other(app: App, log: Log) -> None:
    note = _note(app)
    log.rows("alter table refold.workflows add constraint small check (digest <> 'bad')")
    for worker in (False, True):
        if worker:
            app.start_worker()

        async def three(worker: bool = worker) -> list[Any]:
            starts = [_start(note, f"{worker}-{name}", digest=name) for name in ("good", "bad", "fine")]
            calls = [app.aaccept([start], label="hook") for start in starts]
            return await asyncio.gather(*calls, return_exceptions=True)

        good, bad, fine = asyncio.run(three())
        assert (good[0].new, fine[0].new) == (True, True)
        assert isinstance(bad, AppendRefused)


def test_undecodable_input_is_recorded_as_failed(app: App, log: Log) -> None:
    note = _note(app)
    with app:
        assert app.accept([Start(note, "a", b'{"n":"x"}')], label="hook") == [Accepted("a", True)]
    assert (log.status("a"), log.types("a")) == ("failed", ["WorkflowStarted", "WorkflowFailed"])


# In time, whatever Postgres does.


def _not_accepted(app: App, start: Start, timeout: float = 1.0) -> NotAccepted:
    with pytest.raises(NotAccepted) as caught:
        app.accept([start], label="hook", timeout=timeout)
    return caught.value


@pytest.mark.raises_error("NotAccepted")
@pytest.mark.parametrize("worker", [True, False], ids=["with a worker", "without"])
def test_a_postgres_that_stands_still_is_answered_for_in_time_and_what_waited_is_taken_back(
    app: App, log: Log, session: Session, worker: bool
) -> None:
    note = _note(app)
    if worker:
        app.start_worker()
    app.accept([_start(note, "before")], label="hook")
    holder = session()
    holder.execute("lock table refold.workflows in exclusive mode")
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        sent = pool.submit(_not_accepted, app, _start(note, "sent"), 3.0)
        wait_for(lambda: blocked_sessions(log) >= 1, "the first is on its way")
        waited = pool.submit(_not_accepted, app, _start(note, "waited"), 0.5).result(60)
        assert str(waited) == (
            "1 message(s) for hook were not accepted: Postgres has not answered within 0.5 s. Answer the sender that "
            "it failed (over HTTP: 503), so that it sends them again; under the same identity they are started once."
        )
        sent.result(60)
    holder.rollback()
    assert app.accept([_start(note, "after")], label="hook", timeout=60)[0].new
    assert not log.rows("select workflow_id from refold.workflows where workflow_id = 'waited'")
    with app:  # what was on its way was done, and is run like any other
        assert app.get("sent").result(30) == 1


@pytest.mark.parametrize("worker", [True, False], ids=["with a worker", "without"])
def test_a_postgres_that_is_down_is_answered_for_in_time_and_nothing_comes_after(
    own_postgres: OwnPostgres, worker: bool
) -> None:
    migrate(own_postgres.url)
    app = App("shop", database_url=own_postgres.url)
    note = _note(app)
    if worker:
        app.start_worker()
    app.accept([_start(note, "before")], label="hook")
    own_postgres.stop()
    ids = [f"down-{n}" for n in range(4)]
    for id in ids:
        assert "were not accepted" in str(_not_accepted(app, _start(note, id), 0.5))
    own_postgres.start()
    assert app.accept([_start(note, "after")], label="hook", timeout=60)[0].new
    log = Log(own_postgres.url)
    assert log.rows("select workflow_id from refold.workflows where workflow_id like 'down-%%'") == []
    log.close()
    app.close()


def test_a_first_use_without_postgres_is_answered_for_in_time(own_postgres: OwnPostgres) -> None:
    migrate(own_postgres.url)
    own_postgres.stop()
    app = App("shop", database_url=own_postgres.url)
    note = _note(app)

    async def accept() -> None:
        await app.aaccept([_start(note, "a")], label="hook", timeout=5)

    with pytest.raises(NotAccepted, match=r"^1 message.s. for hook were not accepted: "):
        asyncio.run(accept())
    own_postgres.start()
    assert app.accept([_start(note, "a")], label="hook", timeout=60) == [Accepted("a", True)]
    app.close()


def test_a_caller_that_is_cancelled_takes_back_what_has_not_left(
    app: App, log: Log, session: Session
) -> None:
    note = _note(app)
    app.start_worker()
    app.accept([_start(note, "before")], label="hook")
    holder = session()
    holder.execute("lock table refold.workflows in exclusive mode")

    async def main() -> None:
        sent = asyncio.ensure_future(app.aaccept([_start(note, "sent")], label="hook", timeout=60))
        await asyncio.to_thread(wait_for, lambda: blocked_sessions(log) >= 1, "the first is on its way")
        waits = asyncio.ensure_future(app.aaccept([_start(note, "waits")], label="hook", timeout=60))
        await asyncio.sleep(0)
        waits.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waits
        holder.rollback()
        assert (await sent)[0].new

    asyncio.run(main())
    app.accept([_start(note, "after")], label="hook")
    assert not log.rows("select workflow_id from refold.workflows where workflow_id = 'waits'")


@pytest.mark.parametrize("worker", [True, False], ids=["with a worker", "without"])
def test_a_message_that_its_first_caller_gives_up_is_there_for_the_second_who_was_told_so(
    app: App, log: Log, session: Session, worker: bool
) -> None:
    if worker:
        app.start_worker()
    [plug] = app.accept([Send("w", "before", "say", b"0")], label="hook")
    assert plug.new
    now, then = session(), session()
    now.execute("lock table refold.inbox in exclusive mode")

    async def main() -> Accepted:
        async def send(id: str) -> Accepted:
            return (await app.aaccept([Send("w", id, "say", b"1")], label="hook", timeout=60))[0]

        async def blocked(count: int) -> None:
            await asyncio.to_thread(wait_for, lambda: blocked_sessions(log) >= count, f"{count} wait")

        plugged = asyncio.ensure_future(send("plug"))
        await blocked(1)
        locking = asyncio.ensure_future(
            asyncio.to_thread(then.execute, "lock table refold.inbox in exclusive mode")
        )
        await blocked(2)
        first, second = asyncio.ensure_future(send("m")), asyncio.ensure_future(send("m"))
        now.rollback()  # the two share the next transaction, which has to wait as well
        await plugged
        await locking
        await blocked(1)
        first.cancel()
        await asyncio.gather(first, return_exceptions=True)
        log.rows(
            "select pg_terminate_backend(pid) from pg_stat_activity where wait_event_type = 'Lock' "
            "and datname = current_database()"
        )
        then.rollback()
        return await second

    assert asyncio.run(main()).id == "w"
    assert log.one("select count(*) from refold.inbox where message_id = 'm'") == 1
