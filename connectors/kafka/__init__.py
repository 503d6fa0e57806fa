"""Kafka: every record of a topic becomes one workflow, whose ID is the record's identity.

`consumer` declares it, `Message` is what the workflow gets, `publish` is how a workflow answers. `produce` and
`workflow_id` are for trying things out: the one puts records into a topic, the other names the workflow that a record
starts.
"""

try:
    import confluent_kafka as _client  # noqa: F401
except ImportError as exc:
    raise ImportError(
        "refold.connectors.kafka needs its client library: pip install 'refold[kafka]'"
    ) from exc

from refold.connectors.kafka._consumer import (
    ConsumerPosition,
    KafkaConsumer,
    ParkedRecord,
    describe_parked,
    describe_position,
    partition_ends,
    place_of_parked,
)
from refold.connectors.kafka._declare import consumer, signal
from refold.connectors.kafka._identity import Place, is_order_of, place_of, source_prefix, workflow_id
from refold.connectors.kafka._message import Message
from refold.connectors.kafka._produce import (
    BrokerUnreachable,
    Produced,
    ProduceRefused,
    TopicMissing,
    produce,
)
from refold.connectors.kafka._publish import (
    Producer,
    Published,
    PublishRefused,
    apublish,
    message_id,
    publish,
)
from refold.connectors.kafka._settings import Ordering

__all__ = [
    "BrokerUnreachable",
    "ConsumerPosition",
    "KafkaConsumer",
    "Message",
    "Ordering",
    "ParkedRecord",
    "Place",
    "ProduceRefused",
    "Produced",
    "Producer",
    "PublishRefused",
    "Published",
    "TopicMissing",
    "apublish",
    "consumer",
    "describe_parked",
    "describe_position",
    "is_order_of",
    "message_id",
    "partition_ends",
    "place_of",
    "place_of_parked",
    "produce",
    "publish",
    "signal",
    "source_prefix",
    "workflow_id",
]
