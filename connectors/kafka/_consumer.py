"""`@kafka.consumer`: what is declared over a workflow, and the thread that does it while the worker runs."""

import logging
import shlex
import threading
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any, Final, TypeVar, cast

import msgspec
from confluent_kafka import KafkaException

from refold.connectors.kafka._broker import Lookup, SaidOnce, Start
from refold.connectors.kafka._config import admin_config, check_config, resolve_bootstrap
from refold.connectors.kafka._identity import check_consumer_name, source_prefix
from refold.connectors.kafka._message import message_parameter
from refold.connectors.kafka._position import decode_position
from refold.connectors.kafka._reader import Reader
from refold.connectors.kafka._settings import Settings
from refold.core import App, DefinitionRefused, Lane, SourcePosition, SourceReport, Workflow, sample

log: Final = logging.getLogger("refold.kafka")
W = TypeVar("W", bound=Workflow[..., Any])

_RETRY: Final = 1.0
_LOOK_TIMEOUT: Final = 1.0  # a stop waits that long for brokers that don't answer
_LAST_HAND_OVER: Final = 2.0


def consumer(
    *topics: str,
    name: str | None = None,
    group: str | None = None,
    bootstrap_servers: str | None = None,
    config: Mapping[str, Any] | None = None,
    start: Start = "earliest",
    batch_size: int = 500,
    max_in_flight: int = 10_000,
    dedup: str | None = None,
) -> Callable[[W], W]:
    """Have every record of `topics` start one run of the workflow below, ever.

    The workflow takes one `kafka.Message[T]`. `name` (default: the workflow's) is the consumer's identity, in the
    IDs of its workflows and in its positions: keep it, and a renamed group, function or module runs nothing
    again. `group` is Kafka's consumer group, by default called like the consumer. `bootstrap_servers` is by
    default what `REFOLD_KAFKA_BOOTSTRAP` says when the worker starts. `config` goes to librdkafka as it is,
    without the keys that would break the promise. `start` says where a consumer begins whose name is new to a
    topic: "earliest", "latest", or an aware datetime. At most `batch_size` records are handed over in one
    transaction; at about `max_in_flight` runnable workflows (those that wait for something don't count) the
    topics are paused. `dedup` names a header whose value is a record's identity: of all records of a topic with
    the same value only the first starts a workflow ("refold-id" for what workflows publish); one without it is
    itself, as ever.

    Raises DefinitionRefused for a declaration that cannot work.
    """
    where = f"kafka.consumer({', '.join(map(repr, topics))})"
    settings = dict(config or {})
    _check_topics(where, topics)
    _check_start(where, start)
    check_config(where, settings)
    for option, value in (("batch_size", batch_size), ("max_in_flight", max_in_flight)):
        if value < 1:
            raise DefinitionRefused(where, f"{option}={value}", "Give 1 or more.")

    def decorate(workflow: W) -> W:
        if not isinstance(workflow, Workflow):
            raise DefinitionRefused(
                where,
                f"it sits on {getattr(workflow, '__qualname__', workflow)!r}, which is no workflow",
                "Put @app.workflow below it, directly above the function.",
            )
        called = name or workflow.name
        check_consumer_name(called)
        declared = KafkaConsumer(
            Settings(
                workflow=workflow,
                codec=message_parameter(workflow.name, workflow.parameters),
                topics=topics,
                name=called,
                group=group or called,
                config=settings,
                start=start,
                batch_size=batch_size,
                max_in_flight=max_in_flight,
                dedup=dedup,
            ),
            bootstrap_servers,
        )
        app = cast(App, workflow.app)
        if any(isinstance(other, KafkaConsumer) and other.name == called for other in app.connectors):
            raise DefinitionRefused(
                where,
                f"app {app.name!r} has a consumer called {called!r} already",
                "Give one of them another name=: it is part of the IDs of the workflows.",
            )
        app.connect(declared)
        return workflow

    return decorate


class KafkaConsumer:
    """A declared consumer: the connector that its app starts and stops."""

    kind: str = "consumer"

    def __init__(self, settings: Settings, bootstrap_servers: str | None) -> None:
        self.settings = settings
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
        """Begin to read, on a thread of its own. Raises DefinitionRefused when no broker address is given."""
        where = f"kafka.consumer {self.name!r}"
        self._bootstrap = resolve_bootstrap(where, self.bootstrap_servers)
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

    def stop(self) -> None:
        """Stop reading; on return what was being handed over is, and the group has been left."""
        self._stopping.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def describe(self) -> list[str]:
        """Return one line: the topics, the group, how far they have been handed over."""
        line = f"{self.name}: topic {', '.join(self.topics)}"
        if self.settings.group != self.name:
            line += f", group {self.settings.group}"
        return [f"{line}, {self._progress()}"]

    def report(self) -> list[SourceReport]:
        """Return one line for each partition that has a position."""
        if self._app is None:
            return []
        found = []
        for at in self._app.positions(source_prefix(self.name)):
            position = describe_position(at)
            if position is not None:
                text = f"{position.topic}[{position.partition}], next offset {position.next_offset}"
                found.append(SourceReport(at.source, self.name, text, paused=self.is_paused()))
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


def _check_topics(where: str, topics: tuple[str, ...]) -> None:
    if not topics or not all(isinstance(topic, str) and topic for topic in topics):
        raise DefinitionRefused(
            where,
            "no topic is named",
            'Write @kafka.consumer("orders"), or several names, or a pattern: "^orders[.].*".',
        )


def _check_start(where: str, start: object) -> None:
    if isinstance(start, datetime):
        if start.tzinfo is None:
            raise DefinitionRefused(
                where, "start= is a time without a zone", "Write datetime(..., tzinfo=UTC)."
            )
    elif start not in ("earliest", "latest"):
        raise DefinitionRefused(where, f"start={start!r}", 'Use "earliest", "latest", or an aware datetime.')
