"""What is decided about ticks that have come due: which are missed, which overlap, when each may begin. Pure."""

from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from refold.connectors.cron._decide import CAP, Decision, begin_of, decide, jitter_of, next_tick
from refold.connectors.cron._settle import backfill, delete, pause, resume, settle, ticks_between, trigger
from refold.connectors.cron._spec import Spec, make_spec, show_instant, to_us
from refold.connectors.cron._state import State, decode_state, encode_state, name_of, source_of, workflow_id
from refold.core import DefinitionRefused

MINUTE = 60_000_000
NOON = to_us(datetime(2026, 11, 22, 12, tzinfo=UTC))
OPEN: frozenset[str] = frozenset()


def _spec(**options: Any) -> Spec:
    return Spec(**{"workflow": "report", "parameter": "tick", "every": MINUTE, **options})


def _state(last: int = NOON, **options: Any) -> State:
    spec = _spec(**{key: options.pop(key) for key in list(options) if key not in State.__struct_fields__})
    return State(number=1, spec=spec, last=last, **options)


def _decide(state: State, now: int, still_open: frozenset[str] = OPEN) -> Decision:
    decision = decide("nightly", state, now, still_open)
    assert decision is not None
    return decision


def _begun(decision: Decision) -> list[int]:
    return [(begin.no - NOON) // MINUTE for begin in decision.begin]


def _kinds(decision: Decision) -> list[str]:
    return [fact.kind for fact in decision.facts]


def test_a_tick_that_is_due_begins_its_workflow_by_its_own_instant() -> None:
    decision = _decide(_state(), NOON + MINUTE + 3)
    [begin] = decision.begin
    assert begin.id == "cron:nightly:1:2026-11-22T12:01:00Z"
    assert begin.tick.scheduled == datetime(2026, 11, 22, 12, 1, tzinfo=UTC)
    assert (begin.tick.previous, begin.tick.schedule) == (None, "nightly")
    assert (decision.state.last, decision.state.fired) == (NOON + MINUTE, NOON + MINUTE)
    assert decision.facts == []
    assert decide("nightly", decision.state, NOON + MINUTE + 4, OPEN) is None
    assert next_tick("nightly", decision.state, NOON) == NOON + 2 * MINUTE


@pytest.mark.parametrize(
    ("missed", "catch_up", "begun", "missed_count"),
    [
        ("latest", timedelta(hours=1), [30], 29),
        ("latest", timedelta(minutes=5), [30], 29),
        ("latest", timedelta(0), [30], 29),
        ("all", timedelta(hours=1), list(range(1, 31)), 0),
        ("all", timedelta(minutes=5), [25, 26, 27, 28, 29, 30], 24),
        ("all", timedelta(seconds=1), [30], 29),
        ("all", timedelta(0), [30], 29),
    ],
)
def test_thirty_ticks_that_nobody_was_there_for(
    missed: str, catch_up: timedelta, begun: list[int], missed_count: int
) -> None:
    state = _state(missed=missed, catch_up=catch_up // timedelta(microseconds=1), overlap="allow")
    decision = _decide(state, NOON + 30 * MINUTE)
    assert _begun(decision) == begun
    assert [fact.data["count"] for fact in decision.facts] == ([missed_count] if missed_count else [])
    assert decision.state.last == NOON + 30 * MINUTE


@pytest.mark.parametrize("missed", ["latest", "all"])
def test_what_is_too_old_for_the_window_is_left_out_and_written_down(missed: str) -> None:
    state = _state(missed=missed, catch_up=5_000_000, every=None, at=(NOON + 1, NOON + MINUTE))
    decision = _decide(state, NOON + 2 * MINUTE)
    assert _begun(decision) == []
    assert [fact.text for fact in decision.facts] == [
        "2 missed and not run, from 2026-11-22T12:00:00.000001Z to 2026-11-22T12:01:00Z: too late to be caught up"
    ]
    assert (decision.state.last, decision.state.fired) == (NOON + MINUTE, None)


@pytest.mark.parametrize(("late", "runs"), [(10_000_000, True), (10_000_001, False)])
def test_without_catching_up_a_tick_still_has_ten_seconds(late: int, runs: bool) -> None:
    decision = _decide(_state(catch_up=0), NOON + MINUTE + late)
    assert bool(decision.begin) is runs


def test_no_more_than_a_thousand_are_caught_up_and_the_rest_is_written_down() -> None:
    state = _state(missed="all", catch_up=7 * 1440 * MINUTE, overlap="buffer_all")
    decision = _decide(state, NOON + 1500 * MINUTE)
    assert _begun(decision) == list(range(501, 1501)) and len(decision.begin) == CAP
    assert _kinds(decision) == ["TicksCapped", "TicksMissed"]
    assert decision.facts[0].text == (
        "more than 1,000 ticks were missed: only the last 1,000 run, from 2026-11-22T20:21:00Z on"
    )
    assert decision.facts[1].data["count"] == 500


def test_a_year_of_milliseconds_is_decided_at_once() -> None:
    state = _state(every=10_000, missed="all", catch_up=3_600_000_000)
    decision = _decide(state, NOON + 365 * 1440 * MINUTE)
    assert len(decision.begin) == 1  # the others would overlap with it
    assert "10,000 or more missed" in decision.facts[1].text


class TestOverlap:
    """The rules, each with one workflow open and two ticks due."""

    OPEN_ID = workflow_id("nightly", 1, NOON)

    def decide(self, overlap: str, *, is_open: bool = True, **options: Any) -> Decision:
        state = _state(overlap=overlap, missed="all", begun=(self.OPEN_ID,), fired=NOON, **options)
        return _decide(state, NOON + 2 * MINUTE, frozenset({self.OPEN_ID} if is_open else ()))

    def test_skip(self) -> None:
        decision = self.decide("skip")
        assert (_begun(decision), _kinds(decision)) == ([], ["TickSkipped", "TickSkipped"])
        assert decision.facts[0].text == (
            "tick 2026-11-22T12:01:00Z starts nothing: the one before it is still running"
        )
        assert (decision.state.begun, decision.state.last) == ((self.OPEN_ID,), NOON + 2 * MINUTE)
        assert _begun(self.decide("skip", is_open=False)) == [1]

    def test_buffer_one(self) -> None:
        decision = self.decide("buffer_one")
        assert (_begun(decision), _kinds(decision)) == ([1], ["TickSkipped"])
        assert decision.begin[0].ordered
        assert decision.facts[0].text == "tick 2026-11-22T12:02:00Z starts nothing: one waits already"
        assert len(decision.state.begun) == 2
        assert _begun(self.decide("buffer_one", is_open=False)) == [1, 2]

    def test_buffer_all(self) -> None:
        decision = self.decide("buffer_all")
        assert (_begun(decision), _kinds(decision)) == ([1, 2], [])
        assert all(begin.ordered for begin in decision.begin)
        assert decision.state.begun == ()

    def test_cancel_other(self) -> None:
        decision = self.decide("cancel_other")
        assert (_begun(decision), decision.cancel) == ([2], [self.OPEN_ID])
        assert decision.begin[0].ordered
        assert [fact.text for fact in decision.facts] == [
            "tick 2026-11-22T12:01:00Z starts nothing: a later one is due as well and would cancel it"
        ]
        assert self.decide("cancel_other", is_open=False).cancel == []

    def test_allow(self) -> None:
        decision = self.decide("allow")
        assert (_begun(decision), decision.cancel, decision.facts) == ([1, 2], [], [])
        assert not any(begin.ordered for begin in decision.begin)


def test_previous_is_the_tick_that_last_started_a_workflow() -> None:
    """So that what it covers has no hole where ticks were skipped."""
    busy = _state(begun=("x",), fired=NOON)
    skipped = _decide(busy, NOON + MINUTE, frozenset({"x"}))
    after = _decide(skipped.state, NOON + 2 * MINUTE)
    assert after.begin[0].tick.previous == datetime(2026, 11, 22, 12, tzinfo=UTC)


def test_jitter_moves_the_start_and_never_the_identity() -> None:
    plain = _decide(_state(), NOON + MINUTE).begin[0]
    moved = _decide(_state(jitter=10 * MINUTE), NOON + MINUTE).begin[0]
    assert (moved.id, moved.tick, plain.not_before) == (plain.id, plain.tick, None)
    assert moved.not_before is not None and NOON + MINUTE <= moved.not_before < NOON + 11 * MINUTE
    drawn = [jitter_of("cron:nightly:1", NOON + n * MINUTE, 10 * MINUTE) for n in range(1000)]
    assert drawn == [jitter_of("cron:nightly:1", NOON + n * MINUTE, 10 * MINUTE) for n in range(1000)]
    assert min(drawn) < MINUTE and max(drawn) > 9 * MINUTE and len(set(drawn)) == 1000


def test_a_clock_that_is_set_back_gives_its_ticks_once_more() -> None:
    ahead = _state(last=NOON + 365 * 1440 * MINUTE)
    assert next_tick("nightly", ahead, NOON) == NOON
    decision = _decide(ahead, NOON)
    assert (_begun(decision), decision.state.last) == ([], NOON)
    assert [fact.text for fact in decision.facts] == [
        "the last tick of 'nightly' was 2027-11-22T12:00:00Z, and it is 2026-11-22T12:00:00Z now: the database's clock "
        "was set back. The ticks in between come again; those that ran do not run twice"
    ]
    # What two servers differ by is no step back.
    assert next_tick("nightly", _state(last=NOON + MINUTE), NOON + MINUTE - 5) == NOON + 2 * MINUTE


def test_a_paused_or_deleted_schedule_has_no_ticks() -> None:
    for state in (_state(paused=True), _state(deleted=True)):
        assert decide("nightly", state, NOON + MINUTE, OPEN) is None
        assert next_tick("nightly", state, NOON) is None


def test_a_new_schedule_begins_now_and_a_changed_one_after_its_last_tick() -> None:
    made = settle("nightly", _spec(), None, NOON + 5, declared=True)
    assert made is not None and (made.state.last, made.state.number) == (NOON + 5, 1)
    assert [fact.text for fact in made.facts] == ["schedule 'nightly': every 1 min"]
    assert settle("nightly", _spec(), made.state, NOON + 9, declared=True) is None
    changed = settle("nightly", _spec(every=2 * MINUTE), made.state, NOON + MINUTE, declared=True)
    assert changed is not None and changed.state.last == NOON + MINUTE
    assert changed.facts[0].text == (
        "schedule 'nightly' was every 1 min and is every 2 min now (every changed)"
    )
    ahead = msgspec.structs.replace(made.state, last=NOON + 9 * MINUTE)
    changed = settle("nightly", _spec(every=2 * MINUTE), ahead, NOON + MINUTE, declared=True)
    assert changed is not None and changed.state.last == NOON + 9 * MINUTE
    other = settle("nightly", _spec(overlap="allow"), made.state, NOON + MINUTE, declared=True)
    assert other is not None and other.state.last == NOON + 5, "what was due is due still"


def test_a_deleted_name_that_is_made_again_has_other_ticks() -> None:
    ended = delete("nightly", _state())
    again = settle("nightly", _spec(), ended.state, NOON, declared=False)
    assert again is not None and again.state.number == 2
    assert begin_of("nightly", again.state, NOON, None).id == "cron:nightly:2:2026-11-22T12:00:00Z"


def test_pause_and_resume_leave_out_the_ticks_between() -> None:
    paused = pause("nightly", _state(), "month's end")
    assert paused is not None and paused.facts[0].text == "schedule 'nightly' was paused: month's end"
    assert pause("nightly", paused.state, "") is None
    on = resume("nightly", paused.state, NOON + 30 * MINUTE)
    assert on is not None and next_tick("nightly", on.state, NOON + 30 * MINUTE) == NOON + 31 * MINUTE
    assert resume("nightly", on.state, NOON) is None


def test_a_triggered_run_is_no_tick_and_counts_as_open() -> None:
    done = trigger("nightly", _state(paused=True, jitter=MINUTE), NOON + 7, OPEN)
    [begin] = done.begin
    assert begin.id == "cron:nightly:1:manual-2026-11-22T12:00:00.000007Z"
    assert (begin.tick.manual, begin.not_before, begin.ordered) == (True, None, True)
    assert (done.state.begun, done.state.last, done.state.paused) == ((begin.id,), NOON, True)


def test_a_backfill_uses_the_ids_of_the_ticks_and_an_order_of_its_own() -> None:
    state = _state(jitter=MINUTE)
    ticks = ticks_between("nightly", state, NOON - 3 * MINUTE, NOON, 500)
    done = backfill("nightly", state, ticks, in_order=True)
    assert [begin.id for begin in done.begin] == [
        begin_of("nightly", state, NOON + n * MINUTE, None).id for n in (-3, -2, -1, 0)
    ]
    assert {begin.key for begin in done.begin} == {"cron:nightly:1:backfill"}
    assert all(begin.ordered and begin.not_before is None and begin.tick.backfill for begin in done.begin)
    assert done.state == state
    assert not any(begin.ordered for begin in backfill("nightly", state, ticks, in_order=False).begin)


def test_names_are_kept_apart_in_sources_and_ids() -> None:
    assert source_of("a:b") == "schedule:a%3Ab" and name_of(source_of("a:b/ü")) == "a:b/ü"
    assert workflow_id("a:1", 2, NOON) != workflow_id("a", 12, NOON)
    assert show_instant(NOON + 20_000) == "2026-11-22T12:00:00.020000Z"


@settings(max_examples=200, deadline=None)
@given(
    gaps=st.lists(st.integers(1, 40), min_size=1, max_size=12),
    missed=st.sampled_from(["latest", "all"]),
    overlap=st.sampled_from(["skip", "buffer_one", "buffer_all", "cancel_other", "allow"]),
    window=st.sampled_from([0, 5 * MINUTE, 60 * MINUTE]),
    data=st.data(),
)
def test_however_workers_come_and_go_each_tick_is_decided_once(
    gaps: list[int], missed: str, overlap: str, window: int, data: st.DataObject
) -> None:
    """Each tick up to the last decision is run, skipped or counted as missed: one of them, and once."""
    state, now = _state(missed=missed, overlap=overlap, catch_up=window), NOON
    run: list[int] = []
    skipped: list[str] = []
    lost = 0
    for gap in gaps:
        now += gap * MINUTE
        open_now = frozenset(data.draw(st.sets(st.sampled_from(state.begun)))) if state.begun else OPEN
        decision = decide("nightly", decode_state(encode_state(state)) or state, now, open_now)
        assert decision is not None
        run += _begun(decision)
        skipped += [fact.data["tick"] for fact in decision.facts if fact.kind == "TickSkipped"]
        lost += sum(fact.data["count"] for fact in decision.facts if fact.kind == "TicksMissed")
        state = decision.state
    assert len(set(run)) == len(run) and len(set(skipped)) == len(skipped)
    assert len(run) + len(skipped) + lost == sum(gaps)
    if overlap == "skip":
        assert len(state.begun) <= 1
    if overlap == "buffer_one":
        assert len(state.begun) <= 2


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({}, "here: it does not say when to tick. Give one of them: an expression (\"0 9 * * MON-FRI\"), "
             "every=timedelta(...), or at=datetime(...)."),
        ({"every": timedelta(1), "at": datetime(2026, 1, 1, tzinfo=UTC)},
         "here: it says in two ways when to tick. Give one of them: an expression (\"0 9 * * MON-FRI\"), "
         "every=timedelta(...), or at=datetime(...)."),
        ({"every": timedelta(milliseconds=9)},
         "here: every=datetime.timedelta(microseconds=9000). Give a timedelta of 10 ms or more."),
        ({"at": datetime(2026, 1, 1)},
         "here: at=datetime.datetime(2026, 1, 1, 0, 0) is a time without a zone. Write datetime(..., tzinfo=UTC)."),
        ({"at": []}, "here: at= holds no time. Give one datetime or several."),
        ({"every": timedelta(1), "catch_up": timedelta(-1)},
         "here: catch_up=datetime.timedelta(days=-1) is negative. Give zero or more."),
        ({"every": timedelta(1), "catch_up": 3600},
         "here: catch_up=3600 is no duration. Write timedelta(hours=1) or like."),
        ({"every": timedelta(1), "missed": "none"}, "here: missed='none'. Use one of \"latest\", \"all\"."),
        ({"every": timedelta(1), "overlap": "queue"},
         "here: overlap='queue'. Use one of \"skip\", \"buffer_one\", \"buffer_all\", \"cancel_other\", \"allow\"."),
        ({"every": timedelta(1), "start": datetime(2026, 1, 2, 1, tzinfo=UTC),
          "end": datetime(2026, 1, 2, 23, tzinfo=UTC)},
         "here: there is no tick between start= and end=. Widen them, or leave one out."),
        ({"every": timedelta(1), "name": ""},
         "here: the name '' is not between 1 and 200 bytes long. Give another name=; it is in the IDs of the "
         "workflows, so choose one that can stay."),
    ],
)  # fmt: skip
def test_a_schedule_that_cannot_work_is_refused(options: dict[str, Any], text: str) -> None:
    given: dict[str, Any] = {
        "every": None, "at": None, "timezone": "UTC", "start": None, "end": None, "catch_up": timedelta(hours=1),
        "missed": "latest", "overlap": "skip", "jitter": timedelta(0), "paused": False, **options,
    }  # fmt: skip
    with pytest.raises(DefinitionRefused) as error:
        make_spec("here", given.pop("name", "nightly"), "report", "tick", None, **given)
    assert str(error.value) == text
