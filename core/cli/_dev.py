"""`refold dev`: everything an app needs, on this machine, with its events in the terminal as they happen."""

import queue
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

import click
import msgspec

from refold.core import App, DevService, Recorded, RefoldError
from refold.core.cli._client import configured_url, project_folder
from refold.core.cli._events import describe_live, event_fields
from refold.core.cli._load import load_app
from refold.core.cli._output import (
    clock,
    common,
    cut,
    example,
    http_option,
    print_json,
    show_logs,
    stamp,
    terminal_width,
)
from refold.core.cli._plugins import load_plugins, warn_name
from refold.core.cli._summary import print_lines, summarize
from refold.eventlog import (
    WorkflowCancelled,
    WorkflowCompleted,
    WorkflowFailed,
    describe_url,
    embedded_postgres,
)

# A terminal can't follow thousands of events a second; what it misses is counted, and is in `refold show`.
_BACKLOG: Final = 2_000
# Seconds. A signal that the kernel gives to another thread does not wake the one that waits here, and Python runs the
# handler only in it.
_SIGNALS_SEEN_WITHIN: Final = 0.5
_ENDS: Final = (WorkflowCompleted, WorkflowFailed, WorkflowCancelled)


@click.command(
    "dev",
    short_help="run an app with everything it needs, here and now",
    epilog=example("refold dev shop.py"),
)
@click.argument("file")
@click.option("--keep", is_flag=True, help="Leave the embedded Postgres running after the end.")
@http_option
@common
def dev_command(file: str, keep: bool, as_json: bool) -> None:
    """Run the App in FILE with everything it needs, and show its events as they happen. Ctrl-C ends all of it.

    Without a database URL an embedded Postgres is started, its data in .refold/; without a broker address a
    development broker, for an app with Kafka consumers. Started again, it goes on where it was.
    """
    began = time.monotonic()
    app = load_app(file)
    show_logs(terse=True)
    feed = _Feed()
    with ExitStack() as stack:
        stack.enter_context(_stop_signals(feed))
        database = _database(app, stack, keep=keep)
        services = list(_start_services(app, stack))
        app.always_replay = True
        app.observe(feed.add)
        app.shutdown_grace = timedelta(
            seconds=1
        )  # Ctrl-C ends all of it soon; what was in a step is tried again
        app.start_worker()
        stack.callback(app.close)
        summary = _summary(app, database, services, file)
        if as_json:
            print_json([{"what": label, "text": text} for label, text in summary])
        else:
            _print_summary(file, summary, time.monotonic() - began)
        sys.stdout.flush()
        _Printer(app, as_json=as_json).follow(feed)
        if not as_json:
            click.echo("stopping")


def _database(app: App, stack: ExitStack, *, keep: bool) -> str:
    url = configured_url(app)
    if url is not None:
        return describe_url(url)
    server = stack.enter_context(embedded_postgres(keep=keep))
    app.database_url = server.url
    return f"embedded PostgreSQL {server.version}, data in {_relative(server.folder)}/"


def _relative(path: Path) -> str:
    try:
        return str(path.relative_to(Path.cwd()))
    except ValueError:
        return str(path)


def _start_services(app: App, stack: ExitStack) -> Iterator[tuple[str, DevService]]:
    """Start what the connectors of this app need; a plugin that fails in its own way is named, and left out."""
    folder = project_folder()
    for name, plugin in load_plugins().items():
        if plugin.dev_service is None:
            continue
        try:
            service = plugin.dev_service(app, folder)
        except (RefoldError, click.ClickException):
            raise  # it says what is missing, and how to get it
        except Exception as error:
            if isinstance(error, ImportError) and "pip install" in str(error):
                raise
            warn_name(name, f"could not start its service: {type(error).__name__}: {error}")
            continue
        if service is not None:
            stack.callback(service.stop)
            yield name, service


def _summary(
    app: App, database: str, services: Sequence[tuple[str, DevService]], file: str
) -> list[tuple[str, str]]:
    lines = [("database", database)]
    for name, service in services:
        try:
            lines.extend(service.describe())
        except Exception as error:
            warn_name(name, f"does not say what it started: {type(error).__name__}: {error}")
    return lines + summarize(app, file)


def _print_summary(file: str, summary: Sequence[tuple[str, str]], took: float) -> None:
    click.echo(f"{click.style(file, bold=True)} runs, {took:.1f} s after its start. Ctrl-C ends all of it.\n")
    print_lines(summary)
    click.echo("")


@contextmanager
def _stop_signals(feed: "_Feed") -> Iterator[None]:
    """Let the first SIGINT or SIGTERM end the feed; a second one ends the process as if we were not here."""

    def stop(number: int, _: Any) -> None:
        signal.signal(number, signal.SIG_DFL)
        feed.end()

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class _Feed:
    """Events on their way from the engine's thread to the terminal; never makes the engine wait."""

    def __init__(self) -> None:
        self._events: queue.SimpleQueue[tuple[str, Recorded] | None] = queue.SimpleQueue()
        self.dropped = 0

    def add(self, workflow_id: str, recorded: Recorded) -> None:
        if self._events.qsize() < _BACKLOG:
            self._events.put((workflow_id, recorded))
        else:
            self.dropped += 1

    def end(self) -> None:
        self._events.put(None)

    def __iter__(self) -> Iterator[tuple[str, Recorded]]:
        while True:
            try:
                item = self._events.get(timeout=_SIGNALS_SEEN_WITHIN)
            except queue.Empty:
                continue
            if item is None:
                return
            yield item


class _Printer:
    """Turns events into lines: each workflow's first with its whole ID, and how long each thing took."""

    def __init__(self, app: App, *, as_json: bool) -> None:
        self._app = app
        self._as_json = as_json
        self._last: dict[str, int] = {}
        self._told = 0

    def follow(self, feed: _Feed) -> None:
        for workflow_id, recorded in feed:
            if workflow_id not in self._last and recorded.seq > 0:
                self._catch_up(workflow_id, recorded.seq)
            self._print(workflow_id, recorded)
            if feed.dropped > self._told and not self._as_json:
                click.echo(f"… {feed.dropped - self._told} events not shown: refold list, refold show ID")
                self._told = feed.dropped
            sys.stdout.flush()

    def _catch_up(self, workflow_id: str, seq: int) -> None:
        """Print what was recorded before this worker had the workflow: elsewhere, or in an earlier run."""
        try:
            history = self._app.history(workflow_id)
        except Exception:  # what follows is worth showing all the same
            return
        for recorded in history[:seq]:
            self._print(workflow_id, recorded)

    def _print(self, workflow_id: str, recorded: Recorded) -> None:
        at = datetime.fromtimestamp(recorded.at / 1e6, UTC)
        if self._as_json:
            fields = {"id": workflow_id, "seq": recorded.seq, "at": stamp(at), **event_fields(recorded.event)}
            click.echo(msgspec.json.encode(fields).decode())
        else:
            before = self._last.get(workflow_id)
            took = None if before is None else timedelta(microseconds=recorded.at - before)
            shown = workflow_id if before is None else _short_id(workflow_id)
            line = f"{clock(at)}  {shown}  {describe_live(recorded.event, took)}"
            # The first line may take two of the terminal's: the ID in it is there to be copied.
            click.echo(line if before is None else cut(line, max(terminal_width(), 60)))
        if isinstance(recorded.event, _ENDS):
            self._last.pop(workflow_id, None)
        else:
            self._last[workflow_id] = recorded.at


def _short_id(workflow_id: str) -> str:
    """Return an ID that can be told from others on one screen: a record's ends with its partition and offset."""
    return workflow_id if len(workflow_id) <= 28 else f"{workflow_id[:14]}…{workflow_id[-12:]}"


__all__ = ["dev_command"]
