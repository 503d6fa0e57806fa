"""What a record starts: its workflow's ID and input. Pure, but for the types that it is checked against."""

from refold.connectors.kafka._identity import header_workflow_id, workflow_id
from refold.connectors.kafka._message import Record
from refold.connectors.kafka._position import Position
from refold.connectors.kafka._settings import Settings
from refold.core import Start, record_error


class Starts:
    """Makes the starts of one consumer in one cluster."""

    def __init__(self, settings: Settings, cluster: str) -> None:
        self._settings = settings
        self._cluster = cluster

    def of(self, position: Position, record: Record, *, strict: bool) -> Start:
        """Return the start of a record that was read at `position`.

        Never raises for what is in the record. With `strict` its input is tried on the workflow itself: a hand-over
        has failed, and this may be why.
        """
        encoded = self._settings.codec.encode(record)
        failure: Exception | None = encoded.failure
        if failure is None and strict:
            try:
                self._settings.workflow.decode_args(encoded.input)
            except Exception as exc:
                failure = exc
        return Start(
            workflow=self._settings.workflow,
            id=self._identity(position, record),
            input=encoded.input,
            failure=None if failure is None else record_error(failure),
        )

    def _identity(self, position: Position, record: Record) -> str:
        settings = self._settings
        if settings.dedup is not None:
            given = [value for name, value in record.headers if name == settings.dedup and value]
            if given:  # the last one counts, as for `Message.header`
                return header_workflow_id(consumer=settings.name, topic=record.topic, value=given[-1])
        return workflow_id(
            consumer=settings.name,
            cluster=self._cluster,
            topic=record.topic,
            topic_id=position.topic_id,
            partition=record.partition,
            offset=record.offset,
            timestamp=record.timestamp,
            era=position.era,
        )
