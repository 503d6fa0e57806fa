"""What runs, and what to try next: the lines that `refold dev` and `refold worker` show when an app is up."""

import logging
import sys
import textwrap
from collections.abc import Sequence
from typing import Any

import click

from refold.core import App, Connector
from refold.core.cli._output import terminal_width

log = logging.getLogger("refold.cli")


def summarize(app: App, file: str) -> list[tuple[str, str]]:
    """Return a label and a text for each line: the workflows, what is consumed, scheduled and mounted, what to try."""
    lines = [
        ("workflows", ", ".join(sorted(app.workflows)) or f"none; put @{app.name}.workflow over a function")
    ]
    for connector in app.connectors:
        lines.extend((connector.kind, text) for text in _described(connector))
    lines.extend(("try", command) for command in _suggestions(app, file))
    return lines


def connectors_as_json(app: App) -> list[dict[str, Any]]:
    """Return what each connector says of itself, for programs."""
    return [
        {
            "kind": connector.kind,
            "name": connector.name,
            "text": _described(connector),
            "try": _try_next(connector),
        }
        for connector in app.connectors
    ]


def _suggestions(app: App, file: str) -> list[str]:
    """Return what the connectors suggest; when they have nothing, how to start a workflow by hand."""
    suggested = [command for connector in app.connectors for command in _try_next(connector)]
    if app.workflows and not suggested:
        suggested = [f"refold start {file} {sorted(app.workflows)[0]}"]
    return list(dict.fromkeys(suggested))


def _described(connector: Connector) -> list[str]:
    try:
        return list(connector.describe())
    except Exception as error:  # what it can't say must not keep the app from running
        return [f"{connector.name}: {type(error).__name__}: {error}"]


def _try_next(connector: Connector) -> list[str]:
    try:
        return list(connector.try_next())
    except Exception:
        log.debug("connector %s has nothing to try", connector.name, exc_info=True)
        return []


def print_lines(lines: Sequence[tuple[str, str]]) -> None:
    """Print labels and texts in two columns, a label once for the lines that share it.

    On a terminal a text that is too long goes on in its column. One to be typed is left whole, to be copied.
    """
    before = ""
    width = max([10, *(len(label) for label, _ in lines)])
    room = max(terminal_width() - width - 3, 40) if sys.stdout.isatty() else None
    for label, text in lines:
        shown = "" if label == before else label
        rows = [text] if room is None or label == "try" else _wrapped(text, room)
        for row in rows:
            click.echo(f"  {click.style(shown.ljust(width), fg='cyan')} {row}")
            shown = ""
        before = label


def _wrapped(text: str, room: int) -> list[str]:
    return textwrap.wrap(text, room, break_long_words=False, break_on_hyphens=False) or [text]


__all__ = ["connectors_as_json", "print_lines", "summarize"]
