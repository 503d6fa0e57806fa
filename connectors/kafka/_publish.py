"""Publishing from a workflow: a recorded step that ends when the brokers have the record.

The step is tried at least once, so a record may be produced twice when a process dies between the broker's answer and
the log. Both have the same `refold-id` header, by which readers drop the repeat (`message_id`, and `dedup=` of a
consumer).
"""

import uuid
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any, Final, Literal

import msgspec
from confluent_kafka import KafkaError, KafkaException

from refold.connectors.kafka._config import check_producer_config, resolve_bootstrap
from refold.connectors.kafka._message import TRACE_HEADERS, Message
from refold.connectors.kafka._produce import BrokerUnreachable
from refold.connectors.kafka._producers import NotDelivered, clients
from refold.core import DefinitionRefused, RefoldError, ValueRefused, step, step_info, workflow_args

ID_HEADER: Final = "refold-id"

Headers = Mapping[str, str | bytes | None] | Sequence[tuple[str, str | bytes | None]]

# What no later try would change. Everything else (no broker there, no leader, no answer) is tried again.
_REFUSALS: Final = frozenset(
    {
        KafkaError.MSG_SIZE_TOO_LARGE,
        KafkaError.RECORD_LIST_TOO_LARGE,
        KafkaError.INVALID_MSG,
        KafkaError.INVALID_RECORD,
        KafkaError.TOPIC_EXCEPTION,
        KafkaError.UNKNOWN_TOPIC_OR_PART,
        KafkaError.TOPIC_AUTHORIZATION_FAILED,
        KafkaError.CLUSTER_AUTHORIZATION_FAILED,
        KafkaError.POLICY_VIOLATION,
        KafkaError.UNSUPPORTED_FOR_MESSAGE_FORMAT,
        KafkaError._UNKNOWN_TOPIC,
        KafkaError._UNKNOWN_PARTITION,
        KafkaError._INVALID_ARG,
    }
)
_TOO_LARGE: Final = frozenset({KafkaError.MSG_SIZE_TOO_LARGE, KafkaError.RECORD_LIST_TOO_LARGE})
_ONE_BY_ONE: Final[Mapping[str, Any]] = {"batch.num.messages": 1}


class PublishRefused(RefoldError):
    """The brokers will not take this record, now or later. Reaction: see `reason`; correct topic, size or rights."""

    def __init__(self, topic: str, reason: str, code: int) -> None:
        super().__init__(topic, reason, code)
        self.topic, self.reason, self.code = topic, reason, code

    @property
    def is_too_large(self) -> bool:
        """Whether it is the record itself that cannot be taken, whatever is done about topic and rights."""
        return self.code in _TOO_LARGE

    def __str__(self) -> str:
        return (
            f"Kafka refused a record for topic {self.topic!r}: {self.reason}. It was not published. "
            "Create the topic, correct its name or the size of the value, or give this program the right to write."
        )


class Published(msgspec.Struct, frozen=True):
    """Where a published record is, and the ID in its `refold-id` header."""

    topic: str
    partition: int
    offset: int
    id: str


class Outgoing(msgspec.Struct, frozen=True, omit_defaults=True):
    """A record as the log keeps it: readable where it can be. Which bytes it stands for is in the two forms."""

    topic: str
    value: Any = None
    key: str | None = None
    form: Literal["json", "text", "base64", "none"] = "json"
    key_form: Literal["text", "base64"] = "text"
    headers: tuple[tuple[str, bytes | None], ...] = ()
    partition: int = -1
    id: str = ""
    producer: str = ""

    def value_bytes(self) -> bytes | None:
        """Return the bytes of the value; None for a tombstone."""
        if self.form == "json":
            return msgspec.json.encode(self.value)
        return None if self.form == "none" else _from_text(self.value, self.form)

    def key_bytes(self) -> bytes | None:
        """Return the bytes of the key."""
        return None if self.key is None else _from_text(self.key, self.key_form)


class Sender:
    """Produces records with one client per process, at the brokers that it is given or that the environment names."""

    def __init__(self, name: str, bootstrap_servers: str | None, config: Mapping[str, Any]) -> None:
        self.name = name
        self.settings: Final = (bootstrap_servers, dict(config))

    async def send(self, outgoing: Outgoing) -> Published:
        """Produce one record with the client of this process; raises PublishRefused or BrokerUnreachable."""
        given, config = self.settings
        bootstrap = resolve_bootstrap(f"kafka.Producer({self.name!r})", given)
        id = outgoing.id or step_info().idempotency_key
        headers = [*outgoing.headers, (ID_HEADER, id.encode())]
        record = (outgoing.topic, outgoing.value_bytes(), outgoing.key_bytes(), headers, outgoing.partition)
        try:
            client = clients.get(self.name, bootstrap, config)
            try:
                done = await client.send(*record)
            except NotDelivered as exc:
                if exc.args[0].code() not in _TOO_LARGE:
                    raise
                # What the broker measures is the batch, and all that is in it is refused together.
                done = await clients.get(
                    f"{self.name}, one by one", bootstrap, {**config, **_ONE_BY_ONE}
                ).send(*record)
        except KafkaException as exc:
            error: KafkaError = exc.args[0]
            if error.code() in _REFUSALS:
                raise PublishRefused(outgoing.topic, error.str(), error.code()) from exc
            raise BrokerUnreachable(bootstrap, error.str()) from exc
        return Published(outgoing.topic, done.partition() or 0, done.offset() or 0, id)


class Producer(Sender):
    """Where records are published: brokers, how to connect, and how the client is set up.

    `name` is what the log says of a record that is published, so keep it; addresses and passwords are not in the
    log. `bootstrap_servers` is by default what REFOLD_KAFKA_BOOTSTRAP says. The client is one per process, made
    when it is first used; it is idempotent and waits for all in-sync replicas. Raises DefinitionRefused for
    settings that would break that, and for a name that this program has given to another one.
    """

    def __init__(
        self, name: str, *, bootstrap_servers: str | None = None, config: Mapping[str, Any] | None = None
    ) -> None:
        where = f"kafka.Producer({name!r})"
        check_producer_config(where, config or {})
        super().__init__(name, bootstrap_servers, config or {})
        other = _producers.get(name)
        if other is not None and other.settings != self.settings:
            raise DefinitionRefused(
                where,
                "this program has another producer of that name, with other settings",
                "Give one of them another name: the name tells which of them publishes a recorded record.",
            )
        _producers[name] = self

    def publish(
        self,
        topic: str,
        value: Any,
        *,
        key: str | bytes | None = None,
        headers: Headers = (),
        partition: int | None = None,
        id: str | None = None,
    ) -> Published:
        """Publish a record and return when the brokers have it; in a `def` workflow, a recorded step.

        `value` is encoded as JSON, bytes and str go as they are, None is a tombstone. The header `refold-id` is
        the same at every try: the workflow's ID and the step's number, or `id`. (Called outside of workflow code,
        in a step for instance, it is a new one at each call: pass `id` there.) A workflow that a record started
        passes its trace context on, unless `headers` has one. While the brokers are away the step is tried again,
        as long as it takes. Raises PublishRefused when they will never take it, ValueRefused for a value that is
        no JSON.
        """
        return _publish.call(self._outgoing(topic, value, key, headers, partition, id))

    async def apublish(
        self,
        topic: str,
        value: Any,
        *,
        key: str | bytes | None = None,
        headers: Headers = (),
        partition: int | None = None,
        id: str | None = None,
    ) -> Published:
        """Do what `publish` does, from an `async def` workflow or other async code."""
        return await _publish.acall(self._outgoing(topic, value, key, headers, partition, id))

    def _outgoing(
        self,
        topic: str,
        value: Any,
        key: str | bytes | None,
        headers: Headers,
        partition: int | None,
        id: str | None,
    ) -> Outgoing:
        args = workflow_args()
        form, shown = _shown_value(topic, value)
        key_form, shown_key = shown_bytes(key or "")
        pairs = headers.items() if isinstance(headers, Mapping) else headers
        given = tuple((name, text.encode() if isinstance(text, str) else text) for name, text in pairs)
        return Outgoing(
            topic=topic,
            value=shown,
            key=None if key is None else shown_key,
            form=form,
            key_form=key_form,
            headers=given + _trace(args or (), given),
            partition=-1 if partition is None else partition,
            id=id or ("" if args is not None else uuid.uuid4().hex),
            producer=self.name,
        )


_producers: dict[str, Producer] = {}
_default: Final = Producer("")
publish = _default.publish
apublish = _default.apublish


def producer_of(name: str) -> Producer:
    """Return the producer that the log calls `name`; raises DefinitionRefused when this program has none."""
    found = _producers.get(name)
    if found is None:
        raise DefinitionRefused(
            f"kafka.Producer({name!r})",
            "a record is to be published with it, and this program does not make it",
            "Make it at module level, where the workflow is declared, under the name that it had.",
        )
    return found


def _may_come_later(error: Exception) -> bool:
    return isinstance(error, BrokerUnreachable | DefinitionRefused)


@step(
    name="kafka.publish",
    retries=1_000_000,
    retry_delay=timedelta(seconds=1),
    max_delay=timedelta(minutes=1),
    retry_if=_may_come_later,
)
async def _publish(record: Outgoing) -> Published:
    return await producer_of(record.producer).send(record)


def message_id(message: Message[Any]) -> str | None:
    """Return the ID that every repeat of a published record has in common; None for one that has none.

    It is the last `refold-id` header. A reader that remembers the IDs it has seen, with what it did, drops repeats.
    """
    found = message.header(ID_HEADER)
    return None if found is None else found.decode("utf-8", "replace")


def _trace(
    args: tuple[Any, ...], given: Sequence[tuple[str, bytes | None]]
) -> tuple[tuple[str, bytes | None], ...]:
    """Return the trace headers of the record that started the workflow, unless some are given."""
    if any(name in TRACE_HEADERS for name, _ in given):
        return ()
    started_by = next((arg for arg in args if isinstance(arg, Message)), None)
    return () if started_by is None else tuple(started_by.trace.items())


def _shown_value(topic: str, value: Any) -> tuple[Literal["json", "text", "base64", "none"], Any]:
    if value is None:
        return "none", None
    if isinstance(value, str | bytes):
        return shown_bytes(value)
    try:
        # Sets in one order in every process; what comes back is what is encoded again when it is published.
        return "json", msgspec.json.decode(msgspec.json.encode(value, order="deterministic"))
    except (TypeError, ValueError, OverflowError, RecursionError, msgspec.MsgspecError) as exc:
        raise ValueRefused(
            f"a record for topic {topic!r}",
            f"a {type(value).__name__} cannot be written as JSON ({exc})",
            "Publish JSON's types, a msgspec.Struct, a dataclass, bytes or a str.",
        ) from exc


def shown_bytes(raw: str | bytes) -> tuple[Literal["text", "base64"], str]:
    if isinstance(raw, str):
        return "text", raw
    try:
        return "text", raw.decode("utf-8")
    except UnicodeDecodeError:
        return "base64", msgspec.to_builtins(raw)


def _from_text(text: Any, form: str) -> bytes:
    return msgspec.convert(text, bytes) if form == "base64" else str(text).encode()
