"""Dropping a workflow from memory: explicit, complete, and without a single real effect."""

import asyncio
import contextvars
import gc
import sys
import weakref
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from types import AsyncGeneratorType, CoroutineType
from typing import Any

import pytest
from greenlet import getcurrent, greenlet

from fixtures import constructs
from fixtures.constructs import CONSTRUCTS
from fixtures.driving import World, replay, workflow
from refold.core import _context as refold
from refold.core import _driver, _loop
from refold.core._commands import CancelCommand, Complete, RunStep
from refold.core._definitions import step
from refold.core._errors import Evicted, WrongCall

EFFECTS: list[str] = []


@pytest.fixture(autouse=True)
def effects() -> list[str]:
    EFFECTS.clear()
    return EFFECTS


@step
def charge(what: str = "") -> str:
    EFFECTS.append(f"charged {what}")
    return what


@step
def refund(what: str = "") -> None:
    EFFECTS.append(f"refunded {what}")


@pytest.fixture(autouse=True)
def nothing_is_finalized(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No coroutine is left for Python to end: it would say so here."""
    unraisable: list[Any] = []
    monkeypatch.setattr(sys, "unraisablehook", unraisable.append)
    yield
    assert [str(each.exc_value) for each in unraisable] == []


@contextmanager
def saga() -> Iterator[None]:
    try:
        yield
    finally:
        EFFECTS.append("finally ran")
        refund("saga")


@asynccontextmanager
async def async_saga() -> AsyncIterator[None]:
    try:
        yield
    finally:
        EFFECTS.append("finally ran")
        await refund.acall("saga")


@workflow
def with_finally() -> None:
    try:
        charge()
    finally:
        EFFECTS.append("finally ran")
        refund()


@workflow
def with_saga() -> None:
    with saga():
        refold.sleep(5)


@workflow
def with_branches() -> None:
    refold.gather(refold.later(with_finally.fn), refold.later(with_saga.fn))


@workflow
async def async_with_finally() -> None:
    try:
        await charge.acall()
    finally:
        EFFECTS.append("finally ran")
        await refund.acall()


@workflow
async def async_with_saga() -> None:
    async with async_saga():
        await asyncio.sleep(5)


@workflow
async def async_with_tasks() -> None:
    async with asyncio.TaskGroup() as group:
        group.create_task(async_with_finally.fn())
        group.create_task(async_with_saga.fn())


@workflow
async def async_that_clings() -> None:
    try:
        await charge.acall()
    finally:
        EFFECTS.append("finally ran")
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            await asyncio.sleep(1)


@workflow
async def async_generator() -> None:
    async def numbers() -> AsyncIterator[int]:
        try:
            for n in range(3):
                yield n
                await charge.acall()
        finally:
            EFFECTS.append("finally ran")
            await refund.acall()

    async for _ in numbers():
        break
    await charge.acall()


@workflow
async def async_child_waiting() -> None:
    try:
        await async_with_finally()
    finally:
        EFFECTS.append("finally ran")
        refold.send("somebody", 1)


WAITING = [
    with_finally,
    with_saga,
    with_branches,
    async_with_finally,
    async_with_saga,
    async_with_tasks,
    async_that_clings,
    async_generator,
    async_child_waiting,
]


@pytest.mark.parametrize("which", WAITING, ids=lambda w: w.name)
def test_an_evicted_workflow_s_finally_has_no_real_effect(which: Any, effects: list[str]) -> None:
    instance = World(which).instance
    effects.clear()
    instance.evict()
    assert set(effects) == {"finally ran"}
    assert instance.take_commands() == []
    instance.evict()
    assert set(effects) == {"finally ran"}


@pytest.mark.parametrize("which", [with_finally, async_with_finally], ids=lambda w: w.name)
def test_an_evicted_workflow_goes_on_after_a_replay(which: Any, effects: list[str]) -> None:
    world = World(which)
    world.instance.evict()
    effects.clear()
    world.instance = replay(which, world.history)
    world.run()
    assert effects == ["charged ", "finally ran", "refunded "]


def test_code_that_waits_again_and_again_is_kept_and_never_left_to_the_garbage_collector() -> None:
    @workflow
    async def clinging() -> None:
        while True:
            try:
                await asyncio.get_running_loop().create_future()
            except BaseException:
                EFFECTS.append("caught")
                if "let go" in EFFECTS:
                    raise

    instance = World(clinging).instance
    instance.evict()
    assert len(_loop._CLINGING) == 1
    EFFECTS.clear()
    del instance
    gc.collect()
    assert EFFECTS == []
    EFFECTS.append("let go")
    _loop._CLINGING.pop().close()


def test_except_exception_does_not_swallow_an_eviction(effects: list[str]) -> None:
    @workflow
    def careless() -> None:
        try:
            charge()
        except Exception:
            effects.append("swallowed")
        except BaseException as exc:
            effects.append(type(exc).__name__)
            charge("again")

    instance = World(careless).instance
    instance.evict()
    assert effects == ["Evicted"]


@pytest.mark.parametrize("colour", ["sync", "async"])
def test_branches_left_open_are_dropped_as_in_eviction_with_one_warning(
    colour: str, effects: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    @workflow
    def sync() -> str:
        refold.gather(refold.later(with_finally.fn), refold.later(lambda: None)) if charge(
            "1"
        ) == "" else None
        later = refold.later(with_finally.fn)
        try:
            refold.gather(later, refold.later(lambda: 1 / 0))
        except ZeroDivisionError:
            return "done"
        return ""

    @workflow
    async def async_() -> str:
        task = asyncio.create_task(async_with_finally.fn())
        await asyncio.sleep(0)
        await charge.acall("1")
        return "done" if not task.done() else ""

    world = World(sync if colour == "sync" else async_)
    if colour == "async":
        world._answer(world.open[1])
    world.run()
    assert world.end == Complete(b'"done"')
    assert "finally ran" in effects
    assert not any("refunded" in e for e in effects)
    assert [r.message for r in caplog.records] == [
        "workflow ended with branches still open: they were dropped, and what they waited for is ignored"
    ]
    if colour == "async":
        assert CancelCommand(0) in world.asked  # the worker need not run it


def test_a_late_answer_to_a_branch_that_was_left_open_is_ignored() -> None:
    @workflow
    async def main() -> str:
        task = asyncio.create_task(charge.acall("branch"))
        await charge.acall("main")
        return "done" if not task.done() else ""

    world = World(main)
    branch = next(c for c in world.asked if isinstance(c, RunStep) and b"branch" in c.args)
    world._answer(next(c for c in world.asked if c is not branch))
    assert world.end == Complete(b'"done"')
    world.open[branch.no] = branch
    world._answer(branch)
    assert world.instance.take_commands() == []


@pytest.mark.parametrize("which", [with_finally, async_with_finally], ids=lambda w: w.name)
def test_a_call_from_a_workflow_s_context_after_its_death_is_no_plain_call(
    which: Any, effects: list[str]
) -> None:
    kept: list[contextvars.Context] = []

    @workflow
    def keeper() -> None:
        kept.append(contextvars.copy_context())
        charge()

    @workflow
    async def async_keeper() -> None:
        kept.append(contextvars.copy_context())
        await charge.acall()

    instance = World(keeper if which is with_finally else async_keeper).instance
    with pytest.raises(WrongCall, match="while the workflow was not being driven"):
        kept[0].run(charge, "late")
    instance.evict()
    with pytest.raises(Evicted):
        kept[0].run(charge, "late")
    assert effects == []


def test_outside_of_any_workflow_a_step_is_the_plain_function(effects: list[str]) -> None:
    assert charge("x") == "x"
    assert asyncio.run(charge.acall("y")) == "y"
    assert refold.gather(charge.later("z"), refold.later(charge, "w")) == ("z", "w")
    assert effects == ["charged x", "charged y", "charged z", "charged w"]


def suspended() -> int:
    """How many pieces of workflow code stand still somewhere in memory."""
    mine = (constructs.__file__, _loop.__file__, _driver.__file__)
    count = 0
    for thing in gc.get_objects():
        if isinstance(thing, CoroutineType):
            count += thing.cr_frame is not None and thing.cr_frame.f_code.co_filename in mine
        elif isinstance(thing, AsyncGeneratorType):
            count += thing.ag_frame is not None and thing.ag_frame.f_code.co_filename in mine
        elif isinstance(thing, greenlet):
            count += bool(thing) and thing.parent is not None
    return count


@pytest.mark.parametrize("name", sorted(CONSTRUCTS))
def test_no_piece_of_an_evicted_workflow_waits_for_the_garbage_collector(name: str) -> None:
    gc.collect()
    before = suspended()
    gc.disable()  # which would close them, and run workflow code while it does
    try:
        for cut in (0, 4, 12):
            world = World(CONSTRUCTS[name])
            for _ in range(cut):
                world.step()
            assert (suspended() > before) == (world.end is None)
            ref = weakref.ref(world.instance)
            world.instance.evict()
            assert suspended() == before, f"after {cut} answers"
            del world
            gc.collect()
            assert ref() is None, f"after {cut} answers"
    finally:
        gc.enable()


@pytest.mark.parametrize("which", [with_saga, async_with_saga], ids=lambda w: w.name)
def test_ten_thousand_waiting_workflows_are_freed(which: Any) -> None:
    def alive() -> int:
        kinds = (greenlet, asyncio.Task, asyncio.Future)
        return sum(isinstance(thing, kinds) for thing in gc.get_objects())

    getcurrent()  # the thread's own greenlet is made at its first use, and stays
    gc.collect()
    before = alive()
    instances = [World(which, id=f"w-{n}").instance for n in range(10_000)]
    assert alive() >= before + 10_000
    gc.disable()
    try:
        while instances:
            instances.pop().evict()
        gc.collect()  # of the worlds of this test
        assert alive() <= before
    finally:
        gc.enable()


def test_generators_that_are_used_up_are_not_held() -> None:
    @workflow
    async def many() -> int:
        async def one() -> AsyncIterator[int]:
            yield 1

        total = 0
        for _ in range(1_000):
            async for n in one():
                total += n
        await charge.acall()
        return total

    world = World(many)
    body: Any = world.instance._body
    assert len(body._generators) < 600
    assert world.run().end == Complete(b"1000")


def exits(kind: Callable[[], BaseException]) -> list[Any]:
    @workflow
    def plain() -> None:
        charge()
        raise kind()

    @workflow
    def branch() -> None:
        refold.gather(refold.later(plain.fn), charge.later())

    @workflow
    async def coroutine() -> None:
        await charge.acall()
        raise kind()

    @workflow
    async def task() -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(coroutine.fn())
            group.create_task(charge.acall())

    return [plain, branch, coroutine, task]


@pytest.mark.parametrize("kind", [SystemExit, KeyboardInterrupt])
@pytest.mark.parametrize("n", range(4))
def test_system_exit_and_keyboard_interrupt_fail_the_workflow_and_not_the_worker(kind: Any, n: int) -> None:
    world = World(exits(kind)[n]).run()
    assert world.end is not None
    assert world.end.error.qualname == kind.__name__  # type: ignore[union-attr]
    world.instance.evict()
