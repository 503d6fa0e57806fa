"""Identity, positions and decoding: what needs no broker."""

import string
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fixtures.kafka_app import Order
from refold import App
from refold.connectors import kafka
from refold.connectors.kafka._backlog import Backlog
from refold.connectors.kafka._broker import SaidOnce
from refold.connectors.kafka._config import check_config, consumer_config, resolve_bootstrap
from refold.connectors.kafka._identity import (
    header_workflow_id,
    order_key,
    source_name,
    url_safe,
    workflow_id,
)
from refold.connectors.kafka._message import MessageCodec, Record
from refold.connectors.kafka._position import (
    Position,
    advance,
    decode_position,
    encode_position,
    is_last_record,
    place,
    place_out_of_range,
)
from refold.core import DefinitionRefused

# Identity

_names = st.text(min_size=1, max_size=12)
_ids = st.none() | st.text(string.ascii_letters + string.digits + "-_", min_size=22, max_size=22)
_small = st.integers(0, 12)
_fields: dict[str, st.SearchStrategy[Any]] = {
    "consumer": _names,
    "cluster": _names,
    "topic": _names,
    "topic_id": _ids,
    "partition": _small,
    "offset": _small,
    "timestamp": st.integers(0, 3),
    "era": st.integers(0, 2),
}
_parts = st.fixed_dictionaries(_fields)


@given(_parts, _parts, st.sets(st.sampled_from(sorted(_fields)), max_size=2))
def test_two_records_never_get_one_id(one: dict[str, Any], more: dict[str, Any], changed: set[str]) -> None:
    # Drawn apart, two would hardly ever differ in one thing alone.
    other = {name: (more if name in changed else one)[name] for name in one}

    def identity(parts: dict[str, Any]) -> dict[str, Any]:
        # The timestamp stands in for the topic's ID where there is none, and says nothing where there is one.
        return parts if parts["topic_id"] is None else {**parts, "timestamp": 0}

    assert (workflow_id(**one) == workflow_id(**other)) == (identity(one) == identity(other))


def test_the_longest_names_fit_into_an_id() -> None:
    longest = workflow_id(
        consumer="n" * 110, cluster="c" * 64, topic="t" * 249, topic_id="i" * 22,
        partition=2**31 - 1, offset=2**63 - 1, timestamp=0, era=99,
    )  # fmt: skip
    assert len(longest.encode()) <= 512


_keys = st.none() | st.binary(max_size=3) | st.sampled_from([b"x" * 97, b"x" * 98, b"#" + b"0" * 64])


_ordered = {**_fields, "key": _keys, "by_key": st.booleans()}
_orders = st.fixed_dictionaries(_ordered)


@given(_orders, _orders, st.sets(st.sampled_from(sorted(_ordered)), max_size=2))
def test_two_orders_have_one_key_only_when_all_that_counts_is_the_same(
    one: dict[str, Any], more: dict[str, Any], changed: set[str]
) -> None:
    other = {name: (more if name in changed else one)[name] for name in one}

    def key_of(parts: dict[str, Any]) -> str:
        return order_key(
            **{name: part for name, part in parts.items() if name not in ("offset", "timestamp")}
        )

    def what_counts(parts: dict[str, Any]) -> dict[str, Any]:
        key = parts["key"] if parts["by_key"] else None
        return {**parts, "key": key, "offset": 0, "timestamp": 0}

    assert (key_of(one) == key_of(other)) == (what_counts(one) == what_counts(other))


@given(
    _names,
    _names,
    st.binary(min_size=1, max_size=4),
    _names,
    _names,
    st.binary(min_size=1, max_size=4),
    _parts,
)
def test_an_identity_in_a_header_is_one_for_consumer_topic_and_value(
    consumer: str,
    topic: str,
    value: bytes,
    consumer_2: str,
    topic_2: str,
    value_2: bytes,
    parts: dict[str, Any],
) -> None:
    named = header_workflow_id(consumer=consumer, topic=topic, value=value)
    other = header_workflow_id(consumer=consumer_2, topic=topic_2, value=value_2)
    assert (named == other) == ((consumer, topic, value) == (consumer_2, topic_2, value_2))
    assert named != workflow_id(**parts)


def test_the_longest_header_fits_into_an_id_and_a_longer_one_is_hashed() -> None:
    for length in (1, 46, 47, 4_000):
        longest = header_workflow_id(consumer="n" * 110, topic="t" * 249, value=b"\xff" * length)
        assert len(longest.encode()) <= 512


def test_a_topic_id_is_written_as_kafkas_own_tools_write_it() -> None:
    assert url_safe("a+b/c==") == "a-b_c"


def test_the_source_of_a_partition_is_named_for_consumer_cluster_topic_and_partition() -> None:
    named = source_name(consumer="a:b", cluster="c", topic="t.x", partition=3)
    assert named == "kafka:a%3Ab:c:t.x:3"


# Positions

_position = Position(10, "old", last_offset=9, last_timestamp=5)


@given(st.builds(Position, _small, _ids, st.none() | _small, st.none() | _small, _small))
def test_a_position_comes_back_from_the_log(position: Position) -> None:
    assert decode_position(encode_position(position)) == position


def test_a_partition_without_a_position_begins_where_the_start_says() -> None:
    placement = place("p", None, "id", 7)
    assert (placement.position, placement.write, placement.why) == (Position(7, "id"), True, "new")


def test_the_same_topic_goes_on_at_the_position() -> None:
    placement = place("p", _position, "old", 0)
    assert (placement.position, placement.write, placement.fetch_from) == (_position, False, 10)


@given(low=_small, size=_small)
def test_another_topic_of_the_same_name_is_read_from_its_beginning(low: int, size: int) -> None:
    for placement in (
        place("p", _position, "new", 0),
        place_out_of_range("p", _position, "new", low, low + size),
    ):
        assert (placement.position, placement.why, placement.write) == (Position(0, "new"), "recreated", True)
        assert placement.gap is not None
        assert placement.gap.lost_from == 10


def test_records_that_the_broker_deleted_unread_are_a_gap() -> None:
    placement = place_out_of_range("p", _position, "old", 15, 20)
    assert placement.position == Position(15, "old")
    assert placement.gap is not None
    assert (placement.gap.lost_from, placement.gap.lost_to) == (10, 14)
    assert placement.gap.detail == "p: offsets 10 to 14 were deleted by the broker before they were read"


def test_a_log_that_lost_its_end_gives_its_records_new_identities() -> None:
    placement = place_out_of_range("p", _position, "old", 0, 8)
    assert placement.position == Position(8, "old", era=1)
    assert placement.gap is not None
    assert (placement.gap.lost_from, placement.gap.lost_to) == (8, 9)
    assert workflow_id(
        consumer="c", cluster="k", topic="t", topic_id="old", partition=0, offset=8, timestamp=0, era=1
    ).endswith(":old~1:0:8")


def test_without_topic_ids_an_offset_that_goes_backwards_is_another_topic() -> None:
    known = msgspec.structs.replace(_position, topic_id=None)
    again = place_out_of_range("p", known, None, 0, 8)
    assert (again.why, again.position) == ("recreated", Position(0, None, era=1))
    assert place_out_of_range("p", known, None, 0, 10).why == "same"


def test_without_topic_ids_reading_begins_at_the_last_record_to_see_its_timestamp() -> None:
    known = msgspec.structs.replace(_position, topic_id=None)
    placement = place("p", known, None, 0)
    assert (placement.verify, placement.fetch_from) == (True, 9)
    assert is_last_record(known, 9, 5) is True
    assert is_last_record(known, 9, 6) is False
    assert is_last_record(known, 11, 6) is None


def test_a_broker_that_begins_to_give_topic_ids_changes_nothing_but_the_position() -> None:
    known = msgspec.structs.replace(_position, topic_id=None)
    placement = place("p", known, "id", 0)
    assert (placement.position, placement.gap) == (msgspec.structs.replace(known, topic_id="id"), None)


@given(st.lists(st.integers(1, 5), max_size=8))
def test_positions_pass_over_the_holes_that_transactions_leave(steps: list[int]) -> None:
    position, offset = Position(0, "id"), -1
    for step in steps:
        offset += step
        position = advance(position, offset, 7)
        assert (position.next_offset, position.last_offset) == (offset + 1, offset)


# Decoding


def _record(value: bytes | None) -> Record:
    return Record("t", 0, 4, 1000, b"k", value)


@given(st.binary(max_size=40) | st.none())
def test_whatever_a_record_holds_its_input_is_json_that_the_workflow_reads(value: bytes | None) -> None:
    for hint in (Order, bytes, str, bytes | None, Any):
        codec = MessageCodec("message", kafka.Message[hint])  # type: ignore[valid-type]
        input, failure = codec.encode(_record(value))
        shown = msgspec.json.decode(input.decode())
        assert shown["message"]["offset"] == 4
        if failure is None:
            assert msgspec.json.decode(input, type=dict[str, kafka.Message[hint]])["message"].offset == 4  # type: ignore[valid-type]
        elif value is not None and shown["message"].get("encoding") == "base64":
            back = msgspec.json.decode(input, type=dict[str, kafka.Message[bytes]])
            assert back["message"].value == value


_values = (
    st.none()
    | st.binary(max_size=20)
    | st.sampled_from([b"null", b" null ", b'"aGk="', b"[1]", b'"\\u0000"'])
)
_headers = st.lists(st.tuples(st.text(max_size=3), st.none() | st.binary(max_size=3)), max_size=3)


@given(_values, st.none() | st.binary(max_size=5), _headers, st.integers(0, 2**41))
def test_the_record_comes_back_from_its_workflow(
    value: bytes | None, key: bytes | None, headers: list[tuple[str, bytes | None]], timestamp: int
) -> None:
    record = Record("t", 1, 4, timestamp, key, value, tuple(headers))
    for hint in (Order, Order | None, bytes, str, bytes | None, str | None, Any):
        codec = MessageCodec("message", kafka.Message[hint])  # type: ignore[valid-type]
        back = codec.record(codec.encode(record).input)
        assert back._replace(value=_bare(back.value)) == record._replace(value=_bare(value))


def _bare(value: bytes | None) -> bytes | None:
    """What of a value comes back in any case: around JSON, white space is lost."""
    return None if value is None else value.strip(b" \t\r\n")


def test_json_of_another_shape_fits_once_the_type_is_corrected() -> None:
    value = b'{"id": 7}'
    wrong = MessageCodec("message", kafka.Message[Order]).encode(_record(value))
    assert wrong.failure is not None
    assert msgspec.json.decode(wrong.input, type=dict[str, kafka.Message[dict[str, int]]])[
        "message"
    ].value == {"id": 7}


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        (b'{"id": "a"}, "offset": 99', "trailing characters"),
        (b'{"id": 1}', "Expected `str`, got `int`"),
        (b'{"id": "a", "note": "\xff"}', "it is not UTF-8"),
        (b"", "truncated"),
        (None, "it has no value (a tombstone), which only Message[Order | None] takes"),
    ],
)
def test_a_value_of_another_shape_says_what_is_wrong(value: bytes | None, problem: str) -> None:
    failure = MessageCodec("message", kafka.Message[Order]).encode(_record(value)).failure
    assert failure is not None
    assert str(failure).startswith(
        "the value of record 4 in t[0] does not fit the type that the code declares:"
    )
    assert problem in str(failure)


def test_the_json_of_a_value_is_kept_byte_for_byte() -> None:
    value = b'{ "id" : "\\u0041", "amount":5, "more": [1.0] }'
    assert value in MessageCodec("message", kafka.Message[Order]).encode(_record(value)).input


def test_text_and_bytes_are_taken_as_they_come() -> None:
    text = MessageCodec("m", kafka.Message[str]).encode(_record("ä".encode())).input
    assert msgspec.json.decode(text)["m"]["value"] == "ä"
    raw = MessageCodec("m", kafka.Message[bytes]).encode(_record(b"\xff")).input
    assert msgspec.json.decode(raw, type=dict[str, kafka.Message[bytes]])["m"].value == b"\xff"


# What waits to be handed over


@given(st.lists(st.integers(0, 6), max_size=12), st.integers(1, 5), st.integers(1, 12))
def test_a_hand_over_is_bounded_in_records_and_in_bytes(sizes: list[int], count: int, size: int) -> None:
    backlog, records = (
        Backlog(),
        [_record(b"x" * size)._replace(offset=n, key=None) for n, size in enumerate(sizes)],
    )
    for record in records:
        backlog.append(record)
    taken = backlog.take(count, size)
    bytes_taken = sum(len(record.value or b"") for record in taken)
    assert taken == records[: len(taken)]
    assert len(taken) <= count
    assert bytes_taken <= max(size, sizes[0] if sizes else 0)
    assert taken or not records  # one that alone is too large does not stand in the way for ever
    assert backlog.size == sum(sizes) - bytes_taken
    backlog.put_back(taken)
    assert (backlog.size, backlog.take(99, 999)) == (sum(sizes), records)


# Configuration


@pytest.mark.parametrize(
    ("key", "text"),
    [
        ("group.id", "x: config may not set 'group.id'. Use group=."),
        ("bootstrap.servers", "x: config may not set 'bootstrap.servers'. Use bootstrap_servers=."),
        (
            "enable.auto.commit",
            "x: config may not set 'enable.auto.commit'. It would tell Kafka that records are done which have only "
            "been fetched.",
        ),
        (
            "auto.offset.reset",
            "x: config may not set 'auto.offset.reset'. Use start=. It counts once, for a new name; after that the "
            "position in Postgres does.",
        ),
    ],
)
def test_a_key_that_would_break_the_promise_is_refused_by_name(key: str, text: str) -> None:
    with pytest.raises(DefinitionRefused) as refused:
        check_config("x", {key: "whatever"})
    assert str(refused.value) == text


def test_a_key_that_librdkafka_does_not_know_is_refused_at_the_start_and_not_tried_for_ever() -> None:
    app = App("shop")

    @kafka.consumer("orders", bootstrap_servers="127.0.0.1:9", config={"sesion.timeout.ms": 5_000})
    @app.workflow
    def on_order(message: kafka.Message[Any]) -> None: ...

    [consumer] = app.connectors
    with pytest.raises(DefinitionRefused) as refused:
        consumer.start(app)
    assert str(refused.value) == (
        "kafka.consumer 'on_order': librdkafka does not take its config: No such configuration property: "
        '"sesion.timeout.ms". Correct it; the names are in librdkafka\'s CONFIGURATION.md.'
    )


def test_aborted_transactions_can_not_be_asked_for() -> None:
    with pytest.raises(DefinitionRefused, match="transactions that were aborted"):
        check_config("x", {"isolation.level": "read_uncommitted"})
    check_config("x", {"isolation.level": "read_committed"})


def test_everything_else_goes_to_librdkafka_as_it_is() -> None:
    given = {"sasl.mechanism": "PLAIN", "session.timeout.ms": 7_000, "fetch.wait.max.ms": 1}
    config = consumer_config("b:1", "g", given, "cluster")
    assert config.items() >= given.items()
    assert (config["enable.auto.commit"], config["auto.offset.reset"]) == (False, "error")
    assert "session.timeout.ms" not in consumer_config("b:1", "g", {"group.protocol": "consumer"}, "c")
    assert consumer_config("b:1", "g", {}, "refold-dev-1")["session.timeout.ms"] == 1_500


def test_the_address_comes_from_the_environment_when_none_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REFOLD_KAFKA_BOOTSTRAP", "b:1")
    assert resolve_bootstrap("x", None) == "b:1"
    assert resolve_bootstrap("x", "c:2") == "c:2"
    monkeypatch.delenv("REFOLD_KAFKA_BOOTSTRAP")
    with pytest.raises(DefinitionRefused) as refused:
        resolve_bootstrap("x", None)
    assert str(refused.value) == (
        "x: no broker address is given. Pass bootstrap_servers=, or set REFOLD_KAFKA_BOOTSTRAP (host:port). "
        "`refold dev` sets it to a development broker."
    )


# Declaring


def test_a_declaration_that_cannot_work_is_refused_where_it_stands() -> None:
    app = App("shop")

    @app.workflow
    def plain(order: Order) -> None: ...

    @app.workflow
    def good(message: kafka.Message[Order]) -> None: ...

    not_a_workflow: Any = len
    refusals: dict[str, Callable[[], object]] = {
        "it sits on": lambda: kafka.consumer("t")(not_a_workflow),
        "no topic is named": lambda: kafka.consumer()(good),
        "but it takes \\(order: Order\\)": lambda: kafka.consumer("t")(plain),
        "start='yesterday'": lambda: kafka.consumer("t", start="yesterday")(good),  # type: ignore[arg-type]
        "batch_size=0": lambda: kafka.consumer("t", batch_size=0)(good),
        "1 to 110 fit": lambda: kafka.consumer("t", name="n" * 111)(good),
    }
    for text, declare in refusals.items():
        with pytest.raises(DefinitionRefused, match=text):
            declare()
    kafka.consumer("t", name="one")(good)
    with pytest.raises(DefinitionRefused, match="has a consumer called 'one' already"):
        kafka.consumer("t2", name="one")(good)


def test_a_consumer_is_named_after_its_workflow_and_its_group_after_it() -> None:
    app = App("shop")

    @kafka.consumer("t")
    @app.workflow
    def on_order(message: kafka.Message[Order]) -> str:
        return message.value.id

    [connector] = app.connectors
    assert isinstance(connector, kafka.KafkaConsumer)
    assert (connector.name, connector.settings.group, connector.value_type) == ("on_order", "on_order", Order)
    assert connector.describe() == ["on_order: topic t, not started"]


def test_a_complaint_is_made_once_and_then_once_a_minute() -> None:
    now = 0.0
    said = SaidOnce(clock=lambda: now)
    assert said.may_say("x")
    now = 59.0
    assert not said.may_say("x")
    assert said.may_say("y")
    now = 60.0
    assert said.may_say("x")
    assert said.over("x")
    assert not said.over("x")
