"""What to do about the ticks that have come due. Pure: a state and a time in, what to start and to write down out."""

import hashlib
from collections.abc import Iterator
from itertools import islice
from typing import Any, Final

import msgspec

from refold.connectors.cron._spec import Spec, show_instant, timing_of, to_datetime
from refold.connectors.cron._state import State, order_key, workflow_id
from refold.connectors.cron._tick import Tick
from refold.connectors.cron._timing import Timing

# Of the ticks that were missed, no more than this are caught up at once.
CAP: Final = 1_000
# A tick that comes this much late is still the one that is due now, also where nothing is caught up: so long it may
# take another worker to notice that one was killed, or a new one to start.
ON_TIME: Final = 10_000_000
# A clock that stands so much before the last tick has been set back; less is what two servers differ by.
SET_BACK: Final = 60_000_000
# Missed ticks are counted for the record up to here: a schedule of milliseconds that was off for a year has billions.
_COUNTED: Final = 10_000


class Begin(msgspec.Struct, frozen=True):
    """A workflow to start: its ID and its tick, which is number `no` in its order.

    `ordered`: it waits for the schedule's other workflows, or for those of `key` where that is given.
    """

    id: str
    tick: Tick
    no: int
    not_before: int | None = None
    ordered: bool = False
    key: str | None = None


class Fact(msgspec.Struct, frozen=True):
    """Something to be written down in the schedule's stream."""

    kind: str
    text: str
    data: dict[str, Any]


class Decision(msgspec.Struct, frozen=True):
    """What one hand-over of a schedule does. `state` is what holds after it."""

    state: State
    begin: list[Begin] = []
    cancel: list[str] = []
    facts: list[Fact] = []


def next_tick(name: str, state: State, now: int) -> int | None:
    """Return when there will be something to decide; None when nothing is to come."""
    if state.paused or state.deleted:
        return None
    if _is_set_back(state, now):
        return now
    return timing_of(name, state.spec).next(state.last)


def decide(name: str, state: State, now: int, still_open: frozenset[str]) -> Decision | None:
    """Decide about all ticks up to `now`; None when none is due.

    `still_open` are those of `state.begun` that have not ended.
    """
    if state.paused or state.deleted:
        return None
    if _is_set_back(state, now):
        return Decision(msgspec.structs.replace(state, last=now), facts=[_set_back(name, state, now)])
    timing, since = timing_of(name, state.spec), state.last
    newest = list(_newest(timing, since, now, 1))
    if not newest:
        return None
    chosen, facts = _choose(timing, state.spec, since, now, newest[0])
    begin, cancel, skipped, begun = _overlap(name, state, chosen, still_open)
    fired = begin[-1].no if begin else state.fired
    after = msgspec.structs.replace(state, last=newest[0], fired=fired, begun=begun)
    return Decision(after, begin, cancel, facts + skipped)


def _is_set_back(state: State, now: int) -> bool:
    # A clock that ran ahead was set back: the ticks up to there come once more. Those that have started a workflow
    # start none again, since they have its ID.
    return state.last > now + SET_BACK


def _choose(timing: Timing, spec: Spec, since: int, now: int, newest: int) -> tuple[list[int], list[Fact]]:
    """Return the due ticks that are to run, in order, and what to say of the others."""
    oldest = max(since, now - spec.catch_up - 1)
    limit = CAP + 1 if spec.missed == "all" else 1
    found = sorted(_newest(timing, oldest, now, limit)) if spec.catch_up else []
    if not found and now - newest <= ON_TIME:
        found = [newest]
    facts = []
    chosen = found[-CAP:]
    if len(found) > CAP:
        facts.append(
            Fact(
                "TicksCapped",
                f"more than {CAP:,} ticks were missed: only the last {CAP:,} run, from {show_instant(chosen[0])} on",
                {"from": show_instant(chosen[0]), "cap": CAP},
            )
        )
    first = chosen[0] if chosen else now + 1
    missed = list(islice(timing.up_to(since, first - 1), _COUNTED))
    if missed:
        facts.append(_missed(spec, missed, bool(chosen)))
    return chosen, facts


def _missed(spec: Spec, missed: list[int], some_run: bool) -> Fact:
    first, last = show_instant(missed[0]), show_instant(missed[-1])
    count = f"{_COUNTED:,} or more" if len(missed) == _COUNTED else f"{len(missed):,}"
    why = "only the latest runs" if spec.missed == "latest" and some_run else "too late to be caught up"
    return Fact(
        "TicksMissed",
        f"{count} missed and not run, from {first} to {last}: {why}",
        {"first": first, "last": last, "count": len(missed)},
    )


def _set_back(name: str, state: State, now: int) -> Fact:
    return Fact(
        "ClockSetBack",
        f"the last tick of {name!r} was {show_instant(state.last)}, and it is {show_instant(now)} now: the database's "
        "clock was set back. The ticks in between come again; those that ran do not run twice",
        {"last": show_instant(state.last), "now": show_instant(now)},
    )


def _overlap(
    name: str, state: State, ticks: list[int], still_open: frozenset[str]
) -> tuple[list[Begin], list[str], list[Fact], tuple[str, ...]]:
    """Apply the overlap rule, tick by tick: what begins, what is cancelled, what to say, what is open after it."""
    rule = state.spec.overlap
    begin: list[Begin] = []
    cancel: list[str] = []
    facts: list[Fact] = []
    begun = [id for id in state.begun if id in still_open and keeps_begun(rule)]
    if rule == "cancel_other" and len(ticks) > 1:
        facts += [_skipped(tick, "a later one is due as well and would cancel it") for tick in ticks[:-1]]
        ticks = ticks[-1:]
    room = {"skip": 1, "buffer_one": 2}.get(rule)
    previous = state.fired
    for tick in ticks:
        if room is not None and len(begun) >= room:
            facts.append(
                _skipped(tick, "the one before it is still running" if room == 1 else "one waits already")
            )
            continue
        if rule == "cancel_other":
            cancel = list(begun)
        start = begin_of(name, state, tick, previous)
        begin.append(start)
        if keeps_begun(rule):
            begun.append(start.id)
        previous = tick
    return begin, cancel, facts, tuple(begun)


def _skipped(tick: int, why: str) -> Fact:
    return Fact(
        "TickSkipped", f"tick {show_instant(tick)} starts nothing: {why}", {"tick": show_instant(tick)}
    )


def keeps_begun(rule: str) -> bool:
    """Say whether the overlap rule needs to know which workflows are open."""
    return rule in ("skip", "buffer_one", "cancel_other")


def begin_of(name: str, state: State, tick: int, previous: int | None, *, manual: bool = False) -> Begin:
    """Return the start of one tick, delayed by its jitter; the jitter is no part of its ID."""
    spec = state.spec
    return Begin(
        workflow_id(name, state.number, tick, manual=manual),
        Tick(
            scheduled=to_datetime(tick),
            schedule=name,
            timezone=spec.timezone,
            previous=None if previous is None else to_datetime(previous),
            manual=manual,
        ),
        tick,
        not_before=None
        if manual or not spec.jitter
        else tick + jitter_of(order_key(name, state.number), tick, spec.jitter),
        ordered=spec.overlap != "allow",
    )


def jitter_of(key: str, tick: int, jitter: int) -> int:
    """Return by how much a tick is delayed, from 0 to below `jitter`: the same in every process, for ever."""
    drawn = hashlib.sha256(f"{key}:{tick}".encode()).digest()
    return int.from_bytes(drawn[:8], "big") % jitter


def _newest(timing: Timing, since: int, now: int, limit: int) -> Iterator[int]:
    """Yield the newest ticks of (since, now], the latest first, up to `limit`.

    Looks back from `now` over twice as much each time: of a schedule that was off for a year only the end is looked at.
    """
    back = 60_000_000
    while True:
        begin = max(since, now - back)
        found = list(timing.up_to(begin, now))
        if len(found) >= limit or begin == since:
            yield from islice(reversed(found), limit)
            return
        back *= 4
