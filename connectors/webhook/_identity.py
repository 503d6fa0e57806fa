"""What a delivery is known by: the same identity, the same workflow, however often it is delivered.

Each identity says where it is found and whether the sender's signature covers it. Where it does not (GitHub's and
Shopify's delivery headers), somebody who has caught one delivery could send it again under another ID; so the body's
hash is recorded with it, and the same body under another ID is reported.
"""

import re
import uuid
from collections.abc import Callable
from typing import Any, Final, NamedTuple, Protocol, cast

import msgspec

from refold.connectors.webhook._delivery import Delivery
from refold.connectors.webhook._headers import header_name, latin
from refold.connectors.webhook._request import Request
from refold.connectors.webhook._schemes import AnyHmac
from refold.connectors.webhook._verify import Verifier
from refold.core import DefinitionRefused

_QUOTED: Final = re.compile(r'"((?:[ !#-\[\]-~]|\\["\\])*)"(?: *;.*)?\Z')
_TOKEN: Final = re.compile(
    r"[!#-+\--:<-\[\]-~]+\Z"
)  # anything visible but quotes, commas, semicolons, backslashes
_MOST_CHARACTERS: Final = 255


class Found(NamedTuple):
    """An identity: its parts (one, but for a CloudEvent), and whether the signature covers them."""

    parts: tuple[str, ...]
    is_covered: bool


class NoIdentity(Exception):
    """The request does not say what it is known by; the text says what is missing."""


class Identity(Protocol):
    """Finds what a delivery is known by."""

    @property
    def header(self) -> str | None:
        """The header that has it, if one does."""
        ...

    @property
    def replays(self) -> bool:
        """Say whether the sender is told when it uses an ID again for something else (`Idempotency-Key`)."""
        ...

    def find(self, request: Request, delivery: Callable[[], Delivery[Any]]) -> Found:
        """Return the identity; `delivery` gives the decoded delivery. Raises NoIdentity."""
        ...


class HeaderId(msgspec.Struct, frozen=True):
    """The value of one header."""

    header: str
    is_covered: bool = False
    replays: bool = False

    def find(self, request: Request, delivery: Callable[[], Delivery[Any]]) -> Found:
        value = request.headers.one(header_name(self.header))
        if not value:
            raise NoIdentity(f"the header {self.header} is missing, empty, or given twice")
        return Found((latin(value),), self.is_covered)


def header(name: str) -> HeaderId:
    """Know deliveries by the value of the header `name`."""
    return HeaderId(name)


class StandardId(msgspec.Struct, frozen=True):
    """`webhook-id`, or `svix-id` where those headers are signed: the one that the verifier has looked at."""

    header: str = "webhook-id"
    replays: bool = False

    def find(self, request: Request, delivery: Callable[[], Delivery[Any]]) -> Found:
        is_standard = request.headers.has(b"webhook-signature")
        value = request.headers.one(b"webhook-id" if is_standard else b"svix-id")
        if not value:
            raise NoIdentity("the header webhook-id is missing, empty, or given twice")
        return Found((latin(value),), True)


class FieldId(msgspec.Struct, frozen=True):
    """A string or a number in the body, at a path like `data.object.id`."""

    path: str
    header: str | None = None
    replays: bool = False

    def find(self, request: Request, delivery: Callable[[], Delivery[Any]]) -> Found:
        try:
            value = _field_decoder(self.path)(request.body)
            for name in self.path.split("."):
                value = getattr(value, _attribute(name))
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            value = ""
        if value == "":
            raise NoIdentity(f"the body has no string or number at {self.path}")
        return Found((str(value),), True)


def field(path: str) -> FieldId:
    """Know deliveries by a string or a number in the body: `field("id")`, `field("data.object.id")`."""
    if not path or not all(path.split(".")):
        raise DefinitionRefused("webhook.field", f"path={path!r}", 'Write it like "data.object.id".')
    _field_decoder(path)
    return FieldId(path)


_decoders: Final[dict[str, Callable[[bytes], Any]]] = {}


def _field_decoder(path: str) -> Callable[[bytes], Any]:
    """Return a decoder that looks at one field and skips everything else."""
    if path not in _decoders:
        hint: Any = str | int
        for name in reversed(path.split(".")):
            hint = msgspec.defstruct("At", [(_attribute(name), hint)], rename={_attribute(name): name})
        _decoders[path] = msgspec.json.Decoder(hint).decode
    return _decoders[path]


def _attribute(name: str) -> str:
    return "f_" + name.encode().hex()


class KeyId(msgspec.Struct, frozen=True):
    """`Idempotency-Key`, by the IETF's draft."""

    required: bool = True
    header: str = "Idempotency-Key"
    replays: bool = True

    def find(self, request: Request, delivery: Callable[[], Delivery[Any]]) -> Found:
        raw = request.headers.one(b"idempotency-key")
        if raw is None:
            if not self.required and not request.headers.has(b"idempotency-key"):
                return Found(("", str(uuid.uuid4())), True)
            raise NoIdentity("the header Idempotency-Key is missing, or given twice")
        return Found((parse_key(raw),), False)


def idempotency_key(*, required: bool = True) -> KeyId:
    """Know requests by the header `Idempotency-Key`: the same key again is the same workflow, with another body it is
    refused (422). Without a key a request is refused (400); with `required=False` it stands for itself.
    """
    return KeyId(required)


def parse_key(raw: bytes) -> str:
    """Return the key in `Idempotency-Key`: a structured-field string, or a bare token as Stripe's clients send it.

    Raises NoIdentity. Source: https://datatracker.ietf.org/doc/draft-ietf-httpapi-idempotency-key-header/
    """
    text = latin(raw).strip(" \t")
    quoted = _QUOTED.match(text)
    if quoted is not None:
        key = re.sub(r'\\(["\\])', r"\1", quoted[1])
    elif _TOKEN.match(text) is not None:
        key = text
    else:
        key = ""
    if not 0 < len(key) <= _MOST_CHARACTERS:
        raise NoIdentity(
            f'Idempotency-Key is a string of 1 to {_MOST_CHARACTERS} ASCII characters, like "8e03978e-40d5"'
        )
    return key


class FunctionId(msgspec.Struct, frozen=True):
    """What a function of the delivery says."""

    function: Callable[[Delivery[Any]], Any]
    header: str | None = None
    replays: bool = False

    def find(self, request: Request, delivery: Callable[[], Delivery[Any]]) -> Found:
        given = delivery()
        try:
            value = self.function(given)
        except Exception as exc:
            raise NoIdentity(f"id= raised {type(exc).__name__}") from exc
        if not isinstance(value, str | int) or value == "":
            raise NoIdentity(f"id= gave {type(value).__name__}, not a string that says something")
        return Found((str(value),), True)


class CloudEventId(msgspec.Struct, frozen=True):
    """`source` and `id` of each CloudEvent in the request; `find` is not called, the events have it."""

    header: str | None = None
    replays: bool = False

    def find(self, request: Request, delivery: Callable[[], Delivery[Any]]) -> Found:
        raise NoIdentity("the request is no CloudEvent")


def cloudevents() -> CloudEventId:
    """Take CloudEvents (binary, structured or in batches): each starts a workflow, known by its source and ID. The
    delivery's `body` is the event's data, its `event` the attributes."""
    return CloudEventId()


AnyIdentity = Identity | Callable[[Delivery[Any]], Any]


def choose_identity(
    where: str, given: "AnyIdentity | None", verifier: Verifier, dedup: str | None
) -> Identity:
    """Return the identity that is declared, or the verifier's own. Raises DefinitionRefused when there is none."""
    if given is not None:
        if hasattr(given, "replays"):
            return cast(Identity, given)
        if not callable(given):
            raise DefinitionRefused(
                where,
                f"id={given!r}",
                'Give webhook.header("X-Request-Id"), webhook.field("id"), or a function of the delivery.',
            )
        return FunctionId(given)
    preset = _preset(verifier)
    if preset is not None:
        return preset
    if dedup == "body":
        return HeaderId("")
    raise DefinitionRefused(
        where,
        f"with webhook.{verifier.kind} nothing says what a delivery is known by, so a second one could not be told",
        'Give id=webhook.header("X-Request-Id"), id=webhook.field("id"), id=webhook.idempotency_key(), '
        'id=webhook.cloudevents(), id=lambda delivery: ..., or dedup="body".',
    )


def _preset(verifier: Verifier) -> Identity | None:
    if isinstance(verifier, AnyHmac) and verifier.id_header:
        return HeaderId(verifier.id_header, verifier.signs_id)
    return _PRESETS.get(verifier.kind)


_PRESETS: Final[dict[str, Identity]] = {
    "standard": StandardId(),
    "github": HeaderId("X-GitHub-Delivery"),
    "stripe": FieldId("id"),
    "slack": FieldId("event_id"),
    "shopify": HeaderId("X-Shopify-Webhook-Id"),
}
