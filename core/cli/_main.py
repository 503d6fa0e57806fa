"""The `refold` command itself: which commands there are, and how every error ends.

An error is two or three lines on stderr (what was found, what was expected, what to do) and an exit code: 2 for
wrong usage, 3 for something that can't be reached, 1 for everything else that failed. A traceback is shown with
`--debug` only. Commands of connectors come by the entry point group `refold.connectors`: core imports no connector.
"""

import importlib
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import click

from refold.core.cli._output import FAILED, USAGE, exit_code_of

# Where each command lives, and the heading under which help shows it.
_COMMANDS: Final = {
    "Run": {
        "init": "_run",
        "dev": "_dev",
        "worker": "_run",
        "start": "_run",
    },
    "Look": {
        "list": "_look",
        "show": "_look",
        "sources": "_sources",
    },
    "Change": {
        "send": "_change",
        "cancel": "_change",
        "retry": "_change",
        "skip": "_change",
        "delete": "_change",
        "rebuild": "_change",
        "migrate": "_change",
    },
}


class _Commands(click.Group):
    """The commands above and those of the plugins, each imported when it is asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        own = [name for names in _COMMANDS.values() for name in names]
        return own + sorted(_of_connectors())

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        for names in _COMMANDS.values():
            if cmd_name in names:
                module = importlib.import_module(f"refold.core.cli.{names[cmd_name]}")
                command: click.Command = getattr(module, f"{cmd_name}_command")
                return command
        return _of_connectors().get(cmd_name)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the commands grouped by what they are for; a plugin's come last, each with its own one line."""
        groups = {heading: list(names) for heading, names in _COMMANDS.items()}
        groups["Connectors"] = sorted(_of_connectors())
        width = max(len(name) for names in groups.values() for name in names)
        for heading, names in groups.items():
            rows = []
            for name in names:
                command = self.get_command(ctx, name)
                if command is not None:
                    rows.append((name.ljust(width), command.get_short_help_str(90)))
            if rows:
                with formatter.section(heading):
                    formatter.write_dl(rows)


def _of_connectors() -> Mapping[str, click.Command]:
    # Imported here: a command of refold's own is found without a look at what is installed.
    from refold.core.cli._plugins import load_commands

    return load_commands(frozenset(name for names in _COMMANDS.values() for name in names))


@click.command(
    cls=_Commands,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="Where the data is: --database-url, else REFOLD_DATABASE_URL, else a Postgres of refold's own in .refold/",
)
@click.version_option(package_name="refold", prog_name="refold", message="%(prog)s %(version)s")
def cli() -> None:
    """Durable workflows on Postgres. Start here:  refold init shop && refold dev shop/shop.py"""


def main(args: Sequence[str] | None = None) -> None:
    """Run one command and exit with its code; never shows a traceback unless `--debug` is given."""
    arguments = list(sys.argv[1:] if args is None else args)
    debug = "--debug" in arguments
    sys.exit(_run(lambda: cli.main(arguments, prog_name="refold", standalone_mode=False), debug=debug))


def _run(command: Callable[[], Any], *, debug: bool) -> int:
    try:
        code = command()
    except click.exceptions.Exit as leaving:
        return leaving.exit_code
    except click.Abort:
        click.echo("refold: aborted", err=True)
        return FAILED
    except click.UsageError as wrong:
        wrong.show()
        return USAGE
    except click.ClickException as failed:
        if debug:
            traceback.print_exc()
        _complain(failed.format_message())
        return failed.exit_code
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # `refold list | head`: the reader has seen enough. Python would complain again when it closes stdout.
        sys.stdout = None
        return 0
    except Exception as error:
        return _explain(error, debug=debug)
    return code if isinstance(code, int) else 0


def _explain(error: Exception, *, debug: bool) -> int:
    """Say what a failed command's error means, and return the exit code for it."""
    if debug:
        traceback.print_exception(error)
    code = exit_code_of(error)
    if code is not None:
        _complain(str(error))
        return code
    _complain(
        f"unexpected {type(error).__name__}: {error}\n"
        "This is a defect in refold, or in code that it called.\n"
        "Run the same command with --debug for the traceback."
    )
    return FAILED


def _complain(message: str) -> None:
    first, *rest = message.strip().splitlines() or ["failed"]
    click.echo(f"{click.style('refold:', fg='red')} {first}", err=True)
    for line in rest:
        click.echo(f"  {line.strip()}" if line.strip() else "", err=True)
