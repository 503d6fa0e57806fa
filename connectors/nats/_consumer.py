"""`@nats.consumer`: what is declared over a workflow, and the connector that its app starts and stops."""

import asyncio
import contextlib
import logging
import os
import shlex
import shutil
import threading
from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import Any, Final, Literal, TypeVar, cast

from refold.connectors.nats._message import Message, check_name, id_of
from refold.connectors.nats._reader import Reader, Settings, without_secrets
from refold.core import (
    App,
    DefinitionRefused,
    Envelope,
    InvalidId,
    SourceReport,
    Workflow,
    check_id,
    sample,
)

log: Final = logging.getLogger("refold.nats")
W = TypeVar("W", bound=Workflow[..., Any])

URL_VARIABLE: Final = "REFOLD_NATS_URL"
_SECOND: Final = timedelta(seconds=1)
_MOST_NS: Final = 2**63 - 1
_MOST_MESSAGES: Final = 2**64 - 1
# Options of the client that would break a promise or have a place of their own, and what to do instead.
_REFUSED: Final = {
    "servers": "Use servers=.",
    "max_reconnect_attempts": "The connector goes on trying for as long as it takes.",
    "reconnect_time_wait": "The connector goes on trying for as long as it takes.",
    "allow_reconnect": "The connector goes on trying for as long as it takes.",
    "error_cb": "What happens to the connection is told to the logger 'refold.nats'.",
    "disconnected_cb": "What happens to the connection is told to the logger 'refold.nats'.",
    "reconnected_cb": "What happens to the connection is told to the logger 'refold.nats'.",
    "closed_cb": "What happens to the connection is told to the logger 'refold.nats'.",
}


def consumer(
    stream: str,
    *,
    name: str | None = None,
    durable: str | None = None,
    subject: str | None = None,
    servers: str | None = None,
    options: Mapping[str, Any] | None = None,
    start: Literal["all", "new"] = "all",
    ack_wait: timedelta = timedelta(seconds=30),
    batch_size: int = 200,
    max_in_flight: int = 10_000,
) -> Callable[[W], W]:
    """Have every message of the JetStream stream `stream` start one run of the workflow below, ever.

    The workflow takes one `nats.Message[T]`. `name` (default: the workflow's) is the consumer's identity, in the IDs
    of its workflows: keep it. `durable` is what JetStream calls the consumer, by default the same; it is made if it
    is not there, with `subject` as its filter, from the stream's beginning or with `start="new"` from now on.
    JetStream delivers again what is not acknowledged within `ack_wait`. `servers` is by default what REFOLD_NATS_URL
    says when the worker starts; `options` go to `nats.connect` as they are (user_credentials, tls, ...).

    At most `batch_size` messages are handed over in one transaction; at about `max_in_flight` runnable workflows
    (those that wait for something don't count) no more are asked for.

    Raises DefinitionRefused for a declaration that cannot work.
    """
    where = f"nats.consumer({stream!r})"
    check_name(where, "stream", stream)
    if start not in ("all", "new"):
        raise DefinitionRefused(where, f"start={start!r}", 'Use "all" or "new".')
    if ack_wait < _SECOND:
        raise DefinitionRefused(where, f"ack_wait={ack_wait!r}", "Give a second or more.")
    for option, value in (("batch_size", batch_size), ("max_in_flight", max_in_flight)):
        if value < 1:
            raise DefinitionRefused(where, f"{option}={value}", "Give 1 or more.")
    for key in options or {}:
        if key in _REFUSED:
            raise DefinitionRefused(where, f"options may not set {key!r}", _REFUSED[key])

    def decorate(workflow: W) -> W:
        if not isinstance(workflow, Workflow):
            raise DefinitionRefused(
                where,
                f"it sits on {getattr(workflow, '__qualname__', workflow)!r}, which is no workflow",
                "Put @app.workflow below it, directly above the function.",
            )
        app = cast(App, workflow.app)
        called = name or workflow.name
        check_name(where, "consumer", durable or called)
        _check_ids(where, called, stream)
        for other in app.connectors:
            if isinstance(other, NatsConsumer):
                _check_apart(where, other.settings, called, stream, durable or called)
        settings = Settings(
            envelope=Envelope(workflow, Message, where=where),
            name=called,
            stream=stream,
            durable=durable or called,
            subject=subject or "",
            from_now=start == "new",
            ack_wait=ack_wait.total_seconds(),
            batch_size=batch_size,
            max_in_flight=max_in_flight,
            options=dict(options or {}),
        )
        app.connect(NatsConsumer(settings, servers))
        return workflow

    return decorate


def _check_ids(where: str, name: str, stream: str) -> None:
    try:
        check_id(id_of(name, stream, _MOST_NS, _MOST_MESSAGES))
    except InvalidId as exc:
        raise DefinitionRefused(
            where, f"name {name!r} is too long for the IDs of its workflows", "Give a shorter name=."
        ) from exc


def _check_apart(where: str, other: Settings, name: str, stream: str, durable: str) -> None:
    if other.name == name:
        raise DefinitionRefused(
            where,
            f"the app has a NATS consumer called {name!r} already",
            "Give one of them another name=: it is part of the IDs of the workflows.",
        )
    if (other.stream, other.durable) == (stream, durable):
        raise DefinitionRefused(
            where,
            f"consumer {other.name!r} reads stream {stream!r} as durable {durable!r} already, so each message would "
            "get to one of the two only",
            "Give one of them another durable=.",
        )


class NatsConsumer:
    """A declared consumer: the connector that its app starts and stops."""

    kind = "consumer"

    def __init__(self, settings: Settings, servers: str | None) -> None:
        self.settings = settings
        self.name = settings.name
        self._given = servers
        self._servers = ""
        self._reader: Reader | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._task: asyncio.Task[None] | None = None
        self._thread: threading.Thread | None = None

    def start(self, app: App) -> None:
        """Begin to read, on a thread of its own. Raises DefinitionRefused when no server's address is given."""
        self._servers = self._given or os.environ.get(URL_VARIABLE, "")
        if not self._servers:
            raise DefinitionRefused(
                f"nats.consumer {self.name!r}",
                "no server's address is given",
                f"Pass servers=, or set {URL_VARIABLE} (nats://host:4222).",
            )
        self._reader = Reader(self.settings, self._servers, app, app.lane(f"nats/{self.name}"))
        self._loop = asyncio.new_event_loop()
        self._task = self._loop.create_task(self._reader.run())
        self._thread = threading.Thread(target=self._serve, name=f"refold-nats-{self.name}", daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        assert self._loop is not None and self._task is not None
        asyncio.set_event_loop(self._loop)
        with contextlib.suppress(asyncio.CancelledError):
            self._loop.run_until_complete(self._task)
        left = asyncio.all_tasks(self._loop)
        for task in left:  # the client's own
            task.cancel()
        self._loop.run_until_complete(asyncio.gather(*left, return_exceptions=True))
        self._loop.close()

    def stop(self) -> None:
        """Ask for no more; on return what was being handed over is handed over and acknowledged, or neither."""
        thread, self._thread = self._thread, None
        if thread is not None and self._loop is not None and self._task is not None:
            with contextlib.suppress(RuntimeError):  # the loop has ended
                self._loop.call_soon_threadsafe(self._task.cancel)
            thread.join()

    def describe(self) -> list[str]:
        """Return one line: the stream, the filter, the name in JetStream."""
        line = f"{self.name}: stream {self.settings.stream}"
        if self.settings.subject:
            line += f", subject {self.settings.subject}"
        if self.settings.durable != self.name:
            line += f", durable {self.settings.durable}"
        return [f"{line} at {without_secrets(self._servers or self._given or '')}"]

    def report(self) -> list[SourceReport]:
        """Return what the server has said last."""
        reader = self._reader
        return [
            SourceReport(
                f"nats:{self.name}",
                self.name,
                position=""
                if reader is None or reader.floor is None
                else f"acknowledged up to {reader.floor}",
                lag=None if reader is None else reader.lag,
                paused=reader is not None and reader.is_paused,
            )
        ]

    def try_next(self) -> list[str]:
        """Return a publication with NATS's own command line, where that is installed and the subject is known."""
        subjects = [self.settings.subject] if self.settings.subject else []
        if self._reader is not None and not subjects:
            subjects = self._reader.subjects
        known = next((each for each in subjects if "*" not in each and ">" not in each), None)
        # An address may hold a password, which is not to be shown, and without which this would not work.
        if known is None or "@" in self._servers or shutil.which("nats") is None:
            return []
        value = sample(self.settings.envelope.type, self.name).decode()
        return [f"nats --server {shlex.quote(self._servers)} pub {shlex.quote(known)} {shlex.quote(value)}"]
