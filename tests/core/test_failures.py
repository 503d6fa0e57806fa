"""Errors to the log and back: the code meets the rebuilt one, in its first run already."""

import pickle
import sys
from typing import Any

import msgspec
import pytest

import refold
from fixtures.driving import World, replay, replay_every_prefix, workflow
from refold.core._failures import ErrorClassNotFound, rebuild_error, rebuild_error_exactly, record_error
from refold.eventlog._events import RecordedError


class Declined(Exception):
    """Plain arguments."""


class WithCode(Exception):
    def __init__(self, code: int, message: str) -> None:
        super().__init__(code, message)
        self.code = code

    def __str__(self) -> str:
        return f"{self.code}: {self.args[1]}"


class Reworded(Exception):
    """Hands its base class something else than it was given: `__reduce__` cannot make it again."""

    def __init__(self, code: int) -> None:
        super().__init__(f"declined with {code}")


class TwoNeeded(Exception):
    def __init__(self, a: int, b: int) -> None:
        super().__init__(f"{a} {b}")


class Order(msgspec.Struct):
    id: str


class Holding(Exception):
    """Carries a thing that JSON does not give back."""


class Nasty(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text")

    def __reduce__(self) -> Any:
        raise RuntimeError("no state")


def with_attributes() -> Exception:
    exc = Declined("x")
    exc.retry_after = 5  # type: ignore[attr-defined]
    return exc


REBUILT = [
    Declined("no funds", 3),
    Declined(),
    with_attributes(),
    WithCode(5, "no"),
    KeyError("k"),
    FileNotFoundError(2, "No such file", "x.txt"),
    OSError("plain"),
    ValueError("ä \u2028 😀"),
    ZeroDivisionError("division by zero"),
    refold.TimedOut("recv()", "3 days"),
    refold.HistoryMismatch("wf", 3, "this", "that", "diff"),
    StopIteration(5),
]
NOT_REBUILT = [
    Reworded(5),
    TwoNeeded(1, 2),
    Holding(Order("1")),
    Declined((1, 2)),
    Declined(b"x"),
    Declined(float("nan")),
    UnicodeDecodeError("utf-8", b"\xff", 0, 1, "bad"),
    ExceptionGroup("many", [ValueError("x")]),
    Nasty(),
    SystemExit(3),
    KeyboardInterrupt(),
]


def logged(exc: BaseException) -> RecordedError:
    """What a log gives back of `exc`."""
    return msgspec.json.decode(msgspec.json.encode(record_error(exc)), type=RecordedError)


@pytest.mark.parametrize("exc", REBUILT, ids=repr)
def test_an_error_made_of_plain_values_is_the_same_again(exc: Exception) -> None:
    back = rebuild_error_exactly(logged(exc))
    assert type(back) is type(exc)
    assert (back.args, str(back), vars(back)) == (exc.args, str(exc), vars(exc))


@pytest.mark.parametrize("exc", NOT_REBUILT, ids=lambda e: type(e).__name__)
def test_any_other_error_is_a_step_error_with_its_name_and_text(exc: BaseException) -> None:
    recorded = logged(exc)
    assert recorded.state is None
    back = rebuild_error_exactly(recorded)
    assert type(back) is refold.StepError
    assert back.type.split(".")[-1] == type(exc).__qualname__
    if not isinstance(exc, Nasty):
        assert back.message == str(exc)


def test_cause_and_notes_come_along() -> None:
    exc = Declined("outer")
    exc.__cause__ = KeyError("inner")
    exc.add_note("while charging")
    back = rebuild_error(logged(exc))
    assert isinstance(back.__cause__, KeyError)
    assert back.__notes__ == ["while charging"]
    assert logged(exc).traceback == ""


def test_a_traceback_is_kept_as_text_for_people() -> None:
    with pytest.raises(Declined) as caught:
        raise Declined("x")
    assert "test_failures.py" in logged(caught.value).traceback


def test_a_class_that_is_gone_is_an_error_in_replay_and_a_step_error_for_readers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    recorded = logged(Declined("x"))
    monkeypatch.delattr(sys.modules[__name__], "Declined")
    with pytest.raises(ErrorClassNotFound, match="Declined cannot be found"):
        rebuild_error_exactly(recorded)
    assert isinstance(rebuild_error(recorded), refold.StepError)


def test_nothing_is_imported_or_built_because_a_log_says_so() -> None:
    for module, qualname in [
        ("antigravity", "Error"),
        ("os", "system"),
        ("builtins", "SystemExit"),
        ("builtins", "int"),
    ]:
        recorded = RecordedError(module, qualname, "x", state=["echo"])
        with pytest.raises(ErrorClassNotFound):
            rebuild_error_exactly(recorded)
    assert "antigravity" not in sys.modules


@refold.step
def decline(kind: str) -> None:
    raise {"plain": Declined("no"), "reworded": Reworded(5)}[kind]


@workflow
def catching() -> list[str]:
    caught = []
    for kind in ("plain", "reworded"):
        try:
            decline(kind)
        except Declined as exc:
            caught.append(f"Declined {exc.args}")
        except Reworded:
            caught.append("never: what does not rebuild is not given in the first run either")
        except refold.StepError as exc:
            caught.append(f"StepError {exc.type.split('.')[-1]} {exc.message}")
    return caught


def test_the_first_run_and_the_replay_take_the_same_except() -> None:
    world = World(catching).run()
    assert world.result == ["Declined ('no',)", "StepError Reworded declined with 5"]
    replay_every_prefix(world)


def test_a_class_that_is_gone_makes_the_workflow_stuck_and_takes_no_other_branch(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world = World(catching).run()
    monkeypatch.delattr(sys.modules[__name__], "Declined")
    with pytest.raises(
        refold.HistoryMismatch, match=r"Declined was raised here, but the code now has no such error class"
    ):
        replay(catching, world.history)


def test_a_failed_child_raises_its_error_in_the_parent() -> None:
    @workflow
    def child() -> None:
        raise WithCode(5, "no")

    @workflow
    def parent() -> int:
        try:
            child()
        except WithCode as exc:
            return exc.code
        return 0

    @workflow
    async def async_parent() -> int:
        try:
            await child.acall()
        except WithCode as exc:
            return exc.code
        return 0

    for which in (parent, async_parent):
        world = World(which).run()
        assert world.result == 5
        replay_every_prefix(world)


@pytest.mark.parametrize(
    "error",
    [
        refold.DefinitionRefused("a", "b", "c"),
        refold.ValueRefused("a", "b", "c"),
        refold.DecodeFailed("a", "b"),
        refold.WrongCall("a", "b"),
        refold.TimedOut("a", "b"),
        refold.StepError("a", "b"),
        refold.HistoryMismatch("a", 1, "b", "c"),
    ],
    ids=lambda e: type(e).__name__,
)
def test_refold_s_own_errors_survive_pickling_and_the_log(error: Exception) -> None:
    for back in (pickle.loads(pickle.dumps(error)), rebuild_error_exactly(logged(error))):
        assert type(back) is type(error)
        assert (str(back), vars(back)) == (str(error), vars(error))
