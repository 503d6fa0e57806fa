"""`refold init`, `refold worker` and `refold start`."""

import inspect
import sys
import typing
from importlib.resources import files
from pathlib import Path
from typing import Any

import click
import msgspec

from refold.core import App, Handle, TimedOut, Workflow
from refold.core.cli._client import opened
from refold.core.cli._load import load_app
from refold.core.cli._output import (
    Wrong,
    common,
    cut,
    example,
    http_option,
    parse_json,
    print_json,
    show_logs,
    terminal_width,
)
from refold.core.cli._summary import connectors_as_json, print_lines, summarize

_TEMPLATES = {"shop.py.txt": "{name}.py", "test_shop.py.txt": "test_{name}.py", "gitignore.txt": ".gitignore"}


@click.command("init", short_help="write a small app to start from", epilog=example("refold init shop"))
@click.argument("folder", type=click.Path(path_type=Path))
@common
def init_command(folder: Path, as_json: bool) -> None:
    """Write a small app into FOLDER: a Kafka consumer with two steps and a sleep, a test for it, a .gitignore.

    Nothing that exists is overwritten.
    """
    name = folder.resolve().name
    if not name.isidentifier():
        raise Wrong(
            f"{name!r} can't be the name of an app: it becomes {name}.py\n"
            "expected letters, digits and underscores, like:  refold init shop"
        )
    written = {
        folder / target.format(name=name): _template(source, name) for source, target in _TEMPLATES.items()
    }
    existing = [str(path) for path in written if path.exists()]
    if existing:
        raise Wrong(f"{existing[0]} exists already\nnothing was written; choose another folder")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for path, text in written.items():
            path.write_text(text)
    except OSError as error:
        raise Wrong(f"{folder} can't be written: {error.strerror}\nchoose another folder") from error
    if as_json:
        print_json({"written": [str(path) for path in written]})
        return
    for path in written:
        click.echo(f"wrote {path}")
    click.echo(f"next:  refold dev {folder / (name + '.py')}")


def _template(source: str, name: str) -> str:
    text = (files("refold.core.cli") / "templates" / source).read_text()
    return text.replace("shop", name)


@click.command(
    "worker",
    short_help="run an app's workflows until stopped",
    epilog=example("refold worker shop.py"),
)
@click.argument("file")
@http_option
@common
def worker_command(file: str, as_json: bool) -> None:
    """Run the workflows and connectors of the App in FILE until SIGTERM or Ctrl-C.

    Start it as often as you like, on as many machines as you like: the workers share the work, and one that dies is
    taken over by the others. FILE is a Python file or a module; with several Apps in it, FILE:NAME says which.
    """
    app = load_app(file)
    show_logs(terse=False)
    if not as_json:
        click.echo(
            f"worker of {app.name}: {', '.join(sorted(app.workflows)) or 'no workflows'}. Ctrl-C stops it."
        )
    sys.stdout.flush()

    def show_what_runs() -> None:
        if as_json:
            said = {
                "app": app.name,
                "workflows": sorted(app.workflows),
                "connectors": connectors_as_json(app),
            }
            print_json(said)
        else:
            print_lines([line for line in summarize(app, file) if line[0] != "workflows"])
        sys.stdout.flush()

    with opened(app):
        app.run(started=show_what_runs)


@click.command(
    "start",
    short_help="start a workflow",
    epilog=example(
        'refold start shop.py checkout \'{"id": "o-1", "amount": 5}\' --id order-1',
    ),
)
@click.argument("file")
@click.argument("workflow")
@click.argument("args", nargs=-1)
@click.option("--id", "workflow_id", help="The workflow's ID; the same ID again starts nothing new.")
@click.option("--wait", type=float, metavar="SECONDS", help="Wait for the result that long; needs a worker.")
@common
def start_command(
    file: str,
    workflow: str,
    args: tuple[str, ...],
    workflow_id: str | None,
    wait: float | None,
    as_json: bool,
) -> None:
    """Start WORKFLOW of the App in FILE with ARGS, each of them JSON; durable when the command returns.

    A word that is no JSON is taken as a string. A worker (`refold worker`, `refold dev`) does the work.
    """
    app = load_app(file)
    chosen = _find_workflow(app, workflow, file)
    positional, named = _decode(chosen, args)
    with opened(app):
        handle = chosen.options(id=workflow_id).start(*positional, **named)
        done: dict[str, Any] = {"id": handle.id, "workflow": chosen.name}
        if wait is not None:
            done["result"] = _result(handle, wait, file)
    if as_json:
        print_json(done)
        return
    click.echo(f"started {handle.id}")
    if wait is not None:
        click.echo(f"result  {cut(msgspec.json.encode(done['result']).decode(), terminal_width() - 8)}")
    else:
        click.echo(f"look:   refold show {handle.id}")


def _result(handle: Handle[Any], wait: float, file: str) -> Any:
    try:
        return handle.result(timeout=wait)
    except TimedOut as error:
        if handle.status() in ("completed", "failed", "cancelled"):  # with an error of its own, of this kind
            raise
        raise click.ClickException(
            f"started {handle.id}, and it has no result after {wait:g} s\n"
            f"it needs a worker:  refold worker {file}\nlook:  refold show {handle.id}"
        ) from error


def _find_workflow(app: App, name: str, file: str) -> Workflow[..., Any]:
    if name in app.workflows:
        return app.workflows[name]
    raise Wrong(
        f"{file} has no workflow called {name}\nworkflows in it: {', '.join(sorted(app.workflows)) or 'none'}"
    )


def _decode(workflow: Workflow[..., Any], args: tuple[str, ...]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return the arguments in the types that the workflow declares."""
    names = list(inspect.signature(workflow.fn).parameters)
    if len(args) > len(names):
        raise Wrong(
            f"{workflow.name} takes {len(names)} argument(s) ({', '.join(names) or 'none'}), got {len(args)}\n"
            "expected one JSON value for each, in this order"
        )
    hints = typing.get_type_hints(workflow.fn)
    values = {
        # What is to be a string needs no second quotes: `remind ada`, `order 42`.
        name: text if hints.get(name) is str and text[:1] != '"' else parse_json(text, f"argument {name!r}")
        for name, text in zip(names, args, strict=False)
    }
    return workflow.decode_args(msgspec.json.encode(values))
