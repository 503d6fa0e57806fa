"""Thrown at: Hypothesis by a grammar of right, nearly right and wrong requests, and schemathesis by the OpenAPI.

No 500, every answer in time, no memory kept, and exactly the valid, distinct deliveries are started.
"""

import base64
import hashlib
import hmac
import http.client
import json
import os
import queue
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from fixtures.workers import Log, Program, Programs, wait_for

PROGRAM = Path(__file__).parent / "programs" / "fuzzed.py"
MIB = 1024 * 1024
CONNECTIONS = 8
CHECKS = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance"


class Target:
    """The program under fire, what it has counted, and how much memory it takes."""

    def __init__(self, program: Program, stats: Path) -> None:
        self.program = program
        self._stats = stats
        self.port = int(program.output.partition("port=")[2].partition(".")[0])
        self.url = f"http://127.0.0.1:{self.port}"

    def stats(self) -> dict[str, Any]:
        """Return what it has counted so far."""
        self._stats.unlink(missing_ok=True)
        self.program.signal(signal.SIGUSR1)
        wait_for(lambda: self._stats.exists() or not self.program.running, "the program's counts", 60)
        assert self.program.running, self.program.output
        found: dict[str, Any] = json.loads(self._stats.read_text())
        return found

    def answered(self) -> set[str]:
        """Return the IDs of the workflows that its answers named."""
        ids = Path(f"{self._stats}.ids").read_text().splitlines()
        return {json.loads(line) for line in ids}


@pytest.fixture
def target(programs: Programs, tmp_path: Path) -> Target:
    """The program, up."""
    program = programs.start(PROGRAM, str(tmp_path / "stats"))
    program.wait_output(".\n", 60)
    return Target(program, tmp_path / "stats")


@dataclass(frozen=True)
class Shot:
    """A request, the statuses that it may get, and the ID of the workflow that it must start, if it must."""

    path: str
    body: bytes
    headers: dict[str, str] = field(default_factory=dict)
    method: str = "POST"
    statuses: tuple[int, ...] = (202,)
    starts: str | None = None
    blanks: int = 0  # a body of that many, which nobody wants to see in a report


# What is right, by each sender's own rules, written here once more: nothing of the connector's is used.

JSON = {"content-type": "application/json"}
_text = st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]), max_size=12)
_payments = st.fixed_dictionaries(
    {"id": _text, "cents": st.integers(-(2**63), 2**63 - 1)},
    optional={"tags": st.lists(_text, max_size=3), "x": _text},
)
# Few of them, so that many are duplicates; or one that nobody had before.
_ids = st.one_of(
    st.integers(0, 30).map(str), st.uuids().map(str), st.text("abc:/%. é", min_size=1).map(str.strip)
).filter(bool)


def _mac(key: bytes, body: bytes) -> str:
    return hmac.new(key, body, hashlib.sha256).hexdigest()


@st.composite
def _right(draw: st.DrawFn) -> Shot:
    """A request that its sender could have made."""
    kind = draw(
        st.sampled_from(
            ["standard", "github", "stripe", "slack", "shopify", "hmac", "open", "keys", "events"]
        )
    )
    payment = draw(_payments)
    delivery = draw(_ids)
    now = str(int(time.time()) + draw(st.integers(-200, 200)))
    latin = delivery.encode().decode("latin-1").strip()  # as a header carries it
    body = json.dumps(
        payment, ensure_ascii=draw(st.booleans()), indent=draw(st.sampled_from([None, 1]))
    ).encode()
    match kind:
        case "standard":
            content = b"%b.%b.%b" % (latin.encode("latin-1"), now.encode(), body)
            mac = base64.b64encode(hmac.digest(b"secret", content, "sha256")).decode()
            prefix = draw(st.sampled_from(["webhook", "svix"]))
            headers = {f"{prefix}-id": latin, f"{prefix}-timestamp": now, f"{prefix}-signature": f"v1,{mac}"}
        case "github":
            headers = {"x-hub-signature-256": "sha256=" + _mac(b"s", body), "x-github-delivery": latin}
        case "stripe":
            body = json.dumps({**payment, "id": delivery}).encode()
            headers = {"stripe-signature": f"t={now},v1={_mac(b's', now.encode() + b'.' + body)}"}
            latin = delivery
        case "slack":
            body = json.dumps({"event": payment, "event_id": delivery}).encode()
            signature = "v0=" + _mac(b"s", b"v0:" + now.encode() + b":" + body)
            headers = {"x-slack-request-timestamp": now, "x-slack-signature": signature}
            latin = delivery
        case "shopify":
            body = draw(st.binary(max_size=50))
            mac = base64.b64encode(hmac.digest(b"s", body, "sha256")).decode()
            headers = {"x-shopify-hmac-sha256": mac, "x-shopify-webhook-id": latin}
        case "hmac":
            body = json.dumps({"id": delivery, "cents": draw(st.integers(0, 20))}).encode()
            starts = f"webhook:hmac::body:{hashlib.sha256(body).hexdigest()}"
            return Shot("/hmac", body, {**JSON, "x-sign": _mac(b"s", body)}, starts=starts)
        case "open":
            headers = {"x-id": latin}
        case "keys":
            key = draw(st.one_of(st.integers(0, 30).map(str), st.uuids().map(str)))
            headers = {
                "authorization": "Bearer t0ken",
                "idempotency-key": draw(st.sampled_from([key, f'"{key}"'])),
            }
            # A key that was used for another body is refused; whose was first is only known afterwards.
            return Shot("/keys", body, {**JSON, **headers}, statuses=(200, 422), starts=f"webhook:keys:{key}")
        case _:
            event = {"specversion": "1.0", "id": delivery, "source": "/s", "type": "t", "data": payment}
            starts = f"webhook:events:%2Fs:{quote(delivery, safe='')}"
            if draw(st.booleans()):
                batch = json.dumps([event] * draw(st.integers(1, 3))).encode()
                return Shot(
                    "/events", batch, {"content-type": "application/cloudevents-batch+json"}, starts=starts
                )
            envelope = {"content-type": "application/cloudevents+json; charset=utf-8"}
            return Shot("/events", json.dumps(event).encode(), envelope, starts=starts)
    return Shot(f"/{kind}", body, {**JSON, **headers}, starts=f"webhook:{kind}:{quote(latin, safe='')}")


@st.composite
def _spoiled(draw: st.DrawFn) -> Shot:
    """A right request with one thing wrong, and the status for that."""
    shot = draw(_right())
    how = draw(st.sampled_from(["bit", "signature", "method", "path", "type", "large", "encoding"]))
    signed = shot.path in ("/standard", "/github", "/stripe", "/slack", "/shopify", "/hmac")
    match how:
        case "bit" if signed and shot.body:
            changed = bytearray(shot.body)
            changed[draw(st.integers(0, len(changed) - 1))] ^= 1 << draw(st.integers(0, 7))
            return replace(shot, body=bytes(changed), statuses=(401,), starts=None)
        case "signature" if signed:
            name = draw(st.sampled_from([n for n in shot.headers if "sign" in n or "hmac" in n]))
            wrong = draw(
                st.text(
                    st.characters(min_codepoint=33, max_codepoint=255, exclude_characters="\x7f"), max_size=90
                )
            )
            return replace(shot, headers={**shot.headers, name: wrong.strip()}, statuses=(401,), starts=None)
        case "method":
            method = draw(st.sampled_from(["GET", "PUT", "PATCH", "DELETE"]))
            return replace(shot, method=method, statuses=(405,), starts=None)
        case "path":
            beside = "/" + quote(draw(st.text(min_size=1, max_size=10)), safe="") + "/x"
            return replace(shot, path=beside, statuses=(404,), starts=None)
        case "type" if shot.path not in ("/shopify",):
            return replace(
                shot, headers={**shot.headers, "content-type": "text/plain"}, statuses=(400, 415), starts=None
            )
        case "large":
            return replace(shot, blanks=20_001, statuses=(413,), starts=None)
        case _:
            return replace(
                shot, headers={**shot.headers, "content-encoding": "br"}, statuses=(415,), starts=None
            )


@st.composite
def _misfits(draw: st.DrawFn) -> Shot:
    """Signed bodies that are JSON of another type, which are kept, or no JSON, which are not."""
    delivery = draw(st.uuids().map(str))
    body = draw(
        st.one_of(
            st.binary(max_size=60),
            st.recursive(st.none() | st.floats() | _text, lambda inner: st.lists(inner) | st.dictionaries(_text, inner),
                         max_leaves=10).map(lambda value: json.dumps(value).encode()),
        )
    )  # fmt: skip
    try:
        json.loads(body.decode(), parse_constant=lambda text: json.loads("?"))
        kept = True
    except ValueError:
        kept = False
    content = f"{delivery}.{int(time.time())}.".encode() + body
    _, now, _ = content.split(b".", 2)
    if body[:1].isdigit():
        body = b"[" + body
        return replace(Shot("/standard", body, JSON, statuses=(401,)))
    mac = base64.b64encode(hmac.digest(b"secret", content, "sha256")).decode()
    headers = {"webhook-id": delivery, "webhook-timestamp": now.decode(), "webhook-signature": f"v1,{mac}"}
    starts = f"webhook:standard:{delivery}" if kept else None
    return Shot("/standard", body, {**JSON, **headers}, statuses=(202,) if kept else (400,), starts=starts)


_PATHS = ["/standard", "/github", "/stripe", "/slack", "/shopify", "/hmac", "/keys", "/events", "/notes"]
_NAMES = [
    "webhook-id", "webhook-signature", "webhook-timestamp", "x-hub-signature-256", "stripe-signature", "content-type",
    "x-slack-signature", "x-slack-request-timestamp", "authorization", "idempotency-key", "prefer", "x-sign",
    "ce-specversion", "ce-source", "ce-type", "content-encoding", "x-github-event", "cookie", "expect-ct",
]  # fmt: skip
_values = st.text(
    st.characters(min_codepoint=32, max_codepoint=255, exclude_characters="\x7f"), max_size=60
).map(str.strip)
_garbage = st.builds(
    Shot,
    path=st.sampled_from(_PATHS).flatmap(
        lambda path: st.sampled_from([path, path + "?a=%ff&hub.challenge=1", path + "?" + "&" * 60])
    ),
    body=st.binary(max_size=300),
    headers=st.dictionaries(st.sampled_from(_NAMES), _values, max_size=6),
    statuses=st.just((400, 401, 413, 415)),
)
SALVO = 40
UNCHECKED = (HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.large_base_example)
SHOTS = st.lists(
    st.one_of(_right(), _right(), _spoiled(), _misfits(), _garbage), min_size=SALVO, max_size=SALVO
)


class Guns:
    """A few keep-alive connections, and what was to come of everything that went through them."""

    def __init__(self, target: Target) -> None:
        self.expected: set[str] = set()
        self._idle: queue.SimpleQueue[http.client.HTTPConnection] = queue.SimpleQueue()
        self._threads = ThreadPoolExecutor(CONNECTIONS)
        for _ in range(CONNECTIONS):
            self._idle.put(http.client.HTTPConnection("127.0.0.1", target.port, timeout=120))

    def salvo(self, shots: list[Shot]) -> None:
        """Fire all of `shots`, some at the same time."""
        for _ in self._threads.map(self.fire, shots):
            pass

    def fire(self, shot: Shot) -> None:
        """Fire one, and look at what comes of it."""
        headers = {name: value.encode("latin-1") for name, value in shot.headers.items()}
        connection = self._idle.get()
        try:
            connection.request(shot.method, shot.path, b" " * shot.blanks or shot.body, headers)
            answer = connection.getresponse()
            said = answer.read()
        finally:
            self._idle.put(connection)
        assert answer.status in shot.statuses, (answer.status, said, shot)
        if shot.starts is not None:
            self.expected.add(shot.starts)
            assert shot.starts in said.decode(), (said, shot)
        if answer.status >= 400:
            assert answer.headers["content-type"] == "application/problem+json"

    def close(self) -> None:
        self._threads.shutdown()
        while not self._idle.empty():
            self._idle.get().close()


@pytest.fixture
def guns(target: Target) -> Iterator[Guns]:
    """Connections to the target."""
    made = Guns(target)
    yield made
    made.close()


def _shoot(guns: Guns, salvos: int) -> None:
    @settings(
        max_examples=salvos,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=UNCHECKED,
    )
    @given(SHOTS)
    def salvo(shots: list[Shot]) -> None:
        guns.salvo(shots)

    salvo()


def _schemathesis(target: Target, examples: int) -> None:
    """Run schemathesis on the description that the app gives of itself."""
    done = subprocess.run(
        [
            str(Path(sys.executable).parent / "st"), "run", f"{target.url}/openapi.json",
            "--checks", CHECKS,
            "--max-examples", str(examples), "--phases", "examples,coverage,fuzzing", "--max-response-time", "5",
            "--suppress-health-check", "all", "--no-shrink", "--header", "authorization: Bearer t0ken",
            "--continue-on-failure",
        ],
        capture_output=True, text=True, check=False, env={**os.environ, "NO_COLOR": "1"}, cwd=Path("/tmp"),
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]


def _judge(target: Target, guns: Guns, log: Log, at_least: int, before: dict[str, Any]) -> None:
    after = target.stats()
    assert after["requests"] >= at_least
    assert not [status for status in after["statuses"] if status.startswith("5")]
    assert after["slowest"] < 5, "every request is answered within its limits, whatever it is"
    started = {row[0] for row in log.rows("select workflow_id from refold.workflows")}
    assert guns.expected <= started
    # What schemathesis made up is known by the answers that it got.
    assert started == target.answered()
    assert after["rss"] - before["rss"] <= 20 * MIB, (before["rss"], after["rss"])


@pytest.mark.timeout(300)
def test_five_thousand_requests(target: Target, guns: Guns, log: Log) -> None:
    _shoot(guns, 40)
    before = target.stats()
    _shoot(guns, 80)
    started = {row[0] for row in log.rows("select workflow_id from refold.workflows")}
    assert started == guns.expected, "what was valid was started, and nothing else"
    _schemathesis(target, 25)
    _judge(target, guns, log, 5_000, before)


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_a_hundred_thousand_requests(target: Target, guns: Guns, log: Log) -> None:
    _shoot(guns, 150)
    before = target.stats()
    _shoot(guns, 2_300)
    started = {row[0] for row in log.rows("select workflow_id from refold.workflows")}
    assert started == guns.expected, "what was valid was started, and nothing else"
    _schemathesis(target, 600)
    _judge(target, guns, log, 100_000, before)
    print({**target.stats(), "rss before": before["rss"]})
