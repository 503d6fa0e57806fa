"""Dead letters: a record whose workflow failed goes to a topic of its own, and its order goes on.

The failed workflow is parked, and so in the log, before anything else happens. From there a workflow of refold's own,
whose ID is the parked one's, produces the record and then skips it. Whoever dies in between: what is parked is found
again, the same ID starts no second one, and the one that began goes on elsewhere. So a letter is never lost; it may be
produced twice, with the same `refold-id`.
"""

import hashlib
import logging
import threading
from datetime import timedelta
from typing import Any, Final

import msgspec

from refold.connectors.kafka._config import connection_config
from refold.connectors.kafka._identity import source_prefix
from refold.connectors.kafka._message import Record
from refold.connectors.kafka._publish import Outgoing, Published, PublishRefused, Sender, shown_bytes
from refold.connectors.kafka._settings import Settings
from refold.core import (
    App,
    Parked,
    ParkedWorkflow,
    Recorded,
    Start,
    Workflow,
    WorkflowNotFound,
    WorkflowNotParked,
    WorkflowStarted,
    join_id,
    step,
)

log: Final = logging.getLogger("refold.kafka")

# A worker that parks one of its own says so at once; this finds those of workers that died.
_LOOK_EVERY: Final = 5.0
_PAGE: Final = 500
_ERROR_MAX: Final = 1_000


def declare_dead_letters(app: App, settings: Settings, bootstrap_servers: str | None) -> "DeadLetters":
    """Add the workflow that takes the failed records of a consumer to their topic to `app`."""
    name = f"{settings.name}.dead_letter"
    sender = Sender(f"{app.name}/{name}", bootstrap_servers, connection_config(settings.config))

    @step(
        name="kafka.dead_letter",
        retries=1_000_000,
        retry_delay=timedelta(seconds=1),
        max_delay=timedelta(minutes=1),
        retry_if=_may_come_later,
    )
    async def produce(workflow_id: str) -> Published:
        return await sender.send(letter_of(settings, workflow_id, await app.ahistory(workflow_id)))

    @step(name="kafka.skip", retries=1_000_000, max_delay=timedelta(minutes=1))
    async def skip(workflow_id: str, reason: str) -> bool:
        try:
            await app.askip(workflow_id, reason)
        except (WorkflowNotFound, WorkflowNotParked):
            return False  # a person was first
        return True

    @app.workflow(name=name)
    async def dead_letter(workflow_id: str) -> Published:
        published = await produce(workflow_id)
        where = f"{published.topic}[{published.partition}], offset {published.offset}"
        await skip(workflow_id, f"dead letter in {where}")
        return published

    return DeadLetters(app, settings.name, dead_letter)


class DeadLetters:
    """Finds the parked records of one consumer and has each taken to the topic; begun and ended with the consumer."""

    def __init__(self, app: App, consumer: str, workflow: Workflow[..., Any]) -> None:
        self._app = app
        self._consumer = consumer
        self._workflow = workflow
        self._prefix = source_prefix(consumer)
        self._look = threading.Event()
        self._over = threading.Event()
        self._thread: threading.Thread | None = None
        app.observe(self._saw)

    def start(self) -> None:
        """Begin to look, now and from time to time, and whenever this process parks one."""
        self._over.clear()
        self._look.set()
        self._thread = threading.Thread(
            target=self._run, name=f"refold-kafka-{self._consumer}-dead-letters", daemon=True
        )
        self._thread.start()

    def stop(self) -> None:
        """Look no more. What was begun goes on in the log."""
        self._over.set()
        self._look.set()
        if self._thread is not None:
            self._thread.join(_LOOK_EVERY)  # it may be waiting for a Postgres that is away
            self._thread = None

    def look_soon(self) -> None:
        """Look again at once; from any thread."""
        self._look.set()

    def _saw(self, workflow_id: str, recorded: Recorded) -> None:
        if isinstance(recorded.event, Parked) and workflow_id.startswith(self._prefix):
            self._look.set()

    def _run(self) -> None:
        begun: set[str] = set()
        while True:
            self._look.wait(_LOOK_EVERY)
            self._look.clear()
            if self._over.is_set():
                return
            try:
                begun = self._begin(begun)
            except Exception as exc:
                # Postgres is away, or the worker is about to stop: it is still parked the next time.
                log.debug("consumer %s: parked records not looked at: %s", self._consumer, exc)

    def _begin(self, begun: set[str]) -> set[str]:
        """Begin with all that are parked; returns the IDs of their letters, so that none is begun at each look."""
        found: set[str] = set()
        after: ParkedWorkflow | None = None
        while not self._over.is_set():
            page = self._app.parked(self._prefix, limit=_PAGE, after=after)
            letters = {self._letter_id(parked): parked.id for parked in page}
            found |= letters.keys()
            new = [
                Start(workflow=self._workflow, id=id, input=msgspec.json.encode({"workflow_id": parked}))
                for id, parked in letters.items()
                if id not in begun
            ]
            if new:
                self._app.accept(new, label=f"{self._consumer}.dead_letter", timeout=_LOOK_EVERY)
            if len(page) < _PAGE:
                break
            after = page[-1]
        return found

    def _letter_id(self, parked: ParkedWorkflow) -> str:
        # Parked again after a retry, it is another letter. The hash keeps the ID in bounds.
        digest = hashlib.sha256(f"{parked.seq}/{parked.id}".encode()).hexdigest()
        return join_id("kafka-dead-letter", self._consumer, digest)


def letter_of(settings: Settings, workflow_id: str, history: list[Recorded]) -> Outgoing:
    """Return the record of a failed workflow as it was, with headers that say where it comes from and why it failed."""
    started = history[0].event
    try:
        record = settings.codec.record(bytes(started.input) if isinstance(started, WorkflowStarted) else b"")
    except (msgspec.MsgspecError, KeyError):
        # Postgres had refused the record for its size: nothing of it is in the log.
        record = Record(settings.dead_letter or "", 0, 0, 0, None, None)
    key_form, key = shown_bytes(record.key or b"")
    form, value = shown_bytes(record.value or b"")
    return Outgoing(
        topic=settings.dead_letter or "",
        value=None if record.value is None else value,
        form="none" if record.value is None else form,
        key=None if record.key is None else key,
        key_form=key_form,
        headers=(*record.headers, *_dlq_headers(settings, workflow_id, record, _reason(history))),
    )


def _dlq_headers(
    settings: Settings, workflow_id: str, record: Record, error: str
) -> list[tuple[str, bytes | None]]:
    said = {
        "topic": record.topic,
        "partition": str(record.partition),
        "offset": str(record.offset),
        "timestamp": str(record.timestamp),
        "consumer": settings.name,
        "workflow": workflow_id,
        "error": error[:_ERROR_MAX],
    }
    return [(f"x-dlq-{name}", text.encode("utf-8", "replace")) for name, text in said.items()]


def _reason(history: list[Recorded]) -> str:
    """Return why a workflow was parked: its error, else what the worker that parked it said."""
    for recorded in reversed(history):
        parked = recorded.event
        if isinstance(parked, Parked):
            return (
                parked.reason if parked.error is None else f"{parked.error.qualname}: {parked.error.message}"
            )
    return "it is not parked any more"


def _may_come_later(error: Exception) -> bool:
    # A topic that is not there yet, a right that is not given yet: the record waits for it, parked.
    return not (isinstance(error, PublishRefused) and error.is_too_large)
