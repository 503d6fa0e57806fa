"""What an installed connector of a third party adds to `refold`, and what a broken one does not take away."""

import pytest

from fixtures.terminal import SHOP, Terminal

BEADS = """\
import click
from refold.core import App, ConnectorPlugin
from refold.core.cli import common, example


@click.command("beads", short_help="count beads", epilog=example("refold beads"))
@common
def beads(as_json: bool) -> None:
    click.echo("3 beads")


class Box:
    def describe(self):
        return [("box", "a box of beads")]

    def stop(self):
        print("the box is closed", flush=True)


def open_box(app: App, folder):
    return Box() if app.name == "shop" else None


plugin = ConnectorPlugin(commands=[beads], dev_service=open_box)
"""


def install(terminal: Terminal, name: str, module: str, *, point: str = "plugin") -> None:
    """Put a package refold-NAME with one module beside the ones that are installed, its entry point in it."""
    site = terminal.folder / "site"
    terminal.write(f"site/refold_{name}.py", module)
    terminal.write(
        f"site/refold_{name}-1.0.dist-info/METADATA",
        f"Metadata-Version: 2.1\nName: refold-{name}\nVersion: 1.0\n",
    )
    terminal.write(
        f"site/refold_{name}-1.0.dist-info/entry_points.txt",
        f"[refold.connectors]\n{name} = refold_{name}:{point}\n",
    )
    terminal.environment["PYTHONPATH"] = str(site)


def test_a_third_partys_connector_adds_a_command_and_a_service_of_dev(shop: Terminal) -> None:
    install(shop, "beads", BEADS)
    listed = shop.type("--help")
    assert listed.err == ""
    assert [line.split() for line in listed.out.splitlines() if "beads" in line] == [
        ["beads", "count", "beads"]
    ]
    said = shop.type("beads")
    assert (said.code, said.out, said.err) == (0, "3 beads\n", "")
    dev = shop.start("dev", "shop.py")
    dev.wait_for(["shop.py runs, ... database ... box        a box of beads", "workflows  approval, ..."])
    dev.interrupt()
    assert "the box is closed" in dev.output


@pytest.mark.parametrize(
    ("module", "point", "warning"),
    [
        (
            "import nats_that_is_not_installed",
            "plugin",
            "beads of refold-beads can't be loaded: ModuleNotFoundError: No module named 'nats_that_is_not_installed'",
        ),
        (
            "pass",
            "plugin",
            "beads of refold-beads can't be loaded: AttributeError: module 'refold_beads' has no attribute 'plugin'",
        ),
        (
            "thing = 5",
            "thing",
            "beads of refold-beads is no ConnectorPlugin but int: refold_beads:thing",
        ),
    ],
)
def test_a_plugin_that_cannot_be_loaded_is_named_and_everything_else_works(
    shop: Terminal, module: str, point: str, warning: str
) -> None:
    install(shop, "beads", module, point=point)
    line = f"refold: warning: the connector {warning}\n"
    listed = shop.type("--help")
    assert (listed.code, listed.err) == (0, line)
    assert "kafka" in listed.out
    unknown = shop.type("beads")
    assert unknown.code == 2
    assert unknown.err.startswith(line)
    assert "No such command 'beads'" in unknown.err
    # Refold's own commands do not even look.
    assert shop.type("list").err == ""
    dev = shop.start("dev", "shop.py")
    dev.wait_for([line.strip(), "shop.py runs, ... workflows  approval, broken, checkout"])
    dev.interrupt()


def test_a_service_of_dev_that_fails_is_named_and_the_app_runs(shop: Terminal) -> None:
    install(shop, "beads", BEADS.replace("return Box()", "return 1 / 0"))
    dev = shop.start("dev", "shop.py")
    dev.wait_for(
        [
            "refold: warning: the connector beads could not start its service: ZeroDivisionError: division by zero",
            "shop.py runs, ... workflows  approval, broken, checkout",
        ]
    )
    dev.interrupt()


def test_a_plugin_cannot_take_the_name_of_a_command_that_there_is(shop: Terminal) -> None:
    install(shop, "beads", BEADS.replace('click.command("beads"', 'click.command("kafka"'))
    listed = shop.type("--help")
    assert listed.err == (
        "refold: warning: the connector kafka adds a command called kafka, which there is already; left out\n"
    )
    assert shop.type("list").code == 0


def test_without_plugins_nothing_is_said(terminal: Terminal) -> None:
    terminal.write("shop.py", SHOP)
    assert terminal.type("--help").err == ""
