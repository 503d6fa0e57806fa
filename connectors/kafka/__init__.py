"""Kafka: every record of a topic becomes one workflow, whose ID is the record's identity.

`consumer` declares it, `Message` is what the workflow gets. `produce` and `workflow_id` are for trying things out:
the one puts records into a topic, the other names the workflow that a record starts.
"""

try:
    import confluent_kafka as _client  # noqa: F401
except ImportError as exc:
    raise ImportError(
        "refold.connectors.kafka needs its client library: pip install 'refold[kafka]'"
    ) from exc

from refold.connectors.kafka._consumer import ConsumerPosition, KafkaConsumer, consumer, describe_position
from refold.connectors.kafka._identity import source_prefix, workflow_id
from refold.connectors.kafka._message import Message
from refold.connectors.kafka._produce import (
    BrokerUnreachable,
    Produced,
    ProduceRefused,
    TopicMissing,
    produce,
)

__all__ = [
    "BrokerUnreachable",
    "ConsumerPosition",
    "KafkaConsumer",
    "Message",
    "ProduceRefused",
    "Produced",
    "TopicMissing",
    "consumer",
    "describe_position",
    "produce",
    "source_prefix",
    "workflow_id",
]
