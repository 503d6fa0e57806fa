"""What is bounded: runnable workflows, not open ones. A backlog floods nothing; sleepers stop nothing."""

import threading
from datetime import timedelta
from typing import Any

import refold
from fixtures.brokers import ApacheBroker, Broker
from fixtures.kafka_app import Order, Watched, ask, order
from refold import App
from refold.connectors import kafka
from refold.core import Workflow


def test_hundreds_of_sleepers_do_not_stop_the_topic(dev_broker: Broker, database_url: str) -> None:
    def workflow(app: App) -> Workflow[..., Any]:
        @app.workflow
        def on_order(message: kafka.Message[Order]) -> str:
            if message.value.id != "awake":
                refold.sleep(timedelta(days=1))
            return message.value.id

        return on_order

    topic = dev_broker.create_topic()
    dev_broker.produce(topic, *(order(n) for n in range(300)), order("awake"))
    with Watched(
        database_url, dev_broker, topic, workflow=workflow, max_in_flight=50, batch_size=50, count_every=0.05
    ) as shop:
        shop.wait_ended(1)
    assert shop.results() == ["awake"]


def test_a_backlog_starts_only_as_much_as_may_be_in_flight(
    apache_broker: ApacheBroker, database_url: str
) -> None:
    go = threading.Event()

    @refold.step
    def wait_for_it() -> None:
        assert go.wait(60)

    def workflow(app: App) -> Workflow[..., Any]:
        @app.workflow
        def on_order(message: kafka.Message[Order]) -> str:
            wait_for_it()
            return message.value.id

        return on_order

    topic = apache_broker.create_topic()
    apache_broker.produce(topic, *(order(n) for n in range(80)))
    config = {"max.poll.interval.ms": 1_500, "session.timeout.ms": 1_500}
    shop = Watched(
        database_url, apache_broker, topic, workflow=workflow, config=config,
        max_in_flight=10, batch_size=5, count_every=0.1,
    )  # fmt: skip
    with shop:
        shop.wait(shop.connector.is_paused)
        counted = shop.connector.counts
        shop.wait(
            lambda: shop.connector.counts >= counted + 20, "twenty counts, so more than a poll interval"
        )
        assert shop.connector.is_paused()
        # At the count a batch may have been under way.
        [(started,)] = ask(database_url, "select count(*) from refold.workflows")
        assert 10 <= started <= 15
        go.set()
        shop.wait_ended(80)
    assert shop.results() == sorted(str(n) for n in range(80))


def test_large_records_go_over_in_several_hand_overs(dev_broker: Broker, database_url: str) -> None:
    topic = dev_broker.create_topic()
    dev_broker.produce(topic, *(order("x" * 40_000 + str(n)) for n in range(12)))
    with Watched(database_url, dev_broker, topic, batch_bytes=100_000) as shop:
        shop.wait_ended(12)
    assert sorted(int(result.lstrip("x")) for result in shop.results()) == list(range(12))
    rows = ask(
        database_url,
        "select (convert_from(body, 'UTF8')::json ->> 'started')::int from refold.events"
        " where type = 'PositionAdvanced'",
    )
    assert max(started or 0 for (started,) in rows) <= 2
