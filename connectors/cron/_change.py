"""Schedules that are made, changed and looked at by a running program, or by a person.

Each call reads the schedule's position, decides, and hands the decision over; when a worker has moved the position
in between, it decides again. It needs no worker in the process: the workers learn of it at the next tick, or when
they look at all positions, twice a minute.
"""

import asyncio
import difflib
import functools
from collections.abc import Callable, Coroutine, Iterable, Mapping
from datetime import datetime, timedelta
from typing import Any, Final, ParamSpec, TypeVar

import msgspec

from refold.connectors.cron import _settle
from refold.connectors.cron._decide import Decision
from refold.connectors.cron._hand import move_of
from refold.connectors.cron._runner import find_open
from refold.connectors.cron._schedules import HOUR, find_served, upcoming
from refold.connectors.cron._spec import Missed, Overlap, make_spec, to_datetime, to_us
from refold.connectors.cron._state import PREFIX, State, decode_state, name_of, source_of
from refold.connectors.cron._tick import Tick, tick_parameter
from refold.core import (
    App,
    DecodeFailed,
    DefinitionRefused,
    PositionMoved,
    RefoldError,
    SourcePosition,
    Workflow,
)

P = ParamSpec("P")
T = TypeVar("T")
_NONE: Final = timedelta(0)


class ScheduleNotFound(RefoldError):
    """There is no schedule of that name. Reaction: look at the names, or make it."""

    def __init__(self, name: str, near: tuple[str, ...]) -> None:
        super().__init__(name, near)
        self.name, self.near = name, near

    def __str__(self) -> str:
        hint = (
            f"Did you mean {', '.join(self.near)}?" if self.near else "See the names:  refold schedule list"
        )
        return f"there is no schedule {self.name!r}. {hint}"


class ScheduleInfo(msgspec.Struct, frozen=True, kw_only=True):
    """A schedule, for people. `last` is the tick that last started a workflow; `next` the ones to come."""

    name: str
    when: str
    workflow: str
    paused: bool
    declared: bool
    overlap: str
    missed: str
    timezone: str
    last: datetime | None
    next: list[datetime]


def create(
    app: App,
    name: str,
    expression: str | None = None,
    *,
    workflow: Workflow[..., Any],
    args: Mapping[str, Any] | None = None,
    timezone: str = "UTC",
    every: timedelta | None = None,
    at: datetime | Iterable[datetime] | None = None,
    start: datetime | None = None,
    end: datetime | None = None,
    catch_up: timedelta = HOUR,
    missed: Missed = "latest",
    overlap: Overlap = "skip",
    jitter: timedelta = _NONE,
    paused: bool = False,
) -> None:
    """Make the schedule `name`, or change it to this; durable on return. Options as in `cron.schedule`.

    `workflow` takes one `cron.Tick` and what is in `args`. A name that was deleted and is made again has another
    identity: its ticks are others. Raises DefinitionRefused for a schedule that cannot work, or that the code declares.
    """
    where = f"cron.create({name!r})"
    parameter = tick_parameter(where, workflow, args)
    spec = make_spec(
        where, name, workflow.name, parameter, expression, every=every, at=at, timezone=timezone,
        start=start, end=end, catch_up=catch_up, missed=missed, overlap=overlap, jitter=jitter, paused=paused,
        args=_checked_args(where, workflow, parameter, args or {}),
    )  # fmt: skip

    def decide(state: State | None) -> Decision | None:
        _refuse_declared(where, state)
        return _settle.settle(name, spec, state, app.log_now(), declared=False)

    _change(app, name, decide)


def delete(app: App, name: str) -> None:
    """End a schedule that `create` has made. Its workflows run on. Raises ScheduleNotFound."""

    def decide(state: State | None) -> Decision | None:
        _refuse_declared(f"cron.delete({name!r})", state)
        return _settle.delete(name, _found(app, name, state))

    _change(app, name, decide)


def pause(app: App, name: str, reason: str = "") -> bool:
    """Fire no more ticks of a schedule until it is resumed. False: it was paused already. Raises ScheduleNotFound."""
    return _change(app, name, lambda state: _settle.pause(name, _found(app, name, state), reason)) is not None


def resume(app: App, name: str) -> bool:
    """Have a paused schedule go on with the next tick; those of the pause are not caught up, `backfill` does that.

    False: it was not paused. Raises ScheduleNotFound.
    """
    return (
        _change(app, name, lambda state: _settle.resume(name, _found(app, name, state), app.log_now()))
        is not None
    )


def trigger(app: App, name: str) -> str:
    """Start the schedule's workflow now, and return its ID; a paused schedule's too.

    It waits behind the schedule's open workflows, but for overlap="allow". Raises ScheduleNotFound.
    """

    def decide(state: State | None) -> Decision | None:
        found = _found(app, name, state)
        return _settle.trigger(name, found, app.log_now(), find_open(found, lambda id: app.info(id).status))

    decision = _change(app, name, decide)
    assert decision is not None
    return decision.begin[0].id


def backfill(app: App, name: str, start: datetime, end: datetime, *, in_order: bool = True) -> int:
    """Start the workflows of the schedule's ticks from `start` to `end`, both included, and return how many were new.

    Ticks that have not come yet are left to the schedule, whatever `end` is. The IDs are those of the ticks: one that
    has run starts nothing again. They run one after the other, the schedule's own ticks beside them; all at once with
    `in_order=False`. Up to 500 share a transaction, so that a crash leaves whole ones, and the same call goes on.
    Raises ScheduleNotFound.
    """
    for option, time in (("start", start), ("end", end)):
        if time.tzinfo is None:
            raise DefinitionRefused(
                "cron.backfill",
                f"{option}={time!r} is a time without a zone",
                "Write datetime(..., tzinfo=UTC).",
            )
    first, last, started = to_us(start), min(to_us(end), app.log_now()), 0
    while True:
        count, new, following = _backfill_some(app, name, first, last, in_order=in_order)
        started += new
        if count < _settle.BACKFILL_CHUNK:
            return started
        first = following


def _backfill_some(app: App, name: str, first: int, last: int, *, in_order: bool) -> tuple[int, int, int]:
    """Start the first of the ticks: how many they are, how many were new, where to go on."""
    chosen: list[int] = []
    new: list[int] = []

    def decide(state: State | None) -> Decision | None:
        found = _found(app, name, state)
        chosen[:] = _settle.ticks_between(name, found, first, last, _settle.BACKFILL_CHUNK)
        return _settle.backfill(name, found, chosen, in_order=in_order) if chosen else None

    _change(app, name, decide, new.append)
    return len(chosen), sum(new), chosen[-1] + 1 if chosen else last


def list_schedules(app: App, *, count: int = 3) -> list[ScheduleInfo]:
    """Return all schedules in the database, by name, with their next `count` ticks."""
    now = app.log_now()
    found = []
    for at in app.positions(PREFIX):
        state = decode_state(at.position)
        if state is not None and not state.deleted:
            found.append(_info(name_of(at.source), state, now, count))
    return found


def next_ticks(app: App, name: str, count: int = 3) -> list[datetime]:
    """Return the next `count` ticks of a schedule, also those of a paused one. Raises ScheduleNotFound."""
    found = _found(app, name, decode_state(_position(app, name).position))
    return [to_datetime(tick) for tick in upcoming(name, found.spec, found, app.log_now(), count)]


def _async_form(fn: Callable[P, T]) -> Callable[P, Coroutine[Any, Any, T]]:
    """Return the form of `fn` for async code: the same, on a thread, since all that it does is wait for Postgres."""

    @functools.wraps(fn)
    async def run(*args: P.args, **kwargs: P.kwargs) -> T:
        return await asyncio.to_thread(fn, *args, **kwargs)

    run.__name__ = run.__qualname__ = f"a{fn.__name__}"
    run.__doc__ = f"Do what `{fn.__name__}` does, from async code."
    return run


acreate = _async_form(create)
adelete = _async_form(delete)
apause = _async_form(pause)
aresume = _async_form(resume)
atrigger = _async_form(trigger)
abackfill = _async_form(backfill)
alist_schedules = _async_form(list_schedules)


def _change(
    app: App,
    name: str,
    decide: Callable[[State | None], Decision | None],
    heard: Callable[[int], None] | None = None,
) -> Decision | None:
    """Hand over what `decide` says of the schedule's state; None when it says that there is nothing to do."""
    while True:
        at = _position(app, name)
        decision = decide(decode_state(at.position))
        if decision is None:
            return None
        try:
            handed = app.hand_over([move_of(app, name, at, decision)])
        except PositionMoved:
            continue
        if heard is not None:
            heard(handed.started)
        served = find_served(app)
        if served is not None:
            served.look()
        return decision


def _position(app: App, name: str) -> SourcePosition:
    source = source_of(name)
    for at in app.positions(source):
        if at.source == source:
            return at
    return SourcePosition(source, f"{source}/0", 0, None)


def _found(app: App, name: str, state: State | None) -> State:
    if state is not None and not state.deleted:
        return state
    names = [info.name for info in list_schedules(app, count=0)]
    raise ScheduleNotFound(name, tuple(difflib.get_close_matches(name, names, n=3, cutoff=0.4)))


def _refuse_declared(where: str, state: State | None) -> None:
    if state is not None and state.declared and not state.deleted:
        raise DefinitionRefused(
            where,
            "the code declares this schedule, with @cron.schedule",
            "Change it there, pause it, or take another name.",
        )


def _info(name: str, state: State, now: int, count: int) -> ScheduleInfo:
    spec = state.spec
    try:
        ticks = [] if state.paused else upcoming(name, spec, state, now, count)
    except DefinitionRefused:  # made by a release that knows more: the others are listed all the same
        ticks = []
    return ScheduleInfo(
        name=name,
        when=spec.describe(),
        workflow=spec.workflow,
        paused=state.paused,
        declared=state.declared,
        overlap=spec.overlap,
        missed=spec.missed,
        timezone=spec.timezone,
        last=None if state.fired is None else to_datetime(state.fired),
        next=[to_datetime(tick) for tick in ticks],
    )


def _checked_args(
    where: str, workflow: Workflow[..., Any], parameter: str, args: Mapping[str, Any]
) -> dict[str, Any]:
    """Return `args` in JSON's own types. Raises DefinitionRefused when the workflow can't take them."""
    try:
        plain: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(dict(args)))
        workflow.decode_args(msgspec.json.encode({parameter: Tick(), **plain}))
    except (DecodeFailed, TypeError, ValueError) as error:
        raise DefinitionRefused(
            where,
            f"args= is nothing that workflow {workflow.name!r} takes: {error}",
            "Give what it declares.",
        ) from error
    return plain
