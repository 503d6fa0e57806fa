"""NATS JetStream: every message of a stream becomes one workflow, whose ID is the message's own identity.

`consumer` declares it over a workflow, which gets a `Message`.
"""

try:
    import nats as _client  # noqa: F401
except ImportError as exc:
    raise ImportError("refold.connectors.nats needs its client: pip install 'refold[nats]'") from exc

from refold.connectors.nats._consumer import consumer
from refold.connectors.nats._message import Message

__all__ = ["Message", "consumer"]
