"""Sleep, send and recv: durable, in the order of sending, each message once."""

import asyncio
from datetime import UTC, datetime, timedelta

import msgspec
import pytest

import refold
from fixtures.workers import Log, wait_for
from refold import App
from refold.core import Move, Start


class Verdict(msgspec.Struct):
    by: str
    granted: bool


def test_a_message_sent_before_recv_waits_for_it(app: App, log: Log) -> None:
    gate = asyncio.Event()

    @refold.step
    async def hold() -> None:
        await gate.wait()

    @refold.step
    async def let_go() -> None:
        gate.set()

    @app.workflow
    async def opener() -> None:
        await let_go()

    @app.workflow
    async def approval() -> str:
        await hold()
        verdict = await refold.arecv("approval", Verdict)
        return f"{verdict.by}: {verdict.granted}"

    with app:
        handle = approval.start(id="a")
        app.send("a", Verdict("ann", True), "approval")
        wait_for(lambda: "MessageReceived" in log.types("a"), "the message is folded while the step runs")
        opener.start().result(10)
        assert handle.result(10) == "ann: True"
    assert log.types("a") == ["WorkflowStarted", "MessageReceived", "StepCompleted", "WorkflowCompleted"]
    assert log.one("select count(*) from refold.inbox") == 0


def test_a_message_sent_after_recv_wakes_it(app: App, log: Log) -> None:
    @app.workflow
    def approval() -> bool:
        return refold.recv("approval", Verdict).granted

    with app:
        handle = approval.start(id="a")
        wait_for(lambda: log.status("a") in ("running", "waiting"), "it waits")
        app.send("a", {"by": "bob", "granted": False}, "approval")
        assert handle.result(10) is False


def test_messages_come_in_the_order_of_sending_and_by_topic(app: App, log: Log) -> None:
    @app.workflow
    def collector() -> list[str]:
        got = [refold.recv("b", str) for _ in range(3)]
        return got + [refold.recv("a", str) for _ in range(3)]

    with app:
        for n in range(3):
            app.send("c", f"a{n}", "a")
            app.send("c", f"b{n}", "b")
        assert collector.start(id="c").result(10) == ["b0", "b1", "b2", "a0", "a1", "a2"]
    received = [event["value"] for event in log.events("c", "MessageReceived")]
    assert received == ["a0", "b0", "a1", "b1", "a2", "b2"]


def test_a_message_to_an_id_that_is_not_started_waits_in_the_inbox(app: App, log: Log) -> None:
    @app.workflow
    def later() -> str:
        return refold.recv(type=str, topic="t")

    app.send("not-yet", "hello", "t")  # by a process without a worker
    assert log.rows("select workflow_id, type from refold.inbox") == [("not-yet", "MessageReceived")]
    with app:
        assert later.start(id="not-yet").result(10) == "hello"
    assert log.types("not-yet") == ["WorkflowStarted", "MessageReceived", "WorkflowCompleted"]


@pytest.mark.parametrize("where", ["outside", "child", "lane"])
def test_mail_that_came_before_is_there_when_the_workflow_starts(app: App, log: Log, where: str) -> None:
    """A `recv` that waits hardly at all finds it."""

    @app.workflow
    def impatient() -> str:
        return refold.recv("t", str, timeout=timedelta(milliseconds=1))

    @app.workflow
    def parent() -> str:
        return impatient.options(id="w").call()

    with app:
        app.send("w", "hello", "t")
        if where == "outside":
            assert impatient.start(id="w").result(10) == "hello"
        elif where == "child":
            assert parent.start().result(10) == "hello"
        else:
            source = app.lane("lane")
            position = source.read_positions(["feed"]).result(10)["feed"]
            move = Move(position, b"1", "feed", [Start(impatient, "w", b"{}")])
            assert source.hand_over([move]).result(10).started == 1
            assert app.get("w").result(10) == "hello"
    assert log.types("w") == ["WorkflowStarted", "MessageReceived", "WorkflowCompleted"]
    assert log.one("select count(*) from refold.inbox") == 0


def test_sending_to_a_workflow_that_has_ended_is_refused(app: App, log: Log) -> None:
    @app.workflow
    def quick() -> None: ...

    with app:
        quick.start(id="q").result(10)
        with pytest.raises(refold.WorkflowEnded, match=r"workflow 'q' is completed: nobody will receive"):
            app.send("q", 1)
    assert log.one("select count(*) from refold.inbox") == 0


def test_a_message_that_crosses_the_end_leaves_nothing_behind(app: App, log: Log) -> None:
    @app.workflow
    def one() -> int:
        return refold.recv("n", int)

    with app:
        handle = one.start(id="o")
        for n in range(20):
            try:
                app.send("o", n, "n")
            except refold.WorkflowEnded:
                break
        assert handle.result(10) == 0
        wait_for(lambda: log.one("select count(*) from refold.inbox") == 0, "the inbox is empty")


@pytest.mark.parametrize("colour", ["def", "async"])
def test_recv_gives_up_after_its_timeout_and_a_later_message_is_not_lost(
    app: App, log: Log, colour: str
) -> None:
    @app.workflow
    def sync() -> str:
        try:
            refold.recv("t", str, timeout=timedelta(milliseconds=60))
        except refold.TimedOut:
            return "timed out, then " + refold.recv("t", str)
        return "?"

    @app.workflow
    async def coro() -> str:
        try:
            await refold.arecv("t", str, timeout=0.06)
        except TimeoutError:
            return "timed out, then " + await refold.arecv("t", str)
        return "?"

    with app:
        handle = (sync if colour == "def" else coro).start(id="w")
        wait_for(lambda: "TimerFired" in log.types("w"), "the time-out is in the log")
        app.send("w", "late", "t")
        assert handle.result(10) == "timed out, then late"
    assert log.types("w") == ["WorkflowStarted", "TimerFired", "MessageReceived", "WorkflowCompleted"]


def test_a_message_in_time_cancels_the_timeout(app: App, log: Log) -> None:
    @app.workflow
    def sync() -> str:
        got = refold.recv("t", str, timeout=0.3)
        refold.sleep(0.4)
        return got

    with app:
        app.send("w", "in time", "t")
        assert sync.start(id="w").result(10) == "in time"
    assert log.types("w") == ["WorkflowStarted", "MessageReceived", "TimerFired", "WorkflowCompleted"]


def test_a_message_of_the_wrong_type_is_an_error_at_recv(app: App) -> None:
    @app.workflow
    def sync() -> str:
        try:
            refold.recv("t", int)
        except refold.DecodeFailed as error:
            return str(error)
        return "?"

    with app:
        app.send("w", "no number", "t")
        assert "Expected `int`, got `str`" in sync.start(id="w").result(10)


def test_workflows_send_to_each_other_and_to_ids_not_started(app: App, log: Log) -> None:
    @app.workflow
    def ping(n: int) -> int:
        for i in range(n):
            refold.send("pong", i, "ball")
            assert refold.recv("ball", int) == i + 100
        refold.send("unborn", "hello", "t")
        return n

    @app.workflow
    async def pong(n: int) -> int:
        for _ in range(n):
            refold.send("ping", await refold.arecv("ball", int) + 100, "ball")
        return n

    @app.workflow
    def unborn() -> str:
        return refold.recv("t", str)

    with app:
        handles = [ping.start(10, id="ping"), pong.start(10, id="pong")]
        assert [handle.result(20) for handle in handles] == [10, 10]
        assert unborn.start(id="unborn").result(10) == "hello"
    sent = log.events("ping", "MessageSent")
    assert [event["message_id"] for event in sent] == [f"ping/{event['no']}" for event in sent]
    assert (
        log.one(
            "select count(*) from refold.events s join refold.events r on r.type = 'MessageReceived'"
            " and r.workflow_id = 'pong' and convert_from(r.body, 'UTF8')::json ->> 'message_id'"
            " = convert_from(s.body, 'UTF8')::json ->> 'message_id'"
            " where s.type = 'MessageSent' and s.workflow_id = 'ping'"
        )
        == 10
    )


def test_sending_from_a_workflow_to_one_that_has_ended_does_no_harm(app: App, log: Log) -> None:
    @app.workflow
    def quick() -> None: ...

    @app.workflow
    def sender() -> str:
        refold.send("q", 1)
        return "sent"

    with app:
        quick.start(id="q").result(10)
        assert sender.start(id="s").result(10) == "sent"
    assert log.one("select count(*) from refold.inbox") == 0


def test_sleep_is_a_timer_in_the_log_and_now_is_the_time_of_the_last_event(app: App, log: Log) -> None:
    @app.workflow
    def sync() -> tuple[datetime, datetime]:
        before = refold.now()
        refold.sleep(timedelta(milliseconds=120))
        return before, refold.now()

    @app.workflow
    async def coro() -> tuple[datetime, datetime]:
        before = refold.now()
        await asyncio.sleep(0.12)
        return before, refold.now()

    with app:
        handles = [sync.start(id="s"), coro.start(id="c")]
        results = [handle.result(10) for handle in handles]
    for name, (before, after) in zip("sc", results, strict=True):
        started, fired, _ = log.events(name)
        assert before == started["at"]
        assert after == fired["at"]
        assert after - before >= timedelta(milliseconds=120)
        assert fired["until"] == round(started["at"].timestamp() * 1e6) + 120_000


def test_sleep_until_a_time_that_has_passed_fires_at_once(app: App) -> None:
    @app.workflow
    def sync() -> str:
        refold.sleep_until(datetime(2020, 1, 1, tzinfo=UTC))
        return "awake"

    with app:
        assert sync.start().result(10) == "awake"


def test_a_timer_follows_the_clock_of_the_log(app: App, log: Log) -> None:
    """`log_now()` jumps by 30 days: a sleeper of 29 days is due, in memory or not; nobody is declared dead."""

    @app.workflow
    def sleeper(days: int) -> datetime:
        refold.sleep(timedelta(days=days))
        return refold.now()

    with app:
        handle = sleeper.start(29, id="s")
        other = sleeper.start(60, id="o")
        workers = log.rows("select worker from refold.workers where lane = 'beat'")
        log.rows(
            "create or replace function refold.log_now() returns timestamptz language sql volatile as"
            " $$ select clock_timestamp() + interval '30 days' $$"
        )
        assert handle.result(15) - log.events("s")[0]["at"] >= timedelta(days=29)
        assert other.status() in ("running", "waiting")
        assert log.rows("select worker from refold.workers where lane = 'beat'") == workers
