"""What else a hand-over does: messages, cancels and notes in its transaction; without a lane; later, and in order."""

from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

import refold
from fixtures.workers import Log, wait_for
from refold import App
from refold.core import (
    Cancel,
    Move,
    Note,
    Order,
    PositionMoved,
    Send,
    SourcePosition,
    Start,
    Workflow,
    join_id,
)
from refold.eventlog import rebuild
from refold.eventlog._workers import Heartbeat


@given(st.lists(st.text(), max_size=4), st.lists(st.text(), max_size=4))
def test_other_parts_make_another_id(one: list[str], other: list[str]) -> None:
    # No parts, and one that is empty, are the same text: an identity has at least one part that is not empty.
    assert one == other or join_id("x", *one) != join_id("x", *other)


def test_an_id_reads_like_its_parts() -> None:
    assert join_id("cron", "nightly", "2026-11-01T05:30:00Z") == "cron:nightly:2026-11-01T05%3A30%3A00Z"


@pytest.fixture
def note(app: App) -> Workflow[..., Any]:
    """A workflow that returns what it was started with."""

    @app.workflow
    def note(n: int) -> int:
        return n

    return note


@pytest.fixture
def waits(app: App) -> Workflow[..., Any]:
    """A workflow that waits for a message."""

    @app.workflow
    def waits() -> str:
        return refold.recv("say", str)

    return waits


def _position(app: App, source: str) -> SourcePosition:
    found = {at.source: at for at in app.positions(source)}
    stream = source if source.startswith("schedule:") else f"source:{source}"
    return found.get(source) or SourcePosition(source, f"{stream}/0", 0, None)


def _start(workflow: Workflow[..., Any], id: str, n: int = 1, **more: Any) -> Start:
    return Start(workflow, id, msgspec.json.encode({"n": n}), **more)


@pytest.mark.parametrize("worker", [True, False], ids=["with a worker", "without"])
def test_without_a_lane_position_and_starts_have_one_transaction_too(
    app: App, log: Log, note: Workflow[..., Any], worker: bool
) -> None:
    if worker:
        app.start_worker()
    at = _position(app, "shop")
    handed = app.hand_over([Move(at, b"1", "feed", [_start(note, "a"), _start(note, "b")])])
    assert (handed.started, handed.duplicates) == (2, 0)
    assert log.one("select count(distinct xid) from refold.events where seq = 0") == 1
    with pytest.raises(PositionMoved):
        app.hand_over([Move(at, b"9", "feed", [_start(note, "c")])])
    again = app.hand_over(
        [Move(handed.positions["shop"], b"2", "feed", [_start(note, "b"), _start(note, "d")])]
    )
    assert (again.started, again.duplicates) == (1, 1)
    assert log.rows("select workflow_id from refold.workflows order by 1") == [("a",), ("b",), ("d",)]
    if not worker:
        app.start_worker()
    assert app.get("d").result(30) == 1


def test_a_schedule_tells_of_itself_in_a_stream_of_its_own_name(
    app: App, log: Log, note: Workflow[..., Any], database_url: str
) -> None:
    source = "schedule:report"
    at = _position(app, source)
    notes = [Note("TickSkipped", "the last run was still busy", b'{"tick":7}')]
    handed = app.hand_over([Move(at, b'{"at":7}', "cron", [_start(note, "tick-7")], notes=notes)])
    assert handed.positions[source].stream == "schedule:report/0"
    assert log.types("schedule:report/0") == ["Noted", "PositionAdvanced"]
    noted = log.events("schedule:report/0", "Noted")[0]
    assert (noted["kind"], noted["text"], noted["data"]) == (
        *("TickSkipped", "the last run was still busy", {"tick": 7}),
    )
    before = app.positions("schedule:")
    app.close()
    log.rows("drop table refold.positions")
    rebuild(database_url)
    assert app.positions("schedule:") == before
    moved = app.hand_over([Move(_position(app, source), b'{"at":8}', "cron")])
    assert moved.positions[source].next_seq == 3


def test_messages_and_cancels_go_out_with_the_position(app: App, log: Log, waits: Workflow[..., Any]) -> None:
    with app:
        lane = app.lane("feed")
        for id in ("told", "stopped"):
            waits.start(id=id)
        [at] = lane.read_positions(["shop"]).result(20).values()
        sends = [Send("told", "m-1", "say", b'"hello"'), Send("unborn", "m-2", "say", b'"early"')]
        move = Move(at, b"1", "feed", sends=sends, cancels=[Cancel("stopped", "c-1", "shop closed")])
        lane.hand_over([move]).result(20)
        with pytest.raises(PositionMoved):
            lane.hand_over([Move(at, b"1", "feed", sends=[Send("told", "m-9", "say", b'"twice"')])]).result(
                20
            )
        assert app.get("told").result(30) == "hello"
        wait_for(lambda: log.status("stopped") == "cancelled", "it is cancelled")
        waits.start(id="unborn")
        assert app.get("unborn").result(30) == "early"


@pytest.mark.parametrize("worker", [True, False], ids=["by a lane", "without a worker"])
def test_messages_for_workflows_that_have_ended_are_dropped_and_the_source_says_so(
    app: App, other: App, log: Log, note: Workflow[..., Any], worker: bool
) -> None:
    """One note of all of them: a source's stream is kept for a number of events, and it is not to run out of them."""
    with app:
        assert note.start(1, id="over").result(30) == 1
        at = _position(app, "shop")
        sends = [Send("unborn", "m", "say", b"1"), *(Send("over", f"m-{n}", "say", b"1") for n in range(30))]
        move = Move(at, b"1", "feed", sends=sends)
        if worker:
            handed = app.lane("feed").hand_over([move]).result(30)
        else:
            handed = other.hand_over([move])
        other.hand_over([Move(handed.positions["shop"], b"2", "feed", sends=sends[:1])])
        [fact] = app.source_facts("sho")
        assert app.source_facts("shopping") == []
    assert (fact.source, fact.label, fact.kind) == ("shop", "feed", "MessagesDropped")
    assert fact.text.startswith(
        "30 messages dropped, for workflows that have ended: m-0 for over, m-1 for over,"
    )
    assert fact.text.endswith("m-19 for over, and 10 more")
    assert log.types("source:shop/0") == ["Noted", "PositionAdvanced", "PositionAdvanced"]
    assert log.rows("select workflow_id, message_id from refold.inbox") == [("unborn", "m")]


def test_records_of_one_key_run_one_after_the_other_and_other_keys_beside_them(app: App) -> None:
    began: list[tuple[str, int]] = []
    ended: list[tuple[str, int]] = []

    @refold.step
    def work(key: str, n: int) -> None:
        assert began.count((key, n)) == 0
        assert len([b for b in began if b[0] == key]) == len([e for e in ended if e[0] == key]), "two at once"
        began.append((key, n))
        ended.append((key, n))

    @app.workflow
    def record(key: str, n: int) -> None:
        work(key, n)

    starts = [
        Start(record, f"{key}-{n}", msgspec.json.encode({"key": key, "n": n}), order=Order(f"shop:{key}", n))
        for n in range(25)
        for key in "abcd"
    ]
    with app:
        lane = app.lane("feed")
        [at] = lane.read_positions(["shop"]).result(20).values()
        for first in range(0, 100, 20):
            move = Move(at, str(first).encode(), "feed", starts[first : first + 20])
            at = lane.hand_over([move]).result(30).positions["shop"]
        for start in starts:
            app.get(start.id).result(60)
    for key in "abcd":
        assert [n for k, n in began if k == key] == list(range(25))


def test_one_that_raises_parks_its_key_until_a_person_has_decided(app: App, log: Log) -> None:
    mended: list[int] = []

    @app.workflow
    def record(n: int) -> int:
        if n == 1 and not mended:
            raise ValueError("no such article")
        return n

    with app:
        app.accept([_start(record, f"r-{n}", n, order=Order("k", n)) for n in range(4)], label="feed")
        wait_for(lambda: log.status("r-1") == "parked", "it is parked")
        assert app.get("r-0").result(30) == 0
        assert [log.status(f"r-{n}") for n in (2, 3)] == ["waiting", "waiting"]
        mended.append(1)
        app.retry("r-1")
        assert [app.get(f"r-{n}").result(30) for n in (1, 2, 3)] == [1, 2, 3]


@pytest.fixture
def other(database_url: str) -> Iterator[App]:
    """Another process's app, as far as Postgres can tell."""
    made = App("other", database_url=database_url)
    yield made
    made.close()


def test_a_worker_that_sleeps_until_something_is_due_is_woken_by_what_is_due_earlier(
    app: App, other: App, log: Log, note: Workflow[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    every = {**(Heartbeat.__init__.__kwdefaults__ or {}), "every": 60.0}
    monkeypatch.setattr(Heartbeat.__init__, "__kwdefaults__", every)  # no tick tells it meanwhile
    now = int(log.one("select (extract(epoch from refold.log_now()) * 1000000)::bigint"))
    with app:
        app.accept([_start(note, "late", not_before=now + 3_600_000_000)], label="feed")
        later = int(log.one("select (extract(epoch from refold.log_now()) * 1000000)::bigint")) + 1_500_000
        other.accept([_start(note, "soon", not_before=later)], label="feed")
        assert log.status("soon") == "pending"
        assert app.get("soon").result(30) == 1, "it slept past it"
        ran = log.one("select min(at) from refold.events where workflow_id = 'soon' and seq > 0")
        assert ran.timestamp() * 1_000_000 >= later - 1
        assert log.status("late") == "pending"
