"""How a schedule comes to be, is changed, paused, triggered and ended. Pure: a state in, a decision out."""

from collections.abc import Iterable

import msgspec

from refold.connectors.cron._decide import Begin, Decision, Fact, begin_of, keeps_begun
from refold.connectors.cron._spec import Spec, show_instant, timing_of
from refold.connectors.cron._state import State, order_key

_TIMING = {"expression", "every", "at", "timezone", "start", "end"}
# What a backfill starts in one transaction.
BACKFILL_CHUNK = 500


def settle(name: str, spec: Spec, state: State | None, now: int, *, declared: bool) -> Decision | None:
    """Return what makes the schedule be as `spec` says from `now` on; None when it is so already.

    A new one has no ticks before `now`. A changed one goes on after its last tick, but not before `now`.
    """
    if state is None or state.deleted:
        number = 1 if state is None else state.number + 1
        made = State(number=number, spec=spec, last=now, paused=spec.paused, declared=declared)
        return Decision(
            made, facts=[Fact("Created", f"schedule {name!r}: {spec.describe()}", _described(spec))]
        )
    changed = state.spec.changes(spec)
    if not changed and state.declared == declared:
        return None
    after = msgspec.structs.replace(state, spec=spec, declared=declared)
    if _TIMING & set(changed):
        after = msgspec.structs.replace(after, last=max(now, state.last))
    if "paused" in changed:
        after = msgspec.structs.replace(after, paused=spec.paused, last=max(now, after.last))
    text = f"schedule {name!r} was {state.spec.describe()} and is {spec.describe()} now ({', '.join(changed)} changed)"
    return Decision(after, facts=[Fact("Changed", text, {"changed": changed, **_described(spec)})])


def pause(name: str, state: State, reason: str) -> Decision | None:
    """Return what pauses a schedule; None when it is paused."""
    if state.paused:
        return None
    text = f"schedule {name!r} was paused" + (f": {reason}" if reason else "")
    return Decision(
        msgspec.structs.replace(state, paused=True), facts=[Fact("Paused", text, {"reason": reason})]
    )


def resume(name: str, state: State, now: int) -> Decision | None:
    """Return what makes a paused schedule go on, without the ticks of the pause; None when it is not paused."""
    if not state.paused:
        return None
    after = msgspec.structs.replace(state, paused=False, last=max(now, state.last))
    return Decision(
        after, facts=[Fact("Resumed", f"schedule {name!r} goes on", {"last": show_instant(after.last)})]
    )


def delete(name: str, state: State) -> Decision:
    """Return what ends a schedule. Its workflows run on; made again, the name has another identity."""
    after = msgspec.structs.replace(state, deleted=True, begun=())
    return Decision(after, facts=[Fact("Deleted", f"schedule {name!r} was deleted", {})])


def trigger(name: str, state: State, now: int, still_open: frozenset[str]) -> Decision:
    """Return what starts the schedule's workflow now, paused or not; behind those that are open, where ticks overlap
    by any rule but "allow"."""
    begin = begin_of(name, state, now, state.fired, manual=True)
    begun = [id for id in state.begun if id in still_open]
    if keeps_begun(state.spec.overlap):
        begun.append(begin.id)
    fact = Fact("Triggered", f"schedule {name!r} was triggered by hand", {"id": begin.id})
    return Decision(msgspec.structs.replace(state, begun=tuple(begun)), [begin], facts=[fact])


def backfill(name: str, state: State, ticks: Iterable[int], *, in_order: bool) -> Decision:
    """Return what starts the workflows of given ticks, by the IDs that they have or would have had.

    `in_order`: one after the other, in an order of their own that the schedule's present ticks don't wait for.
    """
    chosen = list(ticks)
    begin = []
    previous: int | None = None
    for tick in chosen:
        found = begin_of(name, state, tick, previous)
        begin.append(
            Begin(
                found.id,
                msgspec.structs.replace(found.tick, backfill=True),
                tick,
                ordered=in_order,
                key=f"{order_key(name, state.number)}:backfill",
            )
        )
        previous = tick
    text = f"{len(chosen)} ticks of {name!r} backfilled, from {show_instant(chosen[0])} to {show_instant(chosen[-1])}"
    data = {"first": show_instant(chosen[0]), "last": show_instant(chosen[-1]), "count": len(chosen)}
    return Decision(state, begin, facts=[Fact("Backfilled", text, data)])


def ticks_between(name: str, state: State, first: int, last: int, limit: int) -> list[int]:
    """Return the schedule's ticks from `first` to `last`, both included, at most `limit`."""
    found = []
    for tick in timing_of(name, state.spec).up_to(first - 1, last):
        found.append(tick)
        if len(found) == limit:
            break
    return found


def _described(spec: Spec) -> dict[str, object]:
    described: dict[str, object] = msgspec.to_builtins(spec)
    return described
