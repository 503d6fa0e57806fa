"""How commands talk: the options that all of them share, tables and JSON on stdout, errors with an exit code."""

import json
import logging
import os
import shutil
import sys
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any, Final, NoReturn, TypeVar

import click
import msgspec

FAILED: Final = 1
USAGE: Final = 2
UNREACHABLE: Final = 3

F = TypeVar("F", bound=Callable[..., Any])


class Wrong(click.ClickException):
    """The command can't be carried out as it was typed: found, expected, what to do, a line each."""

    exit_code = USAGE


class Unreachable(click.ClickException):
    """Something that the command needs does not answer."""

    exit_code = UNREACHABLE


def exit_code_of(error: BaseException) -> int | None:
    """Return the exit code of an error that speaks for itself, None for one that nobody foresaw."""
    from refold.core import RefoldError
    from refold.eventlog import DatabaseUnreachable, DataFolderInUse, EmbeddedFailed

    if isinstance(error, (DatabaseUnreachable, DataFolderInUse, EmbeddedFailed)):
        return UNREACHABLE
    if isinstance(error, ImportError) and "pip install" in str(error):
        return USAGE  # a missing extra, with the line that installs it
    if isinstance(error, RefoldError):
        return FAILED
    return None


def common(command: F) -> F:
    """Add `--json` and `--debug`, which every command has.

    `--debug` is read by `main` before click sees it, so that a traceback can also be had of what fails early; the
    option is here to be accepted and to be in the help.
    """
    command = click.option("--debug", is_flag=True, expose_value=False, help="Show tracebacks.")(command)
    return click.option("--json", "as_json", is_flag=True, help="Print JSON instead of text.")(command)


def database_option(command: F) -> F:
    """Add `--database-url`, for commands that work on a log without any app's code."""
    return click.option(
        "--database-url",
        envvar="REFOLD_DATABASE_URL",
        metavar="URL",
        help="Postgres to use  [default: REFOLD_DATABASE_URL, else the one in .refold/]",
    )(command)


def http_option(command: F) -> F:
    """Add `--http`, for commands that run an app whose connectors may serve HTTP: they read REFOLD_HTTP."""
    return click.option(
        "--http",
        "http_address",
        envvar="REFOLD_HTTP",
        metavar="HOST:PORT",
        expose_value=False,
        callback=_set_http_address,
        help="Serve the app's webhooks (/hooks) and Slack mounts (/slack) there  [default: REFOLD_HTTP]",
    )(command)


def _set_http_address(_context: click.Context, _option: click.Parameter, address: str | None) -> None:
    if address:
        os.environ["REFOLD_HTTP"] = address


def show_logs(*, terse: bool) -> None:
    """Send refold's log lines to stderr, unless the program has set logging up itself.

    `terse` is for a person who follows events beside them: what needs attention, and what Kafka consumers announce.
    """
    refold = logging.getLogger("refold")
    if logging.getLogger().handlers or refold.handlers:
        return
    handler = logging.StreamHandler()
    form = (
        "%(asctime)s.%(msecs)03d  %(message)s" if terse else "%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    handler.setFormatter(logging.Formatter(form, datefmt="%H:%M:%S" if terse else None))
    refold.addHandler(handler)
    refold.setLevel(logging.WARNING if terse else logging.INFO)
    logging.getLogger("refold.kafka").setLevel(logging.INFO)


def example(*lines: str) -> str:
    """Return the part of a command's help that shows how it is typed; the tests run every one of these lines."""
    return "\b\nExample:\n" + "\n".join(f"  {line}" for line in lines)


def print_json(value: Any) -> None:
    """Print one value as one JSON document; bytes that hold JSON go in as they are."""
    click.echo(msgspec.json.format(msgspec.json.encode(value), indent=2).decode())


def print_table(heading: Sequence[str], rows: Iterable[Sequence[str]], *, flexible: int = -1) -> None:
    """Print rows under a heading, columns aligned; the `flexible` column is cut where the terminal ends."""
    lines = [[*map(_one_line, row)] for row in rows]
    widths = [max(len(row[i]) for row in [list(heading), *lines]) for i in range(len(heading))]
    room = terminal_width() - sum(widths) - 2 * (len(widths) - 1) + widths[flexible]
    widths[flexible] = max(min(widths[flexible], room), 12)
    click.echo(click.style(_row(heading, widths), bold=True))
    for line in lines:
        click.echo(_row(line, widths))


def _row(cells: Sequence[str], widths: Sequence[int]) -> str:
    return "  ".join(
        cut(cell, width).ljust(width) for cell, width in zip(cells, widths, strict=True)
    ).rstrip()


def _one_line(text: str) -> str:
    return " ".join(text.split())


def cut(text: str, width: int) -> str:
    """Return `text` in at most `width` columns, with an ellipsis where something was left out."""
    return text if len(text) <= width else text[: max(width - 1, 0)] + "…"


def terminal_width() -> int:
    """Return the columns to fill: the terminal's, and plenty where the output goes to a file or a program."""
    return shutil.get_terminal_size((100, 24)).columns if sys.stdout.isatty() else 160


def clock(moment: datetime) -> str:
    """Return the time of day to the millisecond, in this machine's zone; of another day than today with its date."""
    local = moment.astimezone()
    if local.date() == datetime.now().date():
        return local.strftime("%H:%M:%S.%f")[:-3]
    return local.strftime("%Y-%m-%dT%H:%M:%S")


def stamp(moment: datetime) -> str:
    """Return a moment as JSON output has it: UTC, microseconds, ISO 8601."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


_UNITS: Final = ((86_400_000, "d"), (3_600_000, "h"), (60_000, "m"), (1_000, "s"))


def short_time(span: timedelta) -> str:
    """Return a span in at most two units: `7 ms`, `1.25 s`, `3 m 20 s`, `2 d 4 h`."""
    ms = max(round(span / timedelta(milliseconds=1)), 0)
    if ms < 1_000:
        return f"{ms} ms"
    if ms < 60_000:
        return f"{ms / 1000:.3g} s"
    for (unit, name), (smaller, smaller_name) in pairwise(_UNITS):
        if ms >= unit:
            rest = ms % unit // smaller
            return f"{ms // unit} {name}" + (f" {rest} {smaller_name}" if rest else "")
    raise AssertionError(ms)


def parse_json(text: str, what: str) -> Any:
    """Return the value of a JSON argument; a bare word that is no JSON is the string that a shell user means."""
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        if text[:1] in '{["' or text[:1].isdigit():
            refuse_json(text, what, error)
        return text


def refuse_json(text: str, what: str, error: json.JSONDecodeError) -> NoReturn:
    """Say where a JSON argument stops being JSON; quotes that the shell took away are the usual reason."""
    raise Wrong(
        f"{what} is not valid JSON: {error.msg} at column {error.colno}\ngot:  {cut(text, 90)}\n"
        """in a shell, put single quotes around it:  '{"id": "o-1"}'"""
    )
