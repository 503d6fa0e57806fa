"""Retrying: what failed is asked for again, what is recorded stays, and every replay leaves out the same."""

import asyncio
import random
from collections import Counter
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fixtures.driving import World, replay_every_prefix, workflow
from refold.core import _context as refold
from refold.core._commands import Complete, RunStep
from refold.core._definitions import step
from refold.eventlog._events import MessageSent, Parked, Retried, StepCompleted, StepFailed

TROUBLE: Counter[str] = Counter()
"""How often each name still fails."""


@step
def visit(name: str) -> str:
    if TROUBLE[name] > 0:
        TROUBLE[name] -= 1
        raise OSError(name)
    return name


@workflow
def one_by_one(names: list[str]) -> list[str]:
    return [visit(name) for name in names]


@workflow
def beside(names: list[str]) -> list[str]:
    return list(refold.gather(*(visit.later(name) for name in names)))


@workflow
async def abeside(names: list[str]) -> list[str]:
    return await asyncio.gather(*(visit.acall(name) for name in names))


@workflow
async def all_of_them(names: list[str]) -> list[str]:
    results = await asyncio.gather(*(visit.acall(name) for name in names), return_exceptions=True)
    errors = [result for result in results if isinstance(result, Exception)]
    if errors:
        raise ExceptionGroup("some", errors)
    return [str(result) for result in results]


@workflow
def by_a_child(names: list[str]) -> list[str]:
    return [visit("before"), *one_by_one(names)]


@workflow
async def by_children(names: list[str]) -> list[str]:
    return [result for (result,) in await asyncio.gather(*(one_by_one.acall([name]) for name in names))]


@workflow
def in_vain(names: list[str]) -> list[str]:
    done = []
    for name in names:
        try:
            done.append(visit(name))
        except OSError as error:
            done.append(visit(f"instead of {error}"))
    return [*done, visit("last")]


ALL = [one_by_one, beside, abeside, all_of_them, by_a_child, by_children, in_vain]


@pytest.mark.parametrize("which", ALL, ids=lambda w: w.name)
@given(
    seed=st.integers(0, 1_000_000),
    trouble=st.dictionaries(st.sampled_from("abcdef"), st.integers(0, 3)),
    names=st.lists(st.sampled_from("abcdef"), unique=True, min_size=1),
)
@settings(max_examples=60, deadline=None)
def test_retried_as_often_as_it_fails_it_completes_and_replays_exactly(
    which: Any, seed: int, trouble: dict[str, int], names: list[str]
) -> None:
    TROUBLE.clear()
    TROUBLE.update(trouble, last=1)
    chooser = random.Random(seed)
    world = World(which, names, choose=lambda n: chooser.randrange(n), parks=True).run()
    assert isinstance(world.end, Complete)
    if which is not in_vain:
        assert world.result[-len(names) :] == names
        for name in names:
            assert TROUBLE[name] <= 0 or which in (beside, abeside), "it was not tried until it worked"
    completed = [(event.no, event.name) for _, event in world.history if isinstance(event, StepCompleted)]
    assert len(set(completed)) == len(completed), "what was recorded was done again"
    replay_every_prefix(world)


def test_what_the_code_did_after_the_failure_is_recorded_so_it_is_told_of_it_again() -> None:
    @workflow
    def says_so() -> None:
        try:
            visit("a")
        except OSError:
            refold.send("ops", "a is broken")
            raise

    TROUBLE["a"] = 5
    world = World(says_so)
    while world.step():
        pass
    world.retry()
    assert world.history[-1][1] == Retried([])
    assert [type(event) for _, event in world.history[1:]] == [StepFailed, MessageSent, Parked, Retried]
    assert world.end is not None, "it fails at once, as before"
    assert sum(isinstance(c, RunStep) for c in world.asked) == 1
    TROUBLE.clear()
