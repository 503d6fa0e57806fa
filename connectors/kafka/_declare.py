"""`@kafka.consumer` and `@kafka.signal`: what stands above a workflow, checked where it stands."""

import contextlib
import re
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any, Final, TypeVar, cast, get_args

import msgspec

from refold.connectors.kafka._broker import Start
from refold.connectors.kafka._config import check_config
from refold.connectors.kafka._consumer import KafkaConsumer
from refold.connectors.kafka._dead_letters import declare_dead_letters
from refold.connectors.kafka._identity import check_consumer_name
from refold.connectors.kafka._message import Message, message_parameter
from refold.connectors.kafka._settings import Ordering, Settings, SignalTo
from refold.connectors.kafka._starts import signal_of
from refold.core import App, DefinitionRefused, Workflow

W = TypeVar("W", bound=Workflow[..., Any])

_ORDERINGS: Final = get_args(Ordering)


def consumer(
    *topics: str,
    name: str | None = None,
    group: str | None = None,
    bootstrap_servers: str | None = None,
    config: Mapping[str, Any] | None = None,
    start: Start = "earliest",
    ordering: Ordering = "none",
    dead_letter: str | None = None,
    dedup: str | None = None,
    batch_size: int = 500,
    max_in_flight: int = 10_000,
) -> Callable[[W], W]:
    """Have every record of `topics` start one run of the workflow below, ever.

    The workflow takes one `kafka.Message[T]`. `name` (default: the workflow's) is the consumer's identity, in the
    IDs of its workflows and in its positions: keep it, and a renamed group, function or module runs nothing
    again. `group` is Kafka's consumer group, by default called like the consumer. `bootstrap_servers` is by
    default what `REFOLD_KAFKA_BOOTSTRAP` says when the worker starts. `config` goes to librdkafka as it is,
    without the keys that would break the promise. `start` says where a consumer begins whose name is new to a
    topic: "earliest", "latest", or an aware datetime.

    `ordering`: "none" runs all records side by side, "partition" those of a partition one after the other, "key"
    those of a partition with the same key. A record of an order whose workflow fails is parked, and its order
    waits until `refold kafka retry` or `skip`. `dead_letter` names a topic: such a record goes there, with
    `x-dlq-` headers, and its order goes on. `dedup` names a header whose value is a record's identity: of all
    records of a topic with the same value only the first starts a workflow ("refold-id" for what workflows
    publish); one without it is itself, as ever.

    At most `batch_size` records are handed over in one transaction; at about `max_in_flight` runnable workflows
    (those that wait for something don't count) the topics are paused.

    Raises DefinitionRefused for a declaration that cannot work.
    """
    where = f"kafka.consumer({', '.join(map(repr, topics))})"
    _check_topics(where, topics)
    _check_start(where, start)
    _check_bounds(where, batch_size, max_in_flight)
    if ordering not in _ORDERINGS:
        raise DefinitionRefused(where, f"ordering={ordering!r}", 'Use "none", "partition" or "key".')
    _check_letters(where, topics, dead_letter)
    _check_dedup(where, dedup)
    check_config(where, settings := dict(config or {}))

    def decorate(workflow: W) -> W:
        _check_workflow(where, workflow)
        called = name or workflow.name
        declared = Settings(
            workflow=workflow,
            codec=message_parameter(workflow.name, workflow.parameters),
            topics=topics,
            name=called,
            group=group or called,
            config=settings,
            start=start,
            ordering=ordering,
            dead_letter=dead_letter,
            dedup=dedup,
            batch_size=batch_size,
            max_in_flight=max_in_flight,
        )
        _connect(where, cast(App, workflow.app), declared, bootstrap_servers)
        return workflow

    return decorate


def signal(
    *topics: str,
    to: Callable[[Message[Any]], str | None],
    topic: str,
    body: Any = Any,
    value: Callable[[Message[Any]], Any] | None = None,
    name: str | None = None,
    group: str | None = None,
    bootstrap_servers: str | None = None,
    config: Mapping[str, Any] | None = None,
    start: Start = "earliest",
    dead_letter: str | None = None,
    dedup: str | None = None,
    batch_size: int = 500,
    max_in_flight: int = 10_000,
) -> Callable[[W], W]:
    """Have every record of Kafka's `topics` be one message into a run of the workflow below, for its `recv(topic)`.

    `to` says which run: it takes the `kafka.Message` and returns the workflow's ID (None: the record is for
    nobody). `body` is the type that the record's value must have; the message is that value, or what `value`
    makes of the record. `name` is the consumer's identity (default: `{workflow}.{topic}`). A record is one
    message, however often Kafka delivers it; one for a workflow that has not started yet waits for it.

    A record that does not fit `body`, or that `to` fails on, is set aside as a parked workflow called like the
    consumer: `refold kafka parked` shows it, `refold kafka retry` delivers it once the code is corrected. `to` and
    `value` are called on the thread that reads, so they may not wait. The other options are those of
    `kafka.consumer`.

    Raises DefinitionRefused for a declaration that cannot work.
    """
    where = f"kafka.signal({', '.join(map(repr, topics))})"
    _check_topics(where, topics)
    _check_start(where, start)
    _check_bounds(where, batch_size, max_in_flight)
    _check_letters(where, topics, dead_letter)
    _check_dedup(where, dedup)
    check_config(where, settings := dict(config or {}))

    def decorate(workflow: W) -> W:
        _check_workflow(where, workflow)
        signal_to = SignalTo(workflow.name, topic, to, value)
        called = name or f"{workflow.name}.{topic}"
        app = cast(App, workflow.app)
        late = _late_delivery(app, called, signal_to, body)
        declared = Settings(
            workflow=late,
            codec=message_parameter(called, late.parameters),
            topics=topics,
            name=called,
            group=group or called,
            config=settings,
            start=start,
            signal=signal_to,
            dead_letter=dead_letter,
            dedup=dedup,
            batch_size=batch_size,
            max_in_flight=max_in_flight,
        )
        _connect(where, app, declared, bootstrap_servers)
        return workflow

    return decorate


def _late_delivery(app: App, name: str, signal_to: SignalTo, body: Any) -> Workflow[..., Any]:
    """Return the workflow that a record becomes which was no message: run again, it delivers it."""

    def deliver(message: Any) -> str | None:
        send = signal_of(signal_to, message, "")
        if send is None:
            return None
        app.send(send.to, msgspec.json.decode(send.value), topic=send.topic)
        return send.to

    deliver.__annotations__["message"] = Message[body]
    return app.workflow(name=name)(deliver)


def _connect(where: str, app: App, settings: Settings, bootstrap_servers: str | None) -> None:
    check_consumer_name(settings.name)
    if any(isinstance(other, KafkaConsumer) and other.name == settings.name for other in app.connectors):
        raise DefinitionRefused(
            where,
            f"app {app.name!r} has a consumer called {settings.name!r} already",
            "Give one of them another name=: it is part of the IDs of the workflows.",
        )
    letters = None if settings.dead_letter is None else declare_dead_letters(app, settings, bootstrap_servers)
    app.connect(KafkaConsumer(settings, bootstrap_servers, letters))


def _check_workflow(where: str, workflow: object) -> None:
    if not isinstance(workflow, Workflow):
        raise DefinitionRefused(
            where,
            f"it sits on {getattr(workflow, '__qualname__', workflow)!r}, which is no workflow",
            "Put @app.workflow below it, directly above the function.",
        )


def _check_topics(where: str, topics: tuple[str, ...]) -> None:
    if not topics or not all(isinstance(topic, str) and topic for topic in topics):
        raise DefinitionRefused(
            where,
            "no topic is named",
            'Write @kafka.consumer("orders"), or several names, or a pattern: "^orders[.].*".',
        )


def _check_letters(where: str, topics: tuple[str, ...], dead_letter: str | None) -> None:
    if dead_letter is not None and (not dead_letter or any(_reads(topic, dead_letter) for topic in topics)):
        raise DefinitionRefused(
            where,
            f"dead_letter={dead_letter!r}",
            "Give a topic that it does not read itself, also not by a pattern: a letter would come back for ever.",
        )


def _reads(topic: str, name: str) -> bool:
    if not topic.startswith("^"):
        return topic == name
    # The client has regular expressions of its own. Of a pattern that only it understands nothing is known here.
    with contextlib.suppress(re.error):
        return re.search(topic, name) is not None
    return False


def _check_dedup(where: str, dedup: str | None) -> None:
    if dedup == "":
        raise DefinitionRefused(where, "dedup=''", 'Name a header, like "refold-id".')


def _check_start(where: str, start: object) -> None:
    if isinstance(start, datetime):
        if start.tzinfo is None:
            raise DefinitionRefused(
                where, "start= is a time without a zone", "Write datetime(..., tzinfo=UTC)."
            )
    elif start not in ("earliest", "latest"):
        raise DefinitionRefused(where, f"start={start!r}", 'Use "earliest", "latest", or an aware datetime.')


def _check_bounds(where: str, batch_size: int, max_in_flight: int) -> None:
    for option, value in (("batch_size", batch_size), ("max_in_flight", max_in_flight)):
        if value < 1:
            raise DefinitionRefused(where, f"{option}={value}", "Give 1 or more.")
