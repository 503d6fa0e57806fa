"""What a record becomes: the start of its workflow, in its place in an order, or a message to another workflow."""

from typing import Any

import msgspec

from refold.connectors.kafka._identity import header_workflow_id, order_key, workflow_id
from refold.connectors.kafka._message import Message, Record
from refold.connectors.kafka._position import Position
from refold.connectors.kafka._settings import Settings, SignalTo
from refold.core import DecodeFailed, Order, Send, Start, check_id, record_error


class Starts:
    """Makes the starts and the messages of one consumer in one cluster."""

    def __init__(self, settings: Settings, cluster: str) -> None:
        self._settings = settings
        self._cluster = cluster

    def of(self, position: Position, record: Record, *, strict: bool) -> Start | Send | None:
        """Return what becomes of a record that was read at `position`; None when it is for nobody.

        Never raises for what is in the record. With `strict` its input is tried on the workflow itself: a hand-over
        has failed, and this may be why.
        """
        id = self._identity(position, record)
        encoded = self._settings.codec.encode(record)
        failure: Exception | None = encoded.failure
        signal = self._settings.signal
        if failure is None and (strict or signal is not None):
            try:
                args, kwargs = self._settings.workflow.decode_args(encoded.input)
                if signal is not None:
                    return signal_of(signal, (*args, *kwargs.values())[0], id)
            except Exception as exc:
                failure = exc
        return Start(
            workflow=self._settings.workflow,
            id=id,
            input=encoded.input,
            failure=None if failure is None else record_error(failure),
            order=self._order(position, record, id) if self._settings.parks else None,
        )

    def _order(self, position: Position, record: Record, id: str) -> Order:
        settings = self._settings
        if settings.ordering == "none":
            return Order(id, 0)  # in an order of its own: it is set aside, and nobody waits for it
        key = order_key(
            consumer=settings.name,
            cluster=self._cluster,
            topic=record.topic,
            topic_id=position.topic_id,
            partition=record.partition,
            era=position.era,
            key=record.key,
            by_key=settings.ordering == "key",
        )
        return Order(key, record.offset)

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


def signal_of(signal: SignalTo, message: Message[Any], id: str) -> Send | None:
    """Return the message, with this ID, that a record is to a workflow; None when it is for nobody.

    Raises whatever the program's own functions raise, InvalidId for what they name that can be no workflow, and
    DecodeFailed for a value that is no JSON.
    """
    to = signal.to(message)
    if to is None:
        return None
    check_id(to)
    value = message.value if signal.value is None else signal.value(message)
    try:
        encoded = msgspec.json.encode(value)
    except (TypeError, ValueError, msgspec.MsgspecError) as exc:
        raise DecodeFailed(f"the value for workflow {to!r}", str(exc)) from exc
    return Send(to=to, id=id, topic=signal.topic, value=encoded)
