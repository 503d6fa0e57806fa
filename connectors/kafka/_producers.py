"""This process's producers: one client for each declared producer, made when it is first used.

A client belongs to the process that made it (a fork makes its own). Its delivery reports come on a thread that polls
it and are handed to the event loops that wait for them, many in one go. When the program ends, what is under way is
flushed.
"""

import asyncio
import atexit
import contextlib
import logging
import os
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any, Final

from confluent_kafka import KafkaError, KafkaException, Producer
from confluent_kafka import Message as ClientMessage

from refold.connectors.kafka._broker import QuietLog
from refold.connectors.kafka._config import producer_config

log: Final = logging.getLogger("refold.kafka")

_POLL: Final = 0.5
_ROOM: Final = 0.02  # between two looks whether a full queue has room again
_FLUSH: Final = 5.0

Waiting = asyncio.Future[ClientMessage]


class NotDelivered(KafkaException):
    """The brokers have refused a record, or have not answered in time. What the client itself refuses is none."""


class ProducerClient:
    """An idempotent producer with a thread that waits for its delivery reports."""

    def __init__(self, bootstrap: str, config: Mapping[str, Any]) -> None:
        """Begin to connect. Raises KafkaException for settings that librdkafka refuses."""
        self.bootstrap = bootstrap
        self._fatal: KafkaError | None = None
        self._lock = threading.Lock()
        self._reports: dict[asyncio.AbstractEventLoop, list[tuple[Waiting, KafkaError | None, Any]]] = {}
        self._closing = threading.Event()
        settings = {**producer_config(bootstrap, config), "error_cb": self._on_error}
        self._client = Producer(settings, logger=QuietLog())
        self._thread = threading.Thread(target=self._serve, name="refold-kafka-producer", daemon=True)
        self._thread.start()

    @property
    def is_broken(self) -> bool:
        """Whether the idempotent producer has had a fatal error: only a new client goes on."""
        return self._fatal is not None

    async def send(
        self,
        topic: str,
        value: bytes | None,
        key: bytes | None,
        headers: Sequence[tuple[str, bytes | None]],
        partition: int,
    ) -> ClientMessage:
        """Produce a record and return it once the brokers have it. Raises KafkaException when they don't take it."""
        waiting: Waiting = asyncio.get_running_loop().create_future()

        def report(error: KafkaError | None, message: ClientMessage) -> None:
            self._report(waiting, error, message)

        while True:
            try:
                self._client.produce(topic, value, key, partition, headers=list(headers), on_delivery=report)
                break
            except BufferError:
                await asyncio.sleep(_ROOM)
        return await waiting

    def close(self, timeout: float) -> None:
        """Wait up to `timeout` seconds until what was produced is delivered, and end the thread."""
        with contextlib.suppress(KafkaException, RuntimeError):
            self._client.flush(timeout)
        self._closing.set()
        self._thread.join(timeout)

    def _serve(self) -> None:
        # A broken one is replaced by whoever sends next; it ends when all that it still had has been reported.
        while not (self._closing.is_set() or (self.is_broken and not len(self._client))):
            try:
                self._client.poll(_POLL)
            except KafkaException as exc:  # the client raises what is fatal here, and calls no callback
                self._break(exc.args[0])

    def _break(self, error: KafkaError) -> None:
        log.warning("the producer for %s begins again with a new client: %s", self.bootstrap, error.str())
        self._fatal = error
        # What it still holds is sent by nobody any more. Reported now, it goes to the new client without a time-out.
        with contextlib.suppress(KafkaException):
            self._client.purge()

    # Both run inside `poll` or `flush`: nothing may be raised there.

    def _on_error(self, error: KafkaError) -> None:
        log.debug("producer for %s: %s", self.bootstrap, error)

    def _report(self, waiting: Waiting, error: KafkaError | None, message: Any) -> None:
        loop = waiting.get_loop()
        with self._lock:
            reports = self._reports.get(loop)
            if reports is not None:  # the loop has been told already that there are some
                reports.append((waiting, error, message))
                return
            self._reports[loop] = [(waiting, error, message)]
        try:
            loop.call_soon_threadsafe(self._settle, loop)
        except RuntimeError:  # the loop is closed, and nobody waits any more
            with self._lock:
                self._reports.pop(loop, None)

    def _settle(self, loop: asyncio.AbstractEventLoop) -> None:
        with self._lock:
            reports = self._reports.pop(loop, [])
        for waiting, error, message in reports:
            if waiting.done():  # given up meanwhile
                continue
            if error is None:
                waiting.set_result(message)
            else:
                purged = error.code() in (KafkaError._PURGE_QUEUE, KafkaError._PURGE_INFLIGHT)
                waiting.set_exception(NotDelivered(self._fatal or error if purged else error))


class _Clients:
    """The clients of this process, by what they were made with."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._pid = os.getpid()
        self._clients: dict[tuple[str, str], ProducerClient] = {}
        atexit.register(self.close)

    def get(self, name: str, bootstrap: str, config: Mapping[str, Any]) -> ProducerClient:
        """Return the client of the producer `name` at `bootstrap`; makes one where there is none that works."""
        with self._lock:
            if self._pid != os.getpid():  # a fork: the threads of the others' clients are not here
                self._clients, self._pid = {}, os.getpid()
            key = (name, bootstrap)
            client = self._clients.get(key)
            if client is None or client.is_broken:
                client = self._clients[key] = ProducerClient(bootstrap, config)
            return client

    def close(self) -> None:
        """Flush and close all of them; at the end of the program. A later `get` makes new ones."""
        with self._lock:
            clients, self._clients = self._clients, {}
        if self._pid != os.getpid() or not clients:
            return
        until = time.monotonic() + _FLUSH  # for all of them together: no thread may begin any more
        for client in clients.values():
            client.close(max(0.0, until - time.monotonic()))


clients: Final = _Clients()
