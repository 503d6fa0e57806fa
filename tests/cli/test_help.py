"""Help: one screen, grouped, and every example in it works as it stands."""

import shlex
from collections.abc import Iterator

import click
import pytest

from fixtures.terminal import Terminal
from refold.core.cli._main import cli

# What an example needs to be there before it is typed.
BEFORE: dict[str, list[str]] = {
    "show": ['refold start shop.py checkout \'{"id": "o-1", "amount": 5}\' --id order-1'],
    "send": ["refold start shop.py approval 5 --id order-1"],
    "cancel": ["refold start shop.py approval 5 --id order-1"],
}
# These go on until they are stopped, or need a broker, a workflow at its end, or a parked one: see the tests named.
ELSEWHERE = {
    "dev": "test_dev.py",
    "worker": "test_worker.py",
    "delete": "test_commands.py",
    "retry": "test_commands.py",
    "skip": "test_commands.py",
    "kafka produce": "test_kafka_commands.py",
    "kafka positions": "test_kafka_commands.py",
    "webhook send": "test_webhook_commands.py",
    **dict.fromkeys(("schedule next", "schedule pause", "schedule resume"), "test_schedule_commands.py"),
    **dict.fromkeys(("schedule trigger", "schedule backfill"), "test_schedule_commands.py"),
}


def _commands(group: click.Group, prefix: str = "") -> Iterator[tuple[str, click.Command]]:
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        if isinstance(command, click.Group):
            yield from _commands(command, f"{prefix}{name} ")
        else:
            yield f"{prefix}{name}", command


COMMANDS = dict(_commands(cli))


def examples_of(command: click.Command) -> list[str]:
    """The lines of a command's help under `Example:`."""
    lines = (command.epilog or "").splitlines()
    return [line.strip() for line in lines if line.strip().startswith("refold ")]


def test_help_fits_one_screen_and_groups_the_commands(terminal: Terminal) -> None:
    said = terminal.type("--help")
    lines = said.out.splitlines()
    assert said.code == 0
    assert len(lines) <= 40
    assert max(map(len, lines)) <= 80
    assert [line for line in lines if line in ("Run:", "Look:", "Change:", "Connectors:")] == [
        "Run:",
        "Look:",
        "Change:",
        "Connectors:",
    ]
    shown = {line.split()[0] for line in lines if line.startswith("  ") and line.strip()}
    assert {name.split()[0] for name in COMMANDS} <= shown


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_an_example_and_json_and_debug(name: str) -> None:
    command = COMMANDS[name]
    assert examples_of(command)
    assert all(line.startswith(f"refold {name}") for line in examples_of(command))
    options = {option for parameter in command.params for option in parameter.opts}
    assert {"--json", "--debug"} <= options


@pytest.mark.parametrize("name", [name for name in COMMANDS if name not in ELSEWHERE])
def test_the_example_of_a_command_works_as_it_stands(name: str, shop: Terminal) -> None:
    if name == "init":
        (shop.folder / "shop.py").unlink()
    for line in [*BEFORE.get(name, []), *examples_of(COMMANDS[name])]:
        said = shop.type(*shlex.split(line)[1:])
        assert said.code == 0, f"{line}\n{said.err}"
        assert said.err == ""


def test_an_unknown_command_or_option_is_wrong_usage(terminal: Terminal) -> None:
    unknown = terminal.type("shwo")
    assert unknown.code == 2
    assert "No such command 'shwo'" in unknown.err
    option = terminal.type("list", "--stauts", "failed")
    assert option.code == 2
    assert "No such option" in option.err
