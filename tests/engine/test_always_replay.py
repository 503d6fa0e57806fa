"""Always-replay mode: what isn't deterministic is found before anything depends on it."""

import itertools

import pytest

import refold
from fixtures.workers import Log, wait_for
from refold import App


def _run(app: App, log: Log, name: str) -> str:
    with app:
        handle = app.workflows[name].start(id="w")
        wait_for(lambda: app.info("w").status in ("completed", "stuck"), "it ended or got stuck")
        return handle.status()


@pytest.mark.parametrize("always", [True, False])
def test_an_argument_that_differs_at_each_run_is_found_only_by_replaying(
    always: bool, database_url: str, log: Log
) -> None:
    app = App("a", database_url=database_url)
    app.always_replay = always
    number = itertools.count()

    @refold.step
    def note(n: int) -> int:
        return n

    @app.workflow
    def moody() -> int:
        return note(next(number)) + note(5)

    assert _run(app, log, "moody") == ("stuck" if always else "completed")


def test_a_deterministic_workflow_ends_as_it_would_without(database_url: str, log: Log) -> None:
    app = App("a", database_url=database_url)
    app.always_replay = True
    tries = itertools.count()
    calls: list[int] = []

    @refold.step(retries=1)
    def once(n: int) -> int:
        calls.append(n)
        if next(tries) == 0:
            raise ValueError("not yet")
        return n

    @app.workflow
    def child(n: int) -> int:
        return once(n)

    @app.workflow
    def steady() -> int:
        refold.sleep(0.01)
        refold.send("w", 4, "self")
        parts = refold.gather(once.later(1), child.later(2))
        return sum(parts) + refold.recv("self", int)

    with app:
        assert app.workflows["steady"].start(id="w").result(30) == 7
    assert sorted(calls) in ([1, 1, 2], [1, 2, 2])
