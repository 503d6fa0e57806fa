"""A delivery as workflow code sees it, and on its way into the log."""

from collections.abc import Callable, Mapping
from typing import Any, Final, Generic, Literal, TypeVar, get_args, get_origin

import msgspec

from refold.connectors.webhook._request import Request
from refold.core import DecodeFailed, DefinitionRefused, is_too_deep

T = TypeVar("T")

_encode: Final = msgspec.json.Encoder().encode
_is_json: Final = msgspec.json.Decoder(Any).decode

Form = Literal["json", "bytes", "text"]


class Delivery(msgspec.Struct, Generic[T], frozen=True, kw_only=True, omit_defaults=True):
    """One delivery. `body` is of the type in `Delivery[...]`, decoded from JSON.

    `Delivery[bytes]` is the body as it came, `Delivery[str]` its UTF-8 text. `id` is what the sender calls the
    delivery; empty where it is known by its body. `event` has a CloudEvent's attributes. Headers that hold a secret
    (`Authorization`, `Cookie`, a bearer token's) are left out. Every field but the body has a default, so that a test
    can write `Delivery(body=payment)`.
    """

    body: T
    id: str = ""
    path: str = ""
    query: str = ""
    content_type: str = ""
    headers: tuple[tuple[str, str], ...] = ()
    event: dict[str, str] | None = None
    text: str | None = None

    @property
    def raw(self) -> bytes:
        """The body's bytes, as the sender signed them."""
        if self.text is not None:
            return self.text.encode()
        if isinstance(self.body, bytes):
            return self.body
        return self.body.encode() if isinstance(self.body, str) else _encode(self.body)

    def header(self, name: str) -> str | None:
        """Return the first header called `name`, in whatever case; None when there is none."""
        wanted = name.lower()
        return next((value for key, value in self.headers if key == wanted), None)

    def header_values(self, name: str) -> list[str]:
        """Return all headers called `name`, in the order in which they came."""
        wanted = name.lower()
        return [value for key, value in self.headers if key == wanted]


class NotJson(Exception):
    """The body is no JSON (or no UTF-8), where JSON is asked for."""


class Misfit(Exception):
    """The body is JSON, but not of the declared type."""


class Content:
    """What a request brings for one workflow: the bytes that are decoded, and what stands for them in the log."""

    __slots__ = ("event", "stored", "text", "value")

    def __init__(self, value: Any, stored: Any, text: str | None, event: dict[str, str] | None) -> None:
        self.value = value
        self.stored = stored
        self.text = text
        self.event = event


class DeliveryCodec:
    """Turns requests into inputs of one workflow, which takes one `Delivery[T]` in the parameter `parameter`."""

    def __init__(self, parameter: str, body_type: Any) -> None:
        """Compile `body_type`. What msgspec cannot decode has been refused by the workflow already."""
        self.parameter = parameter
        self.type = body_type
        self.form = _form_of(body_type)
        self._decode: Callable[[bytes], Any] = msgspec.json.Decoder(body_type).decode

    def content(
        self, body: bytes, *, whole: bytes | None = None, event: dict[str, str] | None = None
    ) -> Content:
        """Decode `body`, which came in `whole` (a CloudEvent's envelope). Raises NotJson, Misfit."""
        if self.form == "bytes":
            # The body is kept once; an envelope around it is kept as well.
            return Content(body, body, None if whole is None else whole.decode("utf-8", "replace"), event)
        try:
            text = body.decode("utf-8")
            kept = text if whole is None else whole.decode("utf-8")
        except UnicodeDecodeError as exc:
            raise NotJson(f"it is not UTF-8 ({exc.reason} at byte {exc.start})") from None
        if self.form == "text":
            return Content(text, text, None if whole is None else kept, event)
        if is_too_deep(body):
            raise NotJson("it is nested too deeply")
        try:
            value = self._decode(body)
        except msgspec.ValidationError as exc:
            # The type is looked at first, and may be wrong before the end of the JSON has been seen.
            _require_json(body)
            raise Misfit(str(exc)) from None
        except (msgspec.MsgspecError, RecursionError) as exc:
            raise NotJson(str(exc)) from None
        return Content(value, msgspec.Raw(body), kept, event)

    def misfit(
        self, body: bytes, *, whole: bytes | None = None, event: dict[str, str] | None = None
    ) -> Content:
        """Return what stands for JSON that is not of the type, in a workflow that has failed already."""
        kept = (body if whole is None else whole).decode("utf-8", "replace")
        return Content(None, msgspec.Raw(body), kept, event)

    def delivery(
        self, request: Request, content: Content, delivery_id: str, secret: frozenset[bytes]
    ) -> Delivery[Any]:
        """Return the delivery with its decoded body."""
        return self._delivery(request, content, content.value, delivery_id, secret)

    def input(self, request: Request, content: Content, delivery_id: str, secret: frozenset[bytes]) -> bytes:
        """Return the workflow's input: the body's JSON is in it byte for byte."""
        return _encode(
            {self.parameter: self._delivery(request, content, content.stored, delivery_id, secret)}
        )

    def _delivery(
        self, request: Request, content: Content, body: Any, delivery_id: str, secret: frozenset[bytes]
    ) -> Delivery[Any]:
        return Delivery(
            body=body,
            id=delivery_id,
            path=request.path,
            query=request.query.decode("latin-1"),
            content_type=request.content_type,
            headers=request.kept_headers(secret),
            event=content.event,
            text=content.text,
        )

    def failure(self, where: str, problem: str) -> DecodeFailed:
        """Return what a misfit's workflow has failed with."""
        return DecodeFailed(f"the body of a delivery to {where}", problem)


def _require_json(body: bytes) -> None:
    try:
        _is_json(body)
    except (msgspec.MsgspecError, RecursionError) as exc:
        raise NotJson(str(exc)) from None


def delivery_parameter(name: str, parameters: Mapping[str, Any]) -> DeliveryCodec:
    """Return the codec of the workflow `name`, whose parameters and hints are given.

    Raises DefinitionRefused when it does not take exactly one `webhook.Delivery[...]`.
    """
    if len(parameters) == 1:
        [(parameter, hint)] = parameters.items()
        if hint is Delivery or get_origin(hint) is Delivery:
            return DeliveryCodec(parameter, get_args(hint)[0] if get_args(hint) else Any)
    found = ", ".join(f"{key}: {getattr(hint, '__name__', hint)}" for key, hint in parameters.items())
    raise DefinitionRefused(
        f"workflow {name!r}",
        f"webhook.post calls it with one webhook.Delivery, but it takes ({found})",
        f"Write `def {name}(delivery: webhook.Delivery[Payment])`, with your own type for Payment.",
    )


def _form_of(hint: Any) -> Form:
    if hint is bytes:
        return "bytes"
    return "text" if hint is str else "json"
