"""What a consumer was declared with."""

from collections.abc import Mapping
from typing import Any

import msgspec

from refold.connectors.kafka._broker import Start
from refold.connectors.kafka._message import MessageCodec
from refold.core import Workflow


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """What a consumer was declared with. Times in seconds."""

    workflow: Workflow[..., Any]
    codec: MessageCodec
    topics: tuple[str, ...]
    name: str
    group: str
    config: Mapping[str, Any]
    start: Start
    batch_size: int
    max_in_flight: int
    # The header whose value is a record's identity, where it has one; else its place in the topic is.
    dedup: str | None = None
    # A hand-over is bounded in bytes as well: records may be large.
    batch_bytes: int = 32 * 1024 * 1024
    # How often an idle topic is asked whether it is still the same one, and runnable workflows are counted.
    check_every: float = 30.0
    count_every: float = 1.0
    # How long brokers that answer everything else are waited for before they count as ones without topic IDs.
    describe_patience: float = 5.0
