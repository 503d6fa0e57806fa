"""One path: who may send there, what a delivery is known by, and what it becomes."""

import hashlib
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any, Final, Literal
from urllib.parse import quote

import msgspec

from refold.connectors.webhook._answers import Answer, Refused, json_answer
from refold.connectors.webhook._cloudevents import BATCH, STRUCTURED, NoEvent, events_of
from refold.connectors.webhook._delivery import Content, Delivery, DeliveryCodec, Misfit, NotJson
from refold.connectors.webhook._handshakes import Echo, OpenEcho
from refold.connectors.webhook._identity import CloudEventId, Found, Identity, NoIdentity
from refold.connectors.webhook._request import Request
from refold.connectors.webhook._secrets import variables_of
from refold.connectors.webhook._verify import Check, Verifier
from refold.core import Accepted, App, Send, SourceReport, Start, Workflow, join_id, record_error

OnInflight = Literal["join", "conflict"]

_ID_BYTES: Final = 512


class Settings(msgspec.Struct, frozen=True):
    """What both kinds of endpoint have. Times in seconds, sizes in bytes."""

    path: str
    name: str
    verifier: Verifier
    identity: Identity
    dedup_body: bool
    max_body: int
    timeout: float
    body_timeout: float
    handshake: Echo | None


class Item(msgspec.Struct):
    """One thing to record, and what tells whether it was recorded for another body."""

    what: Start | Send
    digest: str
    misfit: str = ""


class Endpoint:
    """What the two kinds of endpoint have in common, and what makes each of them a connector of its app."""

    kind = "webhook"

    def __init__(
        self, app: App, workflow: Workflow[..., Any], codec: DeliveryCodec, settings: Settings
    ) -> None:
        self.app = app
        self.workflow = workflow
        self.codec = codec
        self.settings = settings
        self.name = settings.name
        self.path = settings.path
        self.label = f"webhook:{settings.name}"
        self.where = f"webhook {settings.path}"
        self._prefix = join_id("webhook", settings.name)
        self._secret_headers = settings.verifier.secret_headers
        self._events = isinstance(settings.identity, CloudEventId)
        self._check: Check | None = None
        self._echo: OpenEcho | None = None

    # A connector.

    def start(self, app: App) -> None:
        """Read the secrets. Raises SecretMissing, DefinitionRefused."""
        self.open()

    def stop(self) -> None:
        """Nothing runs here: requests come through `webhook.asgi`."""

    def describe(self) -> list[str]:
        """Return one line: the path, who sends there, what becomes of it."""
        return [f"POST {self.path} ({self.settings.verifier.kind}) {self.becomes()}"]

    def becomes(self) -> str:
        """Return what a delivery does, for people."""
        return f"starts {self.workflow.name}"

    def report(self) -> list[SourceReport]:
        """Return how the endpoint stands: a sender's backlog is its own, so there is no lag to tell."""
        return [SourceReport(self.label, self.label, position=self.path)]

    def try_next(self) -> list[str]:
        """Return nothing: the server that serves the endpoint knows its address."""
        return []

    def variables(self) -> list[str]:
        """Return the environment variables that hold its secrets."""
        echo = self.settings.handshake
        return variables_of([*self.settings.verifier.secrets, *(() if echo is None else echo.tokens)])

    # Verifying.

    def open(self) -> Check:
        """Return the check, its secrets resolved at the first call. Raises SecretMissing, DefinitionRefused."""
        if self._check is None:
            if self.settings.handshake is not None:
                self._echo = self.settings.handshake.open(self.where)
            self._check = self.settings.verifier.open(self.where)
        return self._check

    @property
    def echo(self) -> OpenEcho | None:
        """The answer to a handshake in the query, if one is declared."""
        self.open()
        return self._echo

    @property
    def takes_events(self) -> bool:
        """Say whether the deliveries are CloudEvents."""
        return self._events

    def takes_events_in_batches(self, request: Request) -> bool:
        """Say whether `request` is a batch of CloudEvents, and its answer a list."""
        return self._events and request.media_type == BATCH

    # From a request to what is recorded.

    def items(self, request: Request) -> list[Item]:
        """Return what `request`, which has been verified, is to record. Raises Refused."""
        self._check_type(request)
        if not self._events:
            return [self._item(request, request.body)]
        try:
            events = events_of(request, as_text=self.codec.form == "text")
        except NoEvent as exc:
            raise Refused("bad-body", f"this is no CloudEvent: {exc}") from None
        return [
            self._item(request, event.data, event.identity, event.envelope, event.attributes)
            for event in events
        ]

    def _check_type(self, request: Request) -> None:
        kind = request.media_type
        encoding = request.headers.one(b"content-encoding")
        if encoding is not None and encoding.lower() != b"identity":
            raise Refused(
                "unsupported-type", "compressed bodies are not taken: the signature is over other bytes"
            )
        if self.codec.form != "json" or (self._events and kind in (STRUCTURED, BATCH)):
            return
        if kind and kind not in ("application/json", "text/json") and not kind.endswith("+json"):
            raise Refused("unsupported-type", "JSON is taken here: Content-Type: application/json")

    def _item(
        self,
        request: Request,
        body: bytes,
        parts: tuple[str, ...] | None = None,
        whole: bytes | None = None,
        event: dict[str, str] | None = None,
    ) -> Item:
        try:
            content, misfit = self.codec.content(body, whole=whole, event=event), ""
        except NotJson as exc:
            raise Refused("bad-body", f"it is not JSON: {exc}") from None
        except Misfit as exc:
            content, misfit = self._misfit(body, str(exc), whole, event), str(exc)
        found = self._identify(request, content, misfit, parts, whole is not None)
        digest = self._digest(request, body if whole is None else whole)
        return self._record(request, content, found, digest, misfit)

    def _misfit(
        self, body: bytes, problem: str, whole: bytes | None, event: dict[str, str] | None
    ) -> Content:
        if not self.settings.verifier.is_signed:
            raise Refused("bad-body", problem)
        return self.codec.misfit(body, whole=whole, event=event)

    def _identify(
        self, request: Request, content: Content, misfit: str, parts: tuple[str, ...] | None, enveloped: bool
    ) -> Found:
        if parts is not None:
            return Found(parts, enveloped)

        def delivery() -> Delivery[Any]:
            if misfit:
                raise NoIdentity(f"the body does not fit ({misfit})")
            return self.codec.delivery(request, content, "", self._secret_headers)

        try:
            return self.settings.identity.find(request, delivery)
        except NoIdentity as exc:
            if self.settings.dedup_body:
                return Found(("",), True)
            if misfit:  # it comes from the sender, so it is kept, under what is left of its identity
                return Found(("", "body", hashlib.sha256(request.body).hexdigest()), True)
            raise Refused("no-identity", str(exc)) from None

    def _digest(self, request: Request, body: bytes) -> str:
        if self.settings.identity.replays:
            start = b"%b\n%b\n" % (request.content_type.encode("latin-1"), request.query)
            return hashlib.sha256(start + body).hexdigest()
        return hashlib.sha256(body).hexdigest()

    def message_id(self, found: Found, digest: str) -> str:
        """Return what the delivery is known by in the log; different deliveries never get one."""
        if self.settings.dedup_body:
            return f"{self._prefix}::body:{digest}"
        made = f"{self._prefix}:{':'.join([quote(part, safe='') for part in found.parts])}"
        if len(made) <= _ID_BYTES:
            return made
        return f"{self._prefix}::long:{hashlib.sha256(msgspec.json.encode(found.parts)).hexdigest()}"

    def _record(self, request: Request, content: Content, found: Found, digest: str, misfit: str) -> Item:
        raise NotImplementedError

    def _may_be_replayed(self, found: Found) -> bool:
        """Say whether somebody could send a delivery that he caught again, under an ID of his own."""
        return self.settings.verifier.is_signed and not found.is_covered and not self.settings.dedup_body


class PostEndpoint(Endpoint):
    """Every delivery starts a workflow."""

    wait: float | None = None
    on_inflight: OnInflight = "join"

    def _record(self, request: Request, content: Content, found: Found, digest: str, misfit: str) -> Item:
        start = Start(
            workflow=self.workflow,
            id=self.message_id(found, digest),
            input=self.codec.input(request, content, found.parts[-1], self._secret_headers),
            digest=digest,
            find_same=self._may_be_replayed(found),
        )
        if misfit:
            start.failure = record_error(self.codec.failure(self.path, misfit))
        return Item(start, digest, misfit)


class SignalEndpoint(Endpoint):
    """Every delivery is a message into a workflow."""

    topic: str = ""
    to: Callable[[Delivery[Any]], str]
    value: Callable[[Delivery[Any]], Any] | None = None

    def becomes(self) -> str:
        return f"sends {self.topic!r} to {self.workflow.name}"

    def _misfit(
        self, body: bytes, problem: str, whole: bytes | None, event: dict[str, str] | None
    ) -> Content:
        raise Refused("bad-body", problem)  # which workflow it is for, only a body that fits can tell

    def _record(self, request: Request, content: Content, found: Found, digest: str, misfit: str) -> Item:
        delivery = self.codec.delivery(request, content, found.parts[-1], self._secret_headers)
        try:
            to = self.to(delivery)
            value = content.stored if self.value is None else self.value(delivery)
            message = msgspec.json.encode(value)
        except Exception as exc:
            raise Refused("no-target", f"to= or value= raised {type(exc).__name__}") from exc
        if not isinstance(to, str) or not to:
            raise Refused("no-target", "to= gave no workflow's ID")
        return Item(Send(to=to, id=self.message_id(found, digest), topic=self.topic, value=message), digest)


def answer_signal(items: Sequence[Item], accepted: Sequence[Accepted]) -> Answer:
    """Return what the sender of a message hears: which workflow has it, or that it has ended."""
    said = [
        {"workflow": item.what.to if isinstance(item.what, Send) else "", "delivered": not one.ended}
        for item, one in zip(items, accepted, strict=True)
    ]
    return json_answer(202, said[0] if len(said) == 1 else {"messages": said})


def seconds(span: timedelta | float | None) -> float | None:
    """Return a span in seconds."""
    return span.total_seconds() if isinstance(span, timedelta) else span
