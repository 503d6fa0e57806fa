"""The senders' own ways to sign: Standard Webhooks, GitHub, Stripe, Slack, Shopify, any HMAC, a bearer token, none.

All of them work on the raw bytes of the request. Sources: https://github.com/standard-webhooks/standard-webhooks,
https://docs.github.com/webhooks/using-webhooks/validating-webhook-deliveries, https://docs.stripe.com/webhooks,
https://api.slack.com/authentication/verifying-requests-from-slack, https://shopify.dev/docs/apps/build/webhooks
"""

import base64
import hashlib
import hmac as _hmac
import re
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Final, Literal

import msgspec

from refold.connectors.webhook._headers import Headers, header_name, latin
from refold.connectors.webhook._secrets import Secret, check_secrets, decode_base64, resolve_secrets
from refold.connectors.webhook._verify import (
    MOST_SIGNATURES,
    NO_MATCH,
    NO_SIGNATURE,
    NO_TIMESTAMP,
    TOO_OLD,
    Check,
    matches,
    timestamp_of,
)
from refold.core import DefinitionRefused

Algorithm = Literal["sha1", "sha256", "sha384", "sha512"]
Encoding = Literal["hex", "base64"]

_FIVE_MINUTES: Final = timedelta(minutes=5)
_NONE: Final[frozenset[bytes]] = frozenset()

_AMBIGUOUS: Final = "its body could be read as a part of its timestamp"
_STARTS_LIKE_A_TIMESTAMP: Final = re.compile(rb"[0-9]{1,12}\.")


class _Signed(msgspec.Struct, frozen=True):
    """What the verifiers with secrets have in common."""

    secrets: tuple[str, ...]

    def __repr__(self) -> str:
        return f"<webhook.{getattr(self, 'kind', 'verifier')} with {len(self.secrets)} secret(s)>"

    @property
    def is_signed(self) -> bool:
        return True

    @property
    def secret_headers(self) -> frozenset[bytes]:
        return _NONE


# Standard Webhooks


class Standard(_Signed, frozen=True):
    """`webhook-id`, `webhook-timestamp`, `webhook-signature`; Svix's own names are the same with `svix-`."""

    tolerance: float
    kind: str = "standard"

    def open(self, where: str) -> Check:
        keys = [
            decode_base64(where, secret.removeprefix("whsec_"))
            for secret in resolve_secrets(where, self.secrets)
        ]
        return _StandardCheck(keys, self.tolerance)


class _StandardCheck:
    def __init__(self, keys: Sequence[bytes], tolerance: float) -> None:
        self._keys = keys
        self._tolerance = tolerance

    def refuses(self, headers: Headers, body: bytes, now: float) -> str | None:
        # By the same rule as the identity (`StandardId`): the ID that is verified is the one that counts.
        if headers.has(b"webhook-signature"):
            signatures = headers.one(b"webhook-signature")
            delivery_id, raw_time = headers.one(b"webhook-id"), headers.one(b"webhook-timestamp")
        else:
            signatures = headers.one(b"svix-signature")
            delivery_id, raw_time = headers.one(b"svix-id"), headers.one(b"svix-timestamp")
        if not signatures or not delivery_id:
            return NO_SIGNATURE
        sent_at = timestamp_of(raw_time)
        if sent_at is None or raw_time is None:
            return NO_TIMESTAMP
        presented = signatures.split(b" ")
        if len(presented) > MOST_SIGNATURES:
            return NO_SIGNATURE
        if _STARTS_LIKE_A_TIMESTAMP.match(body):
            # `id.time.body` is signed: "1.5" as a body could lend its "1." to another time, the time to another ID.
            return _AMBIGUOUS
        if not matches(self._signatures(delivery_id, raw_time, body), presented):
            return NO_MATCH
        return TOO_OLD if abs(now - sent_at) > self._tolerance else None

    def _signatures(self, delivery_id: bytes, raw_time: bytes, body: bytes) -> list[bytes]:
        content = b"%b.%b.%b" % (delivery_id, raw_time, body)
        return [b"v1," + base64.b64encode(_hmac.digest(key, content, "sha256")) for key in self._keys]

    def sign(self, body: bytes, delivery_id: str, now: int) -> list[tuple[str, str]]:
        signature = self._signatures(delivery_id.encode("latin-1", "replace"), str(now).encode(), body)[0]
        return [
            ("webhook-id", delivery_id),
            ("webhook-timestamp", str(now)),
            ("webhook-signature", latin(signature)),
        ]


def standard(*, secret: Secret, tolerance: timedelta = _FIVE_MINUTES) -> Standard:
    """Verify by Standard Webhooks 1.0.0 (and Svix): an HMAC over ID, timestamp and body.

    `secret` is the `whsec_...` text, "env:NAME" to read it from the environment when the program starts, or a list of
    those while one takes the place of the other. The ID is under the signature.
    """
    return Standard(check_secrets("webhook.standard", secret), _seconds("webhook.standard", tolerance))


# An HMAC over the body alone, in one header


class BodySignature(_Signed, frozen=True):
    """GitHub, Shopify: `prefix` and the encoded HMAC-SHA256 of the raw body in one header; no timestamp."""

    kind: str
    header: str
    prefix: str
    encoding: Encoding

    def open(self, where: str) -> Check:
        keys = [secret.encode() for secret in resolve_secrets(where, self.secrets)]
        return _BodyCheck(keys, self.header, self.prefix, self.encoding)


class _BodyCheck:
    def __init__(self, keys: Sequence[bytes], header: str, prefix: str, encoding: Encoding) -> None:
        self._keys = keys
        self._header = header
        self._name = header_name(header)
        self._prefix = prefix.encode()
        self._encode = _ENCODE[encoding]

    def refuses(self, headers: Headers, body: bytes, now: float) -> str | None:
        presented = headers.one(self._name)
        if not presented:
            return NO_SIGNATURE
        return None if matches(self._signatures(body), [presented]) else NO_MATCH

    def _signatures(self, body: bytes) -> list[bytes]:
        return [self._prefix + self._encode(_hmac.digest(key, body, "sha256")) for key in self._keys]

    def sign(self, body: bytes, delivery_id: str, now: int) -> list[tuple[str, str]]:
        return [(self._header, latin(self._signatures(body)[0]))]


class GitHub(BodySignature, frozen=True):
    """GitHub's scheme, and the events that are wanted of it (None: all)."""

    events: tuple[str, ...] | None = None


def github(*, secret: Secret, events: Sequence[str] | None = None) -> GitHub:
    """Verify GitHub's `X-Hub-Signature-256`. `events` names those that start workflows ("push", "pull_request");
    others are answered and start nothing. A `ping` starts nothing unless it is named.

    GitHub's delivery ID is not under the signature: see `dedup=` of `webhook.post`.
    """
    return GitHub(
        secrets=check_secrets("webhook.github", secret),
        kind="github",
        header="X-Hub-Signature-256",
        prefix="sha256=",
        encoding="hex",
        events=None if events is None else tuple(events),
    )


def shopify(*, secret: Secret) -> BodySignature:
    """Verify Shopify's `X-Shopify-Hmac-Sha256`. Its delivery ID is not under the signature."""
    return BodySignature(
        secrets=check_secrets("webhook.shopify", secret),
        kind="shopify",
        header="X-Shopify-Hmac-Sha256",
        prefix="",
        encoding="base64",
    )


# Stripe


class Stripe(_Signed, frozen=True):
    """`Stripe-Signature: t=...,v1=...`: an HMAC over timestamp and body. The key is the whole `whsec_...` text."""

    tolerance: float
    kind: str = "stripe"

    def open(self, where: str) -> Check:
        return _StripeCheck([each.encode() for each in resolve_secrets(where, self.secrets)], self.tolerance)


class _StripeCheck:
    def __init__(self, keys: Sequence[bytes], tolerance: float) -> None:
        self._keys = keys
        self._tolerance = tolerance

    def refuses(self, headers: Headers, body: bytes, now: float) -> str | None:
        header = headers.one(b"stripe-signature")
        if not header:
            return NO_SIGNATURE
        parts = [part.partition(b"=") for part in header.split(b",", 2 * MOST_SIGNATURES)]
        times = [value for name, _, value in parts if name == b"t"]
        presented = [value for name, _, value in parts if name == b"v1"]
        if not 0 < len(presented) <= MOST_SIGNATURES:
            return NO_SIGNATURE
        sent_at = timestamp_of(times[0]) if len(times) == 1 else None
        if sent_at is None:
            return NO_TIMESTAMP
        if not matches(self._signatures(times[0], body), presented):
            return NO_MATCH
        # As Stripe's own libraries do: a time in the future is taken, since only Stripe can have signed it.
        return TOO_OLD if now - sent_at > self._tolerance else None

    def _signatures(self, raw_time: bytes, body: bytes) -> list[bytes]:
        content = b"%b.%b" % (raw_time, body)
        return [_hmac.digest(key, content, "sha256").hex().encode() for key in self._keys]

    def sign(self, body: bytes, delivery_id: str, now: int) -> list[tuple[str, str]]:
        signature = latin(self._signatures(str(now).encode(), body)[0])
        return [("Stripe-Signature", f"t={now},v1={signature}")]


def stripe(*, secret: Secret, tolerance: timedelta = _FIVE_MINUTES) -> Stripe:
    """Verify Stripe's `Stripe-Signature`. The ID is the event's, in the body and so under the signature."""
    return Stripe(check_secrets("webhook.stripe", secret), _seconds("webhook.stripe", tolerance))


# Slack


class Slack(_Signed, frozen=True):
    """`X-Slack-Signature: v0=...` over `v0:timestamp:body`."""

    tolerance: float
    kind: str = "slack"

    def open(self, where: str) -> Check:
        return _SlackCheck([each.encode() for each in resolve_secrets(where, self.secrets)], self.tolerance)


class _SlackCheck:
    def __init__(self, keys: Sequence[bytes], tolerance: float) -> None:
        self._keys = keys
        self._tolerance = tolerance

    def refuses(self, headers: Headers, body: bytes, now: float) -> str | None:
        presented = headers.one(b"x-slack-signature")
        raw_time = headers.one(b"x-slack-request-timestamp")
        if not presented:
            return NO_SIGNATURE
        sent_at = timestamp_of(raw_time)
        if sent_at is None or raw_time is None:
            return NO_TIMESTAMP
        if not matches(self._signatures(raw_time, body), [presented]):
            return NO_MATCH
        return TOO_OLD if abs(now - sent_at) > self._tolerance else None

    def _signatures(self, raw_time: bytes, body: bytes) -> list[bytes]:
        content = b"v0:%b:%b" % (raw_time, body)
        return [b"v0=" + _hmac.digest(key, content, "sha256").hex().encode() for key in self._keys]

    def sign(self, body: bytes, delivery_id: str, now: int) -> list[tuple[str, str]]:
        signature = latin(self._signatures(str(now).encode(), body)[0])
        return [("X-Slack-Request-Timestamp", str(now)), ("X-Slack-Signature", signature)]


def slack(*, secret: Secret, tolerance: timedelta = _FIVE_MINUTES) -> Slack:
    """Verify Slack's Events API by the app's signing secret. Its challenge is answered. The ID is `event_id`."""
    return Slack(check_secrets("webhook.slack", secret), _seconds("webhook.slack", tolerance))


# Any other HMAC


class AnyHmac(_Signed, frozen=True):
    """An HMAC that the declaration spells out."""

    header: str
    prefix: str
    encoding: Encoding
    algorithm: Algorithm
    template: tuple[str, ...]  # literal, field, literal, field, ..., literal
    id_header: str | None
    timestamp_header: str | None
    tolerance: float
    kind: str = "hmac"

    @property
    def signs_id(self) -> bool:
        """Say whether the ID's header is under the signature."""
        return "id" in self.template[1::2]

    def open(self, where: str) -> Check:
        return _AnyHmacCheck(self, [each.encode() for each in resolve_secrets(where, self.secrets)])


class _AnyHmacCheck:
    def __init__(self, declared: AnyHmac, keys: Sequence[bytes]) -> None:
        self._declared = declared
        self._keys = keys
        self._header = header_name(declared.header)
        self._id_header = header_name(declared.id_header or "")
        self._timestamp_header = header_name(declared.timestamp_header or "")
        self._prefix = declared.prefix.encode()
        self._encode = _ENCODE[declared.encoding]
        self._literals = [part.encode() for part in declared.template[::2]]
        self._fields = declared.template[1::2]

    def refuses(self, headers: Headers, body: bytes, now: float) -> str | None:
        presented = headers.one(self._header)
        if not presented:
            return NO_SIGNATURE
        delivery_id = headers.one(self._id_header) if self._id_header else b""
        if delivery_id is None or ("id" in self._fields and not delivery_id):
            return NO_SIGNATURE
        raw_time, sent_at = b"", None
        if self._timestamp_header:
            raw_time = headers.one(self._timestamp_header) or b""
            sent_at = timestamp_of(raw_time)
            if sent_at is None:
                return NO_TIMESTAMP
        if not matches(self._signatures(delivery_id, raw_time, body), [presented]):
            return NO_MATCH
        if sent_at is not None and abs(now - sent_at) > self._declared.tolerance:
            return TOO_OLD
        return None

    def _signatures(self, delivery_id: bytes, raw_time: bytes, body: bytes) -> list[bytes]:
        values = {"body": body, "id": delivery_id, "timestamp": raw_time}
        content = self._literals[0]
        for field, literal in zip(self._fields, self._literals[1:], strict=True):
            content += values[field] + literal
        algorithm = self._declared.algorithm
        return [self._prefix + self._encode(_hmac.digest(key, content, algorithm)) for key in self._keys]

    def sign(self, body: bytes, delivery_id: str, now: int) -> list[tuple[str, str]]:
        signature = self._signatures(delivery_id.encode("latin-1", "replace"), str(now).encode(), body)[0]
        made = [(self._declared.header, latin(signature))]
        if self._declared.id_header:
            made.append((self._declared.id_header, delivery_id))
        if self._declared.timestamp_header:
            made.append((self._declared.timestamp_header, str(now)))
        return made


def hmac(
    *,
    secret: Secret,
    header: str,
    prefix: str = "",
    encoding: Encoding = "hex",
    algorithm: Algorithm = "sha256",
    template: str = "{body}",
    id_header: str | None = None,
    timestamp_header: str | None = None,
    tolerance: timedelta = _FIVE_MINUTES,
) -> AnyHmac:
    """Verify any HMAC over the raw body in one header: `prefix` and the encoded digest.

    `template` says what is signed when it is more than the body: "{timestamp}.{body}" with `timestamp_header`, "{id}"
    with `id_header`. A timestamp is checked against `tolerance`; one that is not in the template is refused, since
    anybody could write another.
    """
    where = "webhook.hmac"
    if encoding not in _ENCODE or algorithm not in ("sha1", "sha256", "sha384", "sha512"):
        raise DefinitionRefused(
            where,
            f"encoding={encoding!r}, algorithm={algorithm!r}",
            'Encodings are "hex" and "base64", algorithms "sha256", "sha384", "sha512" and, for old senders, "sha1".',
        )
    parts = tuple(re.split(r"\{(body|id|timestamp)\}", template))
    fields = parts[1::2]
    needed = {"id": id_header, "timestamp": timestamp_header}
    missing = [field for field in fields if field != "body" and not needed[field]]
    if fields.count("body") != 1 or missing or (timestamp_header and "timestamp" not in fields):
        raise DefinitionRefused(
            where,
            f"template={template!r} with id_header={id_header!r}, timestamp_header={timestamp_header!r}",
            "It has {body} once, {id} only with id_header=, and {timestamp} exactly when there is a timestamp_header=.",
        )
    return AnyHmac(
        secrets=check_secrets(where, secret),
        header=header,
        prefix=prefix,
        encoding=encoding,
        algorithm=algorithm,
        template=parts,
        id_header=id_header,
        timestamp_header=timestamp_header,
        tolerance=_seconds(where, tolerance),
    )


# A token, and nothing


class Bearer(msgspec.Struct, frozen=True):
    """A token that the sender shows as it is."""

    secrets: tuple[str, ...]
    header: str
    kind: str = "bearer"
    is_signed: bool = False

    def __repr__(self) -> str:
        return f"<webhook.bearer with {len(self.secrets)} secret(s)>"

    @property
    def secret_headers(self) -> frozenset[bytes]:
        return frozenset((header_name(self.header),))

    def open(self, where: str) -> Check:
        return _BearerCheck(resolve_secrets(where, self.secrets), self.header)


class _BearerCheck:
    def __init__(self, tokens: Sequence[str], header: str) -> None:
        self._first = tokens[0]
        self._header = header
        self._name = header_name(header)
        # Of one length, so that the comparison does not tell how long a token is.
        self._digests = [hashlib.sha256(token.encode()).digest() for token in tokens]

    def refuses(self, headers: Headers, body: bytes, now: float) -> str | None:
        presented = headers.one(self._name)
        if not presented:
            return "it has no token"
        if self._name == b"authorization":
            scheme, _, presented = presented.partition(b" ")
            if scheme.lower() != b"bearer":
                return "it has no token"
        found = matches(self._digests, [hashlib.sha256(presented.strip()).digest()])
        return None if found else "its token is none of ours"

    def sign(self, body: bytes, delivery_id: str, now: int) -> list[tuple[str, str]]:
        bearer = "Bearer " if self._name == b"authorization" else ""
        return [(self._header, bearer + self._first)]


def bearer(*, token: Secret, header: str = "Authorization") -> Bearer:
    """Verify by a token: `Authorization: Bearer ...`, or as it is in another header. Nothing is signed, so `id=` says
    what the deliveries are known by."""
    return Bearer(check_secrets("webhook.bearer", token), header)


class Anybody(msgspec.Struct, frozen=True):
    """No verification."""

    kind: str = "none"
    is_signed: bool = False
    secrets: tuple[str, ...] = ()
    secret_headers: frozenset[bytes] = _NONE

    def open(self, where: str) -> Check:
        return _AnybodyCheck()


class _AnybodyCheck:
    def refuses(self, headers: Headers, body: bytes, now: float) -> str | None:
        return None

    def sign(self, body: bytes, delivery_id: str, now: int) -> list[tuple[str, str]]:
        return []


def none() -> Anybody:
    """Believe everybody: for endpoints that only friends can reach. There is no default that means this."""
    return Anybody()


def _hex(digest: bytes) -> bytes:
    return digest.hex().encode()


_ENCODE: Final[dict[str, Callable[[bytes], bytes]]] = {"hex": _hex, "base64": base64.b64encode}


def _seconds(where: str, tolerance: timedelta) -> float:
    if tolerance <= timedelta(0):
        raise DefinitionRefused(
            where,
            f"tolerance={tolerance!r}",
            "Give the time that a delivery may be under way, as a timedelta.",
        )
    return tolerance.total_seconds()
