"""Each message of a stream is one workflow: streams that are made again, servers that go away, consumers of others."""

import logging
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import msgspec
import psycopg
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fixtures.nats_server import NatsServer, require_program
from fixtures.workers import wait_for
from refold import App
from refold.connectors import nats
from refold.connectors.nats._jetstream import ConsumerConfig, JetStreamRefused
from refold.connectors.nats._message import start_of
from refold.connectors.nats._reader import Settings, problem_of
from refold.core import DefinitionRefused, Envelope
from refold.testing._probe import Probe, ProbedApp


class Order(msgspec.Struct):
    id: str
    amount: int = 1


def order(id: str) -> bytes:
    return msgspec.json.encode(Order(id))


class Running:
    """An app that reads `stream` while the block runs; its workflow returns the order's ID and the subject."""

    def __init__(
        self,
        url: str,
        server: NatsServer,
        stream: str,
        subject: str | None = None,
        *,
        app: App | None = None,
        **options: Any,
    ) -> None:
        self.app = app or App("shop", database_url=url)

        @nats.consumer(
            stream,
            name="checkout",
            servers=server.url,
            subject=subject,
            **{"ack_wait": timedelta(seconds=2), **options},
        )
        @self.app.workflow
        def on_order(message: nats.Message[Order]) -> list[str]:
            return [message.value.id, message.subject, message.headers.get("Trace", "")]

    def results(self) -> list[list[str]]:
        page = self.app.list(name="on_order", limit=1_000)
        return sorted(self.app.get(info.id).result() for info in page.items if info.status == "completed")

    def ids(self) -> list[str]:
        return [info.id for info in self.app.list(name="on_order", limit=1_000).items]

    def wait_for(self, count: int) -> None:
        wait_for(lambda: len(self.results()) >= count, f"{count} workflows completed", timeout=60)


@contextmanager
def running(
    url: str, server: NatsServer, stream: str, subject: str | None = None, **options: Any
) -> Iterator[Running]:
    reads = Running(url, server, stream, subject, **options)
    with reads.app:
        yield reads


@pytest.fixture
def stream(nats_server: NatsServer) -> str:
    """The name of a new stream, of the subjects {name}.>"""
    name = f"orders-{uuid4().hex[:10]}"
    nats_server.make_stream(name)
    return name


def test_a_message_starts_a_workflow_with_its_value_subject_and_headers(
    database_url: str, nats_server: NatsServer, stream: str
) -> None:
    with running(database_url, nats_server, stream) as reads:
        nats_server.publish(f"{stream}.new", order("o-1"), headers={"Trace": "t-1"})
        reads.wait_for(1)
        assert reads.results() == [["o-1", f"{stream}.new", "t-1"]]
        wait_for(lambda: nats_server.unacknowledged(stream, "checkout") == 0, "acknowledged", timeout=60)


def test_the_messages_of_a_stream_that_was_made_again_are_other_messages(
    database_url: str, nats_server: NatsServer, stream: str
) -> None:
    with running(database_url, nats_server, stream) as reads:
        assert nats_server.publish(f"{stream}.new", order("old-1"), order("old-2")) == [1, 2]
        reads.wait_for(2)
        nats_server.delete_stream(stream)
        nats_server.make_stream(stream)
        assert nats_server.publish(f"{stream}.new", order("new-1"), order("new-2")) == [1, 2]
        reads.wait_for(4)
        assert [id for id, *_ in reads.results()] == ["new-1", "new-2", "old-1", "old-2"]
        assert len(set(reads.ids())) == 4


def test_a_stream_that_was_made_again_while_no_worker_ran_is_read_from_its_first_message(
    database_url: str, nats_server: NatsServer, stream: str
) -> None:
    with running(database_url, nats_server, stream) as reads:
        nats_server.publish(f"{stream}.new", order("old-1"))
        reads.wait_for(1)
    nats_server.delete_stream(stream)
    nats_server.make_stream(stream)
    nats_server.publish(f"{stream}.new", order("new-1"))
    with running(database_url, nats_server, stream) as reads:
        reads.wait_for(2)
        assert [id for id, *_ in reads.results()] == ["new-1", "old-1"]


def test_only_messages_of_the_subject_are_taken(
    database_url: str, nats_server: NatsServer, stream: str
) -> None:
    with running(database_url, nats_server, stream, subject=f"{stream}.paid") as reads:
        nats_server.publish(f"{stream}.new", order("o-1"))
        nats_server.publish(f"{stream}.paid", order("o-2"))
        reads.wait_for(1)
        assert [id for id, *_ in reads.results()] == ["o-2"]


def test_a_server_that_goes_away_and_comes_back_loses_nothing(
    database_url: str, nats_server: NatsServer, stream: str
) -> None:
    with running(database_url, nats_server, stream) as reads:
        nats_server.publish(f"{stream}.new", order("o-1"))
        reads.wait_for(1)
        nats_server.stop()
        nats_server.start()
        nats_server.publish(f"{stream}.new", order("o-2"))
        reads.wait_for(2)


def test_a_worker_may_start_before_the_server_and_the_stream_are_there_and_stop_without_them(
    database_url: str, nats_server: NatsServer, caplog: pytest.LogCaptureFixture
) -> None:
    name = f"later-{uuid4().hex[:10]}"
    with caplog.at_level(logging.WARNING, "refold.nats"), running(database_url, nats_server, name) as reads:
        wait_for(lambda: "stream not found" in caplog.text, "the missing stream is named", timeout=60)
        nats_server.make_stream(name)
        nats_server.publish(f"{name}.new", order("o-1"))
        reads.wait_for(1)
        nats_server.stop()
        wait_for(lambda: "reach NATS at" in caplog.text, "the missing server is named", timeout=60)
    nats_server.start()


def test_a_durable_consumer_that_gives_messages_up_is_not_used(
    database_url: str, nats_server: NatsServer, stream: str, caplog: pytest.LogCaptureFixture
) -> None:
    nats_server.make_consumer(stream, durable_name="checkout", ack_policy="explicit", max_deliver=3)
    with caplog.at_level(logging.WARNING, "refold.nats"), running(database_url, nats_server, stream) as reads:
        nats_server.publish(f"{stream}.new", order("o-1"))
        wait_for(lambda: "gives a message up after 3 deliveries" in caplog.text, "it says why", timeout=60)
        assert reads.ids() == []
        nats_server.delete_consumer(stream, "checkout")
        reads.wait_for(1)


def test_nothing_is_acknowledged_that_postgres_does_not_have(
    database_url: str, nats_server: NatsServer, stream: str, caplog: pytest.LogCaptureFixture
) -> None:
    with (
        caplog.at_level(logging.WARNING, "refold.nats"),
        running(database_url, nats_server, stream) as reads,
        psycopg.connect(database_url) as other,
    ):
        wait_for(lambda: nats_server.consumer(stream, "checkout"), "the consumer is made", timeout=60)
        other.execute("lock table refold.events in access exclusive mode")
        nats_server.publish(f"{stream}.new", order("o-1"))
        wait_for(lambda: "the messages come again" in caplog.text, "it gives up for now", timeout=60)
        assert nats_server.unacknowledged(stream, "checkout") == 1
        other.rollback()
        reads.wait_for(1)
        wait_for(lambda: nats_server.unacknowledged(stream, "checkout") == 0, "acknowledged", timeout=60)


def test_the_report_says_what_the_server_said_last(
    database_url: str, nats_server: NatsServer, stream: str
) -> None:
    with running(database_url, nats_server, stream) as reads:
        [connector] = reads.app.connectors
        nats_server.publish(f"{stream}.new", order("o-1"), order("o-2"))
        reads.wait_for(2)
        nats_server.publish(f"{stream}.new", order("o-3"))
        reads.wait_for(3)
        wait_for(lambda: connector.report()[0].lag == 0, "the report says that all is read", timeout=60)
        [report] = connector.report()
        assert (report.source, report.label, report.paused) == ("nats:checkout", "checkout", False)
        assert report.position == "acknowledged up to 3"
        assert connector.describe() == [f"checkout: stream {stream} at {nats_server.url}"]


def test_whatever_a_publisher_sends_is_a_message_and_holds_nobody_up(
    database_url: str, nats_server: NatsServer, stream: str
) -> None:
    with running(database_url, nats_server, stream) as reads:
        # As JetStream itself says that a request is over, and as it would never say it.
        nats_server.publish(f"{stream}.new", b"", headers={"Status": "408"})
        nats_server.publish(f"{stream}.new", b"", headers={"Status": "paid"})
        name = stream.encode()
        nats_server.publish_bytes(name + b".caf\xe9", order("latin"), b"NATS/1.0\r\n\r\n")
        nats_server.publish_bytes(name + b".new", order("no headers"), b"x")
        nats_server.publish_bytes(name + b".new", order("status"), b"NATS/1.0 \xff\xff\xff\r\n\r\n")
        nats_server.publish(f"{stream}.new", order("o-1"))
        reads.wait_for(4)
        assert sorted((id, subject) for id, subject, _ in reads.results()) == [
            ("latin", f"{stream}.caf\ufffd"),
            ("no headers", f"{stream}.new"),
            ("o-1", f"{stream}.new"),
            ("status", f"{stream}.new"),
        ]
        assert len(reads.app.list(status="failed").items) == 2
        wait_for(lambda: nats_server.unacknowledged(stream, "checkout") == 0, "acknowledged", timeout=60)


def test_a_message_in_the_place_of_one_that_its_server_has_lost_is_another_one(
    database_url: str, nats_server: NatsServer, stream: str, tmp_path: Path
) -> None:
    with running(database_url, nats_server, stream) as reads:
        nats_server.publish(f"{stream}.new", order("o-1"))
        reads.wait_for(1)
        wait_for(lambda: nats_server.unacknowledged(stream, "checkout") == 0, "acknowledged", timeout=60)
        nats_server.stop()
        shutil.copytree(nats_server.data, tmp_path / "data")
        nats_server.start()
        assert nats_server.publish(f"{stream}.new", order("lost")) == [2]
        reads.wait_for(2)
        # Power fails, and what the server had not written to its disk yet was never there.
        nats_server.stop()
        shutil.rmtree(nats_server.data)
        shutil.copytree(tmp_path / "data", nats_server.data)
        nats_server.start()
        assert nats_server.publish(f"{stream}.new", order("o-2")) == [2]
        reads.wait_for(3)
        assert [id for id, *_ in reads.results()] == ["lost", "o-1", "o-2"]


def test_what_came_before_the_stop_is_there_for_the_next_worker_soon(
    database_url: str, nats_server: NatsServer, stream: str, tmp_path: Path
) -> None:
    day = timedelta(days=1)
    gate = tmp_path / "gate"
    gate.touch()
    said: list[str] = []
    held = ProbedApp("shop", database_url=database_url, probe=Probe(said.append, gate, None))
    reads = Running(database_url, nats_server, stream, ack_wait=day, app=held)
    reads.app.start_worker()
    wait_for(lambda: nats_server.consumer(stream, "checkout"), "the consumer is made", timeout=60)
    nats_server.publish(f"{stream}.new", order("o-0"))
    wait_for(lambda: "held" in said, "it is about to be handed over", timeout=60)
    nats_server.publish(f"{stream}.new", *[order(f"o-{number}") for number in range(1, 5)])
    wait_for(lambda: nats_server.in_hands(stream, "checkout") == 5, "delivered", timeout=60)
    [connector] = reads.app.connectors
    stopping = threading.Thread(target=reads.app.close)
    stopping.start()
    wait_for(lambda: vars(connector)["_thread"] is None, "it is stopping", timeout=60)
    gate.unlink()
    stopping.join(60)
    with running(database_url, nats_server, stream, ack_wait=day) as reads:
        reads.wait_for(5)


def test_from_now_on_means_from_the_first_time_on_whoever_deletes_the_consumer_since(
    database_url: str, nats_server: NatsServer, stream: str
) -> None:
    nats_server.publish(f"{stream}.new", order("before"))
    with running(database_url, nats_server, stream, start="new") as reads:
        wait_for(lambda: nats_server.consumer(stream, "checkout"), "the consumer is made", timeout=60)
        nats_server.publish(f"{stream}.new", order("o-1"))
        reads.wait_for(1)
        nats_server.delete_consumer(stream, "checkout")
        nats_server.publish(f"{stream}.new", order("o-2"))
        reads.wait_for(2)
        nats_server.delete_stream(stream)
        nats_server.make_stream(stream)
        nats_server.publish(f"{stream}.new", order("o-3"))
        reads.wait_for(3)
        assert [id for id, *_ in reads.results()] == ["o-1", "o-2", "o-3"]


def test_a_durable_consumer_with_limits_of_its_own_is_used_within_them(
    database_url: str, nats_server: NatsServer, stream: str
) -> None:
    nats_server.make_limited_consumer(
        stream, "checkout", max_ack_pending=3, max_batch=2, max_expires=10**9, max_bytes=4096
    )
    with running(database_url, nats_server, stream) as reads:
        nats_server.publish(f"{stream}.new", *[order(f"o-{number}") for number in range(9)])
        reads.wait_for(9)
        wait_for(lambda: nats_server.unacknowledged(stream, "checkout") == 0, "acknowledged", timeout=60)


def test_a_message_that_fits_into_no_request_of_the_consumer_is_told(
    database_url: str, nats_server: NatsServer, stream: str, caplog: pytest.LogCaptureFixture
) -> None:
    nats_server.make_limited_consumer(stream, "checkout", max_bytes=300)
    with caplog.at_level(logging.WARNING, "refold.nats"), running(database_url, nats_server, stream):
        nats_server.publish(f"{stream}.new", order("o" * 300))
        wait_for(lambda: "Message Size Exceeds MaxBytes" in caplog.text, "it says why", timeout=60)


def test_a_server_without_jetstream_is_told_from_one_that_does_not_answer(
    database_url: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    server = NatsServer(require_program(), tmp_path, jetstream=False)
    try:
        with caplog.at_level(logging.WARNING, "refold.nats"), running(database_url, server, "ORDERS"):
            wait_for(lambda: "JetStream is not enabled" in caplog.text, "it says what is missing", timeout=60)
    finally:
        server.stop()


# Pure.


def settings(**more: object) -> Settings:
    app = App("shop")

    @app.workflow
    def on_order(message: nats.Message[Order]) -> None: ...

    given = {
        "envelope": Envelope(on_order, nats.Message, where="here"), "name": "checkout", "stream": "ORDERS",
        "durable": "checkout", "subject": "", "from_now": False, "ack_wait": 30.0, "batch_size": 10,
        "max_in_flight": 10, "options": {}, **more,
    }  # fmt: skip
    return Settings(**given)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("config", "says"),
    [
        (ConsumerConfig("explicit"), None),
        (ConsumerConfig("explicit", deliver_subject="x"), "push consumer"),
        (ConsumerConfig("none"), "messages would be lost"),
        (ConsumerConfig("all"), "messages would be lost"),
        (ConsumerConfig("explicit", headers_only=True), "no message's body"),
        (ConsumerConfig("explicit", max_deliver=1), "gives a message up after 1 deliveries"),
        (ConsumerConfig("explicit", filter_subject="ORDERS.paid"), "filter"),
        (ConsumerConfig("explicit", filter_subjects=["a", "b"]), "filter"),
    ],
)
def test_a_consumer_that_cannot_keep_the_promise_is_refused(config: ConsumerConfig, says: str | None) -> None:
    assert str(says) in str(problem_of(config, settings()))


parts = st.tuples(
    st.text("ab:%é", min_size=1), st.text("ab:%é", min_size=1), st.integers(0, 2**63), st.integers(1, 2**63)
)


@given(parts, parts)
def test_two_messages_never_get_one_id(
    one: tuple[str, str, int, int], another: tuple[str, str, int, int]
) -> None:
    envelope = settings().envelope

    def id_of(consumer: str, stream: str, time_ns: int, sequence: int) -> str:
        return start_of(
            envelope, consumer=consumer, stream=stream, sequence=sequence, time_ns=time_ns,
            subject="s", headers=None, body=b"{}",
        ).id  # fmt: skip

    # All different, and each of those that differ in one part.
    others = [
        another,
        (another[0], *one[1:]),
        (one[0], another[1], *one[2:]),
        (*one[:2], another[2], one[3]),
        (*one[:3], another[3]),
    ]
    for other in others:
        assert (one == other) == (id_of(*one) == id_of(*other)), f"{one} and {other} have one ID"


@given(st.binary(), st.dictionaries(st.text(), st.text()), st.text())
def test_no_message_can_stop_its_stream(body: bytes, headers: dict[str, str], subject: str) -> None:
    start = start_of(
        settings().envelope, consumer="c", stream="s", sequence=1, time_ns=1, subject=subject, headers=headers,
        body=body,
    )  # fmt: skip
    msgspec.json.decode(start.input)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"stream": "ORDERS.paid"}, "can't be the name of a stream"),
        ({"stream": "ORDERS", "name": "a b"}, "can't be the name of a consumer"),
        ({"stream": "ORDERS", "name": "n" * 500, "durable": "d"}, "too long for the IDs of its workflows"),
        ({"stream": "ORDERS", "start": "latest"}, "start='latest'"),
        ({"stream": "ORDERS", "ack_wait": timedelta(0)}, "ack_wait"),
        ({"stream": "ORDERS", "batch_size": 0}, "batch_size=0"),
        ({"stream": "ORDERS", "options": {"servers": "x"}}, "options may not set 'servers'"),
    ],
)
def test_a_declaration_that_cannot_work_is_refused_where_it_is_made(
    arguments: dict[str, object], says: str
) -> None:
    app = App("shop")

    @app.workflow
    def on_order(message: nats.Message[Order]) -> None: ...

    with pytest.raises(DefinitionRefused, match=says):
        nats.consumer(**arguments)(on_order)  # type: ignore[arg-type]


def test_two_consumers_do_not_share_the_messages_of_one_durable_consumer() -> None:
    app = App("shop")

    @nats.consumer("ORDERS", name="charge", durable="shop")
    @app.workflow
    def charge(message: nats.Message[Order]) -> None: ...

    @app.workflow
    def ship(message: nats.Message[Order]) -> None: ...

    with pytest.raises(DefinitionRefused, match="each message would get to one of the two only"):
        nats.consumer("ORDERS", name="ship", durable="shop")(ship)
    with pytest.raises(DefinitionRefused, match="called 'charge' already"):
        nats.consumer("ORDERS", name="charge", durable="other")(ship)
    nats.consumer("ORDERS", name="ship")(ship)


def test_a_password_in_an_address_is_in_no_line_for_people(
    database_url: str, nats_server: NatsServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "nats"
    program.write_text("#!/bin/sh")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")

    def lines(address: str) -> list[str]:
        app = App("shop", database_url=database_url)

        @nats.consumer("ORDERS", subject="orders.paid", servers=address)
        @app.workflow
        def on_order(message: nats.Message[Order]) -> None: ...

        with app:
            [connector] = app.connectors
            return [*connector.describe(), *connector.try_next()]

    assert len(lines(nats_server.url)) == 2
    secret = nats_server.url.replace("nats://", "nats://shop:s3cret@")
    assert len(lines(secret)) == 1
    assert "s3cret" not in "".join(lines(secret))


def test_a_worker_without_the_address_of_a_server_says_what_to_set(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("REFOLD_NATS_URL", raising=False)
    app = App("shop", database_url=database_url)

    @nats.consumer("ORDERS")
    @app.workflow
    def on_order(message: nats.Message[Order]) -> None: ...

    with pytest.raises(DefinitionRefused, match="set REFOLD_NATS_URL"):
        app.start_worker()


@pytest.mark.raises_error("JetStreamRefused")
def test_what_jetstream_refuses_is_named_with_its_own_words() -> None:
    assert str(JetStreamRefused("STREAM.INFO.ORDERS", 404, "stream not found")) == (
        "JetStream refused STREAM.INFO.ORDERS: stream not found (404). Correct it there or in nats.consumer; the "
        "connector goes on trying."
    )
