"""`@cron.schedule`, and the connector that runs all schedules of an app."""

import logging
import shlex
import threading
import time
import weakref
from collections.abc import Callable, Iterable
from datetime import datetime, timedelta
from itertools import islice
from typing import Any, Final, TypeVar, cast
from zoneinfo import ZoneInfo

from refold.connectors.cron._hand import label_of
from refold.connectors.cron._runner import Runner, Stopped
from refold.connectors.cron._spec import Missed, Overlap, Spec, make_spec, timing_of, to_datetime
from refold.connectors.cron._state import PREFIX, State, decode_state, name_of
from refold.connectors.cron._tick import tick_parameter
from refold.core import App, DefinitionRefused, SourceReport, Workflow

log: Final = logging.getLogger("refold.cron")
W = TypeVar("W", bound=Workflow[..., Any])

HOUR: Final = timedelta(hours=1)
_NONE: Final = timedelta(0)
_RETRY: Final = 1.0
_SAY_EVERY: Final = 60.0
_SETTLE: Final = 5.0
_STOP: Final = 4.0


def schedule(
    expression: str | None = None,
    *,
    name: str | None = None,
    timezone: str = "UTC",
    every: timedelta | None = None,
    at: datetime | Iterable[datetime] | None = None,
    start: datetime | None = None,
    end: datetime | None = None,
    catch_up: timedelta = HOUR,
    missed: Missed = "latest",
    overlap: Overlap = "skip",
    jitter: timedelta = _NONE,
    paused: bool = False,
) -> Callable[[W], W]:
    """Start the workflow below at every tick of a schedule, once, however many workers there are.

    The workflow takes one `cron.Tick`. When it ticks says `expression` (five fields, or six with the second in front,
    in `timezone`), or `every`, counted from 1970, or `at`, one time or several; from `start` to `end`, both included.
    `name` (default: the workflow's) is in the IDs of the workflows and in the schedule's position: keep it.

    When ticks could not be fired, because no worker ran or Postgres was away, those that are at most `catch_up` old
    are fired then: only the latest of them, or `missed="all"`, up to 1,000. `overlap` says what a tick does while a
    workflow of an earlier one has not ended: "skip" it, wait behind it ("buffer_one": one tick at most does,
    "buffer_all"), "cancel_other" and wait for its end, or "allow" both. `jitter` delays each start by a part of it
    that is always the same for the same tick. `paused`: nothing is fired before somebody resumes it.

    Raises DefinitionRefused for a schedule that cannot work.
    """
    shown = repr(expression) if expression is not None else "every=..." if every is not None else "at=..."
    where = f"cron.schedule({shown})"

    def decorate(workflow: W) -> W:
        if not isinstance(workflow, Workflow):
            raise DefinitionRefused(
                where,
                f"it sits on {getattr(workflow, '__qualname__', workflow)!r}, which is no workflow",
                "Put @app.workflow below it, directly above the function.",
            )
        called = workflow.name if name is None else name
        parameter = tick_parameter(where, workflow)
        spec = make_spec(
            where, called, workflow.name, parameter, expression, every=every, at=at, timezone=timezone,
            start=start, end=end, catch_up=catch_up, missed=missed, overlap=overlap, jitter=jitter, paused=paused,
        )  # fmt: skip
        app = cast(App, workflow.app)
        serve(app).declare(where, called, spec)
        return workflow

    return decorate


# The connector of each app. An app has one, for all its schedules; it goes with the app.
_served: Final[weakref.WeakKeyDictionary[App, "Schedules"]] = weakref.WeakKeyDictionary()


def serve(app: App) -> "Schedules":
    """Have the workers of `app` run schedules, also those that are made by `cron.create` elsewhere.

    `@cron.schedule` does this; an app that declares none, and has the workflows of others, does it by itself.
    """
    if app not in _served:
        _served[app] = Schedules()
        app.connect(_served[app])
    return _served[app]


def find_served(app: App) -> "Schedules | None":
    """Return the connector that runs the schedules of `app` in this process, if there is one."""
    return _served.get(app)


class Schedules:
    """All schedules of an app: the connector that its worker starts and stops."""

    name = "cron"
    kind = "schedule"

    def __init__(self) -> None:
        self.declared: dict[str, Spec] = {}
        self._app: App | None = None
        self._runner: Runner | None = None
        self._thread: threading.Thread | None = None
        self._stopping = threading.Event()

    def declare(self, where: str, name: str, spec: Spec) -> None:
        """Add a schedule of the code. Raises DefinitionRefused when there is one of that name."""
        if name in self.declared:
            raise DefinitionRefused(
                where,
                f"the app has a schedule called {name!r} already",
                "Give one of them another name=: it is part of the IDs of the workflows.",
            )
        self.declared[name] = spec

    def start(self, app: App) -> None:
        """Begin to wait for ticks, on a thread of its own; the schedules of the code are recorded on return.

        Unless Postgres has gone away just now: then they are as soon as it is back.
        """
        self._app = app
        lane = app.lane("cron")
        self._stopping = threading.Event()
        self._runner = Runner(app, self.declared, lane)
        self._thread = threading.Thread(
            target=self._run, args=(self._runner, self._stopping), name="refold-cron", daemon=True
        )
        self._thread.start()
        self._runner.settled.wait(_SETTLE)

    def stop(self) -> None:
        """Fire no more ticks; on return what was being handed over is, unless Postgres does not answer."""
        self._stopping.set()
        if self._runner is not None:
            self._runner.stop()
        if self._thread is not None:
            self._thread.join(
                _STOP
            )  # with Postgres away it may wait for an answer: it is a daemon, and is left
            self._thread = None
        self._runner = None

    def look(self) -> None:
        """Have the worker in this process, if there is one, look at once at what was changed."""
        runner = self._runner
        if runner is not None:
            runner.look()

    def describe(self) -> list[str]:
        """Return a line for each schedule: when it ticks, and its next three ticks."""
        return [
            f"{name}: {spec.describe()}, {self._upcoming(name, spec, state)}"
            for name, spec, state in self._all()
        ]

    def report(self) -> list[SourceReport]:
        """Return one line for each schedule that has begun."""
        if self._app is None:
            return []
        found = []
        open_now = self._app.in_flight(PREFIX)
        for at in self._app.positions(PREFIX):
            state = decode_state(at.position)
            if state is not None and not state.deleted:
                name = name_of(at.source)
                text = self._upcoming(name, state.spec, state)
                label = label_of(name)
                in_flight = sum(open_now.get(label, {}).values())
                found.append(SourceReport(at.source, label, text, in_flight=in_flight, paused=state.paused))
        return found

    def try_next(self) -> list[str]:
        """Return the command that triggers the first schedule."""
        names = [name for name, _, _ in self._all()]
        return [f"refold schedule trigger {shlex.quote(names[0])}"] if names else []

    def _all(self) -> list[tuple[str, Spec, State | None]]:
        """Return the schedules that this app runs, by name; those of the code also before they have a position."""
        known: dict[str, tuple[Spec, State | None]] = {
            name: (spec, None) for name, spec in self.declared.items()
        }
        if self._app is not None:
            for at in self._app.positions(PREFIX):
                name, state = name_of(at.source), decode_state(at.position)
                if state is None or state.deleted or state.spec.workflow not in self._app.workflows:
                    continue
                if name in known or not state.declared:
                    known[name] = (known[name][0] if name in known else state.spec, state)
        return [(name, spec, state) for name, (spec, state) in sorted(known.items())]

    def _upcoming(self, name: str, spec: Spec, state: State | None) -> str:
        runner = self._runner
        return "" if runner is None else show_upcoming(name, spec, state, runner.now())

    def _run(self, runner: Runner, stopping: threading.Event) -> None:
        said = 0.0
        while not stopping.is_set():
            try:
                runner.run()
            except Stopped:
                return
            except Exception as error:
                if stopping.is_set():
                    return
                if not said or time.monotonic() - said > _SAY_EVERY:
                    said = time.monotonic()
                    log.warning("schedules begin again: %s", error, exc_info=error)
                stopping.wait(_RETRY)


def show_upcoming(name: str, spec: Spec, state: State | None, now: int, count: int = 3) -> str:
    """Return the next ticks, as the schedule's own zone shows them."""
    if spec.paused if state is None else state.paused:
        return "paused"
    try:
        ticks = upcoming(name, spec, state, now, count)
    except DefinitionRefused:
        return "can't be read by this release"
    if not ticks:
        return "no more ticks"
    year = to_datetime(now).year
    return "next " + ", ".join(show_local(tick, spec.timezone, year) for tick in ticks)


def upcoming(name: str, spec: Spec, state: State | None, now: int, count: int) -> list[int]:
    """Return the next ticks of a schedule that is not paused: later than now, and than its last one."""
    since = now if state is None else max(now, state.last)
    return list(islice(timing_of(name, spec).after(since), count))


def show_local(instant: int, timezone: str, year: int) -> str:
    """Return an instant for people: `Mon 23 Nov 09:00`, the seconds and the year only where they say something."""
    local = to_datetime(instant).astimezone(ZoneInfo(timezone))
    clock = "%H:%M" if not (local.second or local.microsecond) else "%H:%M:%S"
    text = local.strftime(f"%a %-d %b{'' if local.year == year else ' %Y'} {clock}")
    return text + (f".{local.microsecond // 1000:03}" if local.microsecond else "")
