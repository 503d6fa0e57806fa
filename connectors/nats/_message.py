"""What a workflow gets of a JetStream message, and what the message is known by."""

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Final, Generic, TypeVar

import msgspec

from refold.core import DefinitionRefused, Envelope, Start, join_id

T = TypeVar("T")

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_NAME_MAX: Final = 100
# What JetStream does not take in the name of a stream or a consumer: they are parts of subjects.
_NO_NAME: Final = frozenset(" \t\r\n\f\0.*>/\\")


class Message(msgspec.Struct, Generic[T], frozen=True, kw_only=True):
    """One message. `value` is of the type in `Message[...]`, decoded from JSON; `Message[bytes]` has it as it came.

    `sequence` is its place in the stream, `time` when the stream got it. Of a header that is there twice, the client
    keeps one. Every field but the value has a default, so that a test can write `nats.Message(value=order)`.
    """

    value: T
    subject: str = ""
    stream: str = ""
    sequence: int = 0
    time: datetime = _EPOCH
    headers: dict[str, str] = {}


def check_name(where: str, what: str, name: str) -> None:
    """Raise DefinitionRefused for a name that JetStream would not take, or that leaves no room in a workflow's ID."""
    if not isinstance(name, str) or not 1 <= len(name.encode()) <= _NAME_MAX or _NO_NAME & set(name):
        raise DefinitionRefused(
            where,
            f"{name!r} can't be the name of a {what}",
            f"Use 1 to {_NAME_MAX} bytes without spaces, dots, '*', '>' and slashes.",
        )


def start_of(
    envelope: Envelope,
    *,
    consumer: str,
    stream: str,
    sequence: int,
    time_ns: int,
    subject: str,
    headers: Mapping[str, str] | None,
    body: bytes,
) -> Start:
    """Return the start of one message; never raises for what is in it.

    Known by its consumer, its stream, its place there, and when it got there, to the nanosecond. The place alone is
    taken twice: a stream that is deleted and made again counts from 1 once more; so does one in memory whose server
    was restarted, and one that has lost its last messages goes on from before them, both as the stream that they were
    made as. What changes from one delivery to the next (how often it was delivered, by which server, over which
    connection) is in neither the ID nor the input.
    """
    return envelope.start(
        id_of(consumer, stream, time_ns, sequence),
        body,
        what=f"message {sequence} of stream {stream}",
        subject=subject,
        stream=stream,
        sequence=sequence,
        time=_EPOCH + timedelta(microseconds=time_ns // 1_000),
        headers={_text(name): _text(value) for name, value in (headers or {}).items()},
    )


def id_of(consumer: str, stream: str, time_ns: int, sequence: int) -> str:
    """Return the workflow ID of a message."""
    return join_id("nats", consumer, stream, str(time_ns), str(sequence))


def _text(raw: str) -> str:
    # The client hands through bytes that are no UTF-8 as lone surrogates, which no JSON can hold.
    return raw.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
