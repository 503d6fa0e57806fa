"""start, list, show, send, delete, rebuild, migrate: what they print, as text and as JSON."""

from collections.abc import Callable

import pytest

from fixtures.pages import matches
from fixtures.terminal import Terminal
from fixtures.workers import Log

ORDER = '{"id": "o-1", "amount": 5}'


def test_start_is_durable_when_it_returns_and_the_same_id_starts_nothing_new(shop: Terminal) -> None:
    first = shop.type("start", "shop.py", "checkout", ORDER, "--id", "order-1")
    again = shop.type("start", "shop.py", "checkout", ORDER, "--id", "order-1", "--json")
    assert first.out == "started order-1\nlook:   refold show order-1\n"
    assert again.json == {"id": "order-1", "workflow": "checkout"}
    listed = shop.type("list", "--json").json
    assert [(item["id"], item["name"], item["status"]) for item in listed["workflows"]] == [
        ("order-1", "checkout", "pending")
    ]


def test_start_refuses_what_it_cannot_start(shop: Terminal) -> None:
    unknown = shop.type("start", "shop.py", "chekout", ORDER)
    assert (unknown.code, unknown.err) == (
        2,
        "refold: shop.py has no workflow called chekout\n  workflows in it: approval, broken, checkout\n",
    )
    broken = shop.type("start", "shop.py", "checkout", '{"id": "o-1"')
    assert broken.code == 2
    assert "argument 'order' is not valid JSON" in broken.err
    many = shop.type("start", "shop.py", "broken", "1", "2")
    assert (many.code, many.err) == (
        2,
        "refold: broken takes 0 argument(s) (none), got 2\n  expected one JSON value for each, in this order\n",
    )
    wrong = shop.type("start", "shop.py", "checkout", '{"id": "o-1", "amount": "five"}')
    assert wrong.code != 0
    assert "Traceback" not in wrong.err
    assert "amount" in wrong.err


def test_start_that_waits_in_vain_says_that_it_has_started(shop: Terminal) -> None:
    said = shop.type("start", "shop.py", "checkout", ORDER, "--id", "order-1", "--wait", "0.1")
    assert (said.code, said.out, said.err) == (
        1,
        "",
        "refold: started order-1, and it has no result after 0.1 s\n"
        "  it needs a worker:  refold worker shop.py\n  look:  refold show order-1\n",
    )
    assert shop.type("show", "order-1", "--json").json["status"] == "pending"


def test_list_filters_and_pages(shop: Terminal) -> None:
    for number in range(3):
        shop.type("start", "shop.py", "checkout", ORDER, "--id", f"order-{number}")
    shop.type("start", "shop.py", "approval", "5", "--id", "approval-1")
    assert shop.type("list", "--status", "failed").out == "no workflows like that\n"
    named = shop.type("list", "--name", "approval", "--json").json["workflows"]
    assert [item["id"] for item in named] == ["approval-1"]
    seen, cursor = [], None
    for _ in range(4):
        page = shop.type("list", "--limit", "1", "--json", *(["--cursor", cursor] if cursor else [])).json
        seen += [item["id"] for item in page["workflows"]]
        cursor = page["next_cursor"]
    assert sorted(seen) == ["approval-1", "order-0", "order-1", "order-2"]
    wrong = shop.type("list", "--cursor", "order-1")
    assert (wrong.code, wrong.err) == (
        1,
        "refold: 'order-1' is no cursor. Pass the next_cursor of a page, as it is.\n",
    )
    text = shop.type("list").out
    assert text.splitlines()[0].split() == ["ID", "WORKFLOW", "STATUS", "STARTED", "NOTE"]
    assert len(text.splitlines()) == 5


def test_what_was_not_today_is_shown_with_its_date(shop: Terminal, log: Log) -> None:
    shop.type("start", "shop.py", "checkout", ORDER, "--id", "old")
    shop.type("start", "shop.py", "checkout", ORDER, "--id", "new")
    log.rows("update refold.workflows set created_at = '2026-01-05 12:00:00Z' where workflow_id = 'old'")
    *_, old = (line.split()[3] for line in shop.type("list").out.splitlines())
    log.rows(  # the audit of each test compares the head with its first event
        "update refold.workflows w set created_at = e.at from refold.events e"
        " where e.workflow_id = w.workflow_id and e.seq = 0 and w.workflow_id = 'old'"
    )
    assert old.startswith("2026-01-0") and len(old) == len("2026-01-05T12:00:00")


def test_show_prints_the_history_as_a_table_with_times_between_events(
    shop: Terminal, run_once: Callable[[str], None]
) -> None:
    shop.type("start", "shop.py", "checkout", ORDER, "--id", "order-1")
    run_once("order-1")
    shown = [
        "order-1  checkout  completed  started ..., 3 events over ...",
        "SEQ  AT  AFTER  EVENT  WHAT",
        '0 ... WorkflowStarted checkout({"id":"o-1","amount":5})',
        '1 ... +... s StepCompleted charge({"id":"o-1","amount":5}) -> "receipt-o-1"',
        '2 ... +... s WorkflowCompleted -> "receipt-o-1"',
    ]
    said = shop.type("show", "order-1")
    assert matches(shown, said.out), said.out
    as_json = shop.type("show", "order-1", "--json").json
    assert [event["type"] for event in as_json["history"]] == [
        "WorkflowStarted",
        "StepCompleted",
        "WorkflowCompleted",
    ]
    assert as_json["history"][1]["result"] == "receipt-o-1"
    assert as_json["status"] == "completed"


def test_a_failed_workflow_shows_its_error(shop: Terminal, run_once: Callable[[str], None]) -> None:
    shop.type("start", "shop.py", "broken", "--id", "broken-1")
    run_once("broken-1")
    said = shop.type("show", "broken-1")
    assert "broken-1  broken  failed" in said.out
    assert "ValueError: no such item" in said.out
    waited = shop.type("start", "shop.py", "broken", "--id", "broken-1", "--wait", "5")
    assert waited.code == 1
    assert "no such item" in waited.err
    assert "Traceback" not in waited.err


@pytest.mark.parametrize("command", ["show", "delete"])
def test_an_unknown_id_is_answered_with_the_nearest_three(shop: Terminal, command: str) -> None:
    for number in (41, 42, 43, 44):
        shop.type("start", "shop.py", "checkout", ORDER, "--id", f"order-{number}")
    said = shop.type(command, "ordr-42")
    assert said.code == 1
    assert "'ordr-42'" in said.err
    assert "order-42" in said.err
    assert said.err.count("order-4") == 3
    assert "Traceback" not in said.err


def test_send_reaches_a_workflow_that_waits(shop: Terminal, run_once: Callable[[str], None]) -> None:
    shop.type("start", "shop.py", "approval", "5", "--id", "approval-1")
    said = shop.type("send", "approval-1", "true", "--topic", "approval")
    assert said.out == "sent true to approval-1 on approval\n"
    run_once("approval-1")
    assert '-> "paid"' in shop.type("show", "approval-1").out


def test_delete_asks_first_and_keeps_the_id_taken(shop: Terminal, run_once: Callable[[str], None]) -> None:
    shop.type("start", "shop.py", "checkout", ORDER, "--id", "order-1")
    open_still = shop.type("delete", "order-1", "--yes")
    assert open_still.code == 1
    assert "order-1" in open_still.err
    run_once("order-1")
    declined = shop.type("delete", "order-1", input="n\n")
    assert (declined.code, shop.type("show", "order-1").code) == (1, 0)
    deleted = shop.type("delete", "order-1", "--yes")
    assert deleted.out == "deleted order-1; the ID stays taken\n"
    shop.type("start", "shop.py", "checkout", ORDER, "--id", "order-1")
    assert [event["type"] for event in shop.type("show", "order-1", "--json").json["history"]] == [
        "IdentitySealed"
    ]


def test_rebuild_says_what_it_made_again(shop: Terminal, run_once: Callable[[str], None]) -> None:
    shop.type("start", "shop.py", "checkout", ORDER, "--id", "order-1")
    run_once("order-1")
    said = shop.type("rebuild", "--yes")
    assert said.code == 0, said.err
    assert said.out.startswith("rebuilt 1 workflows")
    assert "order-1  checkout  completed" in shop.type("show", "order-1").out


def test_migrate_creates_the_schema_once(shop: Terminal, empty_database_url: str) -> None:
    first = shop.type("migrate", "--database-url", empty_database_url, "--json")
    assert first.code == 0, first.err
    version = first.json["to"]
    assert first.json["from"] is None
    again = shop.type("migrate", "--database-url", empty_database_url)
    assert again.out == f"the schema is current (version {version})\n"


def test_cancel_ends_what_never_ran_and_asks_what_runs(shop: Terminal) -> None:
    shop.type("start", "shop.py", "approval", "5", "--id", "approval-1")
    said = shop.type("cancel", "approval-1", "--reason", "asked twice")
    assert said.out == "cancelled approval-1\n"
    shown = shop.type("show", "approval-1").out
    assert "approval-1  approval  cancelled" in shown
    assert shown.count("asked twice") == 2
    assert shop.type("cancel", "approval-1", "--json").json == {"id": "approval-1", "status": "cancelled"}
    unknown = shop.type("cancel", "approval-2")
    assert (unknown.code, "approval-1" in unknown.err) == (1, True)


def test_a_parked_workflow_is_listed_with_what_to_do_and_retried_or_skipped(shop: Terminal, log: Log) -> None:
    for name in ("broken-1", "broken-2"):
        shop.type("start", "shop.py", "broken", "--id", name)
    log.rows("update refold.workflows set suspicion = 6, alone_deaths = 3")
    shop.start("worker", "shop.py")
    for name in ("broken-1", "broken-2"):
        log.wait_status(name, "parked")
    [listed] = [item for item in shop.type("list", "--json").json["workflows"] if item["id"] == "broken-1"]
    assert listed["note"] == "waits for a person: refold retry broken-1, or: refold skip broken-1"
    assert "waits for a person" in shop.type("show", "broken-1").out
    skipped = shop.type("skip", "broken-2", "--reason", "a test", "--json")
    assert skipped.json == {"skipped": ["broken-2"]}
    assert "broken-2  broken  failed" in shop.type("show", "broken-2").out
    retried = shop.type("retry", "broken-1")
    assert retried.out == "retried broken-1: its code is run again over its history\n"
    log.wait_status("broken-1", "failed")
    again = shop.type("retry", "broken-1")
    assert again.code == 1
    assert "'broken-1' is failed, and only a parked one can be retried" in again.err


@pytest.mark.parametrize("command", ["retry", "skip"])
def test_one_of_several_that_is_not_parked_does_not_keep_the_others_waiting(
    command: str, shop: Terminal, log: Log
) -> None:
    for name in ("broken-1", "broken-2"):
        shop.type("start", "shop.py", "broken", "--id", name)
    log.rows("update refold.workflows set suspicion = 6, alone_deaths = 3")
    worker = shop.start("worker", "shop.py")
    for name in ("broken-1", "broken-2"):
        log.wait_status(name, "parked")
    worker.interrupt()
    said = shop.type(command, "broken-1", "broken-1", "broken-9", "broken-2", "--json")
    assert said.code == 1
    [done] = said.json.values()
    assert [each["id"] if command == "retry" else each for each in done] == ["broken-1", "broken-2"]
    assert "only a parked one can be" in said.err
    assert "'broken-9'" in said.err
