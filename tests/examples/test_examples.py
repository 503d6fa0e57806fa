"""Each example is killed half way with SIGKILL, and ends as if it had not been."""

import http.server
import json
import threading
import time
import urllib.request
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path

import pytest

from fixtures.brokers import Broker
from fixtures.kafka_app import headers, records
from fixtures.nats_server import NatsServer
from fixtures.slack import APP_TOKEN, TOKEN, FakeSlack
from fixtures.stage import EXAMPLES, Stage
from fixtures.workers import wait_for
from refold.connectors import kafka, webhook
from refold.connectors import slack as slack_connector
from refold.connectors._devbroker import DevBroker

pytestmark = pytest.mark.timeout(180)


def test_every_example_is_under_60_lines_and_has_a_test_here() -> None:
    programs = sorted(path for path in EXAMPLES.glob("*/*.py") if path.parent.name != "demo")
    tested = Path(__file__).read_text()
    assert [path.parent.name for path in programs] == [
        "accounts_in_order",
        "approval_in_slack",
        "orders_from_kafka",
        "outage",
        "parcels_from_nats",
        "payments_by_webhook",
        "refund_with_approval",
        "reminder",
        "report_by_schedule",
    ]
    for path in programs:
        assert len(path.read_text().splitlines()) < 60, path
        assert f'"{path.relative_to(EXAMPLES)}"' in tested


@pytest.mark.parametrize("stage", ["reminder/reminder.py"], indirect=True)
def test_a_reminder_survives_a_kill_in_the_middle_of_its_days_of_sleep(stage: Stage) -> None:
    worker = stage.worker()
    stage.start("remind", "ada", "water the plants", "--id", "plants")
    stage.log.wait_status("plants", "waiting")
    worker.kill()
    stage.move_clock(timedelta(days=1))

    worker = stage.worker()
    wait_for(lambda: len(stage.log.events("plants", "StepCompleted")) == 1, "the first reminder is sent")
    worker.kill()
    stage.move_clock(timedelta(days=3))

    stage.worker()
    wait_for(lambda: len(stage.log.events("plants", "StepCompleted")) == 2, "the second reminder is sent")
    stage.app.send("plants", True, topic="done")
    assert stage.result("plants") == "done after 2 reminders"
    assert [event["result"] for event in stage.log.events("plants", "StepCompleted")] == [
        "to ada: please water the plants"
    ] * 2


@pytest.mark.parametrize("stage", ["refund_with_approval/refund.py"], indirect=True)
@pytest.mark.parametrize(
    ("answer", "cents", "result", "moved"),
    [
        (True, 9900, "paid 99.00 for o-1", ["set aside"]),
        (False, 9900, "refused", ["set aside", "undone"]),
        (None, 9900, "nobody approved it", ["set aside", "undone"]),
        (True, 2_000_000, "account of o-1 is closed", ["set aside", "undone"]),
    ],
    ids=["approved", "refused", "nobody", "closed"],
)
def test_a_refund_is_decided_once_and_undone_at_most_once(
    stage: Stage, answer: bool | None, cents: int, result: str, moved: list[str]
) -> None:
    worker = stage.worker()
    stage.start("refund", json.dumps({"order": "o-1", "cents": cents}), "--id", "refund-o-1")
    stage.log.wait_status("refund-o-1", "waiting")
    worker.kill()
    if answer is None:
        stage.move_clock(timedelta(days=3))
    else:
        stage.app.send("refund-o-1", answer, topic="approval")
    stage.worker()
    assert stage.result("refund-o-1") == result
    assert [row[0] for row in stage.log.rows("select why from movements order by why")] == moved


class Service(http.server.ThreadingHTTPServer):
    """A letter service that is down until somebody repairs it."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Answer)
        self.is_up = threading.Event()
        self.keys: list[str | None] = []


class _Answer(http.server.BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        service = self.server
        assert isinstance(service, Service)
        self.rfile.read(int(self.headers["Content-Length"]))
        service.keys.append(self.headers["Idempotency-Key"])
        self.send_response(200 if service.is_up.is_set() else 503)
        self.end_headers()
        if service.is_up.is_set():
            self.wfile.write(b"letter 7")

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def service() -> Iterator[Service]:
    """The letter service, down."""
    with Service() as running:
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        yield running
        running.shutdown()
        thread.join()


@pytest.mark.parametrize("stage", ["outage/outage.py"], indirect=True)
def test_an_outage_of_an_hour_keeps_its_schedule_of_retries_through_a_kill(
    stage: Stage, service: Service
) -> None:
    environment = {"LETTERS_URL": f"http://127.0.0.1:{service.server_port}/letters"}
    worker = stage.worker(**environment)
    stage.start("write_letter", "dear Ada", "--id", "letter-1", **environment)
    wait_for(lambda: len(stage.log.events("letter-1", "StepFailed")) >= 2, "two tries have failed")
    worker.kill()

    stage.worker(**environment)
    for _ in range(8):
        # No test waits an hour: whenever a try has failed, the clock goes to the time of the next one.
        failures = stage.log.events("letter-1", "StepFailed")
        now = stage.log.one("select (extract(epoch from refold.log_now()) * 1e6)::bigint")
        stage.move_clock(max(timedelta(microseconds=failures[-1]["retry_at"] - now), timedelta(0)))
        wait_for(partial(_has_gone_on, stage, failures[-1]["seq"]), "the next try")
    service.is_up.set()
    stage.move_clock(timedelta(minutes=10))

    assert stage.result("letter-1") == "posted as letter 7"
    failed = stage.log.events("letter-1", "StepFailed")
    # The first try's number is its default, and left out.
    assert [event.get("attempt", 1) for event in failed] == list(range(1, len(failed) + 1))
    pauses = [_pause(event["at"], event["retry_at"]) for event in failed]
    assert pauses[-1] > pauses[0]
    assert max(pauses) <= timedelta(minutes=5)
    assert set(service.keys) == {"letter-1/0"}


def _has_gone_on(stage: Stage, seq: int) -> bool:
    return int(stage.log.events("letter-1")[-1]["seq"]) > seq


def _pause(at: datetime, retry_at: int) -> timedelta:
    return datetime.fromtimestamp(retry_at / 1e6, at.tzinfo) - at


@pytest.mark.parametrize("stage", ["orders_from_kafka/orders.py"], indirect=True)
def test_every_order_is_booked_once_though_the_worker_is_killed_among_them(stage: Stage) -> None:
    with DevBroker() as broker:
        environment = {"REFOLD_KAFKA_BOOTSTRAP": broker.bootstrap}
        orders = [json.dumps({"id": f"o-{n}", "customer": "ada", "cents": n}) for n in range(40)]
        kafka.produce(broker.bootstrap, "orders", orders)
        worker = stage.worker(**environment)
        wait_for(lambda: _booked(stage) >= 3, "some orders are booked")
        worker.kill()
        assert stage.log.one("select count(*) from refold.workflows where status = 'completed'") < 40

        stage.worker(**environment)
        wait_for(
            lambda: stage.log.one("select count(*) from refold.workflows where status = 'completed'") == 40,
            "all orders are completed",
            timeout=60,
        )
        rows = stage.log.rows("select order_id from bookings order by cents")
        assert [row[0] for row in rows] == [f"o-{n}" for n in range(40)]
        assert stage.log.one("select count(*) from refold.workflows") == 40


def _booked(stage: Stage) -> int:
    if stage.log.one("select to_regclass('bookings')") is None:
        return 0
    return int(stage.log.one("select count(*) from bookings"))


@pytest.mark.parametrize("stage", ["accounts_in_order/accounts.py"], indirect=True)
def test_an_overdrawn_account_stops_alone_and_its_bookings_stay_in_order(stage: Stage) -> None:
    with DevBroker() as broker:
        environment = {"REFOLD_KAFKA_BOOTSTRAP": broker.bootstrap}
        names = ["ada", "bob", "cyd", "eve"]
        for n in range(12):
            for name in names:
                cents = -10_000 if (name, n) == ("eve", 5) else n + 1
                value = json.dumps({"account": name, "cents": cents})
                kafka.produce(broker.bootstrap, "bookings", value, key=name)
        worker = stage.worker(**environment)
        done = "select count(*) from refold.workflows where status = 'completed'"
        wait_for(lambda: stage.log.one(done) >= 5, "some bookings are done")
        worker.kill()
        stage.worker(**environment)
        wait_for(lambda: stage.log.one(done) == 36 + 5, "all that can be done is", timeout=60)
        wait_for(lambda: len(stage.app.parked()) == 1, "the booking that is parked")
        [parked] = [kafka.describe_parked(one) for one in stage.app.parked()]
        assert (parked.key, parked.error, parked.waiting) == ("eve", "Overdrawn: eve would have -99.85", 6)
        stage.app.skip(parked.workflow)
        wait_for(lambda: stage.log.one(done) == 36 + 11, "the bookings behind it", timeout=60)
        balances = [sum(range(1, n + 2)) for n in range(12)]
        seen: dict[str, dict[str | None, int]] = {name: {} for name in names}
        for record in records(Broker(broker.bootstrap), "balances", 47, header="refold-id"):
            value = json.loads(record.value() or b"")
            ids = dict(headers(record))
            seen[value["account"]].setdefault((ids["refold-id"] or b"").decode(), value["cents"])
        assert [[*seen[name].values()] for name in names[:3]] == [balances] * 3
        assert list(seen["eve"].values()) == [
            cents - (6 if cents > 15 else 0) for cents in balances if cents != 21
        ]


@pytest.mark.parametrize("stage", ["approval_in_slack/refunds.py"], indirect=True)
@pytest.mark.parametrize(
    ("label", "result", "said"),
    [
        ("Approve", "paid 99.00 for o-1", ["paid 99.00 for o-1, approved by <@U7>"]),
        ("Reject", "refused by U7", []),
    ],
)
def test_a_refund_is_approved_in_slack_though_the_worker_is_killed_while_people_think(
    stage: Stage, slack: FakeSlack, label: str, result: str, said: list[str]
) -> None:
    environment = {"SLACK_API_URL": slack.api, "SLACK_BOT_TOKEN": TOKEN, "SLACK_APP_TOKEN": APP_TOKEN}
    worker = stage.worker(**environment)
    slack.wait_connected()
    command = slack.command("/refund", "o-1 99.00")
    sent = slack.send_envelope(command).result(30)
    assert json.loads(sent.body) == {"text": "Asking whether o-1 99.00 may be paid back."}
    refund = slack_connector.workflow_id("command", command)
    stage.log.wait_status(refund, "waiting")
    worker.kill()
    wait_for(lambda: not slack.is_connected(), "the connection is gone")
    stage.worker(**environment)
    slack.wait_connected()
    [question] = slack.called("chat.postMessage")
    for _ in range(2):  # impatient
        assert slack.send_envelope(slack.click_on(question, label, user="U7")).result(30).delivered
    assert stage.result(refund) == result
    assert [call["text"] for call in slack.called("chat.postMessage")][1:] == said
    [closed] = slack.called("chat.update")
    assert closed["text"].endswith(f"*{label}*, by <@U7>")


@pytest.mark.parametrize("stage", ["report_by_schedule/report.py"], indirect=True)
def test_a_report_is_made_once_a_day_and_covers_the_days_on_which_nobody_was_there(stage: Stage) -> None:
    stage.move_clock(datetime(2026, 11, 2, 6, tzinfo=UTC) - datetime.now(UTC))
    worker = stage.worker()
    wait_for(lambda: stage.log.one("select count(*) from refold.positions"), "the schedule is recorded")
    stage.move_clock(timedelta(hours=2))  # Monday, nine o'clock in Berlin
    monday = "cron:sales:1:2026-11-02T08:00:00Z"
    stage.log.wait_status(monday, "waiting")
    worker.kill()
    stage.move_clock(timedelta(minutes=11))
    worker = stage.worker()
    assert stage.result(monday) == "sales until Mon 02 Nov 09:00: 1.00"
    worker.kill()

    stage.move_clock(timedelta(days=3))  # Thursday: nobody was there on Tuesday and Wednesday
    stage.worker()
    thursday = "cron:sales:1:2026-11-05T08:00:00Z"
    stage.log.wait_status(thursday, "waiting")
    stage.move_clock(timedelta(minutes=11))
    assert stage.result(thursday) == "sales until Thu 05 Nov 09:00: 98.28"
    assert stage.log.one("select count(*) from refold.workflows") == 2


@pytest.mark.parametrize("stage", ["parcels_from_nats/parcels.py"], indirect=True)
def test_every_scan_is_noted_once_though_the_worker_is_killed_among_them(
    stage: Stage, nats_server: NatsServer
) -> None:
    environment = {"REFOLD_NATS_URL": nats_server.url}
    nats_server.make_stream("SCANS", "scans.>")
    scans = [
        json.dumps({"parcel": f"p-{n}", "place": "Berlin", "delivered": True}).encode() for n in range(40)
    ]
    done = "select count(*) from refold.workflows where status = 'completed'"
    worker = stage.worker(**environment)
    nats_server.publish("scans.berlin", *scans[:20])
    wait_for(lambda: stage.log.one(done) >= 3, "some scans are noted", timeout=60)
    worker.kill()
    nats_server.publish("scans.berlin", *scans[20:])

    stage.worker(**environment)
    wait_for(lambda: stage.log.one(done) == 40, "all scans are noted", timeout=120)
    rows = stage.log.rows("select parcel from scans")
    assert sorted(row[0] for row in rows) == sorted(f"p-{n}" for n in range(40))
    assert stage.log.one("select count(*) from refold.workflows") == 40
    nats_server.delete_stream("SCANS")


@pytest.mark.parametrize("stage", ["payments_by_webhook/payments.py"], indirect=True)
def test_a_payment_is_booked_once_however_often_it_is_sent_and_its_order_ships(stage: Stage) -> None:
    secret = {"PAYMENTS_SECRET": "whsec_c2VjcmV0", "REFOLD_HTTP": "127.0.0.1:0"}
    provider = webhook.standard(secret=secret["PAYMENTS_SECRET"]).open("the provider")

    def pay(path: str, delivery: str, order: str) -> int:
        body = json.dumps({"payment": delivery, "order": order, "cents": 450}).encode()
        pairs = provider.sign(body, delivery, int(time.time()))
        url = worker.output.partition("http://")[2].split()[0]
        request = urllib.request.Request(f"http://{url}{path}", body, dict(pairs), method="POST")
        request.add_header("Content-Type", "application/json")
        with urllib.request.urlopen(request, timeout=60) as answer:
            return int(answer.status)

    worker = stage.worker(**secret)
    worker.wait_output("/hooks")
    stage.start("ship", "o-1", "--id", "ship-o-1", **secret)
    stage.start("ship", "o-2", "--id", "ship-o-2", **secret)
    assert pay("/payments", "p-1", "o-1") == 202
    worker.kill()

    worker = stage.worker(**secret)
    worker.wait_output("/hooks")
    assert [pay("/payments", "p-1", "o-1") for _ in range(3)] == [202] * 3
    assert pay("/refusals", "p-2", "o-2") == 202
    assert stage.result("webhook:on_payment:p-1") == "booked p-1"
    assert stage.result("ship-o-1") == "o-1 is on its way"
    assert stage.result("ship-o-2") == "o-2 was not paid"
    assert stage.log.rows("select payment, cents from booked") == [("p-1", 450)]
