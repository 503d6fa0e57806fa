"""The part of JetStream's API that a consumer needs, in JSON over NATS requests, as the protocol has it.

The client's own helpers cut times to microseconds, and their `fetch` waits for a whole batch. Here a time is exact, and
a pull is a request for so many messages, which come as they are there.
"""

import json
from typing import Any, Final

import msgspec
from nats.aio import client
from nats.aio.msg import Msg
from nats.errors import NoRespondersError

from refold.core import RefoldError

API: Final = "$JS.API"
NOT_FOUND: Final = 404
_UNAVAILABLE: Final = 503
_ACK: Final = "$JS.ACK."
_ACK_TOKENS: Final = 9  # of an acknowledgement's subject, in its old form


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
    config: StreamConfig


class ConsumerConfig(msgspec.Struct):
    """0 is no limit: of messages, nanoseconds and bytes of a request."""

    ack_policy: str = "none"
    max_deliver: int = -1
    deliver_subject: str = ""
    filter_subject: str = ""
    filter_subjects: list[str] = []
    max_batch: int = 0
    max_expires: int = 0
    max_bytes: int = 0
    headers_only: bool = False


class _Sequence(msgspec.Struct, frozen=True):
    stream_seq: int = 0


class ConsumerInfo(msgspec.Struct):
    """`created` is the moment of its making, as the server writes it, to the nanosecond."""

    created: str
    config: ConsumerConfig
    num_pending: int = 0
    num_ack_pending: int = 0
    ack_floor: _Sequence = _Sequence()


class Client(client.Client):
    """The library's client, which bears what publishers send: its own stops reading at bytes that are no UTF-8."""

    def _build_message(
        self, sid: int, subject: bytes, reply: bytes, data: bytes, headers: dict[str, str] | None
    ) -> Any:
        readable = subject.decode("utf-8", "replace").encode()
        return super()._build_message(sid, readable, reply, data, headers)

    async def _process_headers(self, headers: bytes) -> dict[str, str] | None:
        try:
            return await super()._process_headers(headers)
        except Exception:  # no headers that it can read: the message is there all the same
            return None


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
        try:
            answer = await self.client.request(f"{API}.{subject}", body, timeout=self._timeout)
        except NoRespondersError as exc:
            raise JetStreamRefused(
                subject, _UNAVAILABLE, "JetStream is not enabled, for this account at least: nats-server -js"
            ) from exc
        failed = msgspec.json.decode(answer.data, type=_Failed)
        if failed.error is not None:
            raise JetStreamRefused(subject, failed.error.code, failed.error.description)
        return answer.data


def status_of(message: Msg) -> tuple[int, str] | None:
    """Return the status and its words, for what answers a pull and is no message."""
    headers = message.headers
    # A publisher may write such headers as well, but not where the acknowledgement is to go.
    if message.reply.startswith(_ACK) or not headers or "Status" not in headers:
        return None
    return int(headers["Status"]), headers.get("Description", "")


def place_of(message: Msg) -> tuple[int, int]:
    """Return a message's sequence in its stream, and when the stream got it: nanoseconds since 1970 UTC.

    Both are in the subject for its acknowledgement: https://github.com/nats-io/nats-architecture-and-design (ADR-15).
    """
    tokens = message.reply.split(".")
    stream_seq = 5 if len(tokens) == _ACK_TOKENS else 7  # the new form has a domain and an account before it
    return int(tokens[stream_seq]), int(tokens[stream_seq + 2])
