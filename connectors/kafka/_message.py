"""A Kafka record as workflow code sees it, and on its way into the log.

A record's bytes are checked against the type that the workflow declares before it is handed over. What fits is
kept as it came: the JSON of the value goes into the workflow's input byte for byte. What does not fit becomes a
workflow all the same, one that has failed already, with the raw bytes in its input.
"""

import typing
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final, Generic, Literal, NamedTuple, TypeVar, get_args, get_origin

import msgspec

from refold.core import DecodeFailed, DefinitionRefused

T = TypeVar("T")

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_encode: Final = msgspec.json.Encoder().encode
# A value that is skipped by the type is checked as JSON, but not as UTF-8: see `_checked_json`.
_NULL: Final = b"null"

# The headers of W3C's trace context, which go on to what a record's workflow publishes.
TRACE_HEADERS: Final = ("traceparent", "tracestate")

Form = Literal["json", "bytes", "text"]
Encoding = Literal["json", "base64"]


class Message(msgspec.Struct, Generic[T], frozen=True, kw_only=True):
    """One record of a topic. `value` is of the type in `Message[...]`, decoded from JSON.

    `Message[bytes]` is the value as it came, `Message[str]` its UTF-8 text. A tombstone (a record without a
    value) has `value` None, and is taken only where the type says so: `Message[Order | None]`. `timestamp` is
    the broker's or the producer's, to the millisecond, None where the record has none. Every field has a default,
    so that a test can write `Message(value=order)`.
    """

    value: T
    topic: str = ""
    partition: int = 0
    offset: int = 0
    timestamp: datetime | None = None
    key: bytes | None = None
    headers: tuple[tuple[str, bytes | None], ...] = ()

    def header(self, name: str) -> bytes | None:
        """Return the last header called `name`, None when there is none (or it has no value)."""
        return next((value for key, value in reversed(self.headers) if key == name), None)

    def header_values(self, name: str) -> list[bytes | None]:
        """Return all headers called `name`, in the order in which the producer set them."""
        return [value for key, value in self.headers if key == name]

    @property
    def trace(self) -> dict[str, bytes]:
        """Return the record's trace context, `traceparent` and `tracestate`, as headers for another system."""
        found = {name: self.header(name) for name in TRACE_HEADERS}
        return {name: value for name, value in found.items() if value is not None}


class _Kept(Message[Any], frozen=True, kw_only=True):
    """A message in the log whose `value` does not say by itself which bytes it stands for."""

    encoding: Encoding


class _Stored(msgspec.Struct):
    """What the log holds of a record, read back."""

    value: msgspec.Raw
    topic: str
    partition: int
    offset: int
    timestamp: datetime | None
    key: bytes | None
    headers: tuple[tuple[str, bytes | None], ...]
    encoding: Encoding | None = None


class Record(NamedTuple):
    """A record as the client gave it: all of it bytes, nothing decoded. `timestamp` in ms; 0 when it has none."""

    topic: str
    partition: int
    offset: int
    timestamp: int
    key: bytes | None
    value: bytes | None
    headers: Sequence[tuple[str, bytes | None]] = ()


class Encoded(NamedTuple):
    """The input of a record's workflow; with a failure, the workflow is written down as failed and never run."""

    input: bytes
    failure: DecodeFailed | None


class MessageCodec:
    """Turns records into inputs of one workflow, which takes one `Message[T]` in the parameter `parameter`."""

    def __init__(self, parameter: str, hint: Any) -> None:
        """Compile `hint`, a `Message[T]`. What msgspec cannot decode has been refused by the workflow already."""
        self.parameter = parameter
        self.type = get_args(hint)[0] if get_args(hint) else Any
        self.form = _form_of(self.type)
        decoder = msgspec.json.Decoder(self.type)
        self._decode: Callable[[bytes], Any] = decoder.decode

    def encode(self, record: Record) -> Encoded:
        """Return the input of `record`'s workflow. Never raises: what cannot be decoded says so in the result."""
        try:
            return Encoded(self._input(record, self._checked(record.value)), None)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as exc:
            failure = DecodeFailed(
                f"the value of record {record.offset} in {record.topic}[{record.partition}]",
                self._problem(record.value, exc),
            )
            return Encoded(self._refused_input(record), failure)

    def record(self, input: bytes) -> Record:
        """Return the record that became `input`; of its bytes only white space around JSON is lost."""
        kept = msgspec.json.decode(input, type=dict[str, _Stored])[self.parameter]
        return Record(
            kept.topic,
            kept.partition,
            kept.offset,
            0 if kept.timestamp is None else round((kept.timestamp - _EPOCH) / timedelta(milliseconds=1)),
            kept.key,
            self._value(kept),
            kept.headers,
        )

    def _value(self, kept: "_Stored") -> bytes | None:
        raw = bytes(kept.value)
        if kept.encoding == "base64" or (self.form == "bytes" and raw != _NULL):
            return msgspec.json.decode(raw, type=bytes)
        if kept.encoding == "json":
            return raw
        if raw == _NULL:
            return None
        return raw if self.form == "json" else msgspec.json.decode(raw, type=str).encode()

    def _input(self, record: Record, value: Any) -> bytes:
        if record.value is not None and type(value) is msgspec.Raw and record.value.strip() == _NULL:
            return self._kept(record, value, "json")  # no tombstone, though its JSON looks like one's
        return _encode({self.parameter: Message(value=value, **_around(record))})

    def _refused_input(self, record: Record) -> bytes:
        # What is JSON stays JSON: it may fit when the workflow is tried again after its type was corrected.
        raw = record.value
        if raw is None:
            return self._input(record, None)
        return self._input(record, msgspec.Raw(raw)) if _is_json(raw) else self._kept(record, raw, "base64")

    def _kept(self, record: Record, value: Any, encoding: Encoding) -> bytes:
        return _encode({self.parameter: _Kept(value=value, encoding=encoding, **_around(record))})

    def _checked(self, value: bytes | None) -> Any:
        """Return what stands for `value` in the input, after it has been seen to fit."""
        if self.form == "json":
            raw = _NULL if value is None else value
            # The type first, for its better words. It may skip what it does not know, and then does not see
            # bytes there that are no UTF-8; they would make the log's JSON unreadable.
            self._decode(raw)
            raw.decode("utf-8")
            return msgspec.Raw(raw)
        if value is None:
            self._decode(_NULL)
            return None
        return value if self.form == "bytes" else value.decode("utf-8")

    def _problem(self, value: bytes | None, exc: Exception) -> str:
        if value is None:
            name = getattr(self.type, "__name__", str(self.type))
            return f"it has no value (a tombstone), which only Message[{name} | None] takes"
        if isinstance(exc, UnicodeDecodeError):
            return f"it is not UTF-8 ({exc.reason} at byte {exc.start})"
        return str(exc)


def _around(record: Record) -> dict[str, Any]:
    return {
        "topic": record.topic,
        "partition": record.partition,
        "offset": record.offset,
        "timestamp": _EPOCH + timedelta(milliseconds=record.timestamp) if record.timestamp else None,
        "key": record.key,
        "headers": tuple(record.headers),
    }


def _is_json(raw: bytes) -> bool:
    try:
        raw.decode("utf-8")
        msgspec.json.decode(raw)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return False
    return True


def message_parameter(name: str, parameters: typing.Mapping[str, Any]) -> MessageCodec:
    """Return the codec of the workflow `name`, whose parameters and hints are given.

    Raises DefinitionRefused when it does not take exactly one `kafka.Message[...]`.
    """
    if len(parameters) == 1:
        [(parameter, hint)] = parameters.items()
        if hint is Message or get_origin(hint) is Message:
            return MessageCodec(parameter, hint)
    found = ", ".join(f"{key}: {getattr(hint, '__name__', hint)}" for key, hint in parameters.items())
    raise DefinitionRefused(
        f"workflow {name!r}",
        f"kafka.consumer calls it with one kafka.Message, but it takes ({found})",
        f"Write `def {name}(message: kafka.Message[Order])`, with your own type for Order.",
    )


def _form_of(hint: Any) -> Form:
    present = {part for part in (get_args(hint) or (hint,)) if part is not type(None)}
    if present == {bytes}:
        return "bytes"
    if present == {str}:
        return "text"
    return "json"
