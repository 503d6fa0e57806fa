"""Cancelling: delivered in log order, raised where the code waits, undone by the code itself, replayed exactly."""

import asyncio
import random
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from fixtures.driving import World, replay, replay_every_prefix, workflow
from refold.core import _context as refold
from refold.core._commands import Cancel, CancelChild, CancelCommand, Complete, Fail, RunStep
from refold.core._definitions import step
from refold.core._errors import Cancelled, TimedOut, WorkflowCancelled
from refold.core._failures import rebuild_error
from refold.eventlog._events import CancelRequested, ChildStarted


@step
def do(name: str) -> str:
    return name


@step
async def ado(name: str) -> str:
    return name


@step
def undo(name: str) -> str:
    return name


@step
async def aundo(name: str) -> str:
    return name


@workflow
def careful() -> list[str]:
    done: list[str] = []
    try:
        for name in ("a", "b"):
            done.append(do(name))
        refold.sleep(60)
        done.append(do("c"))
    except Cancelled:
        for name in reversed(done):
            undo(name)
        raise
    return done


@workflow
async def acareful() -> list[str]:
    done: list[str] = []
    try:
        for name in ("a", "b"):
            done.append(await ado(name))
        await asyncio.sleep(60)
        done.append(await ado("c"))
    except asyncio.CancelledError:
        for name in reversed(done):
            await aundo(name)
        raise
    return done


def branch(name: str) -> str:
    try:
        return do(name) + do(f"{name}-2")
    finally:
        undo(name)


@workflow
def gathered() -> list[str]:
    try:
        return list(refold.gather(refold.later(branch, "x"), do.later("y"), refold.later(nest)))
    finally:
        undo("all")


def nest() -> str:
    return "".join(refold.gather(refold.later(branch, "n"), do.later("m")))


async def abranch(name: str) -> str:
    try:
        return await ado(name) + await ado(f"{name}-2")
    finally:
        await aundo(name)


@workflow
async def agathered() -> list[str]:
    try:
        return list(await asyncio.gather(abranch("x"), ado("y"), abranch("n")))
    finally:
        await aundo("all")


@workflow
async def grouped() -> list[str]:
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(abranch(n)) for n in ("x", "y", "z")]
    return [task.result() for task in tasks]


@workflow
def child() -> Any:
    return do("child")


@workflow
def parent() -> Any:
    try:
        return child() + do("after")
    finally:
        undo("parent")


@workflow
async def aparent() -> list[Any]:
    try:
        return [await asyncio.gather(child.acall(), child.start().aresult(timeout=100), ado("beside"))]
    finally:
        await aundo("parent")


@workflow
def parents() -> list[str]:
    try:
        return list(refold.gather(child.later(), refold.later(child), do.later("beside")))
    finally:
        undo("parents")


@workflow
def receiving() -> str:
    try:
        return refold.recv("news", str, timeout=10)
    except TimedOut:
        return do("nobody")
    finally:
        undo("recv")


@workflow
async def areceiving() -> str:
    try:
        return await refold.arecv("news", str, timeout=10)
    except TimedOut:
        return await ado("nobody")
    finally:
        await aundo("recv")


@workflow
def stubborn() -> str:
    names = []
    for name in ("a", "b", "c"):
        try:
            names.append(do(name))
        except Cancelled as cancelled:
            names.append(undo(f"not {name}, since {cancelled}"))
    return ",".join(names)


@workflow
async def astubborn() -> str:
    names = []
    for name in ("a", "b", "c"):
        try:
            names.append(await ado(name))
        except asyncio.CancelledError as cancelled:
            names.append(await aundo(f"not {name}, since {cancelled}"))
    return ",".join(names)


ALL = [
    careful, acareful, gathered, agathered, grouped, parent, aparent, parents, receiving, areceiving,
    stubborn, astubborn,
]  # fmt: skip


@pytest.mark.parametrize("which", ALL, ids=lambda w: w.name)
@given(seed=st.integers(0, 1_000_000), cancel_at=st.integers(1, 14))
@settings(max_examples=60, deadline=None)
@example(seed=0, cancel_at=1)
def test_a_cancel_at_any_point_is_replayed_exactly_from_any_prefix(
    which: Any, seed: int, cancel_at: int
) -> None:
    chooser = random.Random(seed)
    world = World(
        which, choose=lambda n: chooser.randrange(n), cancel_at=cancel_at, messages=[("noise", b"1")]
    )
    world.run()
    assert world.end is not None, "it waits for something that nobody gives"
    asked = any(isinstance(event, CancelRequested) for _, event in world.history)
    if "stubborn" in which.name:
        assert ("enough" in world.result) == asked
    elif asked:
        assert isinstance(world.end, Cancel), world.end
    else:
        assert isinstance(world.end, Complete) or _error(world) == "TimedOut", world.end
    replay_every_prefix(world)


def _error(world: World) -> str:
    assert isinstance(world.end, Fail)
    return world.end.error.qualname


def test_what_was_done_is_undone_by_steps_and_then_the_workflow_is_cancelled() -> None:
    for which, steps in (
        (careful, ["do", "do", "undo", "undo"]),
        (acareful, ["ado", "ado", "aundo", "aundo"]),
    ):
        world = World(which, cancel_at=3).run()
        assert (world.steps, world.end) == (steps, Cancel("enough"))
        undone = [c.args for c in world.asked if isinstance(c, RunStep)][2:]
        assert undone == [b'{"name":"b"}', b'{"name":"a"}']


def test_a_gather_waits_until_all_that_it_cancelled_has_been_undone() -> None:
    world = World(gathered, cancel_at=1).run()
    assert world.end == Cancel("enough")
    assert [c.args for c in world.asked if isinstance(c, RunStep) and c.step.name == "undo"] == [
        b'{"name":"x"}',
        b'{"name":"n"}',
        b'{"name":"all"}',
    ], "the main code went on before its branches had ended"


@step
def broken(name: str) -> None:
    raise OSError(name)


@workflow
def failing_undo() -> None:
    def one() -> None:
        try:
            do("a")
        finally:
            broken("undo")

    refold.gather(refold.later(one), do.later("b"))


def test_an_undo_that_fails_in_a_branch_is_not_lost() -> None:
    world = World(failing_undo, cancel_at=1).run()
    assert _error(world) == "OSError"
    replay_every_prefix(world)


def test_a_step_timer_or_receiver_that_was_cancelled_is_not_asked_for_any_more() -> None:
    for which in (careful, acareful, receiving, areceiving):
        world = World(which, cancel_at=1)
        before = [*world.open]
        world.step()
        cancelled = [c.no for c in world.asked if isinstance(c, CancelCommand)]
        assert cancelled == before


@pytest.mark.parametrize("which", [parent, aparent, parents], ids=lambda w: w.name)
def test_the_children_that_it_waits_for_are_asked_to_cancel_and_waited_for(which: Any) -> None:
    ids = {"parent": ["wf/0"], "aparent": ["wf/0", "wf/1"], "parents": ["wf/0", "wf/2"]}[which.name]
    world = World(which, cancel_at=1 + len(ids))
    world.step()
    asked = [c for c in world.asked if isinstance(c, CancelChild)]
    assert sorted(c.child_id for c in asked) == ids
    assert {c.reason for c in asked} == {"its parent wf was cancelled: enough"}
    if which is not aparent:  # asyncio.gather itself goes on at the first that has ended
        assert "undo" not in world.steps, "it did not wait for its child"
    world.run()
    assert world.end == Cancel("enough")


def test_a_replay_asks_no_child_to_cancel_that_has_answered_since() -> None:
    world = World(parent, cancel_at=2)
    while not any(c for c in world.asked if isinstance(c, RunStep)):
        world.step()
    at = next(n for n, (_, event) in enumerate(world.history) if isinstance(event, CancelRequested))
    assert [type(c) for c in replay(parent, world.history[: at + 1]).take_commands()] == [CancelChild]
    assert not any(isinstance(c, CancelChild) for c in replay(parent, world.history).take_commands())


@workflow
async def own_timeout() -> Any:
    handle = child.start()
    try:
        async with asyncio.timeout(5):
            await handle.aresult()
    except TimeoutError:
        return await handle.aresult()
    return ""


def test_a_wait_that_the_code_itself_cancels_leaves_the_child_alone() -> None:
    world = World(own_timeout, choose=lambda n: n - 1).run()  # the timer first
    assert world.result == "child"
    assert not any(isinstance(c, CancelChild) for c in world.asked)


@workflow
def asks_its_child() -> Any:
    handle = child.start()
    handle.cancel("not needed")
    try:
        return handle.result()
    except WorkflowCancelled as cancelled:
        return cancelled.reason


def test_a_handle_cancels_its_child_and_a_cancelled_child_is_an_error_that_can_be_caught() -> None:
    world = World(asks_its_child).run()
    assert CancelChild(0, "wf/0", "not needed") in world.asked
    assert world.result == "asked to"
    replay_every_prefix(world)


def test_a_second_cancel_does_nothing_more() -> None:
    for which in (careful, acareful):
        world = World(which, cancel_at=2)
        assert world.step()
        assert world.step()
        open_ = list(world.open)
        world.deliver(CancelRequested("again", "I said"))
        assert list(world.open) == open_
        world.run()
        assert world.end == Cancel("enough")


@workflow
def own_cancelled() -> None:
    raise Cancelled("by itself")


def test_code_that_raises_it_without_having_been_asked_fails() -> None:
    world = World(own_cancelled).run()
    assert _error(world) == "Cancelled"
    assert isinstance(world.end, Fail)
    assert "Cancelled: by itself" in str(rebuild_error(world.end.error))


def test_a_child_that_was_started_but_is_not_waited_for_goes_on() -> None:
    @workflow
    def waits_for_a_step() -> str:
        child.start()
        return do("a")

    world = World(waits_for_a_step, cancel_at=2).run()
    assert any(isinstance(event, ChildStarted) for _, event in world.history)
    assert not any(isinstance(c, CancelChild) for c in world.asked)
    assert world.end == Cancel("enough")
