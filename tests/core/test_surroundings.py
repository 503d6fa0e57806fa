"""Where workflow code runs: in a context, on a loop and with hooks of its own; the host's are as before afterwards."""

import asyncio
import contextvars
import sys
import threading
from collections.abc import AsyncIterator
from typing import Any

import pytest
from msgspec import Raw

import refold
from fixtures.driving import START, World, replay_every_prefix, workflow
from refold.core._commands import Complete, Fail, RunStep
from refold.core._driver import Instance
from refold.eventlog._events import StepCompleted, WorkflowCancelled, WorkflowStarted

secret: contextvars.ContextVar[str] = contextvars.ContextVar("secret", default="nothing")


@refold.step
async def ping(n: int = 0) -> int:
    return n


@workflow
def looking() -> list[str]:
    seen = secret.get()
    secret.set("from the workflow")
    try:
        asyncio.get_running_loop()
        loop = "a loop"
    except RuntimeError:
        loop = "no loop"
    ping.call()
    return [seen, loop, secret.get()]


@workflow
async def async_looking() -> list[str]:
    seen = secret.get()
    secret.set("from the workflow")
    await ping()
    return [seen, type(asyncio.get_running_loop()).__name__, secret.get()]


def run_both() -> list[Any]:
    return [World(looking).run().result, World(async_looking).run().result]


EXPECTED = [["nothing", "no loop", "from the workflow"], ["nothing", "LoopBody", "from the workflow"]]


def test_a_workflow_sees_none_of_the_host_s_context_and_leaves_nothing_in_it() -> None:
    secret.set("of the host")
    assert run_both() == EXPECTED
    assert secret.get() == "of the host"


def test_the_host_s_loop_task_and_hooks_are_its_own_again_afterwards() -> None:
    async def main() -> None:
        loop, task, hooks = asyncio.get_running_loop(), asyncio.current_task(), sys.get_asyncgen_hooks()
        assert run_both() == EXPECTED
        assert asyncio.get_running_loop() is loop
        assert asyncio.current_task() is task
        assert sys.get_asyncgen_hooks() == hooks
        await asyncio.sleep(0)

    asyncio.run(main())


def test_so_they_are_when_the_delivery_raises() -> None:
    async def main() -> None:
        loop, hooks = asyncio.get_running_loop(), sys.get_asyncgen_hooks()
        world = World(async_looking)
        with pytest.raises(refold.HistoryMismatch):
            world.deliver(StepCompleted(7, "ping", Raw(b"{}"), Raw(b"0")))
        world.instance.evict()
        assert asyncio.get_running_loop() is loop
        assert sys.get_asyncgen_hooks() == hooks

    asyncio.run(main())


def test_instances_interleave_without_seeing_each_other() -> None:
    worlds = [World(which, id=f"wf-{n}") for n in range(20) for which in (looking, async_looking)]
    while sum(world.step() for world in worlds):  # not any(): it would stop at the first that goes on
        pass
    assert [world.result for world in worlds] == EXPECTED * 20


def test_an_instance_lives_on_the_thread_that_began_it_whichever_that_is() -> None:
    results: list[Any] = []
    thread = threading.Thread(target=lambda: results.extend(run_both()))
    thread.start()
    thread.join()
    assert results == EXPECTED


def test_an_async_generator_that_is_left_never_ends_on_the_host_s_loop() -> None:
    ended: list[str] = []

    @workflow
    async def leaving() -> int:
        async def numbers() -> AsyncIterator[int]:
            try:
                yield 1
                yield 2
            finally:
                ended.append("closed")
                await ping()
                ended.append("step ran for real")

        async for _ in numbers():
            break
        await ping()
        return 1

    async def main() -> World:
        world = World(leaving)
        await asyncio.sleep(0)
        assert ended == []
        world.run()
        await asyncio.sleep(0)
        return world

    world = asyncio.run(main())
    assert ended == ["closed"]
    assert world.steps == ["ping"]


def test_the_loop_s_time_is_the_last_event_s_and_stands_still_while_the_code_runs() -> None:
    @workflow
    async def timing() -> list[float]:
        loop = asyncio.get_running_loop()
        times = [loop.time(), loop.time()]
        await asyncio.sleep(10)
        return [*times, loop.time()]

    assert World(timing).run().result == [1_700_000_000.001, 1_700_000_000.001, 1_700_000_010.002]


def test_sleeping_for_no_time_is_no_timer() -> None:
    @workflow
    async def restless() -> int:
        await asyncio.sleep(0)
        await asyncio.sleep(-1)
        await refold.asleep(0)
        async with asyncio.timeout(None):
            return await ping(3)

    @workflow
    def plainly() -> int:
        refold.sleep(0)
        refold.sleep(-5)
        return ping.call(3)

    for which in (restless, plainly):
        world = World(which).run()
        assert [type(c) for c in world.asked] == [RunStep, Complete]


def test_callbacks_in_the_loop_s_queue_run_in_order_and_an_error_in_one_stops_nothing(
    caplog: pytest.LogCaptureFixture,
) -> None:
    @workflow
    async def calling() -> list[int]:
        loop, out = asyncio.get_running_loop(), list[int]()
        loop.call_soon(out.append, 1)
        loop.call_soon(lambda: 1 / 0)
        cancelled = loop.call_soon(out.append, 99)
        loop.call_soon(out.append, 2)
        loop.call_later(5, out.append, 4)
        loop.call_at(loop.time() + 4, out.append, 3)
        cancelled.cancel()
        await asyncio.sleep(10)
        return out

    world = World(calling).run()
    assert world.result == [1, 2, 3, 4]
    assert "a callback raised" in caplog.text
    caplog.clear()
    replay_every_prefix(world)
    assert caplog.text == ""


def test_a_task_s_unheard_error_is_logged_once_and_not_in_replay(caplog: pytest.LogCaptureFixture) -> None:
    @workflow
    async def careless() -> int:
        async def fails() -> None:
            raise ValueError("unheard")

        task = asyncio.create_task(fails())
        await asyncio.sleep(0)
        del task
        return await ping(1)

    world = World(careless).run()
    assert "Task exception was never retrieved" in caplog.text
    caplog.clear()
    replay_every_prefix(world)
    assert caplog.text == ""


@pytest.mark.skipif(sys.version_info < (3, 12), reason="eager tasks came with Python 3.12")
def test_an_eager_task_runs_at_once_and_replays() -> None:
    @workflow
    async def eager() -> list[int]:
        loop: Any = asyncio.get_running_loop()
        tasks = [loop.create_task(ping(n), eager_start=True) for n in range(5)]
        return [await t for t in {*tasks}]

    world = World(eager).run()
    assert sorted(world.result) == [0, 1, 2, 3, 4]
    replay_every_prefix(world)


def test_an_eager_task_factory_is_refused() -> None:
    @workflow
    async def eager() -> None:
        asyncio.get_running_loop().set_task_factory(None)

    assert isinstance(World(eager).end, Fail)


def test_a_cancelled_workflow_is_dropped_at_its_event() -> None:
    for which in (looking, async_looking):
        world = World(which)
        world.deliver(WorkflowCancelled("by hand"))
        assert world.instance.finished
        assert world.instance.take_commands() == []


def test_a_workflow_that_cancels_itself_fails() -> None:
    @workflow
    async def suicidal() -> None:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        await ping()

    end = World(suicidal).run().end
    assert isinstance(end, Fail)
    assert end.error.qualname == "CancelledError"


def test_a_coroutine_of_one_workflow_cannot_be_awaited_in_another() -> None:
    smuggled: list[Any] = []

    @workflow
    async def maker() -> None:
        smuggled.append(ping())
        await ping()

    @workflow
    async def taker() -> None:
        await smuggled.pop()

    first = World(maker, id="first")
    end = World(taker, id="second").end
    assert isinstance(end, Fail)
    assert end.error.message == (
        "the coroutine of ping(...) was made in workflow 'first' and awaited outside of it. Await it where it was made."
    )
    assert len(first.open) == 1


def test_the_first_event_must_be_of_this_workflow() -> None:
    with pytest.raises(
        refold.HistoryMismatch, match="workflow 'other' started here, but the code now is that of"
    ):
        Instance(looking, "wf").deliver(START, WorkflowStarted("other", Raw(b"{}"), ""))
    world = World(looking)
    with pytest.raises(
        refold.HistoryMismatch, match="the workflow started here, but the code now has started before"
    ):
        world.deliver(WorkflowStarted("looking", Raw(b"{}"), ""))


def test_the_import_links_make_no_second_registry() -> None:
    assert not {"core", "eventlog", "connectors"} & set(sys.modules)
