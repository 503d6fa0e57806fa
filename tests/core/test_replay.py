"""Replay: the same history asks for the same things, from any prefix, in any order of answers."""

import asyncio
import random
import sys
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import Raw

from fixtures.driving import START, World, replay, replay_every_prefix, workflow
from refold.core import _context as refold
from refold.core._commands import CancelCommand, Complete, Fail, RunStep, StartTimer
from refold.core._definitions import step
from refold.core._driver import Instance
from refold.core._errors import DecodeFailed, HistoryMismatch, TimedOut
from refold.core._failures import record_error
from refold.eventlog._events import (
    Event,
    MessageReceived,
    MessageSent,
    StepCompleted,
    StepFailed,
    TimerFired,
    WorkflowCompleted,
    WorkflowFailed,
    WorkflowStarted,
)


class Order(msgspec.Struct):
    id: str
    amount: int = 1


@step
def charge(order: Order) -> str:
    return f"receipt-{order.id}"


@step
async def ship(order: Order, fast: bool = False) -> int:
    return order.amount * (2 if fast else 1)


@step
def refuse(order: Order) -> None:
    raise ValueError(f"no {order.id}")


@workflow
def plain(order: Order) -> list[Any]:
    receipt = charge(order)
    refold.sleep(timedelta(hours=24))
    parcels = ship.call(order, fast=True)
    try:
        refuse(order)
    except ValueError as exc:
        return [receipt, parcels, str(exc)]
    return []


@workflow
async def colourful(order: Order) -> list[Any]:
    receipt = await charge.acall(order)
    await asyncio.sleep(60)
    parcels, again = await asyncio.gather(ship(order), ship(order, fast=True))
    try:
        await refuse.acall(order)
    except ValueError as exc:
        return [receipt, parcels, again, str(exc)]
    return []


@workflow
def parent(order: Order) -> list[Any]:
    handle = plain.start(order)
    first = colourful.call(order)
    refold.send("other", order, "news")
    return [first, handle.result(), handle.id]


@workflow
async def async_parent(order: Order) -> list[Any]:
    handle = colourful.options(id="mine").start(order)
    first = await plain.acall(order)
    refold.send("other", order, "news")
    return [first, await handle.aresult(), handle.id]


@workflow
def receiving(order: Order) -> list[Any]:
    verdict = refold.recv("approval", bool, timeout=timedelta(days=3))
    try:
        late = refold.recv("nobody", int, timeout=timedelta(hours=1))
    except TimedOut:
        late = -1
    return [verdict, late, refold.recv("approval"), charge(order)]


@workflow
async def async_receiving(order: Order) -> list[Any]:
    verdict = await refold.arecv("approval", bool, timeout=timedelta(days=3))
    try:
        late = await refold.arecv("nobody", int, timeout=timedelta(hours=1))
    except TimedOut:
        late = -1
    return [verdict, late, await refold.arecv("approval"), await charge.acall(order)]


def by(choose: random.Random) -> Callable[[int], int]:
    return lambda n: choose.randrange(n)


ALL = [plain, colourful, parent, async_parent]


@pytest.mark.parametrize("which", ALL, ids=lambda w: w.name)
@given(seed=st.integers(0, 1_000_000))
@settings(max_examples=25, deadline=None)
def test_replaying_any_prefix_of_a_history_asks_for_what_came_next(which: Any, seed: int) -> None:
    world = World(which, Order("7", 3), choose=by(random.Random(seed))).run()
    assert isinstance(world.end, Complete)
    replay_every_prefix(world)


@pytest.mark.parametrize("which", [receiving, async_receiving], ids=lambda w: w.name)
@given(seed=st.integers(0, 1_000_000))
@settings(max_examples=25, deadline=None)
def test_messages_are_received_in_the_order_of_the_log(which: Any, seed: int) -> None:
    messages = [("approval", b"true"), ("noise", b"0"), ("approval", b'{"n":1}')]
    world = World(which, Order("7"), choose=by(random.Random(seed)), messages=messages).run()
    if isinstance(world.end, Complete):
        assert world.result == [True, -1, {"n": 1}, "receipt-7"]
    else:
        assert isinstance(world.end, Fail)
        assert world.end.error.qualname == "TimedOut"  # the timer of three days was drawn before the message
    replay_every_prefix(world)


def test_both_colours_give_the_same_history() -> None:
    assert World(plain, Order("7", 3)).run().result == ["receipt-7", 6, "no 7"]
    assert World(colourful, Order("7", 3)).run().result == ["receipt-7", 3, 6, "no 7"]


def test_a_child_s_default_id_derives_from_the_parent_s() -> None:
    world = World(parent, Order("7", 3), id="p").run()
    assert world.result == [["receipt-7", 3, 6, "no 7"], ["receipt-7", 6, "no 7"], "p/0"]
    assert World(async_parent, Order("7", 3), id="p").run().result[2] == "mine"


def test_a_timer_is_set_from_the_last_event_s_time() -> None:
    world = World(plain, Order("7"))
    world.step()
    timer = world.asked[-1]
    assert isinstance(timer, StartTimer)
    assert timer.until == world.now + 24 * 3600 * 1_000_000
    assert world.now == START + 2_000


@workflow
async def fifty(n: int) -> list[str]:
    async def branch(i: int) -> str:
        one = await charge.acall(Order(f"{i}-0"))
        two = await charge.acall(Order(f"{i}-1-{one}"))
        return await charge.acall(Order(f"{i}-2-{two}"))

    return await asyncio.gather(*(branch(i) for i in range(n)))


@workflow
def fifty_plain(n: int) -> list[str]:
    def branch(i: int) -> str:
        one = charge(Order(f"{i}-0"))
        two = charge(Order(f"{i}-1-{one}"))
        return charge(Order(f"{i}-2-{two}"))

    return list(refold.gather(*(refold.later(branch, i) for i in range(n))))


@workflow
async def as_they_come(n: int) -> list[str]:
    async def branch(i: int) -> str:
        one = await charge.acall(Order(f"{i}-0"))
        two = await charge.acall(Order(f"{i}-1-{one}"))
        return await charge.acall(Order(f"{i}-2-{two}"))

    return [await done for done in asyncio.as_completed([branch(i) for i in range(n)])]


@pytest.mark.parametrize("which", [fifty, fifty_plain], ids=lambda w: w.name)
@pytest.mark.parametrize("seed", range(3))
def test_fifty_branches_of_three_steps_replay_from_every_cut_in_any_order_of_answers(
    which: Any, seed: int
) -> None:
    world = World(which, 50, choose=by(random.Random(seed))).run()
    assert world.result == World(which, 50).run().result
    replay_every_prefix(world)


@workflow
async def row(n: int) -> int:
    for i in range(n):
        await charge.acall(Order(str(i)))
    return n


@workflow
def row_plain(n: int) -> int:
    for i in range(n):
        charge(Order(str(i)))
    return n


@pytest.mark.parametrize("which", [row, row_plain, fifty, fifty_plain, as_they_come], ids=lambda w: w.name)
def test_the_work_of_a_replay_grows_with_the_history_and_no_faster(which: Any) -> None:
    def calls(n: int) -> int:
        history = World(which, n).run().history
        count = 0

        def profile(frame: object, what: str, arg: object) -> None:
            nonlocal count
            count += what in ("call", "c_call")

        sys.setprofile(profile)
        try:
            replay(which, history)
        finally:
            sys.setprofile(None)
        return count

    assert calls(400) < calls(200) * 2.2


def test_two_branches_that_fail_at_once_wake_a_gather_once() -> None:
    @workflow
    def main() -> list[str]:
        def fails() -> str:
            raise ValueError("no")

        def both() -> None:
            refold.gather(refold.later(fails), refold.later(fails), refold.later(lambda: charge(Order("1"))))

        out = []
        try:
            both()
        except ValueError:
            out.append(charge(Order("after")))
        out.append(charge(Order("last")))
        return out

    world = World(main).run()
    assert world.result == ["receipt-after", "receipt-last"]
    replay_every_prefix(world)


def test_gather_returns_errors_in_their_places_when_asked_to() -> None:
    @workflow
    def main() -> list[str]:
        results = refold.gather(charge.later(Order("1")), refuse.later(Order("2")), return_exceptions=True)
        return [str(r) for r in results]

    assert World(main).run().result == ["receipt-1", "no 2"]


@given(seed=st.integers(0, 1_000_000), cut=st.integers(1, 59), after=st.integers(0, 1_000_000))
@settings(max_examples=40, deadline=None)
def test_what_as_completed_gave_before_a_kill_is_a_prefix_of_what_comes_out_after(
    seed: int, cut: int, after: int
) -> None:
    whole = World(as_they_come, 20, choose=by(random.Random(seed)))
    for _ in range(cut):
        whole.step()
    done = [
        e.result for _, e in whole.history if isinstance(e, StepCompleted) and b"-2-receipt" in bytes(e.args)
    ]
    second = World(as_they_come, 20, choose=by(random.Random(after)))
    second.instance.evict()
    second.instance = replay(as_they_come, whole.history)
    second.history = list(whole.history)
    second.open = {c.no: c for c in second.instance.take_commands() if isinstance(c, RunStep)}
    second.now = whole.now
    second.run()
    assert second.result[: len(done)] == [msgspec.json.decode(r) for r in done]
    assert sorted(second.result) == sorted(World(as_they_come, 20).run().result)


def test_now_uuid_and_random_are_the_same_in_every_replay() -> None:
    @workflow
    def lottery() -> list[Any]:
        first = [str(refold.now()), str(refold.uuid()), refold.random().random()]
        charge(Order("1"))
        return [*first, str(refold.now()), str(refold.uuid()), refold.random().choice(["a", "b", "c"])]

    world = World(lottery, id="l-1").run()
    end = replay(lottery, world.history[:-1], id="l-1").take_commands()
    assert end == [world.end]
    assert world.result[0] == "2023-11-14 22:13:20.001000+00:00"
    assert world.result[1] != world.result[4]
    assert World(lottery, id="l-2").run().result[1] != world.result[1]


def test_a_late_answer_to_a_cancelled_step_is_compared_and_ignored() -> None:
    @workflow
    async def impatient() -> str:
        try:
            async with asyncio.timeout(5):
                return await charge.acall(Order("slow"))
        except TimeoutError:
            return await charge.acall(Order("other"))

    world = World(impatient)
    timer, step_ = world.asked
    assert isinstance(step_, RunStep)
    assert isinstance(timer, StartTimer)
    world._answer(timer)
    assert world.asked[2:] == [CancelCommand(1), RunStep(2, charge, b'{"order":{"id":"other","amount":1}}')]
    world.deliver(StepCompleted(1, "charge", Raw(step_.args), Raw(b'"late"')))
    assert world.run().result == "receipt-other"
    instance = replay(impatient, world.history[:-1])
    assert instance.take_commands() == [world.end]


def test_a_late_answer_that_differs_from_what_was_cancelled_is_a_mismatch() -> None:
    @workflow
    async def impatient() -> str:
        try:
            async with asyncio.timeout(5):
                return await charge.acall(Order("slow"))
        except TimeoutError:
            return await charge.acall(Order("other"))

    world = World(impatient)
    world._answer(world.asked[0])
    with pytest.raises(HistoryMismatch, match="arguments of step 'charge' were others"):
        world.deliver(StepCompleted(1, "charge", Raw(b'{"order":{"id":"x"}}'), Raw(b'"late"')))


def test_a_command_asked_for_and_cancelled_before_anybody_took_it_is_never_handed_out() -> None:
    @workflow
    async def hasty() -> str:
        task = asyncio.create_task(charge.acall(Order("never")))
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.sleep(0)
        return await charge.acall(Order("yes"))

    world = World(hasty).run()
    assert [bytes(c.args) for c in world.asked if isinstance(c, RunStep)] == [
        b'{"order":{"id":"yes","amount":1}}'
    ]
    assert world.asked[0].no == 1  # type: ignore[union-attr]  # its number is used up, in every run alike
    replay_every_prefix(world)


def test_a_failed_try_is_nothing_that_the_code_can_see() -> None:
    world = World(plain, Order("7"))
    args = Raw(b'{"order":{"id":"7","amount":1}}')
    world.deliver(StepFailed(0, "charge", args, record_error(OSError("down")), retry_at=world.now + 1))
    assert world.asked == [RunStep(0, charge, bytes(args))]
    instance = replay(plain, world.history)
    assert instance.take_commands() == [RunStep(0, charge, bytes(args))]
    assert world.run().result == ["receipt-7", 2, "no 7"]


def test_a_sent_message_is_asked_for_again_until_its_event_is_in_the_log() -> None:
    @workflow
    def sender() -> None:
        refold.send("other", 1)
        refold.sleep(1)

    instance = Instance(sender, "wf")
    instance.deliver(START, WorkflowStarted("sender", Raw(b"{}"), ""))
    send, timer = instance.take_commands()
    again = replay(sender, [(START, WorkflowStarted("sender", Raw(b"{}"), ""))])
    assert again.take_commands() == [send, timer]
    again.deliver(START, MessageSent(0, "other", "", Raw(b"1"), "wf/0"))
    assert again.take_commands() == []


def test_an_input_that_cannot_be_read_fails_the_workflow_visibly() -> None:
    instance = Instance(plain, "wf")
    instance.deliver(START, WorkflowStarted("plain", Raw(b'{"order":{"id":5}}'), ""))
    (end,) = instance.take_commands()
    assert instance.finished
    assert isinstance(end, Fail)
    assert end.error.qualname == DecodeFailed.__qualname__
    instance.deliver(START, WorkflowFailed(end.error))


def test_an_input_that_could_be_read_once_is_a_mismatch_when_it_cannot_be_now() -> None:
    history = [(START, WorkflowStarted("plain", Raw(b'{"order":{"id":5}}'), ""))]
    charged = StepCompleted(0, "charge", Raw(b"{}"), Raw(b'"r"'))
    with pytest.raises(HistoryMismatch, match="cannot read the workflow's input"):
        replay(plain, [*history, (START, charged)])


def test_an_answer_whose_type_changed_is_a_mismatch_and_no_failure() -> None:
    world = World(plain, Order("7"))
    event = StepCompleted(0, "charge", Raw(b'{"order":{"id":"7","amount":1}}'), Raw(b"5"))
    with pytest.raises(
        HistoryMismatch, match="step 'charge' gave 5 here, but the code now declares another type"
    ):
        world.deliver(event)


def test_an_added_optional_field_is_no_difference() -> None:
    world = World(plain, Order("7"))
    world.deliver(StepCompleted(0, "charge", Raw(b'{"order": {"id": "7"}}'), Raw(b'"r"')))
    assert [type(c) for c in world.asked] == [RunStep, StartTimer]


def test_the_order_of_a_set_is_no_difference() -> None:
    @step
    def pack(names: set[str]) -> int:
        return len(names)

    @workflow
    def packing() -> int:
        return pack({"a", "b", "c"})

    for order in ('["a","b","c"]', '["c","b","a"]', '["b","a","c"]'):
        world = World(packing)
        world.deliver(StepCompleted(0, "pack", Raw(f'{{"names":{order}}}'.encode()), Raw(b"3")))
        assert world.end == Complete(b"3")


def test_a_step_compared_by_name_takes_any_arguments() -> None:
    @step(compare="name")
    def pack(n: int) -> int:
        return n

    @workflow
    def packing() -> int:
        return pack(1)

    world = World(packing)
    world.deliver(StepCompleted(0, "pack", Raw(b'{"n":2}'), Raw(b"3")))
    assert world.end == Complete(b"3")


@pytest.mark.parametrize(
    ("event", "words"),
    [
        (StepCompleted(0, "ship", Raw(b"{}"), Raw(b"1")), "history says step 'ship' finished here"),
        (StepCompleted(1, "charge", Raw(b"{}"), Raw(b"1")), "asked for 1 commands only, and waits"),
        (
            TimerFired(0, 5),
            "timer of command 0 set for 5 fired here, but the code now asks for step 'charge'",
        ),
        (
            WorkflowCompleted(Raw(b"[]")),
            "the workflow returned here, but the code now waits for step 'charge'",
        ),
        (
            WorkflowFailed(record_error(ValueError())),
            "failed here with builtins.ValueError, but the code now waits",
        ),
        (MessageSent(0, "x", "", Raw(b"1"), ""), "a message was sent to 'x'"),
    ],
    ids=lambda e: type(e).__name__ if not isinstance(e, str) else "",
)
def test_an_event_that_the_code_does_not_ask_for_is_a_mismatch(event: Event, words: str) -> None:
    with pytest.raises(HistoryMismatch, match=words):
        World(plain, Order("7")).deliver(event)


def test_a_message_for_a_topic_waits_until_the_code_receives_it() -> None:
    @workflow
    def reader() -> list[Any]:
        charge(Order("1"))
        return [refold.recv("b"), refold.recv("a"), refold.recv("a")]

    world = World(reader)
    for n, topic in enumerate("aab"):
        world.deliver(MessageReceived(f"m{n}", topic, Raw(str(n).encode())))
    assert world.run().result == [2, 0, 1]


def test_a_message_given_to_a_receiver_that_is_cancelled_in_the_same_moment_is_not_lost() -> None:
    @workflow
    async def cancelled_reader() -> int:
        async def cancel_when_it_comes() -> None:
            await refold.arecv("b")
            reader.cancel()

        reader = asyncio.create_task(refold.arecv("a"))
        canceller = asyncio.create_task(cancel_when_it_comes())
        await canceller
        return int(await refold.arecv("a"))

    world = World(cancelled_reader)
    world.deliver(MessageReceived("m1", "b", Raw(b"0")))
    world.deliver(MessageReceived("m2", "a", Raw(b"5")))
    assert world.end == Complete(b"5")


def test_the_reader_s_timer_is_dropped_when_the_message_comes() -> None:
    world = World(receiving, Order("7"))
    world.deliver(MessageReceived("m", "approval", Raw(b"true")))
    assert world.asked[1] == CancelCommand(0)


def test_logging_is_silent_in_replay(caplog: pytest.LogCaptureFixture) -> None:
    @workflow
    def talkative() -> None:
        refold.logger.info("one %s", 1)
        charge(Order("1"))
        refold.logger.warning("two")

    with caplog.at_level("INFO", "refold.workflow"):
        world = World(talkative).run()
        assert [(r.message, r.workflow) for r in caplog.records] == [("one 1", "wf"), ("two", "wf")]  # type: ignore[attr-defined]
        caplog.clear()
        replay(talkative, world.history)
        assert caplog.records == []
