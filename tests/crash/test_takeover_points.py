"""A worker is killed after each event and in each try of a story with everything in it; another finishes it."""

import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from engine.programs import story
from engine.programs.story import EVENTS, RESULT, TABLES, TRIES, Story

from fixtures.workers import Log, Programs
from refold import App

# (moment, number): after the n-th event; in the n-th try of a step, when its effect is out and its event is not.
PROGRAM = Path(story.__file__)
# Up to this event of a story, at most its child's step is in hand while an event becomes durable.
SEQUENTIAL = 9
POINTS = [("event", n) for n in range(1, EVENTS)] + [("try", n) for n in range(1, TRIES + 1)]


@pytest.mark.timeout(110)
@pytest.mark.parametrize("colour", ["sync", "async"])
def test_a_story_ends_the_same_wherever_its_worker_is_killed(
    colour: str, log: Log, programs: Programs, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REFOLD_DATABASE_URL", database_url)
    log.rows(TABLES)
    names = {point: f"{colour}-{point[0]}-{point[1]}" for point in POINTS}
    undisturbed = programs.start(PROGRAM, f"{colour}-undisturbed", "never", "0")
    assert undisturbed.wait() == 0, undisturbed.output
    assert len(log.types(f"{colour}-undisturbed")) == EVENTS

    def die(point: tuple[str, int]) -> int:
        victim = programs.start(PROGRAM, names[point], point[0], str(point[1]))
        return victim.wait()

    with ThreadPoolExecutor(4) as pool:
        assert set(pool.map(die, POINTS)) == {-signal.SIGKILL}

    app = App("survivor", database_url=database_url)
    stories = [Story(app, name) for name in names.values()]
    with app:
        for each in stories:
            assert app.get(each.id).result(40) == RESULT, each.id

    for point, name in names.items():
        types = log.types(name)
        assert sorted(types) == sorted(log.types(f"{colour}-undisturbed")), name
        assert log.one("select count(*) from bookings where who = %s", name) == 1, "booked twice"
        tries = dict(
            log.rows("select key, count(*) from tries where key ~ ('^' || %s || '/') group by 1", name)
        )
        assert len(tries) == TRIES - 1, "a step has another key on another try"
        tries[f"{name}/1"] -= 1  # it fails once by itself
        again = {key for key, count in tries.items() if count > 1}
        if point[0] == "event" and point[1] <= SEQUENTIAL:
            assert all(key.count("/") > 1 for key in again), (
                f"{name}: nothing was in hand, but {again} ran again"
            )
        assert len(again) <= 2 and max(tries.values()) <= 2, f"{name}: {tries}"
    assert log.one("select count(*) from refold.inbox where workflow_id like 'friend%%'") == len(POINTS) + 1
