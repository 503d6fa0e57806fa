"""Nine things that the Kafka client does, each of which loses records (or says that it did) where nothing guards them.

Each test goes red when its guard is taken out; the guards are named. Numbers as in docs/decisions/kafka-client.md.
"""

import gc
import itertools
import logging
import threading
from typing import Any

import pytest
from confluent_kafka import TopicPartition

from fixtures.brokers import ApacheBroker, Broker, MockBroker
from fixtures.kafka_app import Watched, ask, gaps, offsets_moved_to, order, postgres_busy
from refold.connectors.kafka._broker import Lookup
from refold.connectors.kafka._message import Encoded, Record


def test_1_a_callback_that_raises_destroys_no_records(apache_broker: ApacheBroker, database_url: str) -> None:
    """Guard: `Reader._guarded`. Unguarded, `consume` throws away the whole batch and moves its position on."""
    raised = threading.Event()

    def stats(_: str) -> None:
        raised.set()
        raise RuntimeError("a user's callback")

    topic = apache_broker.create_topic()
    config = {"stats_cb": stats, "statistics.interval.ms": 1}
    shop = Watched(database_url, apache_broker, topic, config=config, batch_size=1_000)
    real, rounds = shop.connector.settings.codec.encode, iter(range(1, 20))

    def encode(record: Record) -> Encoded:
        # The next records arrive while the thread is busy here, and callbacks queue up behind them: a `consume` that
        # fetches those records meets the callback.
        if (record.value or b"").endswith(b'-0","amount":1}'):
            for round in rounds:
                apache_broker.produce(topic, *(order(f"{round}-{n}") for n in range(20)))
                break
        return real(record)

    shop.connector.settings.codec.encode = encode  # type: ignore[method-assign]
    with shop:
        apache_broker.produce(topic, *(order(f"0-{n}") for n in range(20)))
        shop.wait_ended(400)
        assert raised.is_set()
        assert len(set(shop.results())) == 400


def test_1_a_callback_of_ours_that_raises_costs_a_new_client_and_no_record(
    dev_broker: Broker, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Guard: a broken Reader is replaced, and reads its positions from Postgres."""
    from refold.connectors.kafka._reader import Reader

    failures = iter([RuntimeError("on_assign failed")])
    real = Reader._on_assign

    def fail_once(self: Reader, *args: Any) -> None:
        for failure in failures:
            raise failure
        real(self, *args)

    monkeypatch.setattr(Reader, "_on_assign", fail_once)
    topic = dev_broker.create_topic()
    dev_broker.produce(topic, order("a"), order("b"))
    with Watched(database_url, dev_broker, topic) as shop:
        shop.wait_ended(2)
    assert shop.results() == ["a", "b"]


def test_2_a_stop_between_poll_and_hand_over_loses_nothing(dev_broker: Broker, database_url: str) -> None:
    """Guard: no awaitable stands between fetching and handing over; what was fetched only is fetched again.

    (A cancelled `AIOConsumer.consume` loses its batch: it is not used.)
    """
    topic = dev_broker.create_topic()
    dev_broker.produce(topic, *(order(n) for n in range(300)))
    fetched = threading.Event()
    for _ in range(3):
        shop = Watched(database_url, dev_broker, topic, batch_size=50)
        codec = shop.connector.settings.codec
        real = codec.encode

        def encode(record: Record, real: Any = real) -> Encoded:
            fetched.set()
            encoded: Encoded = real(record)
            return encoded

        codec.encode = encode  # type: ignore[method-assign]
        fetched.clear()
        with shop:
            shop.wait(fetched.is_set)
        # Stopped at whatever moment that was.
    with Watched(database_url, dev_broker, topic) as last:
        last.wait_ended(300)
    assert last.results() == sorted(str(n) for n in range(300))


def test_3_one_record_is_not_kept_waiting_for_a_full_batch(dev_broker: Broker, database_url: str) -> None:
    """Guard: `poll`, then `consume(timeout=0)`. `consume(500, timeout)` waits all of its timeout for 500 records."""
    topic = dev_broker.create_topic()
    with Watched(database_url, dev_broker, topic, batch_size=500) as shop:
        dev_broker.produce(topic, order("a"))
        shop.wait_ended(1)
    assert shop.results() == ["a"]


def test_4_kafka_is_not_told_of_records_that_were_only_fetched(broker: Broker, database_url: str) -> None:
    """Guard: enable.auto.commit and enable.auto.offset.store are off. On, closing would commit what was fetched."""
    topic = broker.create_topic()
    broker.produce(topic, order("a"))
    name = f"told-{topic}"
    with Watched(database_url, broker, topic, name=name, group=name) as shop:
        shop.wait_ended(1)
        shop.wait(lambda: broker.committed(name, topic) == 1)
        with postgres_busy(database_url):
            broker.produce(topic, order("b"))
            shop.wait(lambda: _is_handing_over(database_url), "the hand-over that waits")
            assert broker.committed(name, topic) == 1
            shop.connector.stop()
            assert broker.committed(name, topic) == 1
    with Watched(database_url, broker, topic, name=name, group=name) as again:
        again.wait_ended(2)
    assert again.results() == ["a", "b"]


def test_5_records_deleted_before_they_were_read_are_a_gap_that_people_see(
    apache_broker: ApacheBroker, database_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Guard: auto.offset.reset=error. Anything else jumps silently."""
    topic = apache_broker.create_topic()
    apache_broker.produce(topic, order("a"))
    with Watched(database_url, apache_broker, topic) as first:
        first.wait_ended(1)
    apache_broker.produce(topic, *(order(f"lost{n}") for n in range(5)), order("b"))
    apache_broker.admin.delete_records([TopicPartition(topic, 0, 6)])[TopicPartition(topic, 0)].result()
    with (
        caplog.at_level(logging.WARNING, "refold.kafka"),
        Watched(database_url, apache_broker, topic) as second,
    ):
        second.wait_ended(2)
    assert second.results() == ["a", "b"]
    said = (
        f"{topic}[0] for consumer 'orders': offsets 1 to 5 were deleted by the broker before they were read"
    )
    assert gaps(database_url) == [said]
    assert said in caplog.text


def test_6_a_commit_that_kafka_refuses_holds_nothing_up(mock_broker: MockBroker, database_url: str) -> None:
    """Guard: commits are asynchronous hints, and nothing hangs on them. Synchronous ones raise, done or not."""
    topic = mock_broker.create_topic()
    mock_broker.refuse(MockBroker.OFFSET_COMMIT, *[3] * 50)  # unknown topic or partition
    try:
        with Watched(database_url, mock_broker, topic) as shop:
            for n in range(3):
                mock_broker.produce(topic, order(n))
                shop.wait_ended(n + 1)
    finally:
        mock_broker.accept(MockBroker.OFFSET_COMMIT)
    assert shop.results() == ["0", "1", "2"]
    assert shop.connector.tries == 1, "the client went on"


def test_7_answers_outlive_the_call_that_asked(apache_broker: ApacheBroker) -> None:
    """Guard: the admin client is kept. Collected, it destroys the answers that are still under way."""
    topic = apache_broker.create_topic()
    lookup = Lookup({"bootstrap.servers": apache_broker.bootstrap})
    for _ in range(5):
        asked = lookup.topic_ids([topic], must=True)
        gc.collect()
        assert asked[topic]


def test_8_a_postgres_that_is_away_for_long_costs_no_partition(
    apache_broker: ApacheBroker, database_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Guard: the thread polls on, partitions paused. A loop that waits for Postgres is thrown out of its group."""
    polls = itertools.count()  # a callback that the client makes every 200 ms, while it is polled
    served = 0

    def stats(_: str) -> None:
        nonlocal served
        served = next(polls)

    topic = apache_broker.create_topic()
    config = {
        "max.poll.interval.ms": 2_000,
        "session.timeout.ms": 2_000,
        "statistics.interval.ms": 200,
        "stats_cb": stats,
    }
    with (
        caplog.at_level(logging.WARNING, "refold.kafka"),
        Watched(database_url, apache_broker, topic, config=config, batch_size=2) as shop,
    ):
        apache_broker.produce(topic, order("first"))
        shop.wait_ended(1)
        members = _members(apache_broker, "orders")
        with postgres_busy(database_url):
            for n in range(20):
                apache_broker.produce(topic, order(f"n{n}"))
            shop.wait(lambda: _is_handing_over(database_url), "the hand-over that waits")
            until = served + 25  # two and a half poll intervals
            shop.wait(lambda: served >= until, "callbacks, so polls")
            assert _members(apache_broker, "orders") == members
        shop.wait_ended(21)
    assert "max.poll.interval" not in caplog.text


def test_9_a_consumer_that_froze_hands_nothing_over_a_second_time(
    apache_broker: ApacheBroker, database_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Guard: the position is moved at the expected seq, in the transaction of the starts."""
    topic = apache_broker.create_topic()
    frozen, thaw = threading.Event(), threading.Event()
    config = {"max.poll.interval.ms": 2_000, "session.timeout.ms": 1_500}
    zombie = Watched(database_url, apache_broker, topic, config=config)
    real = zombie.connector.settings.codec.encode

    def encode(record: Record) -> Encoded:
        if not thaw.is_set():
            frozen.set()
            assert thaw.wait(60)
        return real(record)

    zombie.connector.settings.codec.encode = encode  # type: ignore[method-assign]
    with zombie:
        apache_broker.produce(topic, *(order(n) for n in range(5)))
        zombie.wait(frozen.is_set)
        with Watched(database_url, apache_broker, topic, config=config) as heir:
            heir.wait_ended(5)
            apache_broker.produce(topic, order("more"))
            heir.wait_ended(6)
            thaw.set()
            apache_broker.produce(topic, order("last"))
            heir.wait_ended(7)
            assert heir.results() == sorted([*map(str, range(5)), "more", "last"])
    assert heir.seen("WorkflowStarted") + zombie.seen("WorkflowStarted") == 7
    moved = offsets_moved_to(database_url)
    assert moved == sorted(set(moved)), "the position only ever moved forwards"


def _is_handing_over(database_url: str) -> bool:
    waiting = ask(
        database_url,
        "select 1 from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock'",
    )
    return bool(waiting)


def _members(broker: ApacheBroker, group: str) -> list[str]:
    described = broker.admin.describe_consumer_groups([group])[group].result()
    return sorted(member.member_id for member in described.members)
