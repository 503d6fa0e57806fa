"""How far a partition has been handed over, and what to do when the broker says something else. Pure.

The position in Postgres is the truth; Kafka's committed offset is a hint for lag monitors. A position names the
topic by its own ID, so that a topic that was deleted and made again is not taken for the old one.
"""

from typing import Final, Literal

import msgspec

from refold.core import GapFound


class Position(msgspec.Struct, frozen=True, omit_defaults=True):
    """What is next in a partition, and which record was the last one handed over.

    Offsets have holes (transactions, compaction), so the last record is not always the one before the next.
    `era` grows when the broker gives the same offsets out again: it has lost the end of its log, or it gives topics
    no IDs and this one was made again.
    """

    next_offset: int
    topic_id: str | None = None
    last_offset: int | None = None
    last_timestamp: int | None = None
    era: int = 0


_encode: Final = msgspec.json.Encoder().encode
_decode: Final = msgspec.json.Decoder(Position).decode


def encode_position(position: Position) -> bytes:
    """Return the JSON that goes into the log."""
    return _encode(position)


def decode_position(raw: bytes | None) -> Position | None:
    """Return the position in `raw`; None when the partition has none yet."""
    return None if raw is None else _decode(raw)


class Placement(msgspec.Struct, frozen=True):
    """Where to read on, and what has to be written down before that.

    `position` is what counts from now on. It is written when it is not the one that was found (`write`), together
    with `gap` if there is one. With `verify` reading begins at the last record handed over: only when it is still
    that record (by its timestamp) is this the same topic.
    """

    position: Position
    write: bool = False
    gap: GapFound | None = None
    why: Literal["same", "new", "recreated", "gap", "truncated"] = "same"
    verify: bool = False

    @property
    def fetch_from(self) -> int:
        """The offset at which reading begins."""
        if self.verify and self.position.last_offset is not None:
            return self.position.last_offset
        return self.position.next_offset


def place(label: str, found: Position | None, topic_id: str | None, first_offset: int) -> Placement:
    """Decide where to read on in a partition that has just been assigned.

    `label` names the partition in what operators read, `topic_id` is the topic's ID now (None: the broker does
    not say), `first_offset` is where a consumer begins that has no position.
    """
    if found is None:
        return Placement(Position(first_offset, topic_id), write=True, why="new")
    if found.topic_id is not None and topic_id is not None and found.topic_id != topic_id:
        return _recreated(label, found, topic_id)
    if topic_id is None and found.last_offset is not None:
        return Placement(found, verify=True)
    if found.topic_id is None and topic_id is not None:
        # The broker did not describe topics when this was written, and does now. Nothing says that it is another
        # topic; from here on it is known by its ID.
        return Placement(msgspec.structs.replace(found, topic_id=topic_id), write=True)
    return Placement(found)


def place_out_of_range(label: str, found: Position, topic_id: str | None, low: int, high: int) -> Placement:
    """Decide where to read on after the broker refused to read at the position: it holds [low, high) now."""
    if found.topic_id is not None and topic_id is not None and found.topic_id != topic_id:
        return _recreated(label, found, topic_id)
    if found.next_offset < low:
        gap = GapFound(
            f"{label}: offsets {found.next_offset} to {low - 1} were deleted by the broker before they were read",
            lost_from=found.next_offset,
            lost_to=low - 1,
        )
        moved = Position(low, topic_id or found.topic_id, era=found.era)
        return Placement(moved, write=True, gap=gap, why="gap")
    if found.next_offset > high:
        if topic_id is None:  # backwards is the one sign of a new topic that such a broker gives
            return _recreated(label, found, None)
        gap = GapFound(
            f"{label}: read up to offset {found.next_offset - 1}, but the broker's log now ends before {high}: it has "
            f"lost its end. Offsets from {high} on are given out again; their records get IDs of their own",
            lost_from=high,
            lost_to=found.next_offset - 1,
        )
        return Placement(Position(high, topic_id, era=found.era + 1), write=True, gap=gap, why="truncated")
    return Placement(found)


def is_last_record(found: Position, offset: int, timestamp: int) -> bool | None:
    """Say whether the first record read at `last_offset` is the one that was handed over.

    None when that record is not there any more (compaction, retention): then nothing can be said.
    """
    if offset != found.last_offset:
        return None
    return timestamp == found.last_timestamp


def recreated_unseen(label: str, found: Position) -> Placement:
    """Decide where to read on when a record's timestamp has shown that the topic is another one."""
    return _recreated(label, found, None)


def advance(found: Position, offset: int, timestamp: int) -> Position:
    """Return the position after the record at `offset` has been handed over."""
    return Position(offset + 1, found.topic_id, offset, timestamp, found.era)


def _recreated(label: str, found: Position, topic_id: str | None) -> Placement:
    gap = GapFound(
        f"{label}: the topic was deleted and made again. The old one was handed over up to offset "
        f"{found.next_offset - 1}; what it held after that is lost. The new one is read from its beginning",
        lost_from=found.next_offset,
    )
    # Without topic IDs the era tells the records of the new topic from those of the old one.
    era = found.era + 1 if topic_id is None else 0
    return Placement(Position(0, topic_id, era=era), write=True, gap=gap, why="recreated")
