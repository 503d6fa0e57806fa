"""What is not taken: the right status, a problem+json body, soon, and nothing started. Raw sockets where clients are
too well-behaved."""

import asyncio
import contextlib
import gzip
import socket
import threading
from collections.abc import Iterator
from functools import partial
from typing import Any
from urllib.parse import urlsplit

import httpx2
import pytest

from fixtures.postgres import OwnPostgres
from fixtures.proxy import CutProxy, Direction
from fixtures.webhooks import Serve, Site
from fixtures.workers import wait_for
from refold import App
from refold.connectors import webhook
from refold.connectors.webhook._asgi import Hooks, asgi

BODY = b'{"id": "p-1"}'


@pytest.fixture
def site(serve: Serve) -> Site:
    """Small limits, so that they are reached soon."""
    app = App("shop")

    @webhook.post("/open", verify=webhook.none(), dedup="body", max_body=1000, body_timeout=0.5)
    @app.workflow
    def take(delivery: webhook.Delivery[dict[str, Any]]) -> None: ...

    @webhook.post("/signed", verify=webhook.github(secret="s"), max_body=1000, body_timeout=30)
    @app.workflow
    def signed(delivery: webhook.Delivery[dict[str, Any]]) -> None: ...

    return serve(app)


def _is_problem(answer: httpx2.Response, status: int, code: str) -> bool:
    said = answer.json()
    assert answer.headers["content-type"] == "application/problem+json"
    assert said["status"] == answer.status_code
    assert said["title"]
    return (answer.status_code, said["type"]) == (status, f"urn:refold:webhook:{code}")


@pytest.mark.parametrize("path", ["/nope", "/", "/open/", "/Open", "/open/x", "/%00", "/../open", "//open"])
def test_an_unknown_path_is_404(site: Site, path: str) -> None:
    for url in (site.url, site.url.removesuffix("/hooks")):
        answer = site.client.post(url + path, content=BODY)
        assert answer.headers["content-type"] == "application/problem+json"
        said = answer.json()
        assert (answer.status_code, said["status"], said["type"].split(":")[-1]) == (
            404,
            404,
            "no-such-endpoint",
        )


@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "PATCH", "DELETE"])
def test_another_method_is_405_with_the_ones_there_are(site: Site, method: str) -> None:
    answer = site.client.request(method, f"{site.url}/open", content=BODY)
    assert answer.headers["allow"] == "POST, OPTIONS"
    if method != "HEAD":
        assert _is_problem(answer, 405, "method-not-allowed")
    assert site.client.options(f"{site.url}/open").status_code == 204
    assert site.ids() == []


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"nul", b'{"a": 1}x', b"\xff\xfe", b'{"a": "\xff"}', b'"\\ud800"', b"[" * 999, b"NaN", b'{"a": 1,}',
     '{"id": "p-1"}'.encode("utf-16"), b"\xef\xbb\xbf{}"],
    ids=lambda body: repr(body[:12]),
)  # fmt: skip
def test_what_is_no_json_is_400(site: Site, body: bytes) -> None:
    assert _is_problem(site.post("/open", body), 400, "bad-body")
    assert _is_problem(site.send("/signed", body), 400, "bad-body")
    assert site.ids() == []


@pytest.mark.parametrize(
    "kind",
    ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", "json", "*/*"],
)
def test_another_content_type_is_415(site: Site, kind: str) -> None:
    assert _is_problem(site.post("/open", BODY, content_type=kind), 415, "unsupported-type")
    zipped = site.post("/open", gzip.compress(BODY), content_encoding="gzip")
    assert _is_problem(zipped, 415, "unsupported-type")
    assert site.ids() == []


@pytest.mark.parametrize(
    "kind", ["application/json", "Application/JSON; charset=utf-8", "application/vnd.github+json", ""]
)
def test_json_by_any_of_its_names_is_taken(site: Site, kind: str) -> None:
    assert site.post("/open", BODY, content_type=kind).status_code == 202


def test_a_stranger_is_401_and_hears_nothing_more(site: Site) -> None:
    refused = [
        site.post("/signed", BODY),
        site.post("/signed", BODY, x_hub_signature_256="sha256=00", x_github_delivery="1"),
        site.post("/signed", b"no JSON at all", x_hub_signature_256="x"),
        site.post("/signed", BODY, content_type="text/plain"),
    ]
    assert all(_is_problem(answer, 401, "not-verified") for answer in refused)
    assert len({answer.content for answer in refused}) == 1
    assert site.ids() == []


# Sizes


@pytest.mark.parametrize(
    "header", [b"Content-Length: 100000000", b"Content-Length: 1001\r\nExpect: 100-continue"]
)
def test_a_declared_size_above_the_limit_is_413_before_anything_is_read(site: Site, header: bytes) -> None:
    with _Raw(site) as raw:
        raw.send(b"POST /hooks/open HTTP/1.1\r\nHost: x\r\n" + header + b"\r\n\r\n")
        assert raw.status() == 413


def test_who_sends_a_little_too_much_hears_why_on_a_connection_that_goes_on(site: Site) -> None:
    with _Raw(site) as raw:
        raw.send(b"POST /hooks/open HTTP/1.1\r\nHost: x\r\nContent-Length: 200000\r\n\r\n" + b" " * 200_000)
        raw.send(b"GET /hooks/open HTTP/1.1\r\nHost: x\r\n\r\n")
        assert [raw.status(), raw.status()] == [413, 405]
    endless = (b" " * 65_536 for _ in range(1_000_000))
    with contextlib.suppress(httpx2.TransportError):  # or the client has read the answer while it sent
        assert site.client.post(f"{site.url}/open", content=endless).status_code == 413
    assert site.ids() == []


def test_a_body_is_counted_as_it_comes(site: Site) -> None:
    def chunks() -> Iterator[bytes]:
        for _ in range(50):
            yield b" " * 100

    assert _is_problem(site.client.post(f"{site.url}/open", content=chunks()), 413, "too-large")
    exact = b'{"a": "' + b"x" * 991 + b'"}'
    assert len(exact) == 1000
    assert site.post("/open", exact).status_code == 202
    assert site.post("/open", exact + b" ").status_code == 413


def test_a_slow_body_is_408_and_its_connection_ends(site: Site) -> None:
    with _Raw(site) as raw:
        raw.send(b"POST /hooks/open HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{")
        assert raw.status() == 408
        raw.wait_end()
    assert site.ids() == []


def test_who_hangs_up_starts_nothing(site: Site) -> None:
    for sent in (b'{"id"', b""):
        with _Raw(site) as raw:
            raw.send(b"POST /hooks/signed HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n" + sent)
    assert site.post("/open", BODY).status_code == 202
    assert len(site.ids()) == 1


def test_bodies_in_memory_have_a_limit_and_it_is_given_back(serve: Serve, site: Site) -> None:
    hooks: Hooks = asgi(site.app, max_in_memory=900)
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b" " * 901}

    async def send(message: Any) -> None:
        sent.append(message)

    for _ in range(2):
        asyncio.run(hooks(_scope("/open"), receive, send))
    assert [message["status"] for message in sent[::2]] == [503, 503]
    assert (b"retry-after", b"5") in sent[0]["headers"]
    assert hooks._held == 0


def _scope(path: str) -> dict[str, Any]:
    return {
        "type": "http",
        "method": "POST",
        "path": path,
        "headers": [],
        "query_string": b"",
        "root_path": "",
    }


class _Raw:
    """A connection that sends what it is told, and nothing else."""

    def __init__(self, site: Site) -> None:
        address = urlsplit(site.url)
        assert address.hostname is not None and address.port is not None
        self._socket = socket.create_connection((address.hostname, address.port), timeout=60)
        self._unread = b""

    def __enter__(self) -> "_Raw":
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def send(self, data: bytes) -> None:
        self._socket.sendall(data)

    def status(self) -> int:
        """Return the status of the next answer, which is read to its end."""
        while b"\r\n\r\n" not in self._unread:
            self._unread += self._more()
        head, _, self._unread = self._unread.partition(b"\r\n\r\n")
        size = int(head.lower().partition(b"content-length: ")[2].split()[0])
        while len(self._unread) < size:
            self._unread += self._more()
        self._unread = self._unread[size:]
        return int(head.split()[1])

    def _more(self) -> bytes:
        data = self._socket.recv(1000)
        assert data, "the connection has ended"
        return data

    def wait_end(self) -> None:
        """Wait until the other side has closed."""
        while self._socket.recv(1000):
            pass


# Postgres


def test_without_postgres_the_answer_is_503_soon_and_the_next_try_is_taken(
    serve: Serve, own_postgres: OwnPostgres
) -> None:
    app = App("shop", database_url=own_postgres.url_of(own_postgres.create_database()))

    @webhook.post("/open", verify=webhook.none(), id=webhook.header("X-Id"))
    @app.workflow
    def take(delivery: webhook.Delivery[dict[str, Any]]) -> str:
        return delivery.id

    site = serve(app)
    assert site.post("/open", BODY, x_id="1").status_code == 202
    own_postgres.kill()
    refused = site.post("/open", BODY, x_id="2")
    assert _is_problem(refused, 503, "not-recorded")
    assert refused.headers["retry-after"] == "5"
    own_postgres.start()
    wait_for(lambda: site.post("/open", BODY, x_id="2").status_code == 202, "Postgres is used again")
    assert site.result("webhook:take:2") == "2"
    assert site.ids() == ["webhook:take:1", "webhook:take:2"]


def test_a_postgres_that_stalls_gets_503_for_each_and_nobody_waits_for_it(
    serve: Serve, cut_proxy: CutProxy
) -> None:
    app = App("shop", database_url=cut_proxy.url)

    @webhook.post("/open", verify=webhook.none(), id=webhook.header("X-Id"), timeout=0.5)
    @app.workflow
    def take(delivery: webhook.Delivery[dict[str, Any]]) -> str:
        return delivery.id

    site = serve(app)
    cut_proxy.hold(Direction.TO_CLIENT)
    answers: list[int] = []

    def try_it(number: int) -> None:
        answers.append(site.post("/open", BODY, x_id=f"s-{number}").status_code)

    threads = [threading.Thread(target=try_it, args=(number,)) for number in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == [503] * 20
    cut_proxy.release()
    for number in range(20):
        again = f"s-{number}"
        wait_for(partial(_is_taken, site, again), again)
        assert site.result(f"webhook:take:{again}") == again
    assert len(site.ids()) == 20


def _is_taken(site: Site, delivery_id: str) -> bool:
    return site.post("/open", BODY, x_id=delivery_id).status_code == 202


def test_what_is_nested_so_deeply_that_a_rebuild_could_not_read_it_is_refused(serve: Serve) -> None:
    app = App("shop")

    @webhook.post("/deep", verify=webhook.none(), id=webhook.header("x-id"))
    @app.workflow
    def deep(delivery: webhook.Delivery[Any]) -> None: ...

    site = serve(app)
    assert site.post("/deep", b"[" * 300 + b"]" * 300, x_id="300").status_code == 202
    for depth in range(
        950, 990, 4
    ):  # some Pythons go deeper; whatever is taken here, every test's log is rebuilt
        assert site.post("/deep", b"[" * depth + b"]" * depth, x_id=str(depth)).status_code in (202, 400)
    said = site.post("/deep", b"[" * 100_000 + b"]" * 100_000, x_id="deepest")
    assert (said.status_code, said.json()["type"]) == (400, "urn:refold:webhook:bad-body")
    assert site.post("/deep", b"[" + b"{}," * 10_000 + b"{}]", x_id="flat").status_code == 202
