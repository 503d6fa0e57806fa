"""Values to bytes and back, by the hints of the function that declares them.

The round-trip rule lives here: a value is encoded only if what the log gives back is the same value, so that
code never sees in its first run what a replay would not see. Hints are compiled once, when the function is
decorated, and refused there with the fix. Bytes are JSON (msgspec); nothing is pickled.
"""

import hashlib
import inspect
import math
import sys
import types
import typing
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime, time, timezone
from typing import Any, Final

import msgspec
from msgspec import inspect as shapes
from msgspec.structs import astuple

from refold.core._errors import DecodeFailed, DefinitionRefused, ValueRefused

_encode: Final = msgspec.json.Encoder().encode
_canonical: Final = msgspec.json.Encoder(order="deterministic").encode
_decode_any: Final = msgspec.json.decode

_SHAPES_FIX: Final = (
    "Use JSON's types, a msgspec.Struct, a dataclass, a TypedDict, or what msgspec knows (datetime, UUID...)."
)


# JSON that only just can be decoded at one place could not be where more is on the stack: when the log is rebuilt, say.
_MARGIN: Final = 400
_skip: Final = msgspec.json.Decoder(msgspec.Raw).decode


def is_too_deep(data: bytes) -> bool:
    """Say whether JSON is nested so deeply that who reads it later, from elsewhere, may not be able to.

    Flat data cost two counts of a byte. What is no JSON is not too deep.
    """
    if data.count(b"[") + data.count(b"{") <= _MARGIN:
        return False
    try:
        _skip(b"[" * _MARGIN + data + b"]" * _MARGIN)
    except RecursionError:
        return True
    except msgspec.MsgspecError:
        return False  # whoever decodes it says why
    return False


def digest_of(canonical: bytes) -> str:
    """Return the digest under which an input is known: 32 hex digits of sha256 over its canonical bytes."""
    return hashlib.sha256(canonical).hexdigest()[:32]


class ValueCodec:
    """Encodes and decodes values of one hint; `where` names them in errors ("the result of step 'charge'")."""

    __slots__ = ("_decoder", "_is_any", "_refuse_zones", "_same_by_bytes", "checks_all", "hint", "where")

    def __init__(self, hint: Any, where: str) -> None:
        """Compile `hint`. Raises DefinitionRefused when msgspec cannot decode it."""
        self.hint = hint
        self.where = where
        self._is_any = hint is Any or hint is object
        self._decoder, self._refuse_zones, self._same_by_bytes = _compile(hint, where)
        self.checks_all = self._is_any or self._refuse_zones  # equality is not enough

    def encode(self, value: Any) -> bytes:
        """Return `value` as JSON bytes that decode to the same value; raises ValueRefused when none do."""
        raw = self._encode_only(value)
        if self._is_any:
            check_plain(value, self.where)
            return raw
        try:
            back = self._decoder(raw)
        except msgspec.MsgspecError as exc:
            raise self._refused(
                value,
                f"{_show(value)} comes back from JSON as {_cut(raw)}, which is no {_name(self.hint)} ({exc})",
            ) from exc
        if self.checks_all or type(value) is not type(back) or value != back:
            self.check_same(value, back)
        return raw

    def decode(self, raw: Any) -> Any:
        """Return the value in `raw` (bytes or msgspec.Raw); raises DecodeFailed when it is of another shape."""
        try:
            return self._decoder(raw)
        except msgspec.MsgspecError as exc:
            raise DecodeFailed(self.where, str(exc)) from exc
        except UnicodeDecodeError as exc:
            raise DecodeFailed(self.where, f"it is not UTF-8 ({exc.reason})") from exc

    def canonical(self, raw: Any) -> bytes:
        """Return `raw` decoded with today's type and encoded in the one order of keys and set members."""
        return _canonical(self.decode(raw))

    def check_same(self, value: Any, back: Any) -> None:
        """Raise ValueRefused unless `back`, which came out of the bytes, is the same as `value`."""
        if self._is_any:
            check_plain(value, self.where)
            return
        kind = type(value)
        if type(back) is not kind and not (kind is int and type(back) is float):
            raise self._refused(
                value, f"{_show(value)} would come back as a {type(back).__name__}, not a {kind.__name__}"
            )
        same = value == back
        if not same and self._same_by_bytes:  # a type without equality: the bytes must do
            same = _canonical(value) == _canonical(back)
        if not same:
            raise self._refused(
                value, f"{_show(value)} would come back as {_show(back)}, which is not equal to it"
            )
        if self._refuse_zones and (zone := _find_zone(value)):
            raise ValueRefused(
                self.where,
                f"a time in the zone {zone} would come back with a fixed offset, and days added to it would differ",
                "Pass the time in UTC (moment.astimezone(UTC)) and the name of the zone beside it.",
            )

    def _encode_only(self, value: Any) -> bytes:
        try:
            return _encode(value)
        except (TypeError, ValueError, OverflowError, msgspec.MsgspecError, RecursionError) as exc:
            raise self._refused(value, f"{_show(value)} cannot be written as JSON ({exc})") from exc

    def _refused(self, value: Any, found: str) -> ValueRefused:
        return ValueRefused(
            self.where, found, f"The hint is {_name(self.hint)}: make value and hint the same. {_SHAPES_FIX}"
        )


class CallCodec:
    """Encodes the arguments of one function as a JSON object {parameter: value}, and decodes them.

    `what` names the function in errors ("step 'charge'"); the first `skip` parameters (a connection that the
    engine passes) are left out. Defaults are written out, so that a later change of a default changes no
    history.
    """

    __slots__ = ("_by_position", "_codecs", "_decode_struct", "_names", "_parameters", "_signature", "what")

    def __init__(self, fn: Callable[..., Any], what: str, *, skip: int = 0, hints: Mapping[str, Any]) -> None:
        """Compile the hints of `fn`. Raises DefinitionRefused, naming the parameter, for one that cannot be."""
        self.what = what
        whole = inspect.signature(fn)
        parameters = list(whole.parameters.values())[skip:]
        self._signature = whole.replace(parameters=parameters)
        self._names = tuple(p.name for p in parameters)
        self._by_position = all(p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD) for p in parameters)
        self._parameters = parameters
        self._codecs = tuple(
            ValueCodec(_hint_of(p, hints), f"parameter {p.name!r} of {what}") for p in parameters
        )
        # Field names of a struct may not be what a parameter may (`_x`, `self`): the JSON names are the parameters'.
        fields: list[Any] = []
        renames: dict[str, str] = {}
        for index, (parameter, codec) in enumerate(zip(parameters, self._codecs, strict=True)):
            renames[f"p{index}"] = parameter.name
            fields.append((f"p{index}", codec.hint, *_default_of(parameter, codec)))
        shape = msgspec.defstruct("Arguments", fields, kw_only=True, rename=renames)
        self._decode_struct = msgspec.json.Decoder(shape).decode

    @property
    def parameters(self) -> Mapping[str, Any]:
        """The hint of each parameter, Any where it has none."""
        return {name: codec.hint for name, codec in zip(self._names, self._codecs, strict=True)}

    def encode(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bytes:
        """Return the call's arguments as JSON; raises TypeError as the call would, and ValueRefused."""
        names = self._names
        if kwargs or not self._by_position or len(args) != len(names):
            args = self._bind(args, kwargs)
        if not names:
            return b"{}"
        try:
            raw = _encode(dict(zip(names, args)))  # noqa: B905  # as many as names: checked above, or bound
            back = astuple(self._decode_struct(raw))
        except (TypeError, ValueError, OverflowError, msgspec.MsgspecError, RecursionError):
            for codec, value in zip(self._codecs, args, strict=True):  # names the parameter that it is about
                codec.encode(value)
            raise
        for codec, value, came_back in zip(self._codecs, args, back):  # noqa: B905
            if codec.checks_all or type(value) is not type(came_back) or value != came_back:
                codec.check_same(value, came_back)
        return raw

    def decode(self, raw: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return (args, kwargs) for the function; raises DecodeFailed when `raw` does not fit it today."""
        arguments = astuple(self._decode(raw))
        if self._by_position:
            return arguments, {}
        args: list[Any] = []
        kwargs: dict[str, Any] = {}
        for name, parameter, value in zip(self._names, self._parameters, arguments, strict=True):
            if parameter.kind is parameter.VAR_POSITIONAL:
                args.extend(value)
            elif parameter.kind is parameter.VAR_KEYWORD:
                kwargs.update(value)
            elif parameter.kind is parameter.KEYWORD_ONLY:
                kwargs[name] = value
            else:
                args.append(value)
        return tuple(args), kwargs

    def canonical(self, raw: Any) -> bytes:
        """Return `raw` decoded with today's types and encoded in the one order of keys and set members."""
        return _canonical(self._decode(raw))

    def _decode(self, raw: Any) -> Any:
        try:
            return self._decode_struct(raw)
        except msgspec.MsgspecError as exc:
            raise DecodeFailed(f"the input of {self.what}", str(exc)) from exc
        except UnicodeDecodeError as exc:
            raise DecodeFailed(f"the input of {self.what}", f"it is not UTF-8 ({exc.reason})") from exc

    def _bind(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, ...]:
        try:
            bound = self._signature.bind(*args, **kwargs)
        except TypeError as exc:
            raise TypeError(f"{self.what}: {exc}") from None
        bound.apply_defaults()
        values = bound.arguments
        return tuple(
            [list(values[p.name]) if p.kind is p.VAR_POSITIONAL else values[p.name] for p in self._parameters]
        )


def encode_message(value: Any, where: str) -> bytes:
    """Return a message's value as JSON, checked by its own type: the receiver declares what it reads it as."""
    kind = type(value)
    if value is None or kind in (bool, int, float, str, list, tuple, dict):
        return ValueCodec(Any, where).encode(value)
    try:
        return ValueCodec(kind, where).encode(value)
    except DefinitionRefused as exc:
        raise ValueRefused(exc.where, exc.found, exc.fix) from exc


def hints_of(fn: Callable[..., Any], what: str, locals_: Mapping[str, Any]) -> dict[str, Any]:
    """Return the resolved hints of `fn`; names are looked up in its module, then in `locals_`."""
    try:
        return typing.get_type_hints(fn, localns=dict(locals_), include_extras=True)
    except NameError as exc:
        raise DefinitionRefused(
            what,
            f"its type hints name {exc.name!r}, which is not defined yet",
            "Move that class above the function.",
        ) from exc
    except TypeError as exc:
        raise DefinitionRefused(what, f"its type hints cannot be read ({exc})", _SHAPES_FIX) from exc


def caller_locals(depth: int) -> Mapping[str, Any]:
    """Return the local names at the frame `depth` above the caller, for hints written as strings."""
    return sys._getframe(depth + 1).f_locals


def result_hint(hints: Mapping[str, Any]) -> Any:
    """Return what a function's `return` hint says that its callers get; Any when it says nothing."""
    hint = hints.get("return", Any)
    return None if hint in (type(None), typing.NoReturn, typing.Never) else hint


def _hint_of(parameter: inspect.Parameter, hints: Mapping[str, Any]) -> Any:
    hint = hints.get(parameter.name, Any)
    if parameter.kind is parameter.VAR_POSITIONAL:
        return types.GenericAlias(list, (hint,))
    if parameter.kind is parameter.VAR_KEYWORD:
        return types.GenericAlias(dict, (str, hint))
    return hint


def _default_of(parameter: inspect.Parameter, codec: ValueCodec) -> tuple[Any, ...]:
    if parameter.kind is parameter.VAR_POSITIONAL:
        return (msgspec.field(default_factory=list),)
    if parameter.kind is parameter.VAR_KEYWORD:
        return (msgspec.field(default_factory=dict),)
    default = parameter.default
    if default is parameter.empty:
        return ()
    try:
        raw = codec.encode(default)
    except ValueRefused as exc:
        raise DefinitionRefused(exc.where, f"its default does not fit: {exc.found}", exc.fix) from exc
    return (msgspec.field(default_factory=lambda: codec.decode(raw)),)


def _compile(hint: Any, where: str) -> tuple[Callable[[Any], Any], bool, bool]:
    """Return the decoder of `hint`, whether its values can hold times, and whether any have no equality."""
    try:
        shape = shapes.type_info(hint)
        decoder = msgspec.json.Decoder(hint)
    except (TypeError, ValueError, NameError) as exc:
        raise DefinitionRefused(
            where, f"msgspec cannot decode {_name(hint)} ({_first_line(exc)})", _SHAPES_FIX
        ) from exc
    has_times = no_equality = False
    for part in _iter_shapes(shape, set()):
        if isinstance(part, shapes.CustomType):
            raise DefinitionRefused(where, f"msgspec cannot decode {_name(part.cls)}", _SHAPES_FIX)
        has_times = has_times or isinstance(part, shapes.DateTimeType | shapes.TimeType)
        if isinstance(part, shapes.StructType | shapes.DataclassType):
            cls: Any = typing.get_origin(part.cls) or part.cls  # a generic one comes as `Message[Order]`
            has_equality = (
                cls.__struct_config__.eq
                if hasattr(cls, "__struct_config__")
                else cls.__eq__ is not object.__eq__
            )
            no_equality = no_equality or not has_equality
    return decoder.decode, has_times, no_equality


def _iter_shapes(shape: Any, seen: set[int]) -> Iterator[Any]:
    if id(shape) in seen:
        return
    seen.add(id(shape))
    yield shape
    for name in shape.__struct_fields__:
        value = getattr(shape, name)
        for part in value if isinstance(value, tuple) else (value,):
            if isinstance(part, shapes.Field):
                part = part.type
            if isinstance(part, shapes.Type):
                yield from _iter_shapes(part, seen)


def check_plain(value: Any, where: str) -> None:
    """Raise ValueRefused unless un-annotated `value` is made of what JSON gives back as it is.

    A tuple is taken, and is a list for everybody from then on.
    """
    kind = type(value)
    if value is None or kind in (str, bool, int):
        return
    if kind is float:
        if math.isfinite(value):
            return
        raise ValueRefused(where, f"JSON has no {value!r}", "Use None, or text.")
    if kind in (list, tuple):
        for item in value:
            check_plain(item, where)
        return
    if kind is dict:
        for key, item in value.items():
            if type(key) is not str:
                raise ValueRefused(
                    where,
                    f"the dict key {_show(key)} would come back as text",
                    "Use str keys, or annotate the type.",
                )
            check_plain(item, where)
        return
    raise ValueRefused(
        where,
        f"without a type hint, {_show(value)} (a {_name(kind)}) would come back from JSON as something else",
        f"Annotate it with {kind.__name__}, or use JSON's types.",
    )


def _find_zone(value: Any) -> str:
    """Return the name of a zone with rules in `value`, however deep; empty when its times have fixed offsets."""
    if isinstance(value, datetime | time):
        rules = value.tzinfo
        return "" if rules is None or isinstance(rules, timezone) else str(rules)
    parts: Any = ()
    if isinstance(value, msgspec.Struct):
        parts = (getattr(value, name) for name in value.__struct_fields__)
    elif isinstance(value, Mapping):
        parts = (*value.keys(), *value.values())
    elif isinstance(value, list | tuple | set | frozenset):
        parts = value
    elif hasattr(value, "__dataclass_fields__"):
        parts = (getattr(value, name) for name in value.__dataclass_fields__)
    return next((zone for part in parts if (zone := _find_zone(part))), "")


def show_difference(recorded: Any, live: Any, limit: int = 5) -> str:
    """Return where two JSON documents differ, one line for each place: what history has, what the code gives."""
    try:
        pairs = list(_iter_differences(_decode_any(recorded), _decode_any(live), ""))
    except msgspec.MsgspecError:
        pairs = [("", recorded, live)]
    lines = [
        f"  {path or 'value'}: {_show(old)} in history, {_show(new)} in the code"
        for path, old, new in pairs[:limit]
    ]
    if len(pairs) > limit:
        lines.append(f"  and {len(pairs) - limit} more")
    return "\n".join(lines)


class _Absent:
    def __repr__(self) -> str:
        return "nothing"


_ABSENT: Final = _Absent()


def _iter_differences(old: Any, new: Any, path: str) -> Iterator[tuple[str, Any, Any]]:
    if isinstance(old, dict) and isinstance(new, dict):
        for key in [*old, *(key for key in new if key not in old)]:
            yield from _iter_differences(
                old.get(key, _ABSENT), new.get(key, _ABSENT), f"{path}.{key}" if path else key
            )
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        for index, (before, after) in enumerate(zip(old, new, strict=True)):
            yield from _iter_differences(before, after, f"{path}[{index}]")
    elif old != new or type(old) is not type(new):
        yield path, old, new


def _show(value: Any) -> str:
    try:
        text = repr(value)
    except Exception:
        text = f"a {type(value).__name__}"
    return text if len(text) <= 80 else text[:77] + "..."


def _cut(raw: bytes) -> str:
    text = raw.decode("utf-8", "replace")
    return text if len(text) <= 80 else text[:77] + "..."


def _name(hint: Any) -> str:
    return (
        "None"
        if hint is None
        else hint.__name__
        if isinstance(hint, type) and not typing.get_args(hint)
        else str(hint)
    )


def _first_line(exc: BaseException) -> str:
    lines = str(exc).splitlines()
    return lines[0] if lines else type(exc).__name__
