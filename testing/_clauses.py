"""The clauses: what every connector has to keep, each tried on real processes and a real Postgres.

A clause is a function that plays one scene on a `Stage` and raises `Refused` when it sees what must not be.
"""

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from refold.testing._harness import Harness, Kind
from refold.testing._stage import OPEN, SET_ASIDE, WATCH, Refused, Stage
from refold.testing._work import Work
from refold.testing._worker import Worker

_FEW: Final = 5


@dataclass(frozen=True)
class Clause:
    """One promise: its name, what it says, and the scene that tries it. `kinds` says why it leaves a kind out."""

    name: str
    promise: str
    scene: Callable[[Stage], None]
    leaves_out: Mapping[Kind, str]

    def not_applicable(self, harness: Harness) -> str | None:
        """Return why this clause makes no sense for a connector; None when it does."""
        return harness.not_applicable.get(self.name) or self.leaves_out.get(harness.kind)


CLAUSES: Final[dict[str, Clause]] = {}


def _clause(
    name: str, promise: str, **leaves_out: str
) -> Callable[[Callable[[Stage], None]], Callable[[Stage], None]]:
    def add(scene: Callable[[Stage], None]) -> Callable[[Stage], None]:
        CLAUSES[name] = Clause(name, promise, scene, leaves_out)  # type: ignore[arg-type]
        return scene

    return add


_NO_SENDER: Final = "nobody sends a tick, so nobody sends it again"


@_clause("delivers", "Every message starts one workflow, and is acknowledged in the end.")
def delivers(stage: Stage) -> None:
    stage.start()
    stage.settle(stage.send(4 * _FEW), "they were sent to a worker that runs")
    stage.wait_acknowledged()


@_clause("remembers", "What comes while no worker runs is taken up by the next one.")
def remembers(stage: Stage) -> None:
    stage.stop(_worked(stage, "a first worker ran"))
    stage.send(_FEW)
    stage.start()
    stage.settle([*stage.sent], "they were sent before, while and after no worker ran")


@_clause("redelivered", "The same message again starts nothing.", clock=_NO_SENDER)
def redelivered(stage: Stage) -> None:
    worker = _worked(stage, "they were sent to a worker that runs")
    first = [*stage.sent]
    if stage.kind == "pull" and not stage.harness.redelivers_live:
        stage.stop(worker)
        stage.redeliver(first)
        stage.start()
    else:
        stage.redeliver(first)
    stage.settle(first, "they were delivered once more after they had been processed")


@_clause(
    "redelivered-after-restart",
    "The same message again starts nothing in another process either.",
    clock=_NO_SENDER,
)
def redelivered_after_restart(stage: Stage) -> None:
    stage.stop(_worked(stage, "a first worker ran"))
    first = [*stage.sent]
    if stage.kind == "pull":
        stage.redeliver(first)
    stage.start()
    if stage.kind == "push":
        stage.redeliver(first)
    stage.settle(first, "they were delivered once more, to a worker that was started after them")


@_clause(
    "redelivered-after-deletion",
    "The same message again starts nothing though its workflow's history was deleted.",
    clock=_NO_SENDER,
)
def redelivered_after_deletion(stage: Stage) -> None:
    worker = _worked(stage, "a first worker ran")
    first = [*stage.sent]
    stage.stop(worker)
    for info in stage.workflows("completed"):
        stage.log.delete(info.id)
    if stage.kind == "pull":
        stage.redeliver(first)
    stage.start()
    if stage.kind == "push":
        stage.redeliver(first)
    stage.settle(first, "they were delivered once more after the histories of their workflows were deleted")


@_clause("at-once", "One message that is delivered twice at the same time starts one workflow.")
def at_once(stage: Stage) -> None:
    if stage.kind == "push":
        stage.start()
        works = stage.make(_FEW)
        stage.sent += works
        threads = [
            threading.Thread(target=stage.redeliver, args=([work],)) for work in works for _ in range(4)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(stage.harness.patience)
        stage.settle(works, "each was delivered four times at once")
        return
    if stage.kind == "pull":
        worker = _worked(stage, "a first worker ran")
        stage.stop(worker)
        stage.redeliver([*stage.sent])
    both = [stage.start_soon(number) for number in (0, 1)]
    for worker in both:
        stage.wait_up(worker)
    # Both get the time to have the same message in hand, if their system gives it to both.
    stage.hold_hand_overs(True)
    again = [*stage.sent]
    stage.send(_FEW)
    if stage.kind == "pull" and stage.harness.redelivers_live:
        stage.redeliver(again)
    stage.watch(lambda: all(worker.said("held") for worker in both))
    stage.hold_hand_overs(False)
    stage.settle([*stage.sent], "two workers ran when they were delivered")


@_clause("crash-after-commit", "A crash after the commit and before the acknowledgement doubles nothing.")
def crash_after_commit(stage: Stage) -> None:
    _crash(
        stage, "after", "the worker was killed when Postgres had them and the connector did not know it yet"
    )


@_clause("crash-before-commit", "A crash before the commit loses nothing: the acknowledgement goes last.")
def crash_before_commit(stage: Stage) -> None:
    _crash(stage, "before", "the worker was killed when it had taken them and Postgres did not have them yet")


def _crash(stage: Stage, moment: str, what: str) -> None:
    worker = stage.start(die=moment)  # type: ignore[arg-type]
    works = []
    for work in stage.make(_FEW):
        if worker.exit_code is None:
            works.append(stage.send_one(work))
    stage.wait(
        lambda: worker.exit_code is not None,
        "the first hand-over (does the connector hand over by the app that it was given, app.lane or app.accept?)",
        worker,
    )
    if not worker.was_killed:
        raise Refused(f"the worker ended by itself, exit code {worker.exit_code}:\n{worker.last_lines()}")
    stage.start()
    stage.settle(works, what)


@_clause(
    "postgres-away", "While Postgres is away nothing is acknowledged; when it is back all of it is processed."
)
def postgres_away(stage: Stage) -> None:
    worker = _worked(stage, "a first worker ran")
    _without_postgres(stage, worker, stage.line.cut, "Postgres was away")
    stage.line.mend()
    stage.settle([*stage.sent], "they came while Postgres was away, and it was back soon")
    # And once more, with a crash before it is back: what was acknowledged in between would be lost now.
    _without_postgres(stage, worker, stage.line.cut, "Postgres was away")
    worker.kill()
    stage.line.mend()
    stage.start()
    stage.settle(
        [*stage.sent], "they came while Postgres was away, and the worker was killed before it was back"
    )


@_clause(
    "postgres-stalls", "A Postgres that takes everything and answers nothing is no reason to acknowledge."
)
def postgres_stalls(stage: Stage) -> None:
    worker = _worked(stage, "a first worker ran")
    _without_postgres(stage, worker, stage.line.stall, "Postgres did not answer")
    if stage.silences and stage.harness.can_refuse:
        raise Refused(
            f"{stage.silences} messages got no answer within the sender's patience while Postgres did not answer; "
            "expected: a refusal in time, so that the sender knows that it has to send them again"
        )
    stage.line.mend()
    stage.settle([*stage.sent], "they came while Postgres did not answer, and then it did")


def _without_postgres(stage: Stage, worker: Worker, take_away: Callable[[], None], what: str) -> None:
    """Take Postgres away, send, and watch for acknowledgements."""
    before = stage.unacknowledged()
    take_away()
    count = _FEW if stage.kind != "push" else 2
    if stage.kind == "clock":
        count = 2
    works = stage.send(count)
    if before is None:
        # Who can't be asked is watched all the same: it gets the time to do the wrong thing.
        stage.watch(lambda: worker.exit_code is not None)
    else:
        expected = before + len(works)
        stage.watch(lambda: worker.exit_code is not None or (stage.unacknowledged() or 0) < expected)
        left = stage.unacknowledged() or 0
        if left < expected:
            raise Refused(f"{expected - left} of {len(works)} messages were acknowledged while {what}")
    if worker.exit_code is not None:
        raise Refused(f"the worker ended, exit code {worker.exit_code}, while {what}:\n{worker.last_lines()}")


@_clause(
    "undecodable",
    "A message that can't be decoded is seen by a person, and holds nobody up.",
    clock="a tick has no content that could be wrong",
)
def undecodable(stage: Stage) -> None:
    worker = stage.start()
    before = stage.send(2)
    stage.wait_done(before, "they were sent to a worker that runs")
    answer = stage.harness.send_undecodable("poison")
    after = stage.send(_FEW)
    stage.wait_done(after, "they were sent after one that can't be decoded")
    if stage.kind == "push" and answer is not True:
        if answer is None:
            raise Refused("a message that can't be decoded got no answer; expected: one that refuses it")
    else:
        seen = "a workflow that is failed or parked, for the message that can't be decoded; it was skipped silently"
        stage.wait(lambda: stage.workflows(*SET_ASIDE), seen, worker)
    stage.settle([*before, *after], "they were sent before and after one that can't be decoded")
    stage.wait_acknowledged()


@_clause("failing-workflow", "A workflow that fails is seen, is not started again, and holds nobody up.")
def failing_workflow(stage: Stage) -> None:
    worker = stage.start()
    before = stage.send(2)
    failing = stage.send(1, "fail")
    after = stage.send(_FEW)
    stage.wait_done([*before, *after], "they were sent before and after one whose workflow fails")
    stage.wait(lambda: stage.workflows(*SET_ASIDE), "a workflow that is failed or parked", worker)
    stage.settle([*before, *after], "they were sent before and after one whose workflow fails")
    found = stage.workflows(*SET_ASIDE)
    if len(found) != len(failing):
        raise Refused(
            f"one message asked for a workflow that fails, and {len(found)} failed: "
            f"{', '.join(info.id for info in found)}"
        )


@_clause(
    "backpressure", "No more is taken than is allowed to be runnable at once; the rest waits in its system."
)
def backpressure(stage: Stage) -> None:
    bound = stage.harness.max_in_flight
    if bound is None:
        raise Refused(
            "the harness does not say max_in_flight; or list this clause in not_applicable, with the reason"
        )
    limit = 2 * bound
    stage.hold_work(True)
    stage.start()
    works = stage.send(5 * bound, "hold")
    stage.wait(lambda: len(stage.workflows(*OPEN)) >= min(bound, len(works)), f"{bound} runnable workflows")
    if stage.watch(lambda: len(stage.workflows(*OPEN)) > limit):
        count = len(stage.workflows(*OPEN))
        raise Refused(f"{count} workflows are runnable at once, with max_in_flight={bound}")
    left = stage.unacknowledged()
    if left == 0:
        raise Refused(f"all {len(works)} messages are acknowledged, and {bound} are allowed to be in flight")
    stage.hold_work(False)
    stage.settle(works, "more of them came than may be in flight at once")


@_clause("shutdown", "SIGTERM in the middle of traffic loses nothing, doubles nothing, and ends in time.")
def shutdown(stage: Stage) -> None:
    worker = stage.start()
    with stage.traffic() as going:
        stage.wait(lambda: len(stage.done()) >= _FEW, "the first messages of the traffic", worker)
        stage.stop(worker)
        worker = stage.start()
        so_far = len(stage.done())
        stage.wait(lambda: len(stage.done()) > so_far, "more messages of the traffic", worker)
    stage.settle(going, "a worker was stopped and another one started while they came")
    # And once with messages in its hands that have not reached Postgres when the stop comes.
    if stage.kind == "clock":
        return
    stage.hold_hand_overs(True)
    with stage.traffic() as going:
        stage.wait(lambda: worker.said("held"), "a hand-over", worker)
        stage.watch(lambda: (stage.unacknowledged() or 0) >= _FEW, WATCH / 2)
        worker.terminate()
        stage.wait(
            lambda: worker.said("stopping") or worker.exit_code is not None, "the worker to stop", worker
        )
        stage.watch(lambda: worker.exit_code is not None, WATCH / 2)
        stage.hold_hand_overs(False)
        stage.wait_stopped(worker)
    stage.start()
    stage.settle(going, "the worker was stopped when it had taken some and Postgres did not have them yet")


@_clause("shutdown-without-postgres", "SIGTERM while Postgres is away ends in time, too, and loses nothing.")
def shutdown_without_postgres(stage: Stage) -> None:
    worker = _worked(stage, "a first worker ran")
    stage.line.cut()
    works = stage.send(2)
    stage.watch(lambda: worker.exit_code is not None, WATCH / 2)
    stage.stop(worker)
    stage.line.mend()
    stage.start()
    stage.settle(works, "they came while Postgres was away, and the worker was stopped before it was back")


@_clause("take-over", "When a worker dies, another one that runs takes over what it had.")
def take_over(stage: Stage) -> None:
    first = stage.start(0)
    second = stage.start(1)
    with stage.traffic() as going:
        stage.wait(lambda: len(stage.done()) >= _FEW, "the first messages of the traffic", first)
        first.kill()
        so_far = len(stage.done())
        stage.wait(lambda: len(stage.done()) >= so_far + _FEW, "more messages of the traffic", second)
    stage.settle(going, "one of two workers was killed while they came")


def _worked(stage: Stage, what: str) -> Worker:
    """Start a worker, and let it process a few messages."""
    worker = stage.start()
    stage.settle(stage.send(_FEW), what)
    return worker


__all__ = ["CLAUSES", "Clause", "Work"]
