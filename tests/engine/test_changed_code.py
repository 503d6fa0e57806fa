"""History and code that differ: the workflow is stuck, says how, and goes on when code comes that fits."""

import signal
from collections.abc import Iterator
from pathlib import Path
from textwrap import dedent

import msgspec
import pytest

import refold
from fixtures.workers import Log, Programs, wait_for
from refold import App


@pytest.fixture
def apps(database_url: str) -> Iterator[tuple[App, App]]:
    """Two releases of one app."""
    old, new = App("old", database_url=database_url), App("new", database_url=database_url)
    yield old, new
    old.close()
    new.close()


ran: list[str] = []


@refold.step
def charge(amount: int, currency: str = "EUR") -> str:
    ran.append("charge")
    return f"{amount} {currency}"


@refold.step
def reserve(amount: int) -> str:
    ran.append("reserve")
    return f"reserved {amount}"


@pytest.fixture(autouse=True)
def nothing_ran() -> None:
    ran.clear()


def start_old(old: App, log: Log) -> None:
    """Run `order` of the old release up to its second wait, and stop it."""

    @old.workflow
    def order(amount: int) -> str:
        receipt = charge(amount)
        return receipt + refold.recv("go", str)

    with old:
        order.start(5, id="o")
        wait_for(lambda: "StepCompleted" in log.types("o"), "it has charged")
    assert log.status("o") in ("pending", "waiting")


def stuck_with(caplog: pytest.LogCaptureFixture, new: App, log: Log) -> str:
    new.send("o", "!", "go")
    with new:
        log.wait_status("o", "stuck")
    assert ran == ["charge"], "a step ran though history and code differ"
    return next(r.getMessage() for r in caplog.records if "is stuck" in r.getMessage())


def test_another_argument_makes_it_stuck_and_is_named(
    apps: tuple[App, App], log: Log, caplog: pytest.LogCaptureFixture
) -> None:
    old, new = apps
    start_old(old, log)

    @new.workflow
    def order(amount: int) -> str:
        receipt = charge(amount + 1, currency="USD")
        return receipt + refold.recv("go", str)

    said = stuck_with(caplog, new, log)
    assert "workflow o is stuck: o, event 1: history says the arguments of step 'charge' were others" in said
    assert "amount: 5 in history, 6 in the code" in said
    assert "currency: 'EUR' in history, 'USD' in the code" in said
    assert "StepCompleted" in log.types("o") and "WorkflowFailed" not in log.types("o")
    assert log.one(
        "select due_at is not null and owner is null and fingerprint is not null from refold.workflows"
    )


def test_another_step_makes_it_stuck(
    apps: tuple[App, App], log: Log, caplog: pytest.LogCaptureFixture
) -> None:
    old, new = apps
    start_old(old, log)

    @new.workflow
    def order(amount: int) -> str:
        return reserve(amount) + charge(amount) + refold.recv("go", str)

    said = stuck_with(caplog, new, log)
    assert "'charge'" in said and "'reserve'" in said


def test_a_step_that_is_gone_makes_it_stuck(
    apps: tuple[App, App], log: Log, caplog: pytest.LogCaptureFixture
) -> None:
    old, new = apps
    start_old(old, log)

    @new.workflow
    def order(amount: int) -> str:
        return refold.recv("go", str)

    assert "'charge'" in stuck_with(caplog, new, log)


def test_the_same_code_does_not_try_a_stuck_workflow_again_and_other_code_heals_it(
    apps: tuple[App, App], log: Log, database_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    old, new = apps
    start_old(old, log)

    def declare_new(app: App) -> None:
        @app.workflow
        def order(amount: int) -> str:
            return charge(amount + 1) + refold.recv("go", str)

    declare_new(new)
    stuck_with(caplog, new, log)
    again = App("again", database_url=database_url)
    declare_new(again)

    @again.workflow
    def other() -> str:
        return "other"

    with again:
        caplog.clear()
        assert other.start().result(10) == "other"
        beat = log.one("select beat from refold.workers where lane = 'beat'")
        wait_for(
            lambda: log.one("select beat from refold.workers where lane = 'beat'") > beat, "it looked again"
        )
        assert log.status("o") == "stuck"
        assert not [r for r in caplog.records if "is stuck" in r.getMessage()]

    fixed = App("fixed", database_url=database_url)

    @fixed.workflow
    def order(amount: int) -> str:
        receipt = charge(amount)
        answer = refold.recv("go", str)
        return f"{receipt}{answer} healed"

    with fixed:
        assert fixed.get("o").result(10) == "5 EUR! healed"
    assert ran == ["charge"]


def test_an_optional_field_that_was_added_since_is_no_difference(apps: tuple[App, App], log: Log) -> None:
    old, new = apps

    class Order(msgspec.Struct):
        id: str

    class NewOrder(msgspec.Struct):
        id: str
        note: str = "none"

    @refold.step(name="pay")
    def pay(order: Order) -> str:
        return order.id

    @refold.step(name="pay")
    def new_pay(order: NewOrder) -> str:
        return order.id

    @old.workflow(name="order")
    def order(order: Order) -> str:
        return pay(order) + refold.recv("go", str)

    @new.workflow(name="order")
    def new_order(order: NewOrder) -> str:
        return new_pay(order) + refold.recv("go", str) + order.note

    with old:
        order.start(Order("1"), id="o")
        wait_for(lambda: "StepCompleted" in log.types("o"), "it has paid")
    new.send("o", "!", "go")
    with new:
        assert new.get("o").result(10) == "1!none"


SOURCE = """
    import refold
    from refold import App

    app = App("shop")

    @refold.step
    def charge(amount: int) -> str:
        return f"charged {amount}"

    @app.workflow
    def order(amount: int) -> str:
        receipt = charge(amount)
        return receipt + refold.recv("go", str)

    if __name__ == "__main__":
        app.run()
"""


def test_a_deployed_mistake_sticks_and_the_next_deploy_heals(
    log: Log, programs: Programs, tmp_path: Path, app: App
) -> None:
    """The same file, edited twice; a process each time."""
    shop = tmp_path / "shop.py"
    source = dedent(SOURCE)

    @app.workflow
    def order(amount: int) -> str:
        return ""

    shop.write_text(source)
    order.start(5, id="o")
    first = programs.start(shop)
    wait_for(lambda: "StepCompleted" in log.types("o"), "it has charged")
    first.signal(signal.SIGTERM)
    assert first.wait() == 0

    shop.write_text(source.replace("charge(amount)\n", "charge(amount * 100)\n"))
    app.send("o", "!", "go")
    second = programs.start(shop)
    log.wait_status("o", "stuck")
    second.wait_output("is stuck")
    assert "500" in second.output

    # A rolling deploy: the second still runs.
    shop.write_text(source)
    third = programs.start(shop)
    log.wait_status("o", "completed")
    assert log.events("o", "WorkflowCompleted")[0]["result"] == "charged 5!"
    for program in (second, third):
        program.signal(signal.SIGTERM)
        assert program.wait() == 0
