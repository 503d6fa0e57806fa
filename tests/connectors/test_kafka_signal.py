"""Records that are messages to workflows: each once, for the one that it names, started or not yet."""

from typing import Any

import msgspec
import pytest

import refold
from fixtures.brokers import Broker
from fixtures.kafka_app import Watched, ask
from refold import App
from refold.connectors import kafka
from refold.core import Workflow


class Approval(msgspec.Struct):
    order: str
    granted: bool


def approval(order: str, granted: bool = True) -> bytes:
    return msgspec.json.encode(Approval(order, granted))


def refund_of(message: kafka.Message[Approval]) -> str | None:
    if message.value.order == "fragile":
        raise LookupError("no such order")
    return None if message.value.order == "nobody" else f"refund-{message.value.order}"


class Refunds:
    """An app whose refunds wait for two approvals that come as records of a topic."""

    def __init__(self, database_url: str, broker: Broker, topic: str, **options: Any) -> None:
        self.shop = Watched(
            database_url, broker, topic, name="approvals", workflow=self._workflow, declare=kafka.signal,
            **{"to": refund_of, "topic": "approval", "body": Approval, **options},
        )  # fmt: skip

    @staticmethod
    def _workflow(app: App) -> Workflow[..., Any]:
        @app.workflow
        def refund() -> str:
            first: object = refold.recv("approval")
            second: object = refold.recv("approval")
            return f"{first} {second}"

        return refund


def test_records_are_received_by_the_workflows_that_they_name(broker: Broker, database_url: str) -> None:
    topic = broker.create_topic(partitions=2)
    refunds = Refunds(database_url, broker, topic, value=lambda message: message.value.granted)
    with refunds.shop as shop:
        one = shop.workflow.options(id="refund-1").start()
        broker.produce(topic, approval("1"), approval("1", False), approval("nobody"), key="1", partition=0)
        broker.produce(topic, approval("2"), approval("2"), key="2", partition=1)
        assert one.result(timeout=60) == "True False"
        # Those for a workflow that has not started yet wait for it.
        shop.wait(lambda: _waiting("refund-2", database_url) == 2, "two messages that wait")
        assert shop.workflow.options(id="refund-2").start().result(timeout=60) == "True True"


def _waiting(workflow_id: str, database_url: str) -> int:
    rows = ask(database_url, "select count(*) from refold.inbox where workflow_id = %s", workflow_id)
    return int(rows[0][0])


def test_without_a_type_the_message_is_the_value_as_it_came(dev_broker: Broker, database_url: str) -> None:
    topic = dev_broker.create_topic()
    to = {"to": lambda message: f"refund-{message.value['order']}", "body": Any}
    with Refunds(database_url, dev_broker, topic, **to).shop as shop:
        handle = shop.workflow.options(id="refund-1").start()
        dev_broker.produce(topic, b'{"order": 1}', b'{"order": 1, "by": "ada"}')
        assert handle.result(timeout=60) == "{'order': 1} {'order': 1, 'by': 'ada'}"


def test_a_record_that_is_delivered_again_is_no_second_message(dev_broker: Broker, database_url: str) -> None:
    """The position is lost, as after a restore, and everything is read and handed over once more."""
    topic = dev_broker.create_topic()
    dev_broker.produce(topic, approval("1"))
    with Refunds(database_url, dev_broker, topic).shop as shop:
        shop.wait(lambda: _waiting("refund-1", database_url) == 1, "the message")
    ask(
        database_url,
        "with gone as (delete from refold.positions),"
        " old as (delete from refold.events where starts_with(workflow_id, 'source:')) select 1",
    )
    dev_broker.produce(topic, approval("2"))
    with Refunds(database_url, dev_broker, topic).shop as again:
        again.wait(lambda: _waiting("refund-2", database_url) == 1, "the next message")
        assert _waiting("refund-1", database_url) == 1


def test_a_message_for_a_workflow_that_has_ended_is_dropped_and_that_is_told(
    dev_broker: Broker, database_url: str
) -> None:
    topic = dev_broker.create_topic()
    with Refunds(database_url, dev_broker, topic).shop as shop:
        one = shop.workflow.options(id="refund-1").start()
        dev_broker.produce(topic, approval("1"), approval("1"))
        assert one.result(timeout=60)
        dev_broker.produce(topic, approval("1"), approval("1"), approval("2"))
        shop.wait(lambda: _waiting("refund-2", database_url) == 1, "the message for another one")
        facts = shop.app.source_facts("kafka:approvals:")
    assert {fact.kind for fact in facts} == {"MessagesDropped"}
    told = " ".join(fact.text for fact in facts)
    assert all(f":0:{offset} for refund-1" in told for offset in (2, 3))
    assert "refund-2" not in told
    assert _waiting("refund-1", database_url) == 0


@pytest.mark.parametrize(
    ("value", "error"),
    [
        (b"no json", "DecodeFailed: the value of record 0 in"),
        (b'{"order": 1}', "DecodeFailed: the value of record 0 in"),
        (approval("fragile"), "LookupError: no such order"),
        (approval("x" * 600), "InvalidId: "),
    ],
)
def test_a_record_that_is_no_message_is_parked_and_seen(
    dev_broker: Broker, database_url: str, value: bytes, error: str
) -> None:
    topic = dev_broker.create_topic()
    dev_broker.produce(topic, value, approval("1"), approval("1"))
    with Refunds(database_url, dev_broker, topic).shop as shop:
        assert shop.workflow.options(id="refund-1").start().result(timeout=60)
        [parked] = shop.app.parked()
        assert parked.name == "approvals"
        assert kafka.describe_parked(parked).error.startswith(error)


def test_a_parked_record_is_delivered_when_it_is_retried_with_better_code(
    dev_broker: Broker, database_url: str
) -> None:
    topic = dev_broker.create_topic()
    dev_broker.produce(topic, approval("fragile"), b'{"order": 1}')
    with Refunds(database_url, dev_broker, topic).shop as shop:
        shop.wait(lambda: len(shop.app.parked()) == 2, "the parked records")
    better = Refunds(
        database_url,
        dev_broker,
        topic,
        body=dict[str, Any],
        to=lambda message: f"refund-{message.value['order']}",
    )
    with better.shop as shop:
        for parked in shop.app.parked():
            shop.app.retry(parked.id)
        shop.wait(lambda: _waiting("refund-1", database_url) == 1, "the message to refund-1")
        shop.wait(lambda: _waiting("refund-fragile", database_url) == 1, "the message to refund-fragile")
        shop.wait_ended(2)


def test_a_signal_is_named_after_its_workflow_and_topic() -> None:
    app = App("shop")

    @kafka.signal("approvals", to=refund_of, topic="approval", body=Approval)
    @app.workflow
    def refund() -> None: ...

    [connector] = app.connectors
    assert (connector.name, connector.kind) == ("refund.approval", "signal")
    assert connector.describe() == ["refund.approval: topic approvals, messages for refund, not started"]
