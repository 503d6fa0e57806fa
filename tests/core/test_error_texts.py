# ruff: noqa: E501, B006  # texts stand whole, and a mutable default is one of the cases
"""The whole text of each error that a definition, a call or a replay can raise: found, expected, where, what to do."""

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import msgspec
import pytest
from msgspec import Raw

import refold
from fixtures.driving import World, workflow
from refold.core._commands import Fail
from refold.eventlog._events import MessageReceived, StepCompleted, TimerFired, WorkflowCompleted


class Order(msgspec.Struct):
    id: str


class Base(msgspec.Struct):
    id: str


class Derived(Base):
    note: str


class Opaque:
    def __repr__(self) -> str:
        return "Opaque()"


@refold.step
def charge(order: Order) -> str:
    return order.id


@refold.step
async def ship(order: Order) -> str:
    return order.id


@workflow
def plain_child() -> int:
    return 1


@workflow
async def async_child() -> int:
    return 1


def text_of(error: type[BaseException], do: Any) -> str:
    """Return the whole text of the error that `do()` raises."""
    with pytest.raises(error) as caught:
        do()
    return str(caught.value)


def failure_of(do: Any) -> str:
    """Return the whole text of the error that `do()` raises when a `def` workflow does it."""

    @workflow
    def main() -> None:
        do()

    end = World(main).end
    assert isinstance(end, Fail), end
    return end.error.message


def async_failure_of(do: Any) -> str:
    """Return the whole text of the error that `do()` raises when an `async def` workflow does, or awaits, it."""

    @workflow
    async def main() -> None:
        waits = do()
        if waits is not None:
            await waits

    end = World(main).end
    assert isinstance(end, Fail), end
    return end.error.message


SHAPES = (
    "Use JSON's types, a msgspec.Struct, a dataclass, a TypedDict, or what msgspec knows (datetime, UUID...)."
)


@pytest.mark.raises_error("DefinitionRefused")
def test_a_parameter_that_msgspec_cannot_decode_is_refused_at_decoration() -> None:
    def take(opaque: Opaque) -> None: ...

    assert text_of(refold.DefinitionRefused, lambda: refold.step(take)) == (
        f"parameter 'opaque' of step 'take': msgspec cannot decode Opaque. {SHAPES}"
    )


def test_so_is_one_deep_inside() -> None:
    def take(orders: dict[str, list[Opaque | None]]) -> None: ...

    assert text_of(refold.DefinitionRefused, lambda: workflow(take)) == (
        f"parameter 'orders' of workflow 'take': msgspec cannot decode Opaque. {SHAPES}"
    )


def test_so_is_a_union_that_msgspec_cannot_tell_apart() -> None:
    def take() -> Order | Base:
        return Base("1")

    assert text_of(refold.DefinitionRefused, lambda: refold.step(take)).startswith(
        "the result of step 'take': msgspec cannot decode "
    )


def test_so_are_hints_that_name_nothing() -> None:
    def take(order: "Missing") -> None: ...  # type: ignore[name-defined]  # noqa: F821

    assert text_of(refold.DefinitionRefused, lambda: refold.step(take)) == (
        "step 'take': its type hints name 'Missing', which is not defined yet. Move that class above the function."
    )


def test_so_is_a_default_that_does_not_fit() -> None:
    def take(order: Order = None) -> None: ...  # type: ignore[assignment]

    assert text_of(refold.DefinitionRefused, lambda: refold.step(take)).startswith(
        "parameter 'order' of step 'take': its default does not fit: None comes back from JSON as null, "
    )


def test_so_are_generators_things_that_are_no_functions_and_transactions_without_a_connection() -> None:
    def generate() -> Any:
        yield 1

    def book(order: Order) -> None: ...

    assert text_of(refold.DefinitionRefused, lambda: refold.step(generate)) == (
        "step 'generate': it is a generator, and a generator has no result to record. Return a list."
    )
    assert text_of(refold.DefinitionRefused, lambda: refold.step(Order)) == (
        "@refold.step: it stands on <class 'test_error_texts.Order'>, which is no function. "
        "Put it on a def or an async def."
    ).replace("test_error_texts", Order.__module__)
    assert text_of(refold.DefinitionRefused, lambda: refold.step(transaction=True)(book)) == (  # type: ignore[arg-type]
        "step 'book': transaction=True passes a connection first, and its first parameter is 'order'. "
        "Write (conn: psycopg.Connection, ...)."
    )


def test_so_are_options_that_make_no_sense() -> None:
    def take() -> None: ...

    assert text_of(refold.DefinitionRefused, lambda: refold.step(retries=-1)(take)) == (
        "step 'take': retries=-1 makes no sense. retries and delays are 0 or more, backoff 1 or more, "
        "jitter 0 to 1, timeout above 0, compare 'args' or 'name'."
    )


@pytest.mark.raises_error("ValueRefused")
def test_a_result_that_would_come_back_as_something_else_is_refused_where_it_is_made() -> None:
    @refold.step
    def lossy() -> Base:
        return Derived("1", "x")

    assert text_of(refold.ValueRefused, lambda: lossy.encode_result(lossy.fn())) == (
        "the result of step 'lossy': Derived(id='1', note='x') would come back as a Base, not a Derived. "
        f"The hint is Base: make value and hint the same. {SHAPES}"
    )


def test_nan_a_zone_a_tuple_and_an_unannotated_object_are_refused_with_the_fix() -> None:
    @refold.step
    def take(
        ratio: float = 0.0, when: datetime = datetime(2026, 1, 1, tzinfo=UTC), names: list[str] = []
    ) -> None: ...

    @refold.step
    def anything(value) -> None: ...  # type: ignore[no-untyped-def]

    assert text_of(refold.ValueRefused, lambda: take.encode_args((float("nan"),), {})).startswith(
        "parameter 'ratio' of step 'take': nan comes back from JSON as null, which is no float"
    )
    berlin = datetime(2026, 1, 1, tzinfo=ZoneInfo("Europe/Berlin"))
    assert text_of(refold.ValueRefused, lambda: take.encode_args((), {"when": berlin})) == (
        "parameter 'when' of step 'take': a time in the zone Europe/Berlin would come back with a fixed offset, and days "
        "added to it would differ. Pass the time in UTC (moment.astimezone(UTC)) and the name of the zone beside it."
    )
    assert text_of(refold.ValueRefused, lambda: take.encode_args((), {"names": ("a",)})) == (
        "parameter 'names' of step 'take': ('a',) would come back as a list, not a tuple. "
        f"The hint is list[str]: make value and hint the same. {SHAPES}"
    )
    assert text_of(refold.ValueRefused, lambda: anything.encode_args((Order("1"),), {})) == (
        "parameter 'value' of step 'anything': without a type hint, Order(id='1') (a Order) would come back from JSON as "
        "something else. Annotate it with Order, or use JSON's types."
    )
    assert text_of(refold.ValueRefused, lambda: anything.encode_args((Opaque(),), {})) == (
        "parameter 'value' of step 'anything': Opaque() cannot be written as JSON (Encoding objects of type Opaque is "
        f"unsupported). The hint is Any: make value and hint the same. {SHAPES}"
    )


def test_a_workflow_s_own_result_is_held_to_it_too() -> None:
    @workflow
    def main() -> int:
        return "five"  # type: ignore[return-value]

    end = World(main).end
    assert isinstance(end, Fail)
    assert end.error.message.startswith(
        "the result of workflow 'main': 'five' comes back from JSON as \"five\""
    )


@pytest.mark.raises_error("DecodeFailed")
def test_a_message_of_another_type_says_what_came() -> None:
    @workflow
    def main() -> None:
        refold.recv("approval", bool)

    world = World(main)
    world.deliver(MessageReceived("m", "approval", Raw(b'"yes"')))
    assert isinstance(world.end, Fail)
    assert world.end.error.message == (
        "a message of topic 'approval' does not fit the type that the code declares: Expected `bool`, got `str`. "
        "Send a value of that type, or declare a type that takes this one too."
    )


@pytest.mark.raises_error("TimedOut")
def test_a_receive_that_timed_out_says_for_how_long() -> None:
    @workflow
    def main() -> None:
        refold.recv("approval", bool, timeout=timedelta(days=3))

    @workflow
    async def amain() -> None:
        await refold.arecv("approval", bool, timeout=timedelta(days=3))

    for which in (main, amain):
        world = World(which).run()
        assert isinstance(world.end, Fail)
        assert world.end.error.message == (
            "recv('approval') in workflow 'wf': nothing came within 3 days. "
            "Catch refold.TimedOut to go on without it."
        )


def test_a_child_s_result_that_timed_out_says_so() -> None:
    @workflow
    def sleeper() -> None:
        refold.sleep(100)

    @workflow
    def main() -> None:
        sleeper.start().result(timeout=2)

    @workflow
    async def amain() -> None:
        await sleeper.start().aresult(timeout=2)

    for which in (main, amain):
        world = World(which)
        world._answer(world.open[1])
        assert isinstance(world.end, Fail)
        assert world.end.error.message == (
            "child 'wf/0': nothing came within 2 s. Catch refold.TimedOut to go on without it."
        )


@pytest.mark.raises_error("StepError")
def test_an_error_that_cannot_be_rebuilt_keeps_its_name_and_text() -> None:
    class Local(Exception):
        pass

    @refold.step
    def refuse() -> None:
        raise Local("no")

    @workflow
    def main() -> None:
        refuse()

    end = World(main).run().end
    assert isinstance(end, Fail)
    name = f"{Local.__module__}.{Local.__qualname__}"
    assert end.error.message == (
        f"{name}: no (given as StepError because {name} cannot be rebuilt from the log; an exception class at module "
        "level whose arguments are plain JSON values can)"
    )


@pytest.mark.raises_error("HistoryMismatch")
def test_a_mismatch_shows_history_and_code_and_what_differs() -> None:
    @workflow
    def main() -> None:
        charge(Order("1"))

    advice = (
        "A running workflow has met changed code. Keep the old order for old runs, or let them finish on the last "
        "release: docs/changing-workflows.md"
    )
    event = StepCompleted(0, "charge", Raw(b'{"order":{"id":"2"}}'), Raw(b'""'))
    assert text_of(refold.HistoryMismatch, lambda: World(main).deliver(event)) == (
        "wf, event 1: history says the arguments of step 'charge' were others, but the code now gives these.\n"
        f"  order.id: '2' in history, '1' in the code\n{advice}"
    )
    assert text_of(refold.HistoryMismatch, lambda: World(main).deliver(TimerFired(0, 5))) == (
        "wf, event 1: history says the timer of command 0 set for 5 fired here, but the code now asks for step 'charge' "
        f"as command 0. {advice}"
    )
    assert text_of(refold.HistoryMismatch, lambda: World(main).deliver(WorkflowCompleted(Raw(b"1")))) == (
        f"wf, event 1: history says the workflow returned here, but the code now waits for step 'charge'. {advice}"
    )


@pytest.mark.raises_error("WrongCall")
def test_a_call_across_the_colours_names_the_right_one() -> None:
    order = Order("1")
    assert failure_of(lambda: ship(order)) == (
        "ship(...) was called in a def workflow. ship is an async def step: write ship.call(...) there."
    )
    assert failure_of(lambda: ship.acall(order)) == (
        "ship.acall(...) was called in a def workflow. ship is an async def step: write ship.call(...) there."
    )
    assert failure_of(lambda: charge.acall(order)) == (
        "charge.acall(...) was called in a def workflow. charge is a def step: write charge(...) there."
    )
    assert async_failure_of(lambda: charge(order)) == (
        "charge(...) was called in an async def workflow. charge is a def step: write await charge.acall(...) there."
    )
    assert async_failure_of(lambda: ship.call(order)) == (
        "ship.call(...) was called in an async def workflow. ship is an async def step: write await ship(...) there."
    )
    assert async_failure_of(lambda: plain_child()) == (
        "plain_child(...) was called in an async def workflow. plain_child is a def workflow: "
        "write await plain_child.acall(...) there."
    )
    assert failure_of(lambda: async_child()) == (
        "async_child(...) was called in a def workflow. async_child is an async def workflow: "
        "write async_child.call(...) there."
    )


@pytest.mark.parametrize(
    ("do", "text"),
    [
        (
            lambda: refold.sleep(1),
            "refold.sleep(...) was called in an async def workflow. "
            "Write await asyncio.sleep(seconds) or await refold.asleep(...) there.",
        ),
        (
            lambda: refold.recv("x"),
            "refold.recv(...) was called in an async def workflow. Write await refold.arecv(...) there.",
        ),
        (
            lambda: refold.gather(),
            "refold.gather(...) was called in an async def workflow. "
            "Write await asyncio.gather(...) of the coroutines there.",
        ),
        (
            lambda: refold.sleep_until(datetime(2030, 1, 1, tzinfo=UTC)),
            "refold.sleep_until(...) was called in an async def workflow. Write await refold.asleep_until(...) there.",
        ),
        (
            lambda: async_child.start().result(),
            "handle.result() was called in an async def workflow. Write await handle.aresult() there.",
        ),
        (
            lambda: async_child.start().status(),
            "handle.status() was called inside a workflow. Wait for handle.result(), or ask app.get(id) from outside.",
        ),
    ],
)
def test_a_plain_form_in_an_async_workflow_names_the_awaited_one(do: Any, text: str) -> None:
    assert async_failure_of(do) == text


def test_what_belongs_into_a_workflow_says_so_outside() -> None:
    assert text_of(refold.WrongCall, lambda: refold.now()) == (
        "refold.now() was called outside of a workflow. Call it from a function under @app.workflow."
    )
    assert text_of(refold.WrongCall, lambda: refold.step_info()) == (
        "refold.step_info() was called outside of a running step. "
        "Call it in the body of a function under @refold.step while a workflow runs it."
    )


def test_an_async_step_called_on_a_running_loop_is_refused() -> None:
    async def main() -> None:
        ship.call(Order("1"))

    assert text_of(refold.WrongCall, lambda: asyncio.run(main())) == (
        "ship.call(...) was called on a running event loop and would block it. Write await ship(...) there."
    )


@pytest.mark.parametrize(
    ("do", "name"),
    [
        (lambda: asyncio.to_thread(print), "run_in_executor (and asyncio.to_thread)"),
        (lambda: asyncio.open_connection("127.0.0.1", 1), "create_connection"),
        (lambda: asyncio.create_subprocess_exec("true"), "subprocess_exec"),
        (lambda: asyncio.start_server(print, "127.0.0.1", 1), "create_server"),
        (lambda: asyncio.get_running_loop().call_soon_threadsafe(print), "call_soon_threadsafe"),
        (lambda: asyncio.get_running_loop().add_reader(0, print), "add_reader"),
        (lambda: asyncio.get_running_loop().getaddrinfo("localhost", 1), "getaddrinfo"),
        (lambda: asyncio.get_running_loop().set_task_factory(None), "set_task_factory"),
        (lambda: asyncio.get_running_loop().stop(), "stop"),
    ],
)
def test_what_the_loop_cannot_repeat_is_refused_and_names_the_step_to_write(do: Any, name: str) -> None:
    assert async_failure_of(do) == (
        f"workflow 'wf' used the event loop's {name}, which a replay cannot repeat. "
        "Put it into a step (@refold.step async def ...) and await that."
    )


def test_waiting_in_the_order_of_addresses_is_refused() -> None:
    async def branch() -> None: ...

    async def wait() -> None:
        await asyncio.wait([asyncio.gather(ship(Order("1")))])

    async def complete() -> None:
        for done in asyncio.as_completed({branch() for _ in range(3)}):
            await done

    assert async_failure_of(wait) == (
        "asyncio.wait was given a _GatheringFuture, and would look at it in the order of memory addresses, which a replay "
        "cannot repeat. Wrap it in an async function and give asyncio.wait a task of that (asyncio.create_task)."
    )
    assert async_failure_of(complete) == (
        "asyncio.as_completed was given a set of coroutines, and would start them in the order of memory addresses, "
        "which a replay cannot repeat. Give it a list."
    )
