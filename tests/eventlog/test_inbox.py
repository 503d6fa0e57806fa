"""No message is lost, none is folded twice, and no wake-up falls between waiting and sending (rule 14)."""

import asyncio
from collections.abc import Callable
from typing import Any

import psycopg
import pytest

import refold
from fixtures.lanes import FakeWorker, MakeWorker, Run, completed, end, message, new_workflow, step_done
from fixtures.workers import Log, wait_for
from refold import App
from refold.eventlog._listen import Listener
from refold.eventlog._log import Append, HeadChange
from refold.eventlog._read import Reader

Session = Callable[[], psycopg.Connection[Any]]

_DELIVER = "select refold.deliver(array[%s], array[%s], array['MessageReceived'], array[%s::bytea], null)"


def _send(connection: psycopg.Connection[Any], to: str, message_id: str) -> None:
    connection.execute(_DELIVER, (to, message_id, message(to, message_id).body))


def _mail(run: Run[Any], worker: FakeWorker) -> list[str]:
    async def main() -> list[str]:
        reader = Reader(worker.url)
        mail = await reader.own_mail(worker.name, {})
        await reader.close()
        return [message_id for _, message_id, _ in mail]

    return list(run(main()))


def test_a_message_whose_number_is_lower_and_that_commits_later_is_not_lost(
    worker: FakeWorker, session: Session, run: Run[Any], log: Log
) -> None:
    """A watermark ("all up to number 2 is folded") would jump over it."""
    worker.start("o-1")
    slow, fast = session(), session()
    _send(slow, "o-1", "m-1")
    _send(fast, "o-1", "m-2")
    fast.commit()
    assert _mail(run, worker) == ["m-2"]
    worker.flush(Append("o-1", events=[step_done(1)], folded=["m-2"]))
    slow.commit()
    assert _mail(run, worker) == ["m-1"]
    numbers = log.rows("select id from refold.inbox")
    assert numbers == [(1,)]


def test_messages_are_read_in_the_order_of_sending(worker: FakeWorker, run: Run[Any]) -> None:
    worker.start("o-1")
    sent = ["z", "a", "m", "b"]
    worker.flush(Append("@", messages=[message("o-1", i) for i in sent]))
    worker.flush(Append("@", messages=[message("o-1", "0")]))
    assert _mail(run, worker) == [*sent, "0"]


def test_a_message_sent_while_its_workflow_is_let_go_wakes_whoever_looks_next(
    worker: FakeWorker, make_worker: MakeWorker, session: Session, log: Log
) -> None:
    """The sender still sees the old owner and notifies it; the old owner has looked already."""
    worker.start("o-1")
    other = make_worker("w2")
    letting_go = session()
    letting_go.execute("update refold.workflows set owner = null, status = 'waiting', due_at = null")
    sender = session()
    _send(sender, "o-1", "m-1")
    sender.commit()
    letting_go.commit()
    assert "work" in other.tick()
    assert other.claim() == ["o-1"]


def test_a_message_to_a_workflow_that_waits_makes_it_claimable(
    worker: FakeWorker, make_worker: MakeWorker
) -> None:
    worker.start("o-1", "o-2")
    waits = HeadChange("waiting", None)
    worker.flush(Append("o-1", head=waits), Append("o-2", head=waits))
    other = make_worker("w2")
    assert "work" not in other.tick()
    assert other.claim() == []
    worker.flush(Append("@", messages=[message("o-2", "m-1"), message("o-2", "m-2")]))
    assert "work" in other.tick()
    assert other.tick(names=["reminder"]) & {"work", "mail"} == set()
    assert other.claim(names=["reminder"]) == []
    assert other.claim() == ["o-2"]
    assert "mail" in other.tick()


def test_a_message_to_a_workflow_that_is_not_started_yet_waits_for_it(
    worker: FakeWorker, run: Run[Any]
) -> None:
    worker.flush(Append("@", messages=[message("o-1", "m-1")]))
    assert worker.tick() == {"now"}
    worker.start("o-1")
    assert _mail(run, worker) == ["m-1"]
    assert "mail" in worker.tick()


def test_a_message_to_a_workflow_that_has_ended_leaves_nothing_behind(worker: FakeWorker, log: Log) -> None:
    worker.start("o-1")
    worker.flush(Append("@", messages=[message("o-1", "unread")]))
    worker.flush(Append("o-1", events=[completed(1)], head=end(1)))
    worker.flush(Append("@", messages=[message("o-1", "late")]))
    assert log.rows("select * from refold.inbox") == []


def test_the_same_message_twice_is_one(worker: FakeWorker, run: Run[Any]) -> None:
    worker.start("o-1")
    for _ in range(2):
        worker.flush(Append("@", messages=[message("o-1", "m-1"), message("o-1", "m-1")]))
    assert _mail(run, worker) == ["m-1"]


def test_a_message_that_comes_again_after_it_was_folded_is_folded_once(app: App, log: Log) -> None:
    """A sender that never heard of its first try sends again; the stream says that it has the message."""

    @app.workflow
    def two_messages() -> list[int]:
        return [refold.recv("", int), refold.recv("", int)]

    with app:
        handle = two_messages.start(id="o-1")
        wait_for(lambda: log.status("o-1") in ("running", "waiting"), "it waits")
        for message_id in ("m-1", "m-1", "m-2"):
            log.rows(_DELIVER, "o-1", message_id, message("o-1", message_id).body)
            if message_id == "m-1":
                wait_for(lambda: log.one("select count(*) from refold.inbox") == 0, "it is folded or dropped")
        assert handle.result(20) == [1, 1]
    folded = [event["message_id"] for event in log.events("o-1", "MessageReceived")]
    assert folded == ["m-1", "m-2"]


@pytest.fixture
def app(database_url: str) -> Any:
    """An app on the test's database."""
    made = App("test", database_url=database_url)
    yield made
    made.close()


def test_at_most_one_notification_a_flush_and_only_to_who_does_not_know(
    make_worker: MakeWorker, run: Run[Any], log: Log
) -> None:
    mine, theirs = make_worker("w1"), make_worker("w2")
    heard: list[tuple[str, str]] = []

    async def main() -> None:
        listening = asyncio.Event()
        channels = ["refold_work", "refold_w1", "refold_w2", "done"]
        listener = Listener(mine.url, channels, lambda *what: heard.append(what), listening.set)
        await listening.wait()
        # In somebody's hands already: nobody is told.
        await mine.lane.flush([Append("+a", starts=[new_workflow("a", owner="w1")])])
        await mine.lane.flush([Append("+b", starts=[new_workflow("b", owner="w2")])])
        await mine.lane.flush([Append("@", messages=[message("a", "m-1")])])  # its own
        await mine.lane.flush([Append("@", messages=[message("b", f"m-{n}") for n in range(50)])])
        await mine.lane.flush(
            [Append("+c", starts=[new_workflow("c")]), Append("+d", starts=[new_workflow("d")])]
        )
        log.rows("notify done")  # comes after all that was committed before
        await asyncio.to_thread(wait_for, lambda: ("done", "") in heard, "the last of them is heard")
        await listener.close()

    run(main())
    assert heard == [("refold_w2", ""), ("refold_work", ""), ("done", "")]
    theirs.close()


def test_who_waits_for_an_end_is_told_at_the_commit(worker: FakeWorker, run: Run[Any]) -> None:
    worker.start("o-1", "o-2")
    heard: list[tuple[str, str]] = []

    async def main() -> None:
        listening, told = asyncio.Event(), asyncio.Event()

        def hear(channel: str, payload: str) -> None:
            heard.append((channel, payload))
            told.set()

        listener = Listener(worker.url, ["refold_client"], hear, listening.set)
        await listening.wait()
        reader = Reader(worker.url)
        await reader.wait(["o-1"], "refold_client")
        await worker.lane.flush([Append(i, events=[completed(1)], head=end(1)) for i in ("o-1", "o-2")])
        await asyncio.wait_for(told.wait(), 20)
        assert list(await reader.ends(["o-1"])) == ["o-1"]
        await reader.close()
        await listener.close()

    run(main())
    assert heard == [("refold_client", "o-1")]


def test_a_listener_whose_line_broke_listens_again_and_says_that_it_may_have_missed_something(
    worker: FakeWorker, run: Run[Any], log: Log
) -> None:
    heard: list[str] = []

    async def main() -> None:
        connected: asyncio.Queue[None] = asyncio.Queue()
        told = asyncio.Event()

        def hear(channel: str, payload: str) -> None:
            heard.append(payload)
            told.set()

        listener = Listener(worker.url, ["refold_work"], hear, lambda: connected.put_nowait(None))
        await connected.get()
        log.rows("select pg_terminate_backend(pid) from pg_stat_activity where query like 'listen%%'")
        await asyncio.wait_for(connected.get(), 20)
        log.rows("select pg_notify('refold_work', 'again')")
        await asyncio.wait_for(told.wait(), 20)
        await listener.close()

    run(main())
    assert heard == ["again"]
