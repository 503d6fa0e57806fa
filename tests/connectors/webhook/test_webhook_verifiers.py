"""Signatures: the public test vectors pass, everything one bit away from them is refused, and nothing raises."""

import base64
import hashlib
import hmac
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any, cast

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from refold.connectors import webhook
from refold.connectors.webhook._headers import Headers
from refold.core import DefinitionRefused

Pairs = Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Vector:
    """A request that a vendor's documentation, or its library's tests, says is signed right."""

    verifier: webhook.Verifier
    headers: Pairs
    body: bytes
    now: float = 1700000000.0

    def refusal(self) -> str | None:
        raw = [(name.lower().encode(), value.encode("latin-1")) for name, value in self.headers]
        return self.verifier.open("a test").refuses(Headers(raw), self.body, self.now)

    def with_header(self, name: str, value: str) -> "Vector":
        pairs = [(key, value if key == name else old) for key, old in self.headers]
        return replace(self, headers=pairs)


_SLACK_BODY = (
    b"token=xyzz0WbapA4vBCDEFasx0q6G&team_id=T1DC2JH3J&team_domain=testteamnow&channel_id=G8PSS9T3V&"
    b"channel_name=foobar&user_id=U2CERLKJA&user_name=roadrunner&command=%2Fwebhook-collect&text=&response_url="
    b"https%3A%2F%2Fhooks.slack.com%2Fcommands%2FT1DC2JH3J%2F397700885554%2F96rGlfmibIGlgcZRskXaIFfN&"
    b"trigger_id=398738663015.47445629121.803a0bc887a14d10d2c447fce8b6703c"
)
_STANDARD_SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
_STANDARD = "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="

VECTORS = {
    "standard": Vector(
        webhook.standard(secret=_STANDARD_SECRET),
        [
            ("webhook-id", "msg_p5jXN8AQM9LWM0D4loKWxJek"),
            ("webhook-timestamp", "1614265330"),
            ("webhook-signature", _STANDARD),
        ],
        b'{"test": 2432232314}',
        1614265330.0,
    ),
    "svix": Vector(
        webhook.standard(secret=_STANDARD_SECRET.removeprefix("whsec_")),
        [
            ("svix-id", "msg_p5jXN8AQM9LWM0D4loKWxJek"),
            ("svix-timestamp", "1614265330"),
            ("svix-signature", _STANDARD),
        ],
        b'{"test": 2432232314}',
        1614265330.0,
    ),
    "github": Vector(
        webhook.github(secret="It's a Secret to Everybody"),
        [
            (
                "X-Hub-Signature-256",
                "sha256=757107ea0eb2509fc211221cce984b8a37570b6d7586c22c46f4379c8b043e17",
            )
        ],
        b"Hello, World!",
    ),
    "stripe": Vector(
        webhook.stripe(secret="whsec_test_secret"),
        [
            (
                "Stripe-Signature",
                "t=1700000000,v1=d95c6b7477fbd7e9f90b1b0ef5f9c7ac25abca5382460e0d988c2b2a5b71b990",
            )
        ],
        b'{"id":"evt_test_webhook","object":"event"}',
    ),
    "slack": Vector(
        webhook.slack(secret="8f742231b10e8888abcd99yyyzzz85a5"),
        [
            ("X-Slack-Request-Timestamp", "1531420618"),
            ("X-Slack-Signature", "v0=a2114d57b48eac39b9ad189dd8316235a7b4a8d21a10bd27519666489c69b503"),
        ],
        _SLACK_BODY,
        1531420618.0,
    ),
    "shopify": Vector(
        webhook.shopify(secret="hush"),
        [("X-Shopify-Hmac-Sha256", "qBvrsZF7RfB1iS6BX6IHqJTp5L911P7intnPeTPsH0I=")],
        b'{"id":820982911946154508}',
    ),
    # RFC 4231, test case 2.
    "hmac": Vector(
        webhook.hmac(secret="Jefe", header="X-Signature"),
        [("X-Signature", "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843")],
        b"what do ya want for nothing?",
    ),
    # No vendor's: computed by hand, `openssl dgst -sha512 -hmac key` over `d-1.1700000000.{}`.
    "hmac with a template": Vector(
        webhook.hmac(
            secret="key",
            header="X-Sign",
            prefix="v1=",
            encoding="base64",
            algorithm="sha512",
            template="{id}.{timestamp}.{body}",
            id_header="X-Id",
            timestamp_header="X-Time",
        ),
        [
            (
                "X-Sign",
                "v1=rgt1yfS6O+vJ1wyRAbwSvtM9G9bwx/6dm5kQmm3tdfCYfb+BfvZj2RO4NNfYDM2CfL3thpS2CfovuvsSy+72iQ==",
            ),
            ("X-Id", "d-1"),
            ("X-Time", "1700000000"),
        ],
        b"{}",
    ),
    "bearer": Vector(
        webhook.bearer(token="s3cret-token"), [("Authorization", "Bearer s3cret-token")], b"not under it"
    ),
}
SIGNED = [name for name in VECTORS if name != "bearer"]


@pytest.mark.parametrize("name", VECTORS)
def test_every_public_vector_passes(name: str) -> None:
    assert VECTORS[name].refusal() is None


@pytest.mark.parametrize("name", SIGNED)
def test_a_body_with_any_one_bit_changed_is_refused(name: str) -> None:
    vector = VECTORS[name]
    for bit in range(len(vector.body) * 8):
        changed = bytearray(vector.body)
        changed[bit // 8] ^= 1 << bit % 8
        assert replace(vector, body=bytes(changed)).refusal() is not None, bit


@pytest.mark.parametrize("name", VECTORS)
def test_headers_with_any_one_bit_changed_are_refused(name: str) -> None:
    # Signature, timestamp and, where it is signed, ID: all the headers of a vector. The scheme's word is the
    # one thing in them that may be written another way (RFC 9110: it is case-insensitive).
    vector = VECTORS[name]
    for header, value in vector.headers:
        free = range(len("Bearer")) if header == "Authorization" else range(0)
        for bit in range(len(value) * 8):
            if bit // 8 in free and bit % 8 == 5:
                continue
            changed = bytearray(value.encode())
            changed[bit // 8] ^= 1 << bit % 8
            assert vector.with_header(header, changed.decode("latin-1")).refusal() is not None, (header, bit)


@pytest.mark.parametrize("name", VECTORS)
def test_a_header_that_is_missing_or_given_twice_is_refused(name: str) -> None:
    vector = VECTORS[name]
    for header, value in vector.headers:
        without = [pair for pair in vector.headers if pair[0] != header]
        assert replace(vector, headers=without).refusal() is not None
        assert replace(vector, headers=[*vector.headers, (header, value)]).refusal() is not None
        assert vector.with_header(header, "").refusal() is not None


@pytest.mark.parametrize("name", VECTORS)
def test_another_secret_is_refused(name: str) -> None:
    vector = VECTORS[name]
    other = "whsec_AAAAAAAAAAAAAAAAAAAAAAAA" if name in ("standard", "svix") else "another"
    verifier = vector.verifier
    assert replace(vector, verifier=_with_secrets(verifier, (other,))).refusal() is not None
    # While a secret is rotated both count, whichever comes first.
    for secrets in ((other, verifier.secrets[0]), (verifier.secrets[0], other)):
        assert replace(vector, verifier=_with_secrets(verifier, secrets)).refusal() is None


def _with_secrets(verifier: webhook.Verifier, secrets: tuple[str, ...]) -> webhook.Verifier:
    assert isinstance(verifier, msgspec.Struct)
    return cast(webhook.Verifier, msgspec.structs.replace(verifier, secrets=secrets))


@pytest.mark.parametrize("name", VECTORS)
def test_what_sign_makes_is_believed(name: str) -> None:
    vector = VECTORS[name]
    made = vector.verifier.open("a test").sign(b'{"a": 1}', "d-7", 1_800_000_000)
    assert replace(vector, headers=made, body=b'{"a": 1}', now=1_800_000_000.0).refusal() is None
    if name in ("github", "shopify", "hmac", "bearer"):
        again = vector.verifier.open("a test").sign(vector.body, "", 0)
        assert dict(again) == dict(vector.headers)


@pytest.mark.parametrize(
    ("name", "accepted", "refused"),
    [
        ("standard", (-300, 300), (-301, 301)),
        ("svix", (-300, 300), (-301, 301)),
        ("slack", (-300, 300), (-301, 301)),
        ("hmac with a template", (-300, 300), (-301, 301)),
        ("stripe", (-10_000_000, 300), (301,)),  # Stripe's own libraries take the future too
    ],
)
def test_a_delivery_is_believed_within_the_tolerance(
    name: str, accepted: tuple[int, ...], refused: tuple[int, ...]
) -> None:
    vector = VECTORS[name]
    assert [replace(vector, now=vector.now + late).refusal() for late in accepted] == [None] * len(accepted)
    assert all(replace(vector, now=vector.now + late).refusal() for late in refused)


_ARABIC = "١٦١٤٢٦٥٣٣٠".encode().decode("latin-1")


@pytest.mark.parametrize(
    "timestamp",
    [
        "1614265330.0",
        " 1614265330",
        "+1614265330",
        "1_614_265_330",
        _ARABIC,
        "1e9",
        "nan",
        "-1",
        "0x10",
        "9" * 13,
    ],
)
def test_a_timestamp_is_a_number_of_seconds_and_nothing_else(timestamp: str) -> None:
    # Signed right, with whatever the sender wrote there.
    vector = VECTORS["standard"]
    check = vector.verifier.open("a test")
    key = base64.b64decode("MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")
    content = b"msg_1." + timestamp.encode("latin-1") + b"." + vector.body
    mac = base64.b64encode(hmac.digest(key, content, "sha256"))
    headers = Headers(
        [
            (b"webhook-id", b"msg_1"),
            (b"webhook-timestamp", timestamp.encode("latin-1")),
            (b"webhook-signature", b"v1," + mac),
        ]
    )
    assert check.refuses(headers, vector.body, vector.now) is not None


def test_one_right_signature_among_others_is_enough() -> None:
    vector = VECTORS["standard"]
    several = f"v1a,bm90IG91cnM= v1,{'A' * 43}= {_STANDARD} v2,x"
    assert vector.with_header("webhook-signature", several).refusal() is None
    flood = " ".join([f"v1,{'A' * 43}="] * 1000 + [_STANDARD])
    assert vector.with_header("webhook-signature", flood).refusal() is not None
    stripe = VECTORS["stripe"]
    (_, right) = stripe.headers[0]
    time, _, signature = right.partition(",")
    several = f"{time},v1={'0' * 64},{signature},v0={'1' * 64}"
    assert stripe.with_header("Stripe-Signature", several).refusal() is None
    for wrong in (f"{time},{time},{signature}", signature, f"{time},{signature.replace('v1', 'v0')}"):
        assert stripe.with_header("Stripe-Signature", wrong).refusal() is not None


def test_a_signature_does_not_move_from_the_body_to_the_timestamp() -> None:
    # `a.1614265330.1614265330.5`: ID, time and body could be cut in two ways.
    check = VECTORS["standard"].verifier.open("a test")
    made = dict(check.sign(b"1614265330.5", "a", 1614265330))
    for delivery_id, body in (("a", b"1614265330.5"), ("a.1614265330", b"5")):
        headers = Headers(
            [
                (b"webhook-id", delivery_id.encode()),
                (b"webhook-timestamp", b"1614265330"),
                (b"webhook-signature", made["webhook-signature"].encode()),
            ]
        )
        refused = check.refuses(headers, body, 1614265330.0)
        if delivery_id == "a":
            assert refused is not None, "the sender's own is refused, so that nobody can cut it another way"


_BYTES = st.binary(max_size=80)
_NAMES = st.sampled_from(
    sorted({name.lower().encode() for vector in VECTORS.values() for name, _ in vector.headers})
)


@pytest.mark.parametrize("name", VECTORS)
@settings(max_examples=150, deadline=None)
@given(pairs=st.lists(st.tuples(_NAMES, _BYTES), max_size=6), body=st.binary(max_size=200))
def test_garbage_is_refused_and_raises_nothing(
    name: str, pairs: list[tuple[bytes, bytes]], body: bytes
) -> None:
    check = VECTORS[name].verifier.open("a test")
    assert check.refuses(Headers(pairs), body, 1_700_000_000.0) is not None


@pytest.mark.parametrize("name", SIGNED)
@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_right_headers_with_a_piece_of_garbage_in_them_raise_nothing(name: str, data: st.DataObject) -> None:
    vector = VECTORS[name]
    pairs = [(header.lower().encode(), value.encode()) for header, value in vector.headers]
    which = data.draw(st.integers(0, len(pairs) - 1))
    header, value = pairs[which]
    start = data.draw(st.integers(0, len(value)))
    end = data.draw(st.integers(start, len(value)))
    changed = value[:start] + data.draw(_BYTES) + value[end:]
    pairs[which] = (header, changed)
    refused = vector.verifier.open("a test").refuses(Headers(pairs), vector.body, vector.now)
    if changed == value:
        assert refused is None


# Secrets


def test_secrets_come_from_the_environment_when_the_program_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    verifier = webhook.github(secret=["env:HOOK_NEW", "env:HOOK_OLD"])
    monkeypatch.setenv("HOOK_NEW", "new")
    monkeypatch.setenv("HOOK_OLD", "It's a Secret to Everybody")
    assert replace(VECTORS["github"], verifier=verifier).refusal() is None


@pytest.mark.raises_error("SecretMissing")
def test_a_secret_that_is_not_set_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HOOK_SECRET", raising=False)
    for value in (None, "", "  "):
        if value is not None:
            monkeypatch.setenv("HOOK_SECRET", value)
        with pytest.raises(webhook.SecretMissing) as missing:
            webhook.stripe(secret="env:HOOK_SECRET").open("webhook.post('/payments')")
        assert str(missing.value) == (
            "webhook.post('/payments'): its secret is to be in the environment variable HOOK_SECRET, "
            "which is not set.\n"
            "Set it where this program starts:  export HOOK_SECRET=..."
        )
        assert missing.value.variable == "HOOK_SECRET"


@pytest.mark.parametrize("secret", ["", [], ["a", ""], "env:"])
def test_no_secret_is_refused_where_it_is_declared(secret: "str | list[str]") -> None:
    with pytest.raises(DefinitionRefused, match="it has no secret, or an empty one"):
        webhook.github(secret=secret)


def test_a_secret_that_is_not_base64_is_refused_without_being_shown() -> None:
    with pytest.raises(DefinitionRefused, match="its secret is not base64") as refused:
        webhook.standard(secret="whsec_not~base64").open("webhook.post('/payments')")
    assert "not~base64" not in str(refused.value)


@pytest.mark.parametrize("name", VECTORS)
def test_no_secret_is_in_the_repr(name: str) -> None:
    verifier = VECTORS[name].verifier
    assert verifier.secrets[0] not in repr(verifier)
    assert verifier.secrets[0] not in repr(verifier.open("a test"))


@pytest.mark.parametrize(
    "options",
    [
        {"template": "{timestamp}.{body}"},
        {"template": "{id}.{body}"},
        {"template": "nothing"},
        {"template": "{body}{body}"},
        {"timestamp_header": "X-Time"},
        {"algorithm": "md5"},
        {"encoding": "rot13"},
        {"tolerance": timedelta(0), "template": "{timestamp}{body}", "timestamp_header": "X-Time"},
    ],
)
def test_an_hmac_that_protects_nothing_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(DefinitionRefused):
        webhook.hmac(secret="s", header="X-Signature", **options)


def test_a_token_is_compared_by_its_hash_whatever_its_length() -> None:
    token = os.urandom(20).hex()
    check = webhook.bearer(token=token, header="X-Token").open("a test")
    assert check.refuses(Headers([(b"x-token", token.encode())]), b"", 0) is None
    assert check.refuses(Headers([(b"x-token", token[:-1].encode())]), b"", 0) is not None
    assert hashlib.sha256(token.encode()).hexdigest() not in repr(check)


def test_an_id_that_no_signature_covers_is_not_taken_for_the_one_that_was_verified() -> None:
    """Svix's headers are right; beside them somebody has put Standard Webhooks' own, one of them twice."""
    caught = VECTORS["svix"]
    for added in (
        [("webhook-signature", "v1,x")] * 2,
        [("webhook-signature", "")],
        [("webhook-signature", "v1,x")],
    ):
        forged = replace(caught, headers=[*caught.headers, ("webhook-id", "msg_another"), *added])
        assert forged.refusal() is not None
