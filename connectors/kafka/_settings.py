"""What a consumer was declared with."""

from collections.abc import Callable, Mapping
from typing import Any, Literal

import msgspec

from refold.connectors.kafka._broker import Start
from refold.connectors.kafka._message import Message, MessageCodec
from refold.core import Workflow

Ordering = Literal["none", "partition", "key"]


class SignalTo(msgspec.Struct, frozen=True):
    """Whom a record is for: the run of `workflow` that `to` names, for its `recv(topic)`; `value` is what it gets."""

    workflow: str
    topic: str
    to: Callable[[Message[Any]], str | None]
    value: Callable[[Message[Any]], Any] | None = None


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
    ordering: Ordering = "none"
    # Where records go whose workflow failed.
    dead_letter: str | None = None
    # With it, records are messages to workflows; `workflow` is what a record becomes that can't be one.
    signal: SignalTo | None = None
    # The header whose value is a record's identity, where it has one; else its place in the topic is.
    dedup: str | None = None
    # A hand-over is bounded in bytes as well: records may be large.
    batch_bytes: int = 32 * 1024 * 1024
    # How often an idle topic is asked whether it is still the same one, and runnable workflows are counted.
    check_every: float = 30.0
    count_every: float = 1.0
    # How long brokers that answer everything else are waited for before they count as ones without topic IDs.
    describe_patience: float = 5.0

    @property
    def parks(self) -> bool:
        """Whether a record whose workflow fails is set aside, by itself or with those behind it."""
        return self.ordering != "none" or self.dead_letter is not None or self.signal is not None
