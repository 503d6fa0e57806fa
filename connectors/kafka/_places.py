"""Where to read on in partitions that a consumer was given, and what has to be written down before it reads.

It asks the brokers and Postgres, and waits for both: it runs beside the thread that polls.
"""

import logging
from collections.abc import Mapping
from datetime import datetime
from typing import Final

from refold.connectors.kafka._aside import Aside
from refold.connectors.kafka._broker import Lookup, Start
from refold.connectors.kafka._identity import source_name
from refold.connectors.kafka._position import (
    Placement,
    decode_position,
    encode_position,
    place,
    place_out_of_range,
)
from refold.connectors.kafka._settings import Settings
from refold.core import Lane, Move, PositionMoved, SourcePosition

log: Final = logging.getLogger("refold.kafka")
Key = tuple[str, int]


class ClusterChanged(Exception):
    """At the brokers' address there is another cluster now."""


class Places:
    """Finds places for one consumer in one cluster."""

    def __init__(self, settings: Settings, cluster: str, lane: Lane, lookup: Lookup, aside: Aside) -> None:
        self._settings = settings
        self._cluster = cluster
        self._lane = lane
        self._lookup = lookup
        self._aside = aside

    def find(
        self, keys: Mapping[Key, tuple[str, bool]], known: Placement | None
    ) -> dict[Key, tuple[SourcePosition, Placement]]:
        """Return where to read on in each of `keys` (what names it in logs, whether its position was out of range).

        A partition whose topic does not exist is not in the answer. `known` is given where the records themselves
        have shown that the topic is another one. Raises ClusterChanged, and KafkaException without brokers.
        """
        topics = sorted({topic for topic, _ in keys})
        metadata = self._lookup.metadata(topics)
        if metadata.cluster != self._cluster:
            raise ClusterChanged(
                f"the brokers are cluster {metadata.cluster} now, not {self._cluster} any more"
            )
        found: dict[Key, tuple[SourcePosition, Placement]] = {}
        for topic in topics:
            if topic in metadata.partitions:
                wanted = {key: said for key, said in keys.items() if key[0] == topic}
                found.update(self._find_in(topic, metadata.partitions[topic], wanted, known))
        return found

    def _find_in(
        self, topic: str, count: int, keys: Mapping[Key, tuple[str, bool]], known: Placement | None
    ) -> dict[Key, tuple[SourcePosition, Placement]]:
        every = sorted({(topic, number) for number in range(count)} | set(keys))
        sources = {key: self._source(key) for key in every}
        while True:
            read = self._aside.wait(self._lane.read_positions(list(sources.values())))
            at = {key: decode_position(read[source].position) for key, source in sources.items()}
            have = [position for position in at.values() if position is not None]
            must = any(position.topic_id is not None for position in have)
            ids = self._lookup.topic_ids([topic], must=must)
            if topic not in ids:
                return {}
            placements: dict[Key, Placement] = {}
            if not have:
                # The first time for this topic: every partition gets its place at once, also those that others read,
                # so that a partition without one is known to be a new one ever after, and is read from its start.
                first = self._lookup.first_offsets(every, self._settings.start)
                for key in every:
                    label = keys[key][0] if key in keys else f"{topic}[{key[1]}]"
                    placements[key] = place(label, None, ids[topic], first[key])
                log.info(
                    "consumer %r is new to topic %s (%s partitions): it starts at %s",
                    self._settings.name, topic, count, _start_policy(self._settings.start),
                )  # fmt: skip
            else:
                for key, (label, out_of_range) in keys.items():
                    position = at[key]
                    if known is not None:
                        placements[key] = known
                    elif out_of_range and position is not None:
                        low, high = self._lookup.ends(*key)
                        placements[key] = place_out_of_range(label, position, ids[topic], low, high)
                    else:
                        placements[key] = place(label, position, ids[topic], 0)
            try:
                written = self._write(placements, read, sources)
            except PositionMoved:
                continue  # another consumer was there first: what it wrote counts
            return {key: (written[sources[key]], placements[key]) for key in keys}

    def _write(
        self,
        placements: Mapping[Key, Placement],
        read: Mapping[str, SourcePosition],
        sources: Mapping[Key, str],
    ) -> dict[str, SourcePosition]:
        """Write down the placements that are news; returns the positions that count then."""
        moves = []
        for key, placement in placements.items():
            if placement.write:
                moves.append(
                    Move(
                        expected=read[sources[key]],
                        position=encode_position(placement.position),
                        label=self._settings.name,
                        gap=placement.gap,
                    )
                )
        if not moves:
            return dict(read)
        handed = self._aside.wait(self._lane.hand_over(moves))
        for placement in placements.values():
            if placement.gap is not None:
                log.warning("%s", placement.gap.detail)
        return {**read, **handed.positions}

    def _source(self, key: Key) -> str:
        topic, partition = key
        return source_name(
            consumer=self._settings.name, cluster=self._cluster, topic=topic, partition=partition
        )


def _start_policy(start: Start) -> str:
    if isinstance(start, datetime):
        return f"the first record at or after {start.isoformat()}"
    return "the earliest record" if start == "earliest" else "what is produced from now on"
