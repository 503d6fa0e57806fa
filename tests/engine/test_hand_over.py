"""What core does for connectors: starts and the position after them, in one transaction, at an expected seq."""

import contextlib
from collections.abc import Iterator
from concurrent.futures import Future
from typing import Any

import msgspec
import psycopg
import pytest

from fixtures.workers import Log
from refold import App
from refold.core import (
    DecodeFailed,
    HandedOver,
    Lane,
    Move,
    PositionMoved,
    SourcePosition,
    Start,
    Workflow,
    _source,
)


class Feed:
    """A connector of the tests: it hands over workflows that return the number they were started with."""

    def __init__(self, app: App, workflow: Workflow[..., Any], name: str) -> None:
        self._workflow = workflow
        self._lane: Lane = app.lane(name)

    def read(self, *sources: str) -> list[SourcePosition]:
        """Return the positions of `sources`."""
        return [*self._lane.read_positions(sources).result(10).values()]

    def move(self, expected: SourcePosition, to: int, *ids: str) -> Move:
        """Return the move of one source to position `to` that starts `ids`."""
        starts = [Start(self._workflow, id, msgspec.json.encode({"n": to})) for id in ids]
        return Move(expected, b"%d" % to, "feed", starts)

    def hand_over(self, *moves: Move) -> HandedOver:
        """Hand `moves` over, and wait for it."""
        future: Future[HandedOver] = self._lane.hand_over(moves)
        return future.result(10)


@pytest.fixture
def feed(app: App) -> Iterator[Feed]:
    """A connector with a running worker."""

    @app.workflow
    def note(n: int) -> int:
        return n

    with app:
        yield Feed(app, note, "feed")


def test_starts_and_position_have_one_transaction(feed: Feed, log: Log) -> None:
    [at] = feed.read("s")
    assert at.position is None
    handed = feed.hand_over(feed.move(at, 3, "a", "b", "c"))
    assert (handed.started, handed.duplicates, handed.positions["s"].position) == (3, 0, b"3")
    written = log.rows(
        "select type, count(*), count(distinct xid) from refold.events"
        " where type in ('WorkflowStarted', 'PositionAdvanced') group by type order by type"
    )
    assert written == [("PositionAdvanced", 1, 1), ("WorkflowStarted", 3, 1)]
    assert (
        log.one(
            "select count(distinct xid) from refold.events where type in ('WorkflowStarted', 'PositionAdvanced')"
        )
        == 1
    ), "two transactions: a crash between them loses the records, or reads them again"
    assert [at.position for at in feed.read("s")] == [b"3"]


def test_a_position_that_another_has_moved_is_refused_with_all_its_starts(
    feed: Feed, app: App, log: Log
) -> None:
    zombie = Feed(app, app.workflows["note"], "zombie")
    [stale, other] = zombie.read("s", "t")
    feed.hand_over(feed.move(stale, 5, "a"))
    with pytest.raises(PositionMoved):
        # In one hand-over with a source that is its own still: neither is written.
        zombie.hand_over(zombie.move(other, 9, "c"), zombie.move(stale, 2, "b"))
    assert [at.position for at in zombie.read("s", "t")] == [b"5", None], "the position went back"
    assert log.rows("select workflow_id from refold.workflows") == [("a",)]
    [now] = zombie.read("s")
    assert zombie.hand_over(zombie.move(now, 6, "b")).positions["s"].next_seq == 2


def test_a_record_that_is_handed_over_again_starts_nothing(feed: Feed, app: App, log: Log) -> None:
    [at] = feed.read("s")
    at = feed.hand_over(feed.move(at, 1, "a", "b")).positions["s"]
    again = feed.hand_over(feed.move(at, 2, "a", "b", "c"))
    assert (again.started, again.duplicates) == (1, 2)
    assert [app.get(id).result(10) for id in ("a", "b", "c")] == [1, 1, 2]
    assert log.one("select count(*) from refold.events where type = 'WorkflowStarted'") == 3


@pytest.mark.parametrize("from_lane", [True, False], ids=["by a lane", "without one"])
def test_who_slept_through_a_change_of_generation_moves_no_position_back(
    feed: Feed, app: App, log: Log, database_url: str, monkeypatch: pytest.MonkeyPatch, from_lane: bool
) -> None:
    monkeypatch.setattr(_source, "GENERATION", 3)
    [at] = feed.read("s")
    stale = feed.hand_over(feed.move(at, 1, "a")).positions["s"]
    at = stale
    for to in (2, 3):
        at = feed.hand_over(feed.move(at, to)).positions["s"]
    assert at.stream == "source:s/1", "the stream in which the sleeper's place is taken has been deleted"
    assert not log.events("source:s/0")
    with App("other", database_url=database_url) if not from_lane else contextlib.nullcontext() as other:
        late = Move(stale, b"2", "feed", feed.move(stale, 2, "b").starts)
        with pytest.raises(PositionMoved):
            feed.hand_over(late) if other is None else other.hand_over([late])
    assert feed.read("s")[0].position == b"3"
    assert not log.events("source:s/0")
    assert not log.rows("select workflow_id from refold.workflows where workflow_id = 'b'")


def test_a_full_queue_of_notifications_is_no_message_s_fault(feed: Feed, log: Log) -> None:
    """It is an error of the same class as a row that is too large, and passes when somebody listens again."""
    log.rows(
        "create function full_queue() returns trigger language plpgsql as"
        " $$ begin raise exception 'too many notifications in the NOTIFY queue' using errcode = '54000'; end $$"
    )
    log.rows(
        "create trigger full_queue before insert on refold.positions for each row execute function full_queue()"
    )
    [at] = feed.read("s")
    move = feed.move(at, 1, "a", "b")
    with pytest.raises(psycopg.errors.ProgramLimitExceeded):
        feed.hand_over(move)
    assert [start.failure for start in move.starts] == [None, None]
    log.rows("drop trigger full_queue on refold.positions")
    assert feed.hand_over(move).started == 2


def test_a_message_too_deep_for_a_rebuild_to_read_is_a_visible_failure_and_holds_nobody_up(
    feed: Feed, app: App
) -> None:
    """That the log can be rebuilt is checked after every test. Newer Pythons read deeper than this."""
    [at] = feed.read("s")
    move = feed.move(at, 1, "deep", "flat")
    move.starts[0].input = b'{"n":%s}' % (b"[" * 960 + b"]" * 960)
    feed.hand_over(move)
    assert app.get("flat").result(10) == 1
    with pytest.raises(DecodeFailed, match=r"it is nested too deeply|Expected `int`, got `array`"):
        app.get("deep").result(10)
