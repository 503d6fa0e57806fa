"""The part of JetStream's API that a consumer needs, in JSON over NATS requests, as the protocol has it.

The client's own helper cuts the time at which a stream was made to microseconds or, in most releases, leaves it out;
and its `fetch` waits for a whole batch. Here both are exact: a pull is a request for so many messages, which come as
they are there.
"""

import json
from typing import Any, Final

import msgspec
from nats.aio.client import Client
from nats.aio.msg import Msg

from refold.core import RefoldError

API: Final = "$JS.API"
NOT_FOUND: Final = 404


class JetStreamRefused(RefoldError):
    """JetStream said no. Reaction: make the stream, correct its name, or change the consumer; no restart is needed."""

    def __init__(self, asked: str, code: int, description: str) -> None:
        super().__init__(asked, code, description)
        self.asked, self.code, self.description = asked, code, description

    def __str__(self) -> str:
        return (
            f"JetStream refused {self.asked}: {self.description} ({self.code}). Correct it there or in nats.consumer; "
            "the connector goes on trying."
        )


class _Error(msgspec.Struct):
    code: int = 0
    description: str = ""


class _Failed(msgspec.Struct):
    error: _Error | None = None


class StreamConfig(msgspec.Struct):
    subjects: list[str] = []


class StreamInfo(msgspec.Struct):
    """`created` is the moment of its making, as the server writes it, to the nanosecond."""

    created: str
    config: StreamConfig


class ConsumerConfig(msgspec.Struct):
    ack_policy: str = "none"
    max_deliver: int = -1
    deliver_subject: str = ""
    filter_subject: str = ""
    filter_subjects: list[str] = []


class _Sequence(msgspec.Struct, frozen=True):
    stream_seq: int = 0


class ConsumerInfo(msgspec.Struct):
    created: str
    config: ConsumerConfig
    num_pending: int = 0
    num_ack_pending: int = 0
    ack_floor: _Sequence = _Sequence()


class JetStream:
    """One connection's use of JetStream. Everything raises nats.errors.Error when the server does not answer."""

    def __init__(self, client: Client, timeout: float) -> None:
        self.client = client
        self._timeout = timeout

    async def stream(self, name: str) -> StreamInfo:
        """Raises JetStreamRefused, with code 404 for a stream that is not there."""
        return msgspec.json.decode(await self._ask(f"STREAM.INFO.{name}"), type=StreamInfo)

    async def consumer(self, stream: str, name: str) -> ConsumerInfo:
        """Raises JetStreamRefused, with code 404 for a consumer that is not there."""
        return msgspec.json.decode(await self._ask(f"CONSUMER.INFO.{stream}.{name}"), type=ConsumerInfo)

    async def make_consumer(self, stream: str, name: str, config: dict[str, Any]) -> None:
        """Make a durable consumer; one that is there and just like it is left alone. Raises JetStreamRefused."""
        body = {"stream_name": stream, "config": {"durable_name": name, **config}}
        await self._ask(f"CONSUMER.DURABLE.CREATE.{stream}.{name}", json.dumps(body).encode())

    async def pull(
        self, stream: str, consumer: str, inbox: str, *, batch: int, most_bytes: int, seconds: float
    ) -> None:
        """Have up to `batch` messages sent to `inbox`, as they are there; after `seconds` a status says it is over."""
        request = {"batch": batch, "max_bytes": most_bytes, "expires": int(seconds * 1e9)}
        await self.client.publish(
            f"{API}.CONSUMER.MSG.NEXT.{stream}.{consumer}", json.dumps(request).encode(), inbox
        )

    async def _ask(self, subject: str, body: bytes = b"") -> bytes:
        answer = await self.client.request(f"{API}.{subject}", body, timeout=self._timeout)
        failed = msgspec.json.decode(answer.data, type=_Failed)
        if failed.error is not None:
            raise JetStreamRefused(subject, failed.error.code, failed.error.description)
        return answer.data


def status_of(message: Msg) -> tuple[int, str] | None:
    """Return the status and its words, for what answers a pull and is no message."""
    headers = message.headers
    if message.data or not headers or "Status" not in headers:
        return None
    return int(headers["Status"]), headers.get("Description", "")
