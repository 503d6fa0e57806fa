"""Names that cannot collide: a record's workflow ID, and the stream of a partition's position.

Every part is percent-encoded and joined by colons, so two different records never get one ID, whatever is in the
names. The topic's own ID is in it: a topic that is deleted and made again counts its offsets from 0 once more,
and what it holds then are other records.
"""

import hashlib
from typing import Final, NamedTuple
from urllib.parse import quote, unquote

from refold.core import DefinitionRefused

# An ID has at most 512 bytes. 249 for the topic's name, 22 for its ID, 60 for separators, partition, offset and era,
# 64 for the cluster's ID; what is left is the consumer's.
_NAME_MAX: Final = 110
# What is longer is known by its hash.
_HEADER_MAX: Final = 140
_KEY_MAX: Final = 96


def workflow_id(
    *,
    consumer: str,
    cluster: str,
    topic: str,
    topic_id: str | None,
    partition: int,
    offset: int,
    timestamp: int,
    era: int = 0,
) -> str:
    """Return the ID of the workflow that `consumer` starts for a record.

    Without a `topic_id` (a broker that does not describe its topics) the record's timestamp, in ms, takes its
    place: it is the same at every delivery. `era` counts how often the broker has lost the end of this
    partition's log and given its offsets out again.
    """
    which = topic_id if topic_id is not None else f"@{timestamp}"
    if era:
        which = f"{which}~{era}"
    return f"kafka:{_part(consumer)}:{_part(cluster)}:{_part(topic)}:{which}:{partition}:{offset}"


def header_workflow_id(*, consumer: str, topic: str, value: bytes) -> str:
    """Return the ID of the workflow that `consumer` starts for all records of `topic` with this identity in a header.

    No cluster and no topic ID are in it: the same message in the topic's next life, or mirrored into another
    cluster, is the same message. Its partition is empty, so it is no record's that has its place for identity.
    """
    return f"kafka:{_part(consumer)}::{_part(topic)}:::{_bounded(value, _HEADER_MAX)}"


def order_key(
    *,
    consumer: str,
    cluster: str,
    topic: str,
    topic_id: str | None,
    partition: int,
    era: int = 0,
    key: bytes | None = None,
    by_key: bool = False,
) -> str:
    """Return what the records have in common that `consumer` does one after the other: partition, or partition and key.

    The place among them is the offset, which says nothing in another partition, another topic of that name, or after
    the broker has lost the end of its log: all of that is in it. Records without a key are in one order `by_key` too,
    that of the partition's records without a key; one with an empty key is none of them.
    """
    which = f"{topic_id or ''}~{era}" if era else topic_id or ""
    base = f"kafka:{_part(consumer)}:{_part(cluster)}:{_part(topic)}:{which}:{partition}"
    if not by_key:
        return base
    return f"{base}:" if key is None else f"{base}:={_bounded(key, _KEY_MAX)}"


class Place(NamedTuple):
    """Where a record is, as its workflow's ID tells."""

    consumer: str
    cluster: str
    topic: str
    partition: int
    offset: int


def place_of(id: str) -> Place | None:
    """Return the place in the ID of a record's workflow; None when the ID holds none, or is no record's."""
    parts = id.split(":")
    if len(parts) != 7 or parts[0] != "kafka" or not (parts[5].isdigit() and parts[6].isdigit()):
        return None
    consumer, cluster, topic = (unquote(part) for part in parts[1:4])
    return Place(consumer, cluster, topic, int(parts[5]), int(parts[6]))


def place_in_order(order: str, no: int) -> Place | None:
    """Return the place of the record that is number `no` of an order; None where the order is of one record alone."""
    parts = order.split(":")
    if len(parts) not in (6, 7) or parts[0] != "kafka" or not parts[5].isdigit():
        return None
    consumer, cluster, topic = (unquote(part) for part in parts[1:4])
    return Place(consumer, cluster, topic, int(parts[5]), no)


def shown_key(order: str) -> str | None:
    """Return the record key in an order's key, for people; None when the order is not that of one."""
    _, found, key = order.rpartition(":=")
    return unquote(key, errors="backslashreplace") if found else None


def is_order_of(order: str, key: bytes) -> bool:
    """Say whether an order's key is that of the records with this key, in whatever partition."""
    return order.endswith(f":={_bounded(key, _KEY_MAX)}")


def source_name(*, consumer: str, cluster: str, topic: str, partition: int) -> str:
    """Return the name of the source whose position says how far `consumer` has handed over a partition."""
    return f"{source_prefix(consumer)}{_part(cluster)}:{_part(topic)}:{partition}"


def source_prefix(consumer: str) -> str:
    """Return what the names of all sources of `consumer` begin with."""
    return f"kafka:{_part(consumer)}:"


def url_safe(topic_id: str) -> str:
    """Return a topic's ID as Kafka's own tools print it (the client gives base64 with + and /)."""
    return topic_id.rstrip("=").replace("+", "-").replace("/", "_")


def check_consumer_name(name: str) -> None:
    """Raise DefinitionRefused for a consumer name that is empty or leaves no room in a workflow ID."""
    if not name or len(_part(name)) > _NAME_MAX:
        raise DefinitionRefused(
            f"kafka.consumer(name={name!r})",
            f"the name takes {len(_part(name))} bytes in a workflow ID; 1 to {_NAME_MAX} fit",
            "Give a shorter name=; it is the consumer's identity, so choose one that can stay.",
        )


def _part(text: str) -> str:
    return quote(text, safe="")


def _bounded(raw: bytes, most: int) -> str:
    text = quote(raw, safe="")
    # `quote` leaves no # in what it returns.
    return text if len(text) <= most else f"#{hashlib.sha256(raw).hexdigest()}"
