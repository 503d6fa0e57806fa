"""What senders get back: JSON when it was taken, application/problem+json (RFC 9457) when it was not."""

from collections.abc import Sequence
from typing import Any, Final

import msgspec

Header = tuple[bytes, bytes]

_encode: Final = msgspec.json.Encoder().encode
_JSON: Final = (b"content-type", b"application/json")
_PROBLEM: Final = (b"content-type", b"application/problem+json")
_TEXT: Final = (b"content-type", b"text/plain; charset=utf-8")
# An echo is somebody else's text: no browser may take it for a page.
_NO_SNIFFING: Final = (b"x-content-type-options", b"nosniff")

_TITLES: Final = {
    "no-such-endpoint": (404, "There is no endpoint at this path"),
    "method-not-allowed": (405, "This method is not allowed here"),
    "slow-body": (408, "The body did not come in time"),
    "in-flight": (409, "The first request with this ID has not been answered yet"),
    "too-large": (413, "The body is too large"),
    "unsupported-type": (415, "This content type is not taken here"),
    "key-reused": (422, "This Idempotency-Key was used for another request"),
    "not-verified": (401, "The sender could not be verified"),
    "bad-request": (400, "The request is malformed"),
    "bad-body": (400, "The body is not what this endpoint takes"),
    "no-identity": (400, "The request does not say what it is known by"),
    "no-target": (400, "The request does not say which workflow it is for"),
    "busy": (503, "Too much is under way; try again soon"),
    "not-recorded": (503, "It could not be recorded; try again soon"),
    "defect": (500, "The request could not be handled"),
}
CODES: Final[Sequence[str]] = tuple(_TITLES)


class Answer(msgspec.Struct, frozen=True):
    """A response: nothing has been sent yet."""

    status: int
    body: bytes = b""
    headers: tuple[Header, ...] = ()


class Refused(Exception):
    """The request gets this problem, and nothing is started."""

    def __init__(self, code: str, detail: str = "", *headers: Header, **facts: Any) -> None:
        super().__init__(code, detail)
        self.code, self.detail, self.headers, self.facts = code, detail, headers, facts

    @property
    def answer(self) -> Answer:
        """The problem as a response."""
        return problem(self.code, self.detail, *self.headers, **self.facts)


def status_of(code: str) -> int:
    """Return the HTTP status of a problem."""
    return _TITLES[code][0]


def problem(code: str, detail: str = "", *headers: Header, **facts: Any) -> Answer:
    """Return a problem; `detail` and `facts` are for the sender, so nothing of ours is in them."""
    status, title = _TITLES[code]
    said: dict[str, Any] = {"type": f"urn:refold:webhook:{code}", "title": title, "status": status}
    if detail:
        said["detail"] = detail
    said |= facts
    return Answer(status, _encode(said), (_PROBLEM, *headers))


def json_answer(status: int, value: Any, *headers: Header) -> Answer:
    """Return a JSON document."""
    return Answer(status, _encode(value), (_JSON, *headers))


def text_answer(text: str) -> Answer:
    """Return the echo of a handshake."""
    return Answer(200, text.encode(), (_TEXT, _NO_SNIFFING))
