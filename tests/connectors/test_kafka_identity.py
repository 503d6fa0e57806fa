"""Each part of a record's identity tells it from others by itself.

Two identities drawn at random differ in all their parts, and say nothing about one.
"""

from typing import Any

import pytest

from refold.connectors.kafka._identity import (
    Place,
    header_workflow_id,
    order_key,
    place_in_order,
    workflow_id,
)

RECORD: dict[str, Any] = {
    "consumer": "checkout",
    "cluster": "c1",
    "topic": "orders",
    "topic_id": "AAAAAAAAAAAAAAAAAAAAAA",
    "partition": 3,
    "offset": 42,
    "timestamp": 1_700_000_000_000,
    "era": 0,
}


@pytest.mark.parametrize(
    ("part", "other"),
    [
        ("consumer", "refund"),
        ("cluster", "c2"),
        ("topic", "orders.dlq"),
        ("topic_id", "BBBBBBBBBBBBBBBBBBBBBB"),
        ("topic_id", None),
        ("partition", 4),
        ("offset", 43),
        ("era", 1),
    ],
)
def test_records_that_differ_in_one_part_only_have_other_ids(part: str, other: object) -> None:
    assert workflow_id(**RECORD) != workflow_id(**{**RECORD, part: other}), f"{part} is not in the ID"


@pytest.mark.parametrize(
    "of",
    [
        {},
        {"by_key": True},
        {"by_key": True, "key": b""},
        {"by_key": True, "key": b":=:"},
        {"topic_id": None, "era": 2},
    ],
)
def test_an_order_says_where_its_records_are(of: dict[str, Any]) -> None:
    where = {name: RECORD[name] for name in ("cluster", "topic_id", "partition")}
    key = order_key(**{**where, "consumer": "a:b", "topic": "or/ders", **of})
    assert place_in_order(key, 42) == Place("a:b", "c1", "or/ders", 3, 42)


def test_an_order_of_one_record_alone_says_nothing_of_its_place() -> None:
    assert place_in_order(header_workflow_id(consumer="checkout", topic="orders", value=b"7"), 0) is None


def test_where_topics_have_no_id_the_timestamp_tells_them_apart() -> None:
    unnamed = {**RECORD, "topic_id": None}
    assert workflow_id(**unnamed) != workflow_id(**{**unnamed, "timestamp": 1_700_000_000_001})


def test_where_they_have_one_the_timestamp_says_nothing() -> None:
    """A broker that stamps records as they are appended may stamp a copy of one anew."""
    assert workflow_id(**RECORD) == workflow_id(**{**RECORD, "timestamp": 0})
