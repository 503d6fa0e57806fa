"""What goes to librdkafka: the user's settings as they are, ours where the promise hangs on them."""

import os
from collections.abc import Mapping
from typing import Any, Final

from refold.core import DefinitionRefused

BOOTSTRAP_VARIABLE: Final = "REFOLD_KAFKA_BOOTSTRAP"

# Keys that would break the promise, or that have an option of their own, and what to do instead.
_REFUSED: Final[Mapping[str, str]] = {
    "bootstrap.servers": "Use bootstrap_servers=.",
    "metadata.broker.list": "Use bootstrap_servers=.",
    "group.id": "Use group=.",
    "enable.auto.commit": "It would tell Kafka that records are done which have only been fetched.",
    "auto.commit.enable": "It would tell Kafka that records are done which have only been fetched.",
    "auto.commit.interval.ms": "Offsets are committed after each hand-over to Postgres.",
    "enable.auto.offset.store": "It would tell Kafka that records are done which have only been fetched.",
    "auto.offset.reset": "Use start=. It counts once, for a new name; after that the position in Postgres does.",
    "default.topic.config": "Put its keys, without auto.offset.reset, into config itself.",
    "on_commit": "Offsets in Kafka are a hint only. `refold kafka positions` shows what counts.",
    "rebalance_cb": "The connector answers rebalances itself.",
    "on_assign": "The connector answers rebalances itself.",
    "on_revoke": "The connector answers rebalances itself.",
    "on_lost": "The connector answers rebalances itself.",
    "logger": "Its lines go to the logger 'refold.kafka.client', at their own levels.",
    "log_cb": "Its lines go to the logger 'refold.kafka.client', at their own levels.",
}
_OWN: Final[Mapping[str, Any]] = {
    # A fetched record counts as done only when Postgres has it.
    "enable.auto.commit": False,
    "enable.auto.offset.store": False,
    # An offset that the broker does not have is an error that we look into, never a silent jump.
    "auto.offset.reset": "error",
}
_DEFAULTS: Final[Mapping[str, Any]] = {
    # A consumer of a topic that is not there says so, instead of making it with the broker's defaults.
    "allow.auto.create.topics": False,
    # How soon a topic that was missing is found.
    "topic.metadata.refresh.interval.ms": 5_000,
    # Librdkafka would keep 100,000 records of every partition in memory and read them all again after a restart.
    "queued.min.messages": 5_000,
    "queued.max.messages.kbytes": 16_384,
    "fetch.wait.max.ms": 100,
    "client.id": "refold",
}
# How soon the partitions of a worker that was killed go to another one. KIP-848 groups take it from the broker.
_SESSION: Final[Mapping[str, Any]] = {"session.timeout.ms": 10_000, "heartbeat.interval.ms": 2_000}
# The development broker gives out partitions only after half a session.
_DEV: Final[Mapping[str, Any]] = {
    "session.timeout.ms": 1_500,
    "heartbeat.interval.ms": 200,
    "fetch.wait.max.ms": 10,
    "topic.metadata.refresh.interval.ms": 1_000,
}
DEV_CLUSTER: Final = "refold-dev-"


def check_config(where: str, config: Mapping[str, Any]) -> None:
    """Raise DefinitionRefused for a key in `config` that would break the promise, naming it and the way to go."""
    for key in config:
        if key in _REFUSED:
            raise DefinitionRefused(where, f"config may not set {key!r}", _REFUSED[key])
    if config.get("isolation.level", "read_committed") != "read_committed":
        raise DefinitionRefused(
            where,
            f"config may not set 'isolation.level' to {config['isolation.level']!r}",
            "It would start workflows for records of transactions that were aborted.",
        )


def resolve_bootstrap(where: str, given: str | None) -> str:
    """Return the brokers' address, from the argument or the environment; raises DefinitionRefused with neither."""
    address = given or os.environ.get(BOOTSTRAP_VARIABLE)
    if not address:
        raise DefinitionRefused(
            where,
            "no broker address is given",
            f"Pass bootstrap_servers=, or set {BOOTSTRAP_VARIABLE} (host:port). `refold dev` sets it to a "
            "development broker.",
        )
    return address


def consumer_config(bootstrap: str, group: str, config: Mapping[str, Any], cluster: str) -> dict[str, Any]:
    """Return the whole configuration of a consumer in the cluster of this ID."""
    session = {} if config.get("group.protocol") == "consumer" else _SESSION
    dev = _DEV if cluster.startswith(DEV_CLUSTER) else {}
    return {
        **_DEFAULTS,
        **session,
        **dev,
        **config,
        **_OWN,
        "bootstrap.servers": bootstrap,
        "group.id": group,
    }


def connection_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return what of a consumer's `config` says how to connect: what another client beside it needs as well."""
    return {
        key: value
        for key, value in config.items()
        if key.startswith(
            ("sasl.", "ssl.", "security.", "socket.", "broker.", "enable.ssl.", "client.", "reconnect.")
        )
        or key in ("oauth_cb", "api.version.request", "enable.sasl.oauthbearer.unsecure.jwt")
    }


def admin_config(bootstrap: str, config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the configuration of the admin client that goes with a consumer: how to connect, nothing else."""
    return {"client.id": "refold", **connection_config(config), "bootstrap.servers": bootstrap}


# Keys of a producer that would break what `publish` promises, and what to do instead.
_REFUSED_OF_PRODUCER: Final[Mapping[str, str]] = {
    "bootstrap.servers": "Use bootstrap_servers=.",
    "metadata.broker.list": "Use bootstrap_servers=.",
    "transactional.id": "A Kafka transaction cannot commit together with the log; readers drop repeats by ID.",
    "on_delivery": "The connector waits for the delivery reports itself.",
    "dr_cb": "The connector waits for the delivery reports itself.",
    "dr_msg_cb": "The connector waits for the delivery reports itself.",
    "delivery.report.only.error": "The connector waits for the delivery reports itself.",
    "error_cb": "Its errors go to the logger 'refold.kafka'.",
    "logger": "Its lines go to the logger 'refold.kafka.client', at their own levels.",
    "log_cb": "Its lines go to the logger 'refold.kafka.client', at their own levels.",
}
_PRODUCER: Final[Mapping[str, Any]] = {
    "client.id": "refold",
    "enable.idempotence": True,
    # The partition of a key is the one that Java's producers choose.
    "partitioner": "murmur2_random",
    # One try; then the step is tried again, by the log, as long as it takes.
    "message.timeout.ms": 30_000,
    # How long a topic that nobody knows is waited for, before that is an error.
    "topic.metadata.propagation.max.ms": 10_000,
    "linger.ms": 1,
}


def check_producer_config(where: str, config: Mapping[str, Any]) -> None:
    """Raise DefinitionRefused for a key in a producer's `config` that would break its promise."""
    for key in config:
        if key in _REFUSED_OF_PRODUCER:
            raise DefinitionRefused(where, f"config may not set {key!r}", _REFUSED_OF_PRODUCER[key])
    for key, allowed in (
        ("enable.idempotence", (True, "true")),
        ("acks", (-1, "-1", "all")),
        ("request.required.acks", (-1, "-1", "all")),
    ):
        if key in config and config[key] not in allowed:
            raise DefinitionRefused(
                where,
                f"config may not set {key!r} to {config[key]!r}",
                "A record counts as published when all in-sync replicas have it, once.",
            )


def producer_config(bootstrap: str, config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the whole configuration of a producer."""
    return {**_PRODUCER, **config, "bootstrap.servers": bootstrap}


def is_incremental(config: Mapping[str, Any]) -> bool:
    """Say whether the group protocol gives out partitions bit by bit (cooperative, KIP-848) or all at once."""
    return config.get("group.protocol") == "consumer" or "cooperative" in str(
        config.get("partition.assignment.strategy", "")
    )
