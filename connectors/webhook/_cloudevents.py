"""CloudEvents over HTTP: an event's attributes in headers (binary), in an envelope (structured), or many in an array.

Source: https://github.com/cloudevents/spec/blob/v1.0.2/cloudevents/bindings/http-protocol-binding.md
"""

import base64
import binascii
from collections.abc import Iterator
from typing import Final, NamedTuple
from urllib.parse import unquote

import msgspec

from refold.connectors.webhook._headers import latin
from refold.connectors.webhook._request import Request

STRUCTURED: Final = "application/cloudevents+json"
BATCH: Final = "application/cloudevents-batch+json"
# A batch is one transaction.
MOST_EVENTS: Final = 1_000

_REQUIRED: Final = ("specversion", "id", "source", "type")
_envelope: Final = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_array: Final = msgspec.json.Decoder(list[msgspec.Raw]).decode
_value: Final = msgspec.json.Decoder(str | int | bool | None).decode
_text: Final = msgspec.json.Decoder(str).decode


class NoEvent(Exception):
    """The request is no CloudEvent; the text says why."""


class Event(NamedTuple):
    """One event: its attributes, its data, and the envelope that both came in (None in binary mode)."""

    attributes: dict[str, str]
    data: bytes
    envelope: bytes | None

    @property
    def identity(self) -> tuple[str, str]:
        """Events with the same source and ID are the same event."""
        return self.attributes["source"], self.attributes["id"]


def events_of(request: Request, *, as_text: bool) -> list[Event]:
    """Return the events in `request`, one but for a batch; `as_text`: a string as data stands for its characters.

    Raises NoEvent.
    """
    kind = request.media_type
    try:
        if kind == BATCH:
            envelopes = _array(request.body)
            if len(envelopes) > MOST_EVENTS:
                raise NoEvent(f"a batch of {len(envelopes)} events; {MOST_EVENTS} are taken at once")
            return [_from_envelope(bytes(each), as_text=as_text) for each in envelopes]
        if kind == STRUCTURED:
            return [_from_envelope(request.body, as_text=as_text)]
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as exc:
        raise NoEvent(str(exc)) from None
    return [_from_headers(request)]


def _from_headers(request: Request) -> Event:
    attributes: dict[str, str] = {}
    for name, value in request.headers.pairs:
        if name.startswith(b"ce-"):
            attribute = latin(name[3:])
            if attribute in attributes:
                raise NoEvent(f"the header ce-{attribute} is given twice")
            try:
                attributes[attribute] = unquote(latin(value), errors="strict")
            except UnicodeDecodeError:  # two IDs that can't be read must not become one
                raise NoEvent(f"the header ce-{attribute} is no UTF-8, percent-encoded") from None
    if request.content_type:
        attributes["datacontenttype"] = request.content_type
    _check(attributes, "header ce-")
    return Event(attributes, request.body, None)


def _from_envelope(body: bytes, *, as_text: bool) -> Event:
    members = _envelope(body)
    data = members.pop("data", None)
    encoded = members.pop("data_base64", None)
    attributes = {name: shown for name, raw in members.items() if (shown := _shown(raw)) is not None}
    _check(attributes, "member ")
    if encoded is not None:
        try:
            return Event(attributes, base64.b64decode(_text(encoded), validate=True), body)
        except (binascii.Error, ValueError) as exc:
            raise NoEvent(f"data_base64 is no base64 ({exc})") from None
    if data is None:
        return Event(attributes, b"null", body)
    raw = bytes(data)
    if as_text and raw.startswith(b'"'):
        return Event(attributes, _text(raw).encode("utf-8", "replace"), body)
    return Event(attributes, raw, body)


def _shown(raw: msgspec.Raw) -> str | None:
    value = _value(raw)
    if value is None:
        return None
    return value if isinstance(value, str) else msgspec.json.encode(value).decode()


def _check(attributes: dict[str, str], where: str) -> None:
    for name in _missing(attributes):
        raise NoEvent(f"the {where}{name} is missing")
    if not attributes["specversion"].startswith("1."):
        raise NoEvent(f"specversion {attributes['specversion'][:20]!r} is not 1.x")


def _missing(attributes: dict[str, str]) -> Iterator[str]:
    return (name for name in _REQUIRED if not attributes.get(name))
