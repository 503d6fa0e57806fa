"""What installed connectors add to the command line. One that is broken is named in a warning, and left out."""

import functools
from collections.abc import Iterator, Mapping
from importlib.metadata import EntryPoint, entry_points
from typing import Final

import click

from refold.core import ConnectorPlugin

GROUP: Final = "refold.connectors"


@functools.cache
def load_plugins() -> Mapping[str, ConnectorPlugin]:
    """Return the plugins by the names of their entry points. One that can't be loaded costs a line on stderr."""
    loaded = {}
    for entry in sorted(entry_points(group=GROUP), key=lambda entry: entry.name):
        try:
            plugin = entry.load()
        except Exception as error:
            warn(entry, f"can't be loaded: {type(error).__name__}: {error}")
            continue
        if isinstance(plugin, ConnectorPlugin):
            loaded[entry.name] = plugin
        else:
            warn(entry, f"is no ConnectorPlugin but {type(plugin).__name__}: {entry.value}")
    return loaded


@functools.cache
def load_commands(taken: frozenset[str]) -> Mapping[str, click.Command]:
    """Return the plugins' commands by name; `taken` are names that no plugin can have."""
    commands: dict[str, click.Command] = {}
    for plugin_name, command in _commands():
        name = command.name or plugin_name
        if name in taken or name in commands:
            warn_name(plugin_name, f"adds a command called {name}, which there is already; left out")
        else:
            commands[name] = command
    return commands


def _commands() -> Iterator[tuple[str, click.Command]]:
    for name, plugin in load_plugins().items():
        for command in plugin.commands:
            yield name, command


def warn(entry: EntryPoint, text: str) -> None:
    """Say what is wrong with a plugin, and who it belongs to."""
    package = f" of {entry.dist.name}" if entry.dist is not None else ""
    warn_name(f"{entry.name}{package}", text)


def warn_name(name: str, text: str) -> None:
    """Write one line about a plugin to stderr."""
    first = " ".join(text.split())
    click.echo(f"{click.style('refold:', fg='yellow')} warning: the connector {name} {first}", err=True)


__all__ = ["GROUP", "load_commands", "load_plugins", "warn_name"]
