"""Reading a consumer's partitions: poll, check that the topic is still the same one, hand over, tell Kafka last.

One thread polls, and waits for nothing else: what needs the network or Postgres is a future that it looks at
between two polls, so a Postgres that is away for an hour costs no partition. A partition is read only after its
position has come out of Postgres (`_Partition.reading`), and always from an explicit offset. Records of a
partition that is revoked before they were handed over are dropped; its position has not moved.

What the client does that would lose records, and where it is kept from it (docs/decisions/kafka-client.md):
an exception in a callback destroys what was fetched (`_guarded`, and a new client after any exception); a
cancelled asynchronous consumer loses its batch (none is used); offsets are never stored or committed by the
client; an offset that is not there is an error and never a jump (`_out_of_range`); a topic that was made again
goes on silently at the old offset (`_verified`).
"""

import concurrent.futures
import contextlib
import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from typing import Any, Final, NamedTuple

import msgspec
from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition
from confluent_kafka import Message as ClientMessage

from refold.connectors.kafka._aside import Aside
from refold.connectors.kafka._backlog import Backlog, size_of
from refold.connectors.kafka._broker import Lookup, QuietLog, SaidOnce, is_missing_topic
from refold.connectors.kafka._config import consumer_config, is_incremental
from refold.connectors.kafka._lag_hint import LagHint
from refold.connectors.kafka._message import Record
from refold.connectors.kafka._places import Key, Places
from refold.connectors.kafka._position import (
    Placement,
    Position,
    advance,
    encode_position,
    is_last_record,
    recreated_unseen,
)
from refold.connectors.kafka._settings import Settings
from refold.connectors.kafka._starts import Starts
from refold.core import HandedOver, Lane, Move, PositionMoved, Send, SourcePosition, Start

log: Final = logging.getLogger("refold.kafka")

# While nothing comes, one poll in this time; it is also how long a stop may take to be seen.
_IDLE_POLL: Final = 0.1
# While something is under way whose end we look at between polls.
_BUSY_POLL: Final = 0.002
# With enough records in hand the thread waits that long for the hand-over before it pauses the partitions: pausing
# throws away what the client has fetched ahead.
_WAIT_BEFORE_PAUSE: Final = 1.0
_RETRY: Final = 1.0
_NOTE_ENDS: Final = 1.0
_MISSING_LOOKS: Final = 3
_UNREACHABLE: Final = frozenset(
    {KafkaError._ALL_BROKERS_DOWN, KafkaError._RESOLVE, KafkaError._AUTHENTICATION, KafkaError._SSL}
)


class _Partition:
    """A partition that this consumer has been given."""

    def __init__(self, name: str, topic: str, partition: int) -> None:
        self.key: Key = (topic, partition)
        self.label = f"{topic}[{partition}] for consumer {name!r}"
        # False until its position is known, and again whenever it may be wrong: nothing is taken from it then.
        self.reading = False
        self.generation = 0
        self.out_of_range = False
        self.verify = False
        self.expected: SourcePosition | None = None
        self.position = Position(0)
        self.next_fetch = 0
        self.waiting = Backlog()

    def settle(self, expected: SourcePosition, placement: Placement) -> None:
        """Take up reading where `placement` says."""
        self.reading = True
        self.out_of_range = False
        self.expected = expected
        self.position = placement.position
        self.verify = placement.verify
        self.next_fetch = placement.fetch_from
        self.waiting.clear()

    def suspend(self) -> None:
        """Stop taking records until the partition has been placed again; drop what waits."""
        self.reading = False
        self.generation += 1
        self.waiting.clear()


class _Taken(NamedTuple):
    """Records taken from a partition, to be handed over while it is still what it was then (`generation`)."""

    part: _Partition
    generation: int
    records: list[Record]

    def is_valid(self) -> bool:
        """Say whether the partition has not been suspended since; else its position may be another one now."""
        return self.part.reading and self.part.generation == self.generation


class _HandOver(msgspec.Struct):
    """A batch on its way: first its topics are looked at once more (`ids`), then Postgres gets it (`done`)."""

    taken: list[_Taken]
    ids: "Future[dict[str, str | None]] | None"
    done: Future[HandedOver] | None = None
    after: list[tuple[_Partition, Position]] = []
    missing: int = 0  # how often a topic of it was not there when its ID was asked for

    def count(self) -> int:
        """Return how many records it holds."""
        return sum(len(taken.records) for taken in self.taken)


class Reader:
    """One client of one consumer, from its making to its closing; belongs to the thread that calls `run`."""

    def __init__(
        self, settings: Settings, bootstrap: str, lane: Lane, lookup: Lookup, said: SaidOnce, cluster: str
    ) -> None:
        self._settings = settings
        self._bootstrap = bootstrap
        self._lane = lane
        self._lookup = lookup
        self._said = said
        self._cluster = cluster
        self._starts = Starts(settings, cluster)
        self._incremental = is_incremental(settings.config)
        self._broken: Exception | None = None
        self._partitions: dict[Key, _Partition] = {}
        self._aside = Aside(f"refold-kafka-{settings.name}")
        self._places = Places(settings, cluster, lane, lookup, self._aside)
        self._placing: tuple[list[_Partition], Future[dict[Key, tuple[SourcePosition, Placement]]]] | None = (
            None
        )
        self._place_after = 0.0
        # One batch is in Postgres' hands while the topics of the next one are looked at.
        self._handing: _HandOver | None = None
        self._looking: _HandOver | None = None
        self._hand_after = 0.0
        self._checking: Future[set[Key]] | None = None
        self._check_at = time.monotonic() + settings.check_every
        self.counts = 0
        self._counting: Future[int] | None = None
        self._count_at = 0.0
        self._room = settings.max_in_flight
        self.is_paused = False
        self._strict = False
        self._ends: dict[Key, int] = {}
        self._ends_at = 0.0
        config = consumer_config(bootstrap, settings.group, settings.config, cluster)
        # A small part of what the group allows between two polls.
        self._patience = min(_WAIT_BEFORE_PAUSE, int(config.get("max.poll.interval.ms", 300_000)) / 10_000)
        for callback in ("stats_cb", "throttle_cb"):
            if callback in config:
                config[callback] = self._guarded(config[callback])
        config["error_cb"] = self._guarded(self._on_error, settings.config.get("error_cb"))
        self._hint = LagHint(self._tell_kafka)
        config["on_commit"] = self._guarded(self._hint.answered)
        self._client = Consumer(config, logger=QuietLog())

    # The life of it

    def run(self, stopping: threading.Event) -> None:
        """Read until `stopping` is set. Any exception means: make another Reader, and read the positions again."""
        self._client.subscribe(
            list(self._settings.topics),
            on_assign=self._guarded(self._on_assign),
            on_revoke=self._guarded(self._on_revoke),
            on_lost=self._guarded(self._on_lost),
        )
        while not stopping.is_set():
            self._settle()
            self._regulate()
            self._poll()
            self._begin_hand_over()

    def is_reading(self) -> bool:
        """Say whether it has partitions, and reads them all; may be asked from any thread."""
        parts = list(self._partitions.values())
        return bool(parts) and all(part.reading for part in parts)

    def ends(self) -> Mapping[Key, int]:
        """Return what comes next in each partition that it reads, as of the last second; from any thread."""
        return self._ends

    def close(self, timeout: float) -> None:
        """Wait for the hand-over under way, up to `timeout` seconds, tell Kafka, and leave the group."""
        if self._handing is not None and self._handing.done is not None:
            concurrent.futures.wait([self._handing.done], timeout)
            try:
                self._settle_hand_over()
            except Exception:
                log.debug("the last hand-over of consumer %s failed", self._settings.name, exc_info=True)
        self._aside.close()
        try:
            self._client.close()
        except (KafkaException, RuntimeError):
            log.debug("consumer %s did not close in order", self._settings.name, exc_info=True)

    def _poll(self) -> None:
        batch_size = self._settings.batch_size
        pending = self._under_way()
        if self._is_full() and not self.is_paused:
            if pending is not None and concurrent.futures.wait([pending], self._patience).done:
                return  # its end makes room
            self._pause(True)
        timeout = _IDLE_POLL
        if pending is not None and self.is_paused:
            concurrent.futures.wait([pending], _IDLE_POLL)
            timeout = 0.0
        elif pending is not None:
            timeout = _BUSY_POLL
        elif self._placing is not None:
            timeout = 10 * _BUSY_POLL
        message = self._client.poll(timeout)
        messages = [] if message is None else [message]
        # `consume` with a timeout would wait all of it for a full batch; with 0 it gives what is there.
        if message is not None and message.error() is None and batch_size > 1:
            messages += self._client.consume(batch_size - 1, timeout=0)
        if self._broken is not None:
            # A callback has failed. The client may have thrown away what it had fetched and moved on.
            raise self._broken
        for message in messages:
            self._take(message)
        if messages and messages[-1].error() is None:
            self._reachable()

    def _under_way(self) -> "Future[Any] | None":
        if self._handing is not None:
            return self._handing.done
        return None if self._looking is None else self._looking.ids

    # Callbacks: they run inside poll and consume, on our thread

    def _guarded(self, *callbacks: "Callable[..., Any] | None") -> Callable[..., None]:
        """Return a callback out of which nothing is raised: an exception inside `consume` destroys the records."""

        def call(*args: Any) -> None:
            for callback in callbacks:
                try:
                    if callback is not None:
                        callback(*args)
                except Exception as exc:
                    if self._said.may_say(f"callback {callback!r}"):
                        log.exception("a callback of consumer %s failed; it reads on", self._settings.name)
                    if callback in (self._on_assign, self._on_revoke, self._on_lost):
                        self._broken = exc

        return call

    def _on_assign(self, _: Consumer, given: Sequence[TopicPartition]) -> None:
        self._reachable()
        for at in given:
            self._partitions[at.topic, at.partition] = _Partition(self._settings.name, at.topic, at.partition)
        # Nothing is read before its position is known; until then the client is told of none of them. Without this
        # call it would take them up itself, at offsets of its own choice.
        if self._incremental:
            self._client.incremental_assign([])
        else:
            self._client.assign([])
        self._place_after = 0.0

    def _on_revoke(self, client: Consumer, taken: Sequence[TopicPartition]) -> None:
        self._hint.tell(at_once=True)
        self._on_lost(client, taken)

    def _on_lost(self, _: Consumer, taken: Sequence[TopicPartition]) -> None:
        gone = [self._partitions.pop((at.topic, at.partition), None) for at in taken]
        for at in taken:
            self._hint.forget((at.topic, at.partition))
        if self._incremental:
            # Only those that the client was told to read.
            reading = {(at.topic, at.partition) for at in self._client.assignment()}
            self._client.incremental_unassign(
                [_at(part.key) for part in gone if part is not None and part.key in reading]
            )
        else:
            self._client.unassign()

    def _on_error(self, error: KafkaError) -> None:
        if error.fatal():
            self._broken = KafkaException(error)
        elif error.code() in _UNREACHABLE:
            self._complain("unreachable", f"can't reach Kafka at {self._bootstrap}: {error.str()}")
        else:
            log.debug("consumer %s: %s", self._settings.name, error)

    # What was polled

    def _take(self, message: ClientMessage) -> None:
        error = message.error()
        if error is not None:
            self._take_error(message, error)
            return
        topic, partition, offset = message.topic() or "", message.partition() or 0, message.offset() or 0
        part = self._partitions.get((topic, partition))
        if part is None or not part.reading:
            return  # not ours any more, or not yet; its position has not moved
        if offset < part.next_fetch:
            log.warning("%s: offset %s came after %s", part.label, offset, part.next_fetch - 1)
            part.suspend()
            return
        kind, milliseconds = message.timestamp()
        timestamp = milliseconds if kind else 0
        if part.verify:
            part.verify = False
            same = is_last_record(part.position, offset, timestamp)
            if same is False:
                self._ask_to_place([part], recreated_unseen(part.label, part.position))
                return
            if same:
                part.next_fetch = offset + 1
                return
        part.next_fetch = offset + 1
        part.waiting.append(
            Record(topic, partition, offset, timestamp, message.key(), message.value(), _headers(message))
        )

    def _take_error(self, message: ClientMessage, error: KafkaError) -> None:
        code = error.code()
        topic, partition = message.topic(), message.partition()
        part = None if topic is None or partition is None else self._partitions.get((topic, partition))
        if error.fatal():
            raise KafkaException(error)
        if code == KafkaError._PARTITION_EOF:
            return
        if code in (KafkaError._AUTO_OFFSET_RESET, KafkaError.OFFSET_OUT_OF_RANGE):
            if part is not None:
                part.suspend()
                part.out_of_range = True
        elif is_missing_topic(error):
            self._complain_missing(topic)
            for other in self._partitions.values():
                if other.key[0] == topic:
                    other.suspend()
        elif code in _UNREACHABLE:
            self._complain("unreachable", f"can't reach Kafka at {self._bootstrap}: {error.str()}")
        else:
            self._complain(f"error {code}", f"Kafka says: {error.str()}")

    # Positions: where to read on

    def _settle_placing(self) -> None:
        if self._placing is None:
            now = time.monotonic()
            lost = [part for part in self._partitions.values() if not part.reading]
            in_flight = [] if self._handing is None else [taken.part for taken in self._handing.taken]
            # First what is under way is waited for: it may move these positions.
            if lost and now >= self._place_after and not any(part in in_flight for part in lost):
                self._ask_to_place(lost, None)
            return
        parts, placed = self._placing
        if not placed.done():
            return
        self._placing = None
        try:
            found = placed.result()
        except KafkaException as exc:
            self._place_after = time.monotonic() + _RETRY
            self._complain("unreachable", f"can't reach Kafka at {self._bootstrap}: {exc.args[0].str()}")
            return
        settled = []
        for part in parts:
            if part.key not in found:  # the topic is not there
                self._complain_missing(part.key[0])
                self._place_after = time.monotonic() + _RETRY
            elif self._partitions.get(part.key) is part:
                part.settle(*found[part.key])
                # Whoever had it before may have been killed before it could tell.
                self._hint.note(part.key, part.position.next_offset)
                settled.append(part)
        if settled:
            self._reachable()
            self._read(settled)

    def _ask_to_place(self, parts: list[_Partition], placement: Placement | None) -> None:
        """Have the places found of `parts`; `placement` is given where the records have already shown it."""
        for part in parts:
            part.suspend()
        if self._placing is not None:
            return  # asked again when that one is back
        keys = {part.key: (part.label, part.out_of_range) for part in parts}
        self._placing = (parts, self._aside.submit(self._places.find, keys, placement))

    def _read(self, parts: list[_Partition]) -> None:
        if self._incremental:
            assigned = {(at.topic, at.partition) for at in self._client.assignment()}
            again = [_at(part.key) for part in parts if part.key in assigned]
            if again:
                self._client.incremental_unassign(again)
            self._client.incremental_assign([_at(part.key, part.next_fetch) for part in parts])
        else:
            self._client.assign(
                [_at(part.key, part.next_fetch) for part in self._partitions.values() if part.reading]
            )
        # The client keeps the state of a partition that it had before, and a new one is not paused: said again for all.
        self._pause(self.is_paused)

    # Handing over

    def _begin_hand_over(self) -> None:
        """Take the next batch out of what waits, and begin to look at its topics once more."""
        if self._looking is not None or time.monotonic() < self._hand_after:
            return
        left = min(self._settings.batch_size, self._room - (self._handing.count() if self._handing else 0))
        room = self._settings.batch_bytes
        batch: list[_Taken] = []
        for part in self._partitions.values():
            if part.waiting and part.reading and left > 0 and (room > 0 or not batch):
                records = part.waiting.take(left, room)
                left -= len(records)
                room -= sum(map(size_of, records))
                batch.append(_Taken(part, part.generation, records))
        if not batch:
            return
        named = sorted({taken.part.key[0] for taken in batch if taken.part.position.topic_id is not None})
        ids = self._aside.submit(self._lookup.topic_ids, named, must=True) if named else None
        self._looking = _HandOver(batch, ids)
        self._settle_looking()

    def _settle_looking(self) -> None:
        """Check the topics of the next batch when the answer is there, and send it when it is its turn."""
        looking = self._looking
        if looking is None or (looking.ids is not None and not self._verified(looking, looking.ids)):
            return
        looking.ids = None
        if self._handing is None:
            self._looking = None
            self._send(looking)

    def _verified(self, looking: _HandOver, ids: "Future[dict[str, str | None]]") -> bool:
        """Drop what was read from a topic that is another one now; False when there is no answer yet.

        The records were fetched before the question was asked, so the same ID as before means that they are of that
        topic. Where it is another one, nobody can say of which of the two they are: they are dropped, and the new
        topic is read from its beginning.
        """
        if not ids.done():
            return False
        try:
            now = ids.result()
        except KafkaException as exc:
            self._complain("unreachable", f"can't reach Kafka at {self._bootstrap}: {exc.args[0].str()}")
            self._look_again(looking)
            return False
        if looking.missing < _MISSING_LOOKS and any(
            taken.part.position.topic_id is not None and taken.part.key[0] not in now
            for taken in looking.taken
        ):
            # Gone, or a new one that this broker has not heard of yet.
            looking.missing += 1
            self._look_again(looking)
            return False
        for taken in looking.taken:
            part = taken.part
            # A topic that is gone for good was the old one when these were read.
            current = now.get(part.key[0], part.position.topic_id)
            if taken.is_valid() and part.position.topic_id not in (None, current):
                part.suspend()
        return True

    def _look_again(self, looking: _HandOver) -> None:
        topics = sorted({taken.part.key[0] for taken in looking.taken if taken.part.position.topic_id})
        looking.ids = self._aside.submit(self._ask_later, topics)

    def _ask_later(self, topics: Sequence[str]) -> dict[str, str | None]:
        self._aside.pause(_RETRY / 2)
        return self._lookup.topic_ids(topics, must=True)

    def _send(self, batch: _HandOver) -> None:
        moves = []
        for taken in batch.taken:
            part, _, records = taken
            if self._partitions.get(part.key) is not part or not taken.is_valid() or part.expected is None:
                continue  # revoked, or suspended: whoever goes on from its position reads them again
            last = records[-1]
            position = advance(part.position, last.offset, last.timestamp)
            made = [self._starts.of(part.position, record, strict=self._strict) for record in records]
            batch.after.append((part, position))
            moves.append(
                Move(
                    expected=part.expected,
                    position=encode_position(position),
                    label=self._settings.name,
                    starts=[one for one in made if isinstance(one, Start)],
                    sends=[one for one in made if isinstance(one, Send)],
                )
            )
        if moves:
            batch.done = self._lane.hand_over(moves)
            self._handing = batch

    def _settle_hand_over(self) -> None:
        handing = self._handing
        if handing is None or handing.done is None or not handing.done.done():
            return
        self._handing = None
        try:
            handed = handing.done.result()
        except PositionMoved:
            # Another consumer has these partitions, or had them. What it handed over is done.
            for taken in handing.taken:
                taken.part.suspend()
            return
        except Exception as exc:
            self._not_handed_over(handing, exc)
            return
        self._said.over("hand-over")
        self._strict = False
        self._room -= handed.started
        for part, position in handing.after:
            assert part.expected is not None
            part.expected = handed.positions[part.expected.source]
            part.position = position
            if self._partitions.get(part.key) is part:
                self._hint.note(part.key, position.next_offset)

    def _not_handed_over(self, handing: _HandOver, exc: Exception) -> None:
        """Try the same records again, after a while; the second time each is tried on the workflow itself."""
        if self._said.may_say("hand-over"):
            log.error(
                "consumer %s could not hand over %s records; it tries again: %s",
                self._settings.name, handing.count(), exc, exc_info=exc,
            )  # fmt: skip
        self._strict = True
        self._hand_after = time.monotonic() + _RETRY
        # In the order in which they were read: these come before those of the next batch.
        for batch in (self._looking, handing):
            for taken in batch.taken if batch is not None else ():
                if taken.is_valid():
                    taken.part.waiting.put_back(taken.records)
        self._looking = None

    def _tell_kafka(self, offsets: Mapping[Key, int]) -> None:
        try:
            self._client.commit(offsets=[_at(*one) for one in offsets.items()], asynchronous=True)
        except (KafkaException, RuntimeError) as exc:
            self._hint.answered()
            log.debug("consumer %s: offsets not committed: %s", self._settings.name, exc)

    # Bounds, and what is asked from time to time

    def _settle(self) -> None:
        self._settle_hand_over()
        self._settle_looking()
        self._settle_placing()
        self._settle_count()
        self._settle_check()
        self._hint.tell()
        self._note_ends()

    def _settle_count(self) -> None:
        """Keep `_room`: how many workflows may still be started before the runnable ones are counted again."""
        now = time.monotonic()
        if self._counting is not None:
            if not self._counting.done():
                return
            counted, self._counting = self._counting, None
            self.counts += 1
            try:
                self._room = self._settings.max_in_flight - counted.result()
            except Exception as exc:
                log.debug("consumer %s: runnable workflows not counted: %s", self._settings.name, exc)
        elif now >= self._count_at and self._room < self._settings.max_in_flight:
            self._count_at = now + self._settings.count_every
            self._counting = self._lane.count_runnable(self._settings.name, self._settings.max_in_flight)

    def _note_ends(self) -> None:
        """Remember where the partitions end, as their last fetches said. Only this thread may ask the client."""
        now = time.monotonic()
        if now < self._ends_at:
            return
        self._ends_at = now + _NOTE_ENDS
        found: dict[Key, int] = {}
        for part in self._partitions.values():
            with contextlib.suppress(KafkaException):
                known = (
                    self._client.get_watermark_offsets(_at(part.key), cached=True) if part.reading else None
                )
                if known is not None and known[1] >= 0:
                    found[part.key] = known[1]
        self._ends = found

    def _settle_check(self) -> None:
        """Ask now and then whether the topics are the same: one made again with as many records gives no other sign."""
        now = time.monotonic()
        if self._checking is not None:
            if not self._checking.done():
                return
            checked, self._checking = self._checking, None
            try:
                suspicious = checked.result()
            except KafkaException:
                return
            for key in suspicious:
                part = self._partitions.get(key)
                if part is not None and part.reading:
                    part.suspend()
                    part.out_of_range = part.position.topic_id is None
        elif now >= self._check_at:
            self._check_at = now + self._settings.check_every
            reading = {part.key: part.position for part in self._partitions.values() if part.reading}
            if reading:
                self._checking = self._aside.submit(self._find_suspicious, reading)

    def _find_suspicious(self, reading: Mapping[Key, Position]) -> set[Key]:
        if self._lookup.metadata().cluster != self._cluster:
            return set(reading)
        named = sorted({key[0] for key, position in reading.items() if position.topic_id is not None})
        ids = self._lookup.topic_ids(named, must=True) if named else {}
        suspicious: set[Key] = set()
        for key, position in reading.items():
            if position.topic_id is None:
                if self._lookup.ends(*key)[1] < position.next_offset:
                    suspicious.add(key)
            elif ids.get(key[0], position.topic_id) != position.topic_id:
                suspicious.add(key)
        return suspicious

    def _is_full(self) -> bool:
        return self._waits_more_than(2)

    def _is_half_full(self) -> bool:
        return self._waits_more_than(1)

    def _waits_more_than(self, batches: int) -> bool:
        """Say whether more waits here than so many hand-overs can take, by count or by size."""
        waiting = [part.waiting for part in self._partitions.values()]
        return (
            sum(map(len, waiting)) > batches * self._settings.batch_size
            or sum(backlog.size for backlog in waiting) > batches * self._settings.batch_bytes
        )

    def _regulate(self) -> None:
        """Pause the partitions while too much waits or too many workflows are runnable; resume them after it."""
        if self._room <= 0 and not self.is_paused:
            self._pause(True)
        elif self.is_paused and self._room > 0 and not self._is_half_full():
            self._pause(False)

    def _pause(self, paused: bool) -> None:
        self.is_paused = paused
        at = [_at(part.key) for part in self._partitions.values() if part.reading]
        try:
            if at:
                (self._client.pause if paused else self._client.resume)(at)
        except KafkaException as exc:
            log.debug("consumer %s: %s", self._settings.name, exc)

    # What is said to people

    def _complain(self, what: str, text: str) -> None:
        if self._said.may_say(what):
            log.warning("consumer %r: %s; it goes on trying", self._settings.name, text)

    def _complain_missing(self, topic: str | None) -> None:
        self._complain(
            f"missing {topic}",
            f"topic {topic!r} does not exist at {self._bootstrap}. Create it, or correct the name in kafka.consumer",
        )

    def _reachable(self) -> None:
        if self._said.over("unreachable"):
            log.warning("consumer %r: Kafka at %s is there again", self._settings.name, self._bootstrap)


def _at(key: Key, offset: int | None = None) -> TopicPartition:
    return TopicPartition(*key) if offset is None else TopicPartition(*key, offset)


def _headers(message: ClientMessage) -> Sequence[tuple[str, bytes | None]]:
    given: Any = message.headers()  # a list of pairs when it comes from the broker
    return list(given) if given else ()
