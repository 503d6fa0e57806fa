"""What workflow code calls: time, chance, messages and branches, each the same again in every replay."""

import logging
import random as _random
import uuid as _uuid
from collections.abc import Callable, MutableMapping
from datetime import datetime, timedelta
from typing import Any, Final, Literal, ParamSpec, TypeVar, overload

from refold.core._codec import ValueCodec, encode_message
from refold.core._definitions import Later, StepInfo, running_step, step_info
from refold.core._driver import Instance
from refold.core._errors import WrongCall
from refold.core._home import find_instance, get_instance, home
from refold.eventlog._events import from_micros, to_micros

__all__ = [
    "StepInfo",
    "arecv",
    "asleep",
    "asleep_until",
    "gather",
    "later",
    "logger",
    "now",
    "random",
    "recv",
    "running_step",
    "send",
    "sleep",
    "sleep_until",
    "step_info",
    "uuid",
    "workflow_args",
]

P = ParamSpec("P")
T = TypeVar("T")
T1 = TypeVar("T1")
T2 = TypeVar("T2")
T3 = TypeVar("T3")
T4 = TypeVar("T4")
T5 = TypeVar("T5")

_MICROSECOND: Final = timedelta(microseconds=1)


def workflow_args() -> tuple[Any, ...] | None:
    """Return what the calling workflow was called with; None outside of workflow code, in a step too."""
    instance = find_instance()
    return None if instance is None else instance.args


def sleep(delay: timedelta | float) -> None:
    """Wait for `delay` (seconds when a number) in a `def` workflow. It costs a row, not a thread."""
    instance = _sync_instance("refold.sleep(...)", "await asyncio.sleep(seconds) or await refold.asleep(...)")
    instance.sleep_until(instance.now + _micros(delay))


def sleep_until(moment: datetime) -> None:
    """Wait in a `def` workflow until `moment` (aware) of the log's clock."""
    _sync_instance("refold.sleep_until(...)", "await refold.asleep_until(...)").sleep_until(_moment(moment))


async def asleep(delay: timedelta | float) -> None:
    """Wait for `delay` (seconds when a number) in an `async def` workflow; `asyncio.sleep` does the same."""
    instance = _async_instance("refold.asleep(...)", "refold.sleep(...)")
    await instance.asleep_until(instance.now + _micros(delay))


async def asleep_until(moment: datetime) -> None:
    """Wait in an `async def` workflow until `moment` (aware) of the log's clock."""
    await _async_instance("refold.asleep_until(...)", "refold.sleep_until(...)").asleep_until(_moment(moment))


def now() -> datetime:
    """Return the workflow's time, in UTC: that of the last event it was told of, the same in every replay.

    It stands still while the code runs; a loop that waits for it without sleeping never ends.
    """
    return from_micros(get_instance("refold.now()").now)


def uuid() -> _uuid.UUID:
    """Return a UUID of the workflow's own: drawn from the workflow's ID, the same in every replay."""
    return get_instance("refold.uuid()").uuid()


def random() -> _random.Random:
    """Return the workflow's own random generator: seeded by the workflow's ID, the same in every replay."""
    return get_instance("refold.random()").random()


def send(id: str, value: Any, topic: str = "") -> None:
    """Send `value` to workflow `id`, from a workflow of either colour; never waits.

    The message and the event that records it commit together, so it arrives exactly once. A workflow that has
    not been started yet finds it when it is.
    """
    instance = get_instance("refold.send(...)")
    instance.send(id, topic, encode_message(value, f"the message to workflow {id!r}"))


@overload
def recv(topic: str = "", *, timeout: timedelta | float | None = None) -> Any: ...
@overload
def recv(topic: str, type: type[T], *, timeout: timedelta | float | None = None) -> T: ...
def recv(topic: str = "", type: Any = Any, *, timeout: timedelta | float | None = None) -> Any:
    """Wait in a `def` workflow for the next message of `topic`, and return it as a `type`.

    Raises TimedOut when none has come within `timeout`, and DecodeFailed when the message is no `type`.
    """
    instance = _sync_instance("refold.recv(...)", "await refold.arecv(...)")
    codec = _message_codec(type, topic)
    return codec.decode(instance.recv(topic, None if timeout is None else _micros(timeout)))


@overload
async def arecv(topic: str = "", *, timeout: timedelta | float | None = None) -> Any: ...
@overload
async def arecv(topic: str, type: type[T], *, timeout: timedelta | float | None = None) -> T: ...
async def arecv(topic: str = "", type: Any = Any, *, timeout: timedelta | float | None = None) -> Any:
    """Wait in an `async def` workflow for the next message of `topic`, and return it as a `type`.

    Raises TimedOut when none has come within `timeout`, and DecodeFailed when the message is no `type`.
    """
    instance = _async_instance("refold.arecv(...)", "refold.recv(...)")
    codec = _message_codec(type, topic)
    return codec.decode(await instance.arecv(topic, None if timeout is None else _micros(timeout)))


def later(fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Later[T]:
    """Return a call of a plain function not begun, for `refold.gather`: a branch of several steps."""
    return Later(lambda instance: instance.begin_branch(fn, args, kwargs), lambda: fn(*args, **kwargs))


@overload
def gather(a: Later[T1], /) -> tuple[T1]: ...
@overload
def gather(a: Later[T1], b: Later[T2], /) -> tuple[T1, T2]: ...
@overload
def gather(a: Later[T1], b: Later[T2], c: Later[T3], /) -> tuple[T1, T2, T3]: ...
@overload
def gather(a: Later[T1], b: Later[T2], c: Later[T3], d: Later[T4], /) -> tuple[T1, T2, T3, T4]: ...
@overload
def gather(
    a: Later[T1], b: Later[T2], c: Later[T3], d: Later[T4], e: Later[T5], /
) -> tuple[T1, T2, T3, T4, T5]: ...
@overload
def gather(*laters: Later[T]) -> tuple[T, ...]: ...
@overload
def gather(*laters: Later[T], return_exceptions: Literal[True]) -> tuple[T | BaseException, ...]: ...
def gather(*laters: Later[Any], return_exceptions: bool = False) -> tuple[Any, ...]:
    """Run calls in parallel in a `def` workflow and return their results, in the order of the calls.

    The first error is raised at once, and the other calls go on with nobody to hear them, as in
    `asyncio.gather`; with `return_exceptions=True` errors are returned in their places. Outside of a workflow
    the calls are made one after another.
    """
    instance = find_instance()
    if instance is None:
        return tuple([_plain(one, return_exceptions) for one in laters])
    if instance.is_async:
        raise WrongCall(
            "refold.gather(...) was called in an async def workflow",
            "Write await asyncio.gather(...) of the coroutines there.",
        )
    return instance.gather(laters, return_exceptions=return_exceptions)


class _WorkflowLogger(logging.LoggerAdapter[logging.Logger]):
    """Logs with the workflow's ID, and says nothing while a workflow is replayed."""

    def isEnabledFor(self, level: int) -> bool:
        mark = home.get()
        if mark is not None and (mark.instance is None or mark.instance.replaying):
            return False
        return super().isEnabledFor(level)

    def process(self, msg: Any, kwargs: MutableMapping[str, Any]) -> tuple[Any, MutableMapping[str, Any]]:
        mark = home.get()
        if mark is not None:
            kwargs["extra"] = {"workflow": mark.workflow_id, **(kwargs.get("extra") or {})}
        return msg, kwargs


logger: Final = _WorkflowLogger(logging.getLogger("refold.workflow"))
"""Logs like any logger (name `refold.workflow`), but each line once: it is silent while a workflow is replayed."""


def _plain(one: Later[Any], return_exceptions: bool) -> Any:
    try:
        return one._plain()
    except Exception as exc:
        if not return_exceptions:
            raise
        return exc


def _sync_instance(call: str, right: str) -> Instance:
    instance = get_instance(call)
    if instance.is_async:
        raise WrongCall(f"{call} was called in an async def workflow", f"Write {right} there.")
    return instance


def _async_instance(call: str, right: str) -> Instance:
    instance = get_instance(call)
    if not instance.is_async:
        raise WrongCall(f"{call} was awaited in a def workflow", f"Write {right} there.")
    return instance


def _micros(delay: timedelta | float) -> int:
    return delay // _MICROSECOND if isinstance(delay, timedelta) else round(delay * 1_000_000)


def _moment(moment: datetime) -> int:
    if moment.tzinfo is None:
        raise WrongCall(
            f"a wait until {moment.isoformat()} was asked for, a time without a zone",
            "Give it one: datetime(..., tzinfo=UTC).",
        )
    return to_micros(moment)


def _message_codec(type: Any, topic: str) -> ValueCodec:
    try:
        return _CODECS[type, topic]
    except (KeyError, TypeError):
        codec = ValueCodec(type, f"a message of topic {topic!r}")
        try:
            if len(_CODECS) < 1_000:
                _CODECS[type, topic] = codec
        except TypeError:
            pass
        return codec


_CODECS: Final[dict[tuple[Any, str], ValueCodec]] = {}
