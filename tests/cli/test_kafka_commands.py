"""`refold kafka positions` and `produce`, with the development broker."""

import json
import socket
from collections.abc import Iterator

import pytest

from fixtures.pages import matches
from fixtures.terminal import Terminal
from refold import App
from refold.connectors._devbroker import DevBroker
from refold.core import GapFound, Move, SourcePosition


@pytest.fixture(scope="module")
def dev_broker() -> Iterator[DevBroker]:
    """A development broker for this file."""
    with DevBroker() as broker:
        yield broker


@pytest.fixture
def desk(terminal: Terminal, database_url: str, dev_broker: DevBroker) -> Terminal:
    """A terminal with the app that `init` writes, a database and a broker."""
    terminal.environment |= {
        "REFOLD_DATABASE_URL": database_url,
        "REFOLD_KAFKA_BOOTSTRAP": dev_broker.bootstrap,
    }
    assert terminal.type("init", "shop").code == 0
    return terminal


def test_a_produced_record_becomes_a_workflow_and_moves_the_position(desk: Terminal) -> None:
    dev = desk.start("dev", "shop/shop.py")
    dev.wait_for(
        [
            "shop/shop.py runs, ... database ... broker ... workflows on_order",
            "consumer on_order: topic orders, ...",
            'try refold kafka produce orders \'{"id": "o-1", "amount": 5}\'',
        ]
    )
    produced = desk.type("kafka", "produce", "orders", '{"id": "o-1", "amount": 5}', "--key", "ada")
    assert matches(["produced to orders, partition ..., offset 0"], produced.out), produced.err
    dev.wait_for(["...on_order", "...step charge", "...step ship", "...completed -> ..."])

    rows = desk.type("kafka", "positions", "--json").json
    assert {(row["consumer"], row["topic"]) for row in rows} == {("on_order", "orders")}
    assert sum(row["next_offset"] for row in rows) == 1
    text = desk.type("kafka", "positions").out
    assert text.splitlines()[0].split() == [
        *("CONSUMER", "TOPIC", "PARTITION", "NEXT", "OFFSET", "HANDED", "OVER", "CLUSTER")
    ]
    assert desk.type("kafka", "positions", "--consumer", "other").out == "no positions of other\n"
    assert dev.interrupt() < 3


def test_what_was_lost_or_dropped_is_shown_below_the_positions(terminal: Terminal, database_url: str) -> None:
    terminal.environment |= {"REFOLD_DATABASE_URL": database_url}
    app = App("shop", database_url=database_url)
    for partition, gap in ((0, GapFound("orders[0]: offsets 0 to 4 are gone", 0, 4)), (1, None)):
        source = f"kafka:audit:c1:orders:{partition}"
        at = SourcePosition(source, f"source:{source}/0", 0, None)
        app.hand_over([Move(at, b'{"next_offset":5}', "audit", gap=gap)])
    app.close()
    text = terminal.type("kafka", "positions", "--consumer", "audit").out.splitlines()
    assert text[-2].split() == [*("AT", "CONSUMER", "TOPIC", "PARTITION", "WHAT", "HAPPENED")]
    assert text[-1].split(maxsplit=1)[1].split() == [
        *("audit", "orders", "0", "orders[0]:", "offsets", "0", "to", "4", "are", "gone"),
    ]
    first, second = terminal.type("kafka", "positions", "--json").json
    assert [(fact["kind"], fact["text"]) for fact in first["facts"]] == [
        ("Gap", "orders[0]: offsets 0 to 4 are gone")
    ]
    assert second["facts"] == []


def test_records_are_read_from_stdin_line_by_line(desk: Terminal) -> None:
    lines = "".join(json.dumps({"id": f"o-{number}", "amount": 1}) + "\n" for number in range(12))
    said = desk.type("kafka", "produce", "many", "-", "--header", "source=test", input=lines)
    assert said.code == 0, said.err
    assert len(said.out.splitlines()) == 11
    assert said.out.splitlines()[-1] == "and 2 more"
    (record,) = desk.type("kafka", "produce", "many", "{}", "--json").json
    assert record["topic"] == "many"
    assert record["offset"] >= 0


def test_a_header_without_a_value_is_wrong_usage(desk: Terminal) -> None:
    said = desk.type("kafka", "produce", "orders", "{}", "--header", "source")
    assert (said.code, said.err) == (
        2,
        "refold: --header source has no value\n  expected a name and a value, like:  --header source=shop\n",
    )


def test_without_any_broker_it_says_how_to_get_one(terminal: Terminal) -> None:
    said = terminal.type("kafka", "produce", "orders", "{}")
    assert (said.code, said.err) == (
        2,
        "refold: no broker: REFOLD_KAFKA_BOOTSTRAP is not set, and no `refold dev` with a development broker runs"
        " here\n  start one, or say where the broker is:  --bootstrap-servers HOST:PORT\n",
    )


def test_a_broker_that_does_not_answer_cannot_be_reached(terminal: Terminal) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    said = terminal.type("kafka", "produce", "orders", "{}", "--bootstrap-servers", f"127.0.0.1:{port}")
    assert said.code == 3
    assert said.err.startswith(f"refold: can't reach Kafka at 127.0.0.1:{port}: ")
    assert said.err.count("\n") <= 2, said.err  # the client's own lines are kept out


def test_a_worker_whose_broker_is_away_says_so_once_and_goes_on(desk: Terminal) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    desk.environment["REFOLD_KAFKA_BOOTSTRAP"] = f"127.0.0.1:{port}"
    worker = desk.start("worker", "shop/shop.py")
    worker.wait_for([f"worker of shop: ... can't reach Kafka at 127.0.0.1:{port}: ... it goes on trying"])
    assert worker.interrupt() < 5
    assert worker.output.count("can't reach Kafka") == 1
    assert "%3|" not in worker.output  # how librdkafka's own lines begin
