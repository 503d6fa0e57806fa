"""From a delivery to its workflow, over real HTTP: once each, under the sender's own identity."""

import json
import logging
from typing import Any

import msgspec
import pytest

import refold
from fixtures.webhooks import Serve, Site
from fixtures.workers import Log
from refold import App
from refold.connectors import webhook
from refold.core import DefinitionRefused

BODY = b'{"id": "p-1", "cents": 450}'


class Payment(msgspec.Struct):
    id: str
    cents: int = 0


@pytest.fixture
def app() -> App:
    """An app without endpoints."""
    return App("shop")


def _echoing(app: App, path: str, **options: Any) -> None:
    """Declare an endpoint whose workflow gives back what it got."""

    @webhook.post(path, **options)
    @app.workflow(name=path.strip("/").replace("/", "-"))
    def echoing(delivery: webhook.Delivery[Payment]) -> webhook.Delivery[Payment]:
        return delivery


STANDARD = webhook.standard(secret="whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")


def test_a_delivery_starts_one_workflow_and_its_duplicates_hear_the_same(app: App, serve: Serve) -> None:
    _echoing(app, "/payments", verify=STANDARD)
    site = serve(app)
    first = site.send("/payments", BODY, "msg_1")
    again = site.send("/payments", BODY, "msg_1")
    assert (first.status_code, first.json()) == (202, {"workflow": "webhook:payments:msg_1"})
    assert (again.status_code, again.content) == (202, first.content)
    assert site.result("webhook:payments:msg_1").body == Payment("p-1", 450)
    assert site.ids() == ["webhook:payments:msg_1"]
    assert site.send("/payments", BODY, "msg_2").json() == {"workflow": "webhook:payments:msg_2"}
    assert site.app.info("webhook:payments:msg_1").source == "webhook:payments"


def test_the_workflow_gets_what_came(app: App, serve: Serve) -> None:
    _echoing(app, "/payments", verify=STANDARD)
    site = serve(app)
    body = b'{ "cents":450,   "id" : "p\\u002d1", "more": [1, 2.50]}\n'
    signed = site.send("/payments", body, "msg_1", x_trace="1", cookie="session=secret")
    got = site.result(signed.json()["workflow"])
    assert got.body == Payment("p-1", 450)
    assert got.raw == body
    assert (got.id, got.path, got.content_type) == ("msg_1", "/payments", "application/json")
    assert got.header("X-Trace") == "1" and got.header_values("x-trace") == ["1"]
    assert got.header("cookie") is None
    assert got.header("webhook-signature").startswith("v1,")


def test_a_header_that_comes_twice_is_kept_twice(app: App, serve: Serve) -> None:
    _echoing(app, "/open", verify=webhook.none(), id=webhook.header("X-Id"))
    site = serve(app)
    headers = [("X-Id", "1"), ("X-Tag", "a"), ("X-Tag", "b"), ("Content-Type", "application/json")]
    answer = site.client.post(f"{site.url}/open?live=1&a=%20b", content=BODY, headers=headers)
    got = site.result(answer.json()["workflow"])
    assert got.header_values("x-tag") == ["a", "b"]
    assert got.query == "live=1&a=%20b"


def test_bytes_and_text_are_taken_as_they_come(app: App, serve: Serve) -> None:
    @webhook.post("/bytes", verify=webhook.none(), id=webhook.header("X-Id"))
    @app.workflow
    def take_bytes(delivery: webhook.Delivery[bytes]) -> list[bytes]:
        return [delivery.body, delivery.raw]

    @webhook.post("/text", verify=webhook.none(), id=webhook.header("X-Id"))
    @app.workflow
    def take_text(delivery: webhook.Delivery[str]) -> list[str]:
        return [delivery.body, delivery.raw.decode()]

    site = serve(app)
    garbage = bytes(range(256))
    answer = site.post("/bytes", garbage, content_type="image/png", x_id="1")
    assert site.result(answer.json()["workflow"]) == [garbage, garbage]
    answer = site.post(
        "/text", "größer=ja\x00".encode(), content_type="application/x-www-form-urlencoded", x_id="1"
    )
    assert site.result(answer.json()["workflow"]) == ["größer=ja\x00"] * 2
    assert site.post("/text", garbage, x_id="2").status_code == 400


IDENTITIES: dict[str, tuple[webhook.Verifier, dict[str, str], bytes, str]] = {
    "github": (webhook.github(secret="s"), {"x_github_delivery": "g-1"}, BODY, "g-1"),
    "stripe": (webhook.stripe(secret="s"), {}, b'{"id": "evt_1"}', "evt_1"),
    "slack": (webhook.slack(secret="s"), {}, b'{"id": "-", "event_id": "Ev1"}', "Ev1"),
    "shopify": (webhook.shopify(secret="s"), {"x_shopify_webhook_id": "s-1"}, BODY, "s-1"),
}


@pytest.mark.parametrize("kind", IDENTITIES)
def test_each_sender_s_own_identity(app: App, serve: Serve, kind: str) -> None:
    verifier, headers, body, expected = IDENTITIES[kind]
    _echoing(app, "/it", verify=verifier)
    site = serve(app)
    for _ in range(2):
        assert site.send("/it", body, expected, **headers).json() == {"workflow": f"webhook:it:{expected}"}
    missing = dict.fromkeys(headers, "")
    without = site.send("/it", body.replace(b"id", b"no"), "x", **missing) if not headers else site.send(
        "/it", body, "x", **missing
    )  # fmt: skip
    # What a signed body lacks makes it a misfit here ("id" is required), or a delivery without identity.
    assert without.status_code in (202, 400)
    assert len(site.ids()) == (1 if without.status_code == 400 else 2)


def test_an_identity_from_a_header_a_field_or_a_function(app: App, serve: Serve) -> None:
    _echoing(app, "/header", verify=STANDARD, id=webhook.header("X-Id"))
    _echoing(app, "/field", verify=STANDARD, id=webhook.field("meta.no"))
    _echoing(
        app, "/function", verify=STANDARD, id=lambda delivery: f"{delivery.body.id}/{delivery.body.cents}"
    )
    site = serve(app)
    body = b'{"id": "p:1", "cents": 450, "meta": {"no": 7}}'
    assert site.send("/header", body, x_id="a b:c").json()["workflow"] == "webhook:header:a%20b%3Ac"
    assert site.send("/field", body).json()["workflow"] == "webhook:field:7"
    assert site.send("/function", body).json()["workflow"] == "webhook:function:p%3A1%2F450"
    for path in ("/header", "/field"):
        refused = site.send(path, BODY, x_id="")
        assert (refused.status_code, refused.json()["type"]) == (400, "urn:refold:webhook:no-identity")
    assert len(site.ids()) == 3


def test_a_very_long_identity_is_kept_by_its_hash(app: App, serve: Serve) -> None:
    _echoing(app, "/open", verify=webhook.none(), id=webhook.header("X-Id"))
    site = serve(app)
    ids = {site.post("/open", BODY, x_id="%" * 200 + last).json()["workflow"] for last in ("a", "b", "a")}
    assert len(ids) == 2
    assert all(each.startswith("webhook:open::long:") for each in ids)


def test_the_same_body_under_an_id_that_is_not_signed_is_reported(
    app: App, serve: Serve, caplog: pytest.LogCaptureFixture
) -> None:
    _echoing(app, "/github", verify=webhook.github(secret="s"))
    site = serve(app)
    assert site.send("/github", BODY, "g-1").json() == {"workflow": "webhook:github:g-1"}
    with caplog.at_level(logging.WARNING, "refold.webhook"):
        caught = site.send("/github", BODY, "g-2")
    assert caught.json() == {"workflow": "webhook:github:g-2", "same_body_as": "webhook:github:g-1"}
    assert caught.headers["refold-same-body"] == "webhook:github:g-1"
    assert "workflow webhook:github:g-2 has the same body as webhook:github:g-1" in caplog.text
    assert site.send("/github", BODY + b" ", "g-3").json() == {"workflow": "webhook:github:g-3"}
    assert "same_body_as" not in site.send("/github", BODY, "g-1").json()


def test_dedup_by_the_body_makes_it_one(app: App, serve: Serve) -> None:
    _echoing(app, "/github", verify=webhook.github(secret="s"), dedup="body")
    _echoing(app, "/open", verify=webhook.none(), dedup="body")
    site = serve(app)
    ids = {site.send("/github", BODY, each).json()["workflow"] for each in ("g-1", "g-2", "")}
    assert len(ids) == 1
    assert {site.post("/open", BODY).json()["workflow"] for _ in range(2)} != ids
    assert site.result(ids.pop()).id == "g-1"
    assert len(site.ids()) == 2


def test_another_body_under_the_same_id_is_a_duplicate_and_a_warning(
    app: App, serve: Serve, caplog: pytest.LogCaptureFixture
) -> None:
    _echoing(app, "/payments", verify=STANDARD)
    site = serve(app)
    site.send("/payments", BODY, "msg_1")
    with caplog.at_level(logging.WARNING, "refold.webhook"):
        other = site.send("/payments", b'{"id": "p-2", "cents": 1}', "msg_1")
    assert (other.status_code, other.json()) == (202, {"workflow": "webhook:payments:msg_1"})
    assert "another body came under the ID of workflow webhook:payments:msg_1" in caplog.text
    assert site.result("webhook:payments:msg_1").body.id == "p-1"


# Idempotency-Key


@pytest.fixture
def orders(app: App, serve: Serve) -> Site:
    """Three endpoints by Idempotency-Key: one that answers at once, one that waits, one that waits alone."""
    endpoints: list[tuple[str, dict[str, Any]]] = [
        ("/orders", {}),
        ("/waiting", {"wait": 30}),
        ("/alone", {"wait": 30, "on_inflight": "conflict"}),
    ]
    for path, options in endpoints:

        @webhook.post(path, verify=webhook.bearer(token="t0ken"), id=webhook.idempotency_key(), **options)
        @app.workflow(name=path.strip("/"))
        def order(delivery: webhook.Delivery[Payment]) -> str:
            return refold.recv("go", str)

    return serve(app)


def _order(site: Site, path: str, key: str, body: bytes = BODY, **headers: str) -> Any:
    return site.post(path, body, authorization="Bearer t0ken", idempotency_key=key, **headers)


@pytest.mark.parametrize("other", ['"k-1"', "k-1", '"k-1";a=b'])
def test_a_key_is_the_same_quoted_or_not_and_another_body_is_422(orders: Site, other: str) -> None:
    first = _order(orders, "/orders", '"k-1"')
    again = _order(orders, "/orders", other)
    assert (first.status_code, first.json()) == (202, {"workflow": "webhook:orders:k-1"})
    assert (again.status_code, again.content) == (202, first.content)
    reused = _order(orders, "/orders", other, b'{"id": "p-2"}')
    assert reused.status_code == 422
    assert reused.headers["content-type"] == "application/problem+json"
    assert reused.json()["type"] == "urn:refold:webhook:key-reused"
    another_type = _order(orders, "/orders", other, content_type="application/vnd.shop+json")
    assert another_type.status_code == 422
    assert orders.ids() == ["webhook:orders:k-1"]


@pytest.mark.parametrize("key", ["", '""', '"unfinished', "a b", '"größer"', "x" * 256, '"a\\b"', 'a"b'])
def test_a_key_that_is_none_is_400(orders: Site, key: str) -> None:
    headers = {"authorization": "Bearer t0ken", "content-type": "application/json"}
    pairs = [(name.encode(), value.encode()) for name, value in (*headers.items(), ("idempotency-key", key))]
    refused = orders.client.post(f"{orders.url}/orders", content=BODY, headers=pairs)
    assert (refused.status_code, refused.json()["type"]) == (400, "urn:refold:webhook:no-identity")
    assert orders.client.post(f"{orders.url}/orders", content=BODY, headers=headers).status_code == 400
    assert orders.ids() == []


def test_escapes_in_a_key_are_read(orders: Site) -> None:
    answer = _order(orders, "/orders", '"a\\"b\\\\c d"')
    assert answer.json() == {"workflow": "webhook:orders:a%22b%5Cc%20d"}


def test_a_key_that_is_not_required_stands_for_itself(app: App, serve: Serve) -> None:
    _echoing(app, "/open", verify=webhook.none(), id=webhook.idempotency_key(required=False))
    site = serve(app)
    ids = {site.post("/open", BODY).json()["workflow"] for _ in range(3)}
    assert len(ids) == 3
    assert site.post("/open", BODY, idempotency_key="").status_code == 400


def test_waiting_gets_the_result_and_so_does_everybody_who_joins(orders: Site) -> None:
    soon = _order(orders, "/waiting", "k-1", prefer="respond-async, wait=0")
    assert (soon.status_code, soon.json()) == (202, {"workflow": "webhook:waiting:k-1"})
    assert _order(orders, "/alone", "k-1", prefer="wait=0").status_code == 202
    conflict = _order(orders, "/alone", "k-1")
    assert (conflict.status_code, conflict.json()["workflow"]) == (409, "webhook:alone:k-1")
    assert conflict.json()["type"] == "urn:refold:webhook:in-flight"
    for path in ("waiting", "alone"):
        orders.app.send(f"webhook:{path}:k-1", "gone", topic="go")
    orders.result("webhook:alone:k-1")
    expected = {"status": "completed", "result": "gone"}
    for path in ("waiting", "alone"):
        for _ in range(2):
            answer = _order(orders, f"/{path}", "k-1")
            assert answer.status_code == 200
            assert answer.json() == {"workflow": f"webhook:{path}:k-1", **expected}


def test_a_workflow_that_fails_is_told_by_its_status_and_nothing_more(app: App, serve: Serve) -> None:
    @webhook.post("/fail", verify=STANDARD, wait=30)
    @app.workflow
    def fail(delivery: webhook.Delivery[Payment]) -> None:
        raise ValueError("the secret is s3cret")

    site = serve(app)
    for _ in range(2):
        answer = site.send("/fail", BODY)
        assert (answer.status_code, answer.json()) == (
            200,
            {"workflow": "webhook:fail:d-1", "status": "failed"},
        )


# What does not fit


def test_a_signed_body_that_does_not_fit_is_kept_as_a_failed_workflow(
    app: App, serve: Serve, log: Log
) -> None:
    _echoing(app, "/payments", verify=STANDARD)
    _echoing(app, "/function", verify=STANDARD, id=lambda delivery: delivery.body.id)
    site = serve(app)
    body = b'{"id": "p-1", "cents": "many"}'
    for _ in range(2):
        answer = site.send("/payments", body, "msg_1")
        assert answer.status_code == 202
        assert answer.json() == {
            "workflow": "webhook:payments:msg_1",
            "misfit": "Expected `int`, got `str` - at `$.cents`",
        }
    assert log.status("webhook:payments:msg_1") == "failed"
    (started,) = log.events("webhook:payments:msg_1", "WorkflowStarted")
    assert started["input"]["delivery"]["text"] == body.decode()
    (failed,) = log.events("webhook:payments:msg_1", "WorkflowFailed")
    assert "the body of a delivery to /payments" in str(failed["error"])
    # Its identity was to be a function of what does not fit: it is kept by its bytes.
    assert {site.send("/function", body).json()["workflow"] for _ in range(2)} == {
        site.ids()[0] if site.ids()[0] != "webhook:payments:msg_1" else site.ids()[1]
    }
    assert len(site.ids()) == 2


def test_an_unsigned_body_that_does_not_fit_is_refused(app: App, serve: Serve) -> None:
    _echoing(app, "/open", verify=webhook.none(), dedup="body")
    site = serve(app)
    refused = site.post("/open", b'{"id": 5}')
    assert (refused.status_code, refused.json()["detail"]) == (400, "Expected `str`, got `int` - at `$.id`")
    assert site.ids() == []


# Signals


def test_a_signal_is_delivered_once_into_the_workflow_that_it_names(app: App, serve: Serve) -> None:
    class Verdict(msgspec.Struct):
        order: str
        is_ok: bool

    @webhook.signal(
        "/verdicts",
        to=lambda delivery: f"approval-{delivery.body.order}",
        topic="verdict",
        body=Verdict,
        value=lambda delivery: delivery.body.is_ok,
        verify=STANDARD,
    )
    @webhook.signal(
        "/notes",
        to=lambda delivery: delivery.header("x-to") or "",
        topic="note",
        verify=STANDARD,
        name="notes",
    )
    @app.workflow
    def approval() -> list[Any]:
        return [refold.recv("verdict", bool), refold.recv("verdict", bool), refold.recv("note")]

    site = serve(app)
    # The first comes before the workflow has started, and waits for it.
    for _ in range(2):
        answer = site.send("/verdicts", b'{"order": "7", "is_ok": true}', "v-1")
        assert (answer.status_code, answer.json()) == (202, {"workflow": "approval-7", "delivered": True})
    approval.options(id="approval-7").start()
    site.send("/verdicts", b'{"order": "7", "is_ok": false}', "v-2")
    site.send("/notes", b'{"any": ["thing"]}', "n-1", x_to="approval-7")
    assert site.result("approval-7") == [True, False, {"any": ["thing"]}]
    late = site.send("/verdicts", b'{"order": "7", "is_ok": true}', "v-3")
    assert (late.status_code, late.json()) == (202, {"workflow": "approval-7", "delivered": False})
    for refused in (
        site.send("/verdicts", b'{"order": "7"}', "v-4"),
        site.send("/notes", b"1", "n-2", x_to=""),
        site.send("/notes", b"1", "n-3", x_to="source:7"),
        site.send("/notes", b"1", "n-4", x_to="x" * 600),
    ):
        assert refused.status_code == 400
    assert site.ids() == ["approval-7"]


# CloudEvents


def test_ids_of_cloud_events_that_cannot_be_read_do_not_become_one(app: App, serve: Serve) -> None:
    _echoing(app, "/events", verify=webhook.none(), id=webhook.cloudevents())
    site = serve(app)
    for id in ("%ff", "%fe"):
        said = site.post("/events", BODY, ce_specversion="1.0", ce_id=id, ce_source="/s", ce_type="paid")
        assert (said.status_code, said.json()["detail"]) == (
            400,
            "this is no CloudEvent: the header ce-id is no UTF-8, percent-encoded",
        )
    assert site.ids() == []


def test_a_cloud_event_is_known_by_its_source_and_id_however_it_comes(app: App, serve: Serve) -> None:
    _echoing(app, "/events", verify=webhook.none(), id=webhook.cloudevents())
    site = serve(app)
    binary = site.post(
        "/events", BODY, ce_specversion="1.0", ce_id="1", ce_source="/shop%20a", ce_type="paid"
    )
    attributes = {"specversion": "1.0", "id": "1", "source": "/shop a", "type": "paid"}
    envelope = {**attributes, "data": json.loads(BODY), "count": 5}
    structured = site.post(
        "/events", json.dumps(envelope).encode(), content_type="application/cloudevents+json"
    )
    assert binary.json() == structured.json() == {"workflow": "webhook:events:%2Fshop%20a:1"}
    got = site.result("webhook:events:%2Fshop%20a:1")
    assert got.body == Payment("p-1", 450)
    assert got.event == {**attributes, "datacontenttype": "application/json"}

    batch = [
        envelope,
        {**envelope, "id": "2"},
        {**envelope, "source": "/b", "data_base64": "eyJpZCI6ICJ4In0="},
    ]
    del batch[2]["data"]
    answer = site.post(
        "/events",
        json.dumps(batch).encode(),
        content_type="application/cloudevents-batch+json; charset=utf-8",
    )
    assert answer.status_code == 202
    assert [each["workflow"] for each in answer.json()["workflows"]] == [
        "webhook:events:%2Fshop%20a:1",
        "webhook:events:%2Fshop%20a:2",
        "webhook:events:%2Fb:1",
    ]
    third = site.result("webhook:events:%2Fb:1")
    assert third.body == Payment("x")
    assert third.event["count"] == "5"
    assert json.loads(third.raw) == batch[2]


@pytest.mark.parametrize(
    "change",
    [{"id": None}, {"id": ""}, {"id": 5.5}, {"source": None}, {"type": None}, {"specversion": "0.3"},
     {"data_base64": "!"}, {"data": "no payment"}],
    ids=str,
)  # fmt: skip
def test_what_is_no_cloud_event_starts_nothing(app: App, serve: Serve, change: dict[str, Any]) -> None:
    _echoing(app, "/events", verify=webhook.none(), id=webhook.cloudevents())
    site = serve(app)
    whole = {"specversion": "1.0", "id": "1", "source": "/a", "type": "t", "data": {"id": "p"}} | change
    envelope = json.dumps({name: value for name, value in whole.items() if value is not None}).encode()
    for body, kind in ((envelope, "cloudevents+json"), (b"[" + envelope + b"]", "cloudevents-batch+json")):
        assert site.post("/events", body, content_type=f"application/{kind}").status_code == 400
    assert site.post("/events", BODY).status_code == 400
    assert site.ids() == []


def test_a_sender_of_cloud_events_is_allowed_to(app: App, serve: Serve) -> None:
    _echoing(app, "/events", verify=webhook.none(), id=webhook.cloudevents())
    site = serve(app)
    answer = site.client.options(f"{site.url}/events", headers={"WebHook-Request-Origin": "shop.example"})
    assert answer.status_code == 200
    assert answer.headers["webhook-allowed-origin"] == "shop.example"


# Handshakes


def test_slack_s_challenge_and_github_s_ping_are_answered_and_start_nothing(app: App, serve: Serve) -> None:
    _echoing(app, "/slack", verify=webhook.slack(secret="s"))
    _echoing(app, "/github", verify=webhook.github(secret="s"))
    _echoing(app, "/pushes", verify=webhook.github(secret="s", events=["push", "ping"]))
    site = serve(app)
    challenge = b'{"type": "url_verification", "challenge": "3eZbrw1", "token": "x"}'
    assert site.send("/slack", challenge).json() == {"challenge": "3eZbrw1"}
    assert site.post("/slack", challenge).status_code == 401
    assert site.send("/github", BODY, x_github_event="ping").json() == {"ignored": "ping"}
    assert site.send("/pushes", BODY, x_github_event="star").json() == {"ignored": "star"}
    assert site.ids() == []
    assert site.send("/pushes", BODY, x_github_event="ping").status_code == 202


def test_questions_in_the_query_are_echoed(app: App, serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VERIFY_TOKEN", "t0ken")
    _echoing(app, "/meta", verify=STANDARD, handshake=webhook.echo("hub.challenge", token="env:VERIFY_TOKEN"))
    _echoing(app, "/graph", verify=STANDARD, handshake=webhook.echo("validationToken"))
    site = serve(app)
    asked = f"{site.url}/meta?hub.mode=subscribe&hub.challenge=1158201444&hub.verify_token="
    answer = site.client.get(f"{asked}t0ken")
    assert (answer.status_code, answer.text) == (200, "1158201444")
    assert answer.headers["content-type"] == "text/plain; charset=utf-8"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert site.client.get(f"{asked}other").status_code == 401
    assert site.client.get(f"{asked}").status_code == 401
    graph = site.client.post(f"{site.url}/graph?validationToken=Validation%3A%20Testing", content=b"")
    assert (graph.status_code, graph.text) == (200, "Validation: Testing")
    assert site.client.get(f"{site.url}/graph?validationToken=%00").status_code == 400
    assert site.client.get(f"{site.url}/graph").status_code == 405
    assert site.ids() == []


# Declarations


def test_a_declaration_that_cannot_work_is_refused(app: App) -> None:
    @app.workflow
    def fits(delivery: webhook.Delivery[Payment]) -> None: ...

    @app.workflow
    def takes_none() -> None: ...

    good: dict[str, Any] = {"verify": STANDARD}
    refusals: list[tuple[str, dict[str, Any], str]] = [
        ("payments", good, "that is no path of an endpoint"),
        ("/payments/", good, "that is no path of an endpoint"),
        ("/openapi.json", good, "that is no path of an endpoint"),
        ("/p", {"verify": None}, "is no verifier"),
        ("/p", {"verify": webhook.none()}, "nothing says what a delivery is known by"),
        ("/p", {"verify": webhook.bearer(token="t")}, "nothing says what a delivery is known by"),
        ("/p", {**good, "id": "X-Id"}, "id='X-Id'"),
        ("/p", {**good, "dedup": "id"}, "dedup='id'"),
        ("/p", {**good, "max_body": 0}, "max_body=0"),
        ("/p", {**good, "timeout": 0}, "timeout=0"),
        ("/p", {**good, "on_inflight": "conflict"}, "on_inflight='conflict'"),
    ]
    for path, options, what in refusals:
        with pytest.raises(DefinitionRefused, match=what.replace("(", r"\(")):
            webhook.post(path, **options)(fits)
    with pytest.raises(DefinitionRefused, match=r"calls it with one webhook\.Delivery"):
        webhook.post("/p", verify=STANDARD)(takes_none)
    with pytest.raises(DefinitionRefused, match="which is no workflow"):
        webhook.post("/p", verify=STANDARD)(len)  # type: ignore[type-var]
    webhook.post("/p", verify=STANDARD)(fits)
    with pytest.raises(DefinitionRefused, match="has an endpoint at /p already"):
        webhook.post("/p", verify=STANDARD, name="other")(fits)
    with pytest.raises(DefinitionRefused, match="has a webhook called 'fits' already"):
        webhook.post("/q", verify=STANDARD)(fits)


def test_a_delivery_made_by_hand_needs_a_body_only(app: App) -> None:
    delivery = webhook.Delivery(body=Payment("p-1", 5))
    assert delivery.raw == b'{"id":"p-1","cents":5}'
    assert delivery.header("x") is None
    assert webhook.Delivery(body=b"\xff").raw == b"\xff"
    assert webhook.Delivery(body="ü").raw == "ü".encode()
