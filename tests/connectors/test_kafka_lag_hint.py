"""What Kafka is told: always the newest offsets, and one commit at a time."""

from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from refold.connectors.kafka import _lag_hint
from refold.connectors.kafka._lag_hint import LagHint
from refold.connectors.kafka._places import Key

_EVENTS = st.lists(
    st.one_of(
        st.tuples(st.just("moved"), st.sampled_from([("t", 0), ("t", 1)])),
        st.tuples(st.just("gone"), st.sampled_from([("t", 0), ("t", 1)])),
        st.tuples(st.sampled_from(["polled", "answered"]), st.none()),
    ),
    max_size=60,
)


@pytest.fixture(autouse=True)
def _without_the_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_lag_hint, "_TELL_EVERY", 0.0)


@given(_EVENTS)
def test_one_commit_at_a_time_and_the_newest_offsets_in_the_end(
    events: list[tuple[str, Key | None]],
) -> None:
    told: dict[Key, int] = {}
    wanted: dict[Key, int] = {}
    under_way = 0

    def commit(offsets: Mapping[Key, int]) -> None:
        nonlocal under_way
        under_way += 1
        assert under_way == 1
        assert offsets
        told.update(offsets)

    hint = LagHint(commit)
    for place, (event, key) in enumerate(events):
        if event == "moved" and key is not None:
            wanted[key] = place
            hint.note(key, place)
        elif event == "gone" and key is not None:
            wanted.pop(key, None)
            hint.forget(key)
        elif event == "answered" and under_way:
            under_way = 0
            hint.answered()
        hint.tell()
    under_way = 0
    hint.answered()
    hint.tell()
    assert {key: told[key] for key in wanted} == wanted


def test_the_last_word_waits_for_no_answer() -> None:
    told: list[Mapping[Key, int]] = []
    hint = LagHint(told.append)
    hint.note(("t", 0), 1)
    hint.tell()
    hint.note(("t", 0), 2)
    hint.tell()
    assert told == [{("t", 0): 1}]
    hint.tell(at_once=True)
    assert told == [{("t", 0): 1}, {("t", 0): 2}]
