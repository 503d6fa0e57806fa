"""What a schedule was declared with. It is recorded, so that every worker and the command line go by the same."""

from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Any, Final, Literal, get_args

import msgspec

from refold.connectors.cron._fields import parse
from refold.connectors.cron._timing import At, Cron, Every, Timing
from refold.connectors.cron._zone import check_zone
from refold.core import DefinitionRefused

Missed = Literal["latest", "all"]
Overlap = Literal["skip", "buffer_one", "buffer_all", "cancel_other", "allow"]

EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND: Final = timedelta(microseconds=1)
_SHORTEST: Final = timedelta(milliseconds=10)
_NAME_MAX: Final = 200


class Spec(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """A schedule, in the form in which it is recorded. Times in microseconds, since 1970 UTC where they are instants.

    One of `expression`, `every` and `at` says when. `parameter` of the workflow takes the tick, `args` is what it takes
    beside it, in JSON's own types.
    """

    workflow: str
    parameter: str
    expression: str | None = None
    every: int | None = None
    at: tuple[int, ...] = ()
    timezone: str = "UTC"
    start: int | None = None
    end: int | None = None
    catch_up: int = 3_600_000_000
    missed: Missed = "latest"
    overlap: Overlap = "skip"
    jitter: int = 0
    paused: bool = False
    args: dict[str, Any] = {}

    def describe(self) -> str:
        """Return when it ticks, for people: `0 9 * * MON-FRI Europe/Berlin`."""
        if self.expression is not None:
            return f"{self.expression} {self.timezone}"
        if self.every is not None:
            return f"every {show_duration(self.every)}"
        shown = ", ".join(show_instant(instant) for instant in self.at[:3])
        return f"at {shown}" + (f" and {len(self.at) - 3} more" if len(self.at) > 3 else "")

    def changes(self, other: "Spec") -> list[str]:
        """Return the names of the fields in which `other` differs."""
        return [name for name in self.__struct_fields__ if getattr(self, name) != getattr(other, name)]


@lru_cache(maxsize=16384)
def _timing(
    name: str,
    expression: str | None,
    every: int | None,
    at: tuple[int, ...],
    timezone: str,
    start: int,
    end: int,
) -> Timing:
    rule: Cron | Every | At
    check_zone(f"schedule {name!r}", timezone)  # it may be one that only a later release of the zones has
    if expression is not None:
        rule = Cron(parse(expression, where=f"schedule {name!r}", hash_id=name), timezone)
    elif every is not None:
        rule = Every(every)
    else:
        rule = At(at)
    return Timing(rule, None if start < 0 else start, None if end < 0 else end)


def timing_of(name: str, spec: Spec) -> Timing:
    """Return when the schedule `name` ticks. Raises DefinitionRefused when this release can't read it."""
    start = -1 if spec.start is None else spec.start
    end = -1 if spec.end is None else spec.end
    return _timing(name, spec.expression, spec.every, spec.at, spec.timezone, start, end)


def make_spec(
    where: str,
    name: str,
    workflow: str,
    parameter: str,
    expression: str | None,
    *,
    every: timedelta | None,
    at: datetime | Iterable[datetime] | None,
    timezone: str,
    start: datetime | None,
    end: datetime | None,
    catch_up: timedelta,
    missed: Missed,
    overlap: Overlap,
    jitter: timedelta,
    paused: bool,
    args: dict[str, Any] | None = None,
) -> Spec:
    """Return the schedule of these options. Raises DefinitionRefused, with `where` in front, for what can't work."""
    check_name(where, name)
    _check_one_rule(where, expression, every, at)
    check_zone(where, timezone)
    _check_choice(where, "missed", missed, Missed)
    _check_choice(where, "overlap", overlap, Overlap)
    durations: dict[str, object] = {"catch_up": catch_up, "jitter": jitter}
    for option, duration in durations.items():
        if not isinstance(duration, timedelta):
            raise DefinitionRefused(
                where, f"{option}={duration!r} is no duration", "Write timedelta(hours=1) or like."
            )
        if duration < timedelta(0):
            raise DefinitionRefused(where, f"{option}={duration!r} is negative", "Give zero or more.")
    if expression is not None:
        parse(expression, where=where, hash_id=name)
    spec = Spec(
        workflow=workflow,
        parameter=parameter,
        expression=expression,
        every=_distance(where, every),
        at=_instants(where, at),
        timezone=timezone,
        start=_instant(where, "start", start),
        end=_instant(where, "end", end),
        catch_up=catch_up // _MICROSECOND,
        missed=missed,
        overlap=overlap,
        jitter=jitter // _MICROSECOND,
        paused=paused,
        args=args or {},
    )
    if timing_of(name, spec).next(-1 if spec.start is None else spec.start - 1) is None:
        raise DefinitionRefused(
            where, "there is no tick between start= and end=", "Widen them, or leave one out."
        )
    return spec


def check_name(where: str, name: str) -> None:
    """Raise DefinitionRefused for a name that is empty or leaves no room in a workflow ID."""
    if not isinstance(name, str) or not 1 <= len(name.encode()) <= _NAME_MAX:
        raise DefinitionRefused(
            where,
            f"the name {name!r} is not between 1 and {_NAME_MAX} bytes long",
            "Give another name=; it is in the IDs of the workflows, so choose one that can stay.",
        )


def to_us(instant: datetime) -> int:
    """Return an aware time in microseconds since 1970 UTC."""
    return (instant - EPOCH) // _MICROSECOND


def to_datetime(instant: int) -> datetime:
    """Return an instant as an aware UTC datetime."""
    return EPOCH + timedelta(microseconds=instant)


def show_instant(instant: int) -> str:
    """Return an instant as it is in workflow IDs: `2026-11-01T05:30:00Z`, with a fraction only if it has one."""
    return to_datetime(instant).isoformat().replace("+00:00", "Z")


def show_duration(duration: int) -> str:
    """Return a duration in its largest whole unit: `90 min`, `20 ms`."""
    for unit, size in (("d", 86_400_000_000), ("h", 3_600_000_000), ("min", 60_000_000), ("s", 1_000_000)):
        if duration and duration % size == 0:
            return f"{duration // size} {unit}"
    return f"{duration / 1000:g} ms"


def _check_one_rule(where: str, expression: object, every: object, at: object) -> None:
    given = sum(option is not None for option in (expression, every, at))
    if given != 1:
        raise DefinitionRefused(
            where,
            "it does not say when to tick" if not given else "it says in two ways when to tick",
            'Give one of them: an expression ("0 9 * * MON-FRI"), every=timedelta(...), or at=datetime(...).',
        )


def _check_choice(where: str, option: str, value: object, choices: Any) -> None:
    if value not in get_args(choices):
        listed = ", ".join(f'"{choice}"' for choice in get_args(choices))
        raise DefinitionRefused(where, f"{option}={value!r}", f"Use one of {listed}.")


def _distance(where: str, every: timedelta | None) -> int | None:
    if every is None:
        return None
    if not isinstance(every, timedelta) or every < _SHORTEST:
        raise DefinitionRefused(where, f"every={every!r}", "Give a timedelta of 10 ms or more.")
    return every // _MICROSECOND


def _instants(where: str, at: datetime | Iterable[datetime] | None) -> tuple[int, ...]:
    if at is None:
        return ()
    times = [at] if isinstance(at, datetime) else list(at)
    if not times:
        raise DefinitionRefused(where, "at= holds no time", "Give one datetime or several.")
    return tuple(sorted({instant for time in times if (instant := _instant(where, "at", time)) is not None}))


def _instant(where: str, option: str, time: datetime | None) -> int | None:
    if time is None:
        return None
    if not isinstance(time, datetime) or time.tzinfo is None:
        raise DefinitionRefused(
            where, f"{option}={time!r} is a time without a zone", "Write datetime(..., tzinfo=UTC)."
        )
    return to_us(time)
