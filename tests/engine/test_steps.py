"""Steps are durable, tried again by a schedule that is in the log, and one try's outcome is all that counts."""

import asyncio
import threading
from datetime import timedelta

import pytest

import refold
from fixtures.workers import Log, wait_for
from refold import App


def test_each_step_is_one_event_and_the_end_another(app: App, log: Log) -> None:
    @refold.step
    def add(a: int, b: int) -> int:
        return a + b

    @app.workflow
    def sums(n: int) -> int:
        return add(add(n, 1), b=10)

    with app:
        assert sums.start(1, id="sums").result(10) == 12
    assert log.types("sums") == ["WorkflowStarted", "StepCompleted", "StepCompleted", "WorkflowCompleted"]
    first, second = log.events("sums", "StepCompleted")
    assert (first["name"], first["args"], first["result"]) == ("add", {"a": 1, "b": 1}, 2)
    assert (second["args"], second["result"]) == ({"a": 2, "b": 10}, 12)


def test_a_step_runs_on_no_thread_of_the_engine_and_in_a_context_of_its_own(app: App) -> None:
    seen: list[tuple[str, str]] = []

    @refold.step
    def sync() -> None:
        info = refold.step_info()
        seen.append((threading.current_thread().name, info.step))

    @refold.step
    async def coro() -> None:
        seen.append((threading.current_thread().name, refold.step_info().step))

    @app.workflow
    async def both() -> str:
        await sync.acall()
        await coro()
        return threading.current_thread().name

    with app:
        engine = both.start().result(10)
    assert len({engine, *(name for name, _ in seen)}) == 3
    assert [step for _, step in seen] == ["sync", "coro"]
    with pytest.raises(refold.WrongCall, match="outside of a running step"):
        refold.step_info()


def test_failed_attempts_are_events_that_say_when_the_next_one_is_due(app: App, log: Log) -> None:
    tries: list[tuple[int, str]] = []

    @refold.step(retries=3, retry_delay=timedelta(milliseconds=40), backoff=3.0)
    def shaky() -> str:
        info = refold.step_info()
        tries.append((info.attempt, info.idempotency_key))
        if info.attempt < 4:
            raise ConnectionError(f"try {info.attempt}")
        return "done"

    @app.workflow
    def patient() -> str:
        return shaky()

    with app:
        assert patient.start(id="p").result(10) == "done"
    assert [attempt for attempt, _ in tries] == [1, 2, 3, 4]
    assert {key for _, key in tries} == {tries[0][1]}
    failed = log.events("p", "StepFailed")
    assert [event.get("attempt", 1) for event in failed] == [1, 2, 3]
    assert [event["error"]["message"] for event in failed] == ["try 1", "try 2", "try 3"]
    delays = [event["retry_at"] / 1e6 - event["at"].timestamp() for event in failed]
    for delay, whole in zip(delays, (0.04, 0.12, 0.36), strict=True):
        assert whole * 0.79 < delay <= whole + 0.001
    following = [*log.events("p")[2:]]
    for event, after in zip(failed, following, strict=False):
        assert after["at"].timestamp() >= event["retry_at"] / 1e6 - 1e-5, "tried before its time"


def test_the_jitter_of_a_retry_differs_between_workflows(app: App, log: Log) -> None:
    @refold.step(retries=1, retry_delay=timedelta(milliseconds=50))
    def shaky() -> None:
        if refold.step_info().attempt == 1:
            raise OSError

    @app.workflow
    def patient(n: int) -> None:
        shaky()

    with app:
        for handle in [patient.start(n, id=f"p{n}") for n in range(8)]:
            handle.result(10)
    delays = {
        event["retry_at"] - round(event["at"].timestamp() * 1e6)
        for n in range(8)
        for event in log.events(f"p{n}", "StepFailed")
    }
    assert len(delays) > 4


def test_when_all_retries_failed_the_workflow_gets_the_last_error_as_its_own_type(app: App, log: Log) -> None:
    @refold.step(retries=2, retry_delay=timedelta(milliseconds=5))
    def broken() -> None:
        raise LookupError("no such shelf", refold.step_info().attempt)

    @app.workflow
    def sure() -> str:
        try:
            broken()
        except LookupError as error:
            return str(error.args)
        return "?"

    @app.workflow
    def unsure() -> None:
        broken()

    with app:
        assert sure.start(id="sure").result(10) == "('no such shelf', 3)"
        with pytest.raises(LookupError, match="no such shelf"):
            unsure.start(id="unsure").result(10)
    assert log.status("sure") == "completed"
    assert log.status("unsure") == "failed"
    assert [event.get("retry_at") is None for event in log.events("sure", "StepFailed")] == [
        False,
        False,
        True,
    ]


def test_retry_if_decides_which_errors_are_tried_again(app: App, log: Log) -> None:
    @refold.step(
        retries=5,
        retry_delay=timedelta(milliseconds=5),
        retry_if=lambda error: isinstance(error, ConnectionError),
    )
    def pay(kind: str) -> str:
        if kind == "refused":
            raise PermissionError("card refused")
        if refold.step_info().attempt < 3:
            raise ConnectionError("no line")
        return "paid"

    @app.workflow
    def checkout(kind: str) -> str:
        return pay(kind)

    with app:
        assert checkout.start("line", id="line").result(10) == "paid"
        with pytest.raises(PermissionError, match="card refused"):
            checkout.start("refused", id="refused").result(10)
    assert len(log.events("line", "StepFailed")) == 2
    assert len(log.events("refused", "StepFailed")) == 1


class Busy(Exception):
    """What a client raises that has read a Retry-After."""

    retry_after = timedelta(milliseconds=400)


def test_an_error_that_says_when_to_come_back_is_waited_for(app: App, log: Log) -> None:
    @refold.step(retries=1, retry_delay=timedelta(milliseconds=5))
    def call() -> str:
        if refold.step_info().attempt == 1:
            raise Busy
        return "done"

    @app.workflow
    def calls() -> str:
        return call()

    with app:
        assert calls.start(id="calls").result(10) == "done"
    [failed] = log.events("calls", "StepFailed")
    assert failed["retry_at"] / 1e6 - failed["at"].timestamp() > 0.39


@pytest.mark.parametrize("colour", ["def", "async"])
def test_a_step_that_takes_too_long_is_an_error_that_can_be_caught(app: App, log: Log, colour: str) -> None:
    let_go = threading.Event()
    cancelled = threading.Event()

    @refold.step(timeout=timedelta(milliseconds=80))
    def slow() -> None:
        let_go.wait(20)

    @refold.step(timeout=timedelta(milliseconds=80))
    async def aslow() -> None:
        try:
            await asyncio.sleep(20)
        except asyncio.CancelledError:
            cancelled.set()
            raise

    @app.workflow
    def sync() -> str:
        try:
            slow()
        except refold.TimedOut as error:
            return str(error)
        return "?"

    @app.workflow
    async def coro() -> str:
        try:
            await aslow()
        except TimeoutError as error:  # TimedOut is one
            return str(error)
        return "?"

    with app:
        try:
            said = (sync if colour == "def" else coro).start(id="w").result(10)
        finally:
            let_go.set()
        assert "nothing came within 0.08 s" in said and " of w" in said
        if colour == "async":
            assert cancelled.wait(5)
    assert len(log.events("w", "StepFailed")) == 1


def test_the_retry_of_a_timed_out_def_step_waits_for_the_old_thread(app: App, log: Log) -> None:
    let_go = threading.Event()
    running = 0
    most = 0
    lock = threading.Lock()

    @refold.step(retries=1, retry_delay=timedelta(milliseconds=10), timeout=timedelta(milliseconds=60))
    def slow() -> str:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        try:
            if refold.step_info().attempt == 1:
                let_go.wait(20)
                return "late"
            return "second"
        finally:
            with lock:
                running -= 1

    @app.workflow
    def patient() -> str:
        return slow()

    @refold.step
    def quick() -> str:
        return "quick"

    @app.workflow
    def neighbour() -> str:
        return quick()

    with app:
        handle = patient.start(id="p")
        failed = wait_for(lambda: log.events("p", "StepFailed"), "the first try has timed out")
        wait_for(
            lambda: log.one("select refold.log_now()").timestamp() > failed[0]["retry_at"] / 1e6 + 0.05,
            "the retry is due",
        )
        assert neighbour.start().result(10) == "quick"  # the engine has been round since
        assert log.types("p") == ["WorkflowStarted", "StepFailed"], "the retry ran beside the old thread"
        let_go.set()
        assert handle.result(10) == "second"
    assert most == 1
    assert log.types("p") == ["WorkflowStarted", "StepFailed", "StepCompleted", "WorkflowCompleted"]


def test_threads_of_def_steps_are_bounded(database_url: str) -> None:
    app = App("bounded", database_url=database_url, threads=3)
    lock = threading.Lock()
    gate = threading.Event()
    running = most = 0

    @refold.step
    def hold() -> None:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        gate.wait(20)
        with lock:
            running -= 1

    @app.workflow
    def one(n: int) -> None:
        hold()

    with app:
        handles = [one.start(n) for n in range(12)]
        wait_for(lambda: running == 3, "three steps run")
        gate.set()
        for handle in handles:
            handle.result(20)
    assert most == 3


def test_a_hundred_workflows_in_hand_need_no_thread_each(app: App) -> None:
    before = threading.active_count()
    gate: list[asyncio.Event] = []

    @refold.step
    async def hold() -> int:
        if not gate:
            gate.append(asyncio.Event())
        await gate[0].wait()
        return threading.active_count()

    @app.workflow
    async def one(n: int) -> int:
        return await hold()

    @refold.step
    async def open_gate() -> None:
        gate[0].set()

    @app.workflow
    async def opener() -> None:
        await open_gate()

    with app:
        handles = [one.start(n) for n in range(100)]
        opener.start().result(10)
        assert max(handle.result(20) for handle in handles) <= before + 8


def test_a_result_is_what_was_recorded_not_what_was_returned(app: App) -> None:
    @refold.step
    def pair():  # type: ignore[no-untyped-def]  # un-annotated on purpose: JSON's own types come back
        return (1, 2)

    @app.workflow
    def see() -> str:
        return repr(pair())

    with app:
        assert see.start().result(10) == "[1, 2]"


def test_a_step_whose_result_would_not_come_back_the_same_fails_where_it_is_made(app: App, log: Log) -> None:
    @refold.step
    def measure() -> float:
        return float("nan")

    @app.workflow
    def see() -> float:
        return measure()

    with app, pytest.raises(refold.ValueRefused, match="measure"):
        see.start(id="see").result(10)
    assert log.types("see") == ["WorkflowStarted", "StepFailed", "WorkflowFailed"]


def test_system_exit_in_a_step_or_a_workflow_fails_that_workflow_only(app: App, log: Log) -> None:
    @refold.step
    def leave() -> None:
        raise SystemExit(3)

    @refold.step
    def fine() -> str:
        return "fine"

    @app.workflow
    def by_step() -> None:
        leave()

    @app.workflow
    def by_body() -> None:
        raise SystemExit(4)

    @app.workflow
    def other() -> str:
        return fine()

    with app:
        for name, start in (("s", by_step.start), ("b", by_body.start)):
            with pytest.raises(BaseException, match=r"SystemExit|3|4"):
                start(id=name).result(10)
            assert log.status(name) == "failed"
        assert other.start().result(10) == "fine"


def test_an_error_that_cannot_be_rebuilt_comes_as_a_step_error_with_its_name(app: App) -> None:
    class Local(Exception):
        """Not at module level: nobody can find it again."""

    @refold.step
    def broken() -> None:
        raise Local("inside")

    @app.workflow
    def see() -> str:
        try:
            broken()
        except refold.StepError as error:
            return f"{error.type.rsplit('.', 1)[-1]}: {error.message}"
        return "?"

    with app:
        assert see.start().result(10) == "Local: inside"


def test_a_step_is_a_plain_function_outside_of_a_workflow(app: App, log: Log) -> None:
    @refold.step
    def double(n: int) -> int:
        return 2 * n

    @refold.step
    async def adouble(n: int) -> int:
        return 2 * n

    assert double(4) == 8
    assert asyncio.run(adouble(4)) == 8
    assert log.one("select count(*) from refold.events") == 0
