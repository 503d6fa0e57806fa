"""Errors to the log and back: the code always meets the rebuilt one, in its first run too.

An exception is recorded as its class, its text, and what `__reduce__` says it is made of, if that is plain
JSON. When it is recorded it is rebuilt once for a test; if that does not give the same thing, the code is
given a `StepError` with the original name, and *that* is what the record says. So a replay takes the same
`except` as the first run. Only subclasses of Exception in modules that the program has already imported are
ever looked up; nothing is imported because a log says so.
"""

import sys
import traceback
from typing import Any, Final, cast

import msgspec

from refold.core._codec import check_plain
from refold.core._errors import StepError, ValueRefused
from refold.eventlog._events import RecordedError

_CAUSES_KEPT: Final = 5
_TRACEBACK_KEPT: Final = 8_000
_encode: Final = msgspec.json.Encoder().encode


class ErrorClassNotFound(LookupError):
    """A recorded error was rebuildable when it was written, and its class cannot be found now."""


def record_error(exc: BaseException) -> RecordedError:
    """Return `exc` as the log keeps it. Never raises, whatever the exception does."""
    return _record(exc, _CAUSES_KEPT)


def rebuild_error(recorded: RecordedError) -> BaseException:
    """Return the exception that `recorded` describes: of the same class where it can be, else a StepError."""
    try:
        return rebuild_error_exactly(recorded)
    except ErrorClassNotFound:
        return _with_context(StepError(_type_of(recorded), recorded.message), recorded, rebuild_error)


def rebuild_error_exactly(recorded: RecordedError) -> BaseException:
    """Return what the code met when `recorded` was written, for replay.

    Raises ErrorClassNotFound when that was an instance of a class that is not there any more.
    """
    if recorded.state is None:
        exc: BaseException = StepError(_type_of(recorded), recorded.message)
    else:
        cls = _find_class(recorded.module, recorded.qualname)
        if cls is None:
            raise ErrorClassNotFound(f"{_type_of(recorded)} cannot be found")
        try:
            exc = _build(cls, recorded.state, recorded.attributes)
        except Exception as problem:
            raise ErrorClassNotFound(
                f"{_type_of(recorded)} cannot be built any more ({problem!r})"
            ) from problem
    return _with_context(exc, recorded, rebuild_error)


def _record(exc: BaseException, causes_left: int) -> RecordedError:
    message = _message_of(exc)
    state, attributes = _state_of(exc, message)
    cause = exc.__cause__
    return RecordedError(
        module=type(exc).__module__,
        qualname=type(exc).__qualname__,
        message=message,
        state=state,
        attributes=attributes,
        cause=_record(cause, causes_left - 1) if cause is not None and causes_left > 0 else None,
        notes=tuple(_clean(note) for note in getattr(exc, "__notes__", ()) if isinstance(note, str)),
        traceback=_traceback_of(exc),
    )


def _state_of(exc: BaseException, message: str) -> tuple[list[Any] | None, dict[str, Any] | None]:
    """Return what rebuilds `exc`, or (None, None) when nothing that the log can hold does."""
    cls = type(exc)
    try:
        if _find_class(cls.__module__, cls.__qualname__) is not cls:
            return None, None
        reduced: Any = exc.__reduce__()
        if not isinstance(reduced, tuple) or len(reduced) < 2 or reduced[0] is not cls:
            return None, None
        args = reduced[1]
        attributes = dict(reduced[2]) if len(reduced) > 2 and reduced[2] else {}
        attributes.pop("__notes__", None)  # kept beside, as text
        state: list[Any] = _as_plain(list(args))
        extra = _as_plain(attributes) if attributes else None
        back = _build(cast("type[Exception]", cls), state, extra)  # found by _find_class
        back_attributes = dict(vars(back))
        back_attributes.pop("__notes__", None)
        own_attributes = dict(vars(exc))
        own_attributes.pop("__notes__", None)
        if (
            type(back) is cls
            and str(back) == str(exc) == message
            and back.args == exc.args
            and back_attributes == own_attributes
        ):
            return state, extra
    except (
        Exception
    ):  # anything at all that the class does in __reduce__, __init__ or __eq__: not rebuildable
        pass
    return None, None


def _as_plain(value: Any) -> Any:
    """Return `value` as JSON gives it back; raises when that is something else."""
    check_plain(value, "error")
    back = msgspec.json.decode(_encode(value))
    if back != value:  # a tuple inside would be a list
        raise ValueRefused("error", "it does not come back from JSON", "")
    return back


def _build(cls: type[Exception], state: list[Any], attributes: dict[str, Any] | None) -> Exception:
    exc = cls(*state)
    if attributes is not None:
        exc.__setstate__(attributes)
    return exc


def _find_class(module: str, qualname: str) -> type[Exception] | None:
    found: Any = sys.modules.get(module)
    for name in qualname.split("."):
        found = vars(found).get(name) if hasattr(found, "__dict__") else None
    return found if isinstance(found, type) and issubclass(found, Exception) else None


def _with_context(exc: BaseException, recorded: RecordedError, rebuild: Any) -> BaseException:
    if recorded.cause is not None:
        exc.__cause__ = rebuild(recorded.cause)
    for note in recorded.notes:
        exc.add_note(note)
    return exc


def _type_of(recorded: RecordedError) -> str:
    return recorded.qualname if recorded.module == "builtins" else f"{recorded.module}.{recorded.qualname}"


def _message_of(exc: BaseException) -> str:
    try:
        return _clean(str(exc))
    except Exception:
        return "<its text could not be made>"


def _traceback_of(exc: BaseException) -> str:
    """Return where `exc` came through, innermost last: files and lines only, since reading source is I/O."""
    frames = [
        f'File "{frame.f_code.co_filename}", line {line}, in {frame.f_code.co_qualname}'
        for frame, line in traceback.walk_tb(exc.__traceback__)
    ]
    return _clean("\n".join(frames)[-_TRACEBACK_KEPT:])


def _clean(text: str) -> str:
    """Return `text` without lone surrogates, which UTF-8 cannot hold."""
    return text.encode("utf-8", "replace").decode("utf-8")
