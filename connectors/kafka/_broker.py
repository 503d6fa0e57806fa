"""Questions to the brokers beside the consumer's own: which cluster, which topic, which offsets.

All of it waits for the network, so a consumer asks from a thread of its own (`Lookup` in a future) and never from
the thread that polls.
"""

import contextlib
import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any, Final, Literal

import msgspec
from confluent_kafka import Consumer, KafkaError, KafkaException, TopicCollection, TopicPartition
from confluent_kafka.admin import AdminClient
from confluent_kafka.admin import OffsetSpec as _AnyOffsetSpec  # type: ignore[attr-defined,unused-ignore]

from refold.connectors.kafka._identity import url_safe
from refold.core import DefinitionRefused

# The client's own stubs leave this class untyped.
OffsetSpec: Final[Any] = _AnyOffsetSpec

Start = Literal["earliest", "latest"] | datetime

# librdkafka's own lines are kept out; `logging.getLogger("refold.kafka.client").setLevel("INFO")` lets them in.
client_log: Final = logging.getLogger("refold.kafka.client")
if client_log.level == logging.NOTSET:
    client_log.setLevel(logging.CRITICAL + 1)

_CANNOT_DESCRIBE: Final = frozenset(
    {
        KafkaError._UNSUPPORTED_FEATURE,
        KafkaError.TOPIC_AUTHORIZATION_FAILED,
        KafkaError.CLUSTER_AUTHORIZATION_FAILED,
        KafkaError.UNSUPPORTED_VERSION,
        KafkaError.INVALID_REQUEST,
        # A broker that answers metadata but never this: librdkafka waits in vain for one that could.
        KafkaError._TIMED_OUT,
    }
)
_MISSING: Final = frozenset(
    {KafkaError.UNKNOWN_TOPIC_OR_PART, KafkaError._UNKNOWN_TOPIC, KafkaError._UNKNOWN_PARTITION}
)


class QuietLog:
    """Takes librdkafka's log lines; never raises, because an exception in a callback destroys fetched records."""

    def log(self, level: int, fmt: str, *args: Any) -> None:
        """Pass a line on to the logger `refold.kafka.client`."""
        with contextlib.suppress(Exception):  # of a handler of the program's
            client_log.log(level, fmt, *args)


def check_client(where: str, config: Mapping[str, Any]) -> None:
    """Raise DefinitionRefused for settings that librdkafka does not take: a name that is misspelt, say.

    Said once at the start; the thread that reads would only complain, and try again for ever. Callbacks are left
    out: some are called, and waited for, as a client is made.
    """
    settings = {key: value for key, value in config.items() if not key.endswith("_cb")}
    try:
        Consumer(settings, logger=QuietLog()).close()
    except KafkaException as exc:
        raise DefinitionRefused(
            where,
            f"librdkafka does not take its config: {exc.args[0].str()}",
            "Correct it; the names are in librdkafka's CONFIGURATION.md.",
        ) from exc


class Metadata(msgspec.Struct, frozen=True):
    """What any broker says: the cluster's ID, and how many partitions each of its topics has."""

    cluster: str
    partitions: Mapping[str, int]


def is_missing_topic(error: KafkaError) -> bool:
    """Say whether `error` means that a topic or partition is not there (any more, or yet)."""
    return error.code() in _MISSING


class Lookup:
    """Asks the brokers. Every method waits for the answer, and raises KafkaException when none comes."""

    def __init__(self, config: Mapping[str, Any], *, timeout: float = 10.0, patience: float = 5.0) -> None:
        """Connect lazily. A broker that answers everything but a describe for `patience` seconds has none."""
        # Kept: its futures die with it. Nobody polls it, so its log lines would pile up: none are made.
        self._admin = AdminClient({**config, "log_level": 0})
        self._timeout = timeout
        self._patience = patience
        self._can_describe: bool | None = None

    def metadata(self, topics: Sequence[str] = (), timeout: float | None = None) -> Metadata:
        """Return the cluster's ID, and the number of partitions of each of `topics` that exists."""
        found = self._admin.list_topics(timeout=self._timeout if timeout is None else timeout)
        counts = {
            topic: len(found.topics[topic].partitions)
            for topic in topics
            if topic in found.topics and found.topics[topic].error is None
        }
        return Metadata(found.cluster_id or "", counts)

    def topic_ids(self, topics: Sequence[str], *, must: bool) -> dict[str, str | None]:
        """Return the ID of each topic that exists now, None where the brokers don't give IDs.

        With `must` these brokers have given them before: then one that does not come is an error (an exception),
        not a broker that has none.
        """
        if self._can_describe is False and not must:
            return dict.fromkeys(topics)
        timeout = self._timeout if must or self._can_describe else self._patience
        futures = self._admin.describe_topics(TopicCollection(list(topics)), request_timeout=timeout)
        found: dict[str, str | None] = {}
        for topic, future in futures.items():
            try:
                topic_id = future.result().topic_id
            except KafkaException as exc:
                error: KafkaError = exc.args[0]
                if is_missing_topic(error):
                    continue
                if error.code() in _CANNOT_DESCRIBE and not (must or self._can_describe):
                    self._can_describe = False
                    return dict.fromkeys(topics)
                raise
            known = url_safe(str(topic_id)) if topic_id is not None else ""
            # Zeros: a broker older than 2.8, which describes topics but gives them no ID.
            found[topic] = known if known.strip("A") else None
        if any(found.values()):
            self._can_describe = True
        return found

    def first_offsets(
        self, partitions: Iterable[tuple[str, int]], start: Start
    ) -> dict[tuple[str, int], int]:
        """Return the offset at which a new consumer begins in each partition. An empty answer means its end."""
        wanted = list(partitions)
        if isinstance(start, datetime):
            found = self._offsets(wanted, OffsetSpec.for_timestamp(int(start.timestamp() * 1000)))
            late = [partition for partition, offset in found.items() if offset < 0]
            return {**found, **(self._offsets(late, OffsetSpec.latest()) if late else {})}
        return self._offsets(wanted, OffsetSpec.earliest() if start == "earliest" else OffsetSpec.latest())

    def ends(self, topic: str, partition: int) -> tuple[int, int]:
        """Return (low, high) of a partition: its first offset, and the one that comes next."""
        key = (topic, partition)
        low = self._offsets([key], OffsetSpec.earliest())[key]
        return low, self._offsets([key], OffsetSpec.latest())[key]

    def last_offsets(self, partitions: Sequence[tuple[str, int]]) -> dict[tuple[str, int], int]:
        """Return the offset that comes next in each partition."""
        return self._offsets(partitions, OffsetSpec.latest())

    def _offsets(self, partitions: Sequence[tuple[str, int]], spec: Any) -> dict[tuple[str, int], int]:
        if not partitions:
            return {}
        asked = {TopicPartition(topic, partition): spec for topic, partition in partitions}
        futures = self._admin.list_offsets(asked, request_timeout=self._timeout)
        return {(at.topic, at.partition): future.result().offset for at, future in futures.items()}


class SaidOnce:
    """Keeps a complaint from being repeated: at once, and then at most once in `every` seconds."""

    def __init__(self, every: float = 60.0, clock: Callable[[], float] = time.monotonic) -> None:
        self._every = every
        self._clock = clock
        self._last: dict[str, float] = {}

    def may_say(self, what: str) -> bool:
        """Say whether `what` may be said now, and remember that it was."""
        now = self._clock()
        if now - self._last.get(what, float("-inf")) < self._every:
            return False
        self._last[what] = now
        return True

    def over(self, what: str) -> bool:
        """Forget `what`, because it is over; True when it had been said."""
        return self._last.pop(what, None) is not None
