"""A consumer as the connector that its app starts and stops: a thread that makes clients and reads with them."""

import logging
import shlex
import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgspec
from confluent_kafka import KafkaException

from refold.connectors.kafka._broker import Lookup, SaidOnce, check_client
from refold.connectors.kafka._config import admin_config, consumer_config, resolve_bootstrap
from refold.connectors.kafka._dead_letters import DeadLetters
from refold.connectors.kafka._identity import (
    Place,
    place_in_order,
    place_of,
    shown_key,
    source_prefix,
)
from refold.connectors.kafka._position import decode_position
from refold.connectors.kafka._produce import BrokerUnreachable
from refold.connectors.kafka._reader import Reader
from refold.connectors.kafka._settings import Settings
from refold.core import App, Lane, ParkedWorkflow, SourcePosition, SourceReport, sample

log: Final = logging.getLogger("refold.kafka")

_RETRY: Final = 1.0
_LOOK_TIMEOUT: Final = 1.0  # a stop waits that long for brokers that don't answer
_LAST_HAND_OVER: Final = 2.0


class KafkaConsumer:
    """A declared consumer: the connector that its app starts and stops."""

    def __init__(
        self, settings: Settings, bootstrap_servers: str | None, dead_letters: DeadLetters | None = None
    ) -> None:
        self.settings = settings
        self.kind = "consumer" if settings.signal is None else "signal"
        self._dead_letters = dead_letters
        self.name = settings.name
        self.topics = settings.topics
        self.value_type = settings.codec.type
        self.bootstrap_servers = bootstrap_servers
        self._bootstrap = ""
        self._app: App | None = None
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None
        self._reader: Reader | None = None
        self.tries = 0  # clients made, or tried to

    def is_reading(self) -> bool:
        """Say whether it reads partitions now: it has been given some, and knows its positions in all of them."""
        reader = self._reader
        return reader is not None and reader.is_reading()

    def is_paused(self) -> bool:
        """Say whether its partitions are paused: too much is runnable, or Postgres does not keep up."""
        reader = self._reader
        return reader is not None and reader.is_paused

    @property
    def counts(self) -> int:
        """How often its runnable workflows have been counted by the present client."""
        reader = self._reader
        return 0 if reader is None else reader.counts

    def start(self, app: App) -> None:
        """Begin to read, on a thread of its own. Raises DefinitionRefused when no broker address is given,
        or librdkafka does not take the config.
        """
        where = f"kafka.consumer {self.name!r}"
        self._bootstrap = resolve_bootstrap(where, self.bootstrap_servers)
        if self.settings.config:
            check_client(
                where, consumer_config(self._bootstrap, self.settings.group, self.settings.config, "")
            )
        self._app = app
        lane = app.lane(f"kafka/{self.name}")
        lookup = Lookup(
            admin_config(self._bootstrap, self.settings.config), patience=self.settings.describe_patience
        )
        self._stopping = threading.Event()
        self._thread = threading.Thread(
            target=self._run,
            args=(lane, lookup, self._stopping),
            name=f"refold-kafka-{self.name}",
            daemon=True,
        )
        self._thread.start()
        if self._dead_letters is not None:
            self._dead_letters.start()

    def stop(self) -> None:
        """Stop reading; on return what was being handed over is, and the group has been left."""
        self._stopping.set()
        if self._dead_letters is not None:
            self._dead_letters.stop()
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def describe(self) -> list[str]:
        """Return one line: the topics, the group, how far they have been handed over."""
        line = f"{self.name}: topic {', '.join(self.topics)}"
        if self.settings.group != self.name:
            line += f", group {self.settings.group}"
        if self.settings.signal is not None:
            line += f", messages for {self.settings.signal.workflow}"
        if self.settings.ordering != "none":
            line += f", in order by {self.settings.ordering}"
        if self.settings.dead_letter is not None:
            line += f", dead letters to {self.settings.dead_letter}"
        return [f"{line}, {self._progress()}"]

    def report(self) -> list[SourceReport]:
        """Return one line for each partition that has a position. The lag is as of what was fetched last."""
        if self._app is None:
            return []
        found = []
        reader = self._reader
        ends = {} if reader is None else reader.ends()
        places = map(place_of, self._app.runnable(self.name, limit=self.settings.max_in_flight))
        runnable = Counter((place.topic, place.partition) for place in places if place is not None)
        for at in self._app.positions(source_prefix(self.name)):
            position = describe_position(at)
            if position is not None:
                text = f"{position.topic}[{position.partition}], next offset {position.next_offset}"
                key = (position.topic, position.partition)
                found.append(
                    SourceReport(
                        at.source,
                        self.name,
                        text,
                        lag=max(ends[key] - position.next_offset, 0) if key in ends else None,
                        in_flight=runnable[key],
                        paused=self.is_paused(),
                    )
                )
        return found

    def try_next(self) -> list[str]:
        """Return the command that produces a record of the type that the workflow takes."""
        topic = self.topics[0]
        if topic.startswith("^"):
            return []
        broker = f" --bootstrap-servers {self.bootstrap_servers}" if self.bootstrap_servers else ""
        value = shlex.quote(sample(self.value_type, topic).decode())
        return [f"refold kafka produce {topic} {value}{broker}"]

    def _progress(self) -> str:
        if self._app is None:
            return "not started"
        known = self._app.positions(source_prefix(self.name))
        counts = [position.next_offset for at in known if (position := decode_position(at.position))]
        if not any(counts):
            return "nothing handed over yet"
        if len(counts) == 1:
            return f"goes on at offset {counts[0]}"
        return f"goes on in {len(counts)} partitions"

    def _run(self, lane: Lane, lookup: Lookup, stopping: threading.Event) -> None:
        said = SaidOnce()
        while not stopping.is_set():
            self.tries += 1
            try:
                cluster = lookup.metadata(timeout=_LOOK_TIMEOUT).cluster
            except KafkaException as exc:
                if said.may_say("unreachable"):
                    log.warning(
                        "consumer %r: can't reach Kafka at %s: %s; it goes on trying",
                        self.name, self._bootstrap, exc.args[0].str(),
                    )  # fmt: skip
                stopping.wait(_RETRY)
                continue
            if said.over("unreachable"):
                log.warning("consumer %r: Kafka at %s is there again", self.name, self._bootstrap)
            self._read(lane, lookup, said, cluster, stopping)

    def _read(
        self, lane: Lane, lookup: Lookup, said: SaidOnce, cluster: str, stopping: threading.Event
    ) -> None:
        """Read until stopped, or until anything fails: then a new client begins at the positions in Postgres."""
        reader: Reader | None = None
        try:
            reader = Reader(self.settings, self._bootstrap, lane, lookup, said, cluster)
            self._reader = reader
            reader.run(stopping)
        except Exception as exc:
            if said.may_say(f"restart {type(exc).__name__}"):
                log.warning("consumer %r begins again with a new client: %s", self.name, exc, exc_info=exc)
            stopping.wait(_RETRY)
        finally:
            self._reader = None
            if reader is not None:
                reader.close(_LAST_HAND_OVER)


class ConsumerPosition(msgspec.Struct, frozen=True):
    """How far a consumer has handed over one partition, for people."""

    consumer: str
    cluster: str
    topic: str
    partition: int
    next_offset: int
    topic_id: str | None


def describe_position(at: SourcePosition) -> ConsumerPosition | None:
    """Return what the position of a source says; None when it is no Kafka partition's, or has none yet."""
    from urllib.parse import unquote

    position = decode_position(at.position) if at.source.startswith("kafka:") else None
    if position is None:
        return None
    _, name, cluster, topic, partition = (unquote(part) for part in at.source.split(":"))
    return ConsumerPosition(name, cluster, topic, int(partition), position.next_offset, position.topic_id)


class ParkedRecord(msgspec.Struct, frozen=True):
    """A record that was set aside, for people. `waiting` records of its order are behind it; `parked_at` in us.

    `key` is the record's where the order is that of a key; "#" and a hash stand for a long one.
    """

    workflow: str
    consumer: str
    topic: str
    partition: int
    offset: int
    key: str | None
    waiting: int
    error: str
    parked_at: int


def place_of_parked(parked: ParkedWorkflow) -> Place | None:
    """Return where a parked record is: its ID says so, or its order where its ID is a header's. None: nothing does."""
    return place_of(parked.id) or place_in_order(parked.order_key, parked.order_no)


def describe_parked(parked: ParkedWorkflow) -> ParkedRecord:
    """Return what is known of a parked record."""
    place = place_of_parked(parked) or Place(parked.label, "", "", 0, parked.order_no)
    error = parked.error
    return ParkedRecord(
        workflow=parked.id,
        consumer=place.consumer,
        topic=place.topic,
        partition=place.partition,
        offset=place.offset,
        key=shown_key(parked.order_key),
        waiting=parked.waiting,
        error=parked.reason if error is None else f"{error.qualname}: {error.message}",
        parked_at=parked.at,
    )


def partition_ends(
    bootstrap: str, config: Mapping[str, Any], positions: Sequence[ConsumerPosition], timeout: float
) -> dict[tuple[str, int], int]:
    """Return the offset that comes next in the partition of each position that is in the cluster at `bootstrap`.

    Raises BrokerUnreachable.
    """
    try:
        lookup = Lookup(admin_config(bootstrap, config), timeout=timeout)
        metadata = lookup.metadata(sorted({at.topic for at in positions}))
        there = [
            (at.topic, at.partition)
            for at in positions
            if at.cluster == metadata.cluster and at.partition < metadata.partitions.get(at.topic, 0)
        ]
        return lookup.last_offsets(there)
    except KafkaException as exc:
        raise BrokerUnreachable(bootstrap, exc.args[0].str()) from exc
