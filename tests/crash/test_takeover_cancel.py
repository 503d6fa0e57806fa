"""A worker is killed after each event and in each try of a trip that is cancelled; another undoes what is left."""

import signal
from concurrent.futures import ThreadPoolExecutor
from itertools import cycle
from pathlib import Path

import pytest
from engine.programs import cancelled
from engine.programs.cancelled import EVENTS, TABLES, TRIES, Trip

from fixtures.workers import Log, Programs
from refold import App

PROGRAM = Path(cancelled.__file__)
POINTS = [("event", n) for n in range(1, EVENTS)] + [("try", n) for n in range(1, TRIES + 1)]


@pytest.mark.timeout(110)
def test_a_cancelled_trip_is_undone_wherever_its_worker_is_killed(
    log: Log, programs: Programs, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REFOLD_DATABASE_URL", database_url)
    log.rows(TABLES)
    names = {
        point: f"{colour}-{point[0]}-{point[1]}"
        for point, colour in zip(POINTS, cycle(["sync", "async"]), strict=False)
    }
    undisturbed = programs.start(PROGRAM, "async-undisturbed", "never", "0")
    assert undisturbed.wait() == 0, undisturbed.output
    trail, child = log.types("async-undisturbed"), log.types("async-undisturbed/2")
    assert len(trail) + len(child) == EVENTS

    def die(point: tuple[str, int]) -> int:
        return programs.start(PROGRAM, names[point], point[0], str(point[1])).wait()

    with ThreadPoolExecutor(4) as pool:
        assert set(pool.map(die, POINTS)) == {-signal.SIGKILL}

    app = App("survivor", database_url=database_url)
    for name in names.values():
        Trip(app, name)
    asked = {name: "CancelRequested" in log.types(name) for name in names.values()}
    with app:
        for name in names.values():
            app.cancel(name, "over")  # does nothing where it is on its way already
        for name in names.values():
            log.wait_status(name, "cancelled", 40)

    assert any(asked.values()) and not all(asked.values())
    for name in names.values():
        assert log.types(name).count("CancelRequested") == 1
        if log.types(f"{name}/2"):
            assert log.status(f"{name}/2") == "cancelled", "the child goes on without its parent"
        for who in (name, f"child of {name}"):
            done = dict(
                log.rows("select what, count(distinct key) from effects where who = %s group by 1", who)
            )
            assert done in ({}, {"refund": 1}, {"charge": 1, "refund": 1}), f"{who}: {done}"
        booked = log.one("select count(*) from bookings where who = %s", name)
        assert log.one("select count(*) from unbooked where who = %s", name) == booked <= 1
        if asked[name]:
            assert log.types(name) == trail
            assert log.types(f"{name}/2") == child
