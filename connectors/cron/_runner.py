"""The thread that waits for ticks and hands them over. One for all schedules of an app.

It asks Postgres nothing while it waits: it knows the schedules' positions and the log's clock, and looks at all
positions again twice a minute, for what the command line or another process has changed. Any number of workers do the
same at the same time: the position decides who hands a tick over. Who was not the first waits a moment at the next
tick and looks before it tries, so that ten workers make one hand-over and nine glances.
"""

import concurrent.futures
import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Final, TypeVar

import msgspec

from refold.connectors.cron._decide import SET_BACK, decide, keeps_begun, next_tick
from refold.connectors.cron._hand import label_of, move_of
from refold.connectors.cron._settle import settle
from refold.connectors.cron._spec import Spec
from refold.connectors.cron._state import PREFIX, State, decode_state, name_of, source_of
from refold.core import App, DefinitionRefused, Lane, Move, PositionMoved, RefoldError, SourcePosition

log: Final = logging.getLogger("refold.cron")
T = TypeVar("T")

# Seconds. How often all positions are looked at; how long one sleeps at most before it looks at the clock, which may
# have been set; how long a worker that was not first last time lets another one go first.
LOOK_EVERY: Final = 30.0
_CLOCK_EVERY: Final = 1.0
_GRACE: Final = 250_000
# So many schedules share a transaction; they may all be due at nine.
_TOGETHER: Final = 200
_FEW: Final = 3
_LAST_HAND_OVER: Final = 2.0
_ENDED: Final = frozenset({"completed", "failed", "cancelled", "deleted"})


class Stopped(Exception):
    """The worker stops; what was waited for has not come."""


class Known(msgspec.Struct):
    """What this worker knows of one schedule. `follows`: another worker was first at the last tick."""

    at: SourcePosition
    state: State
    next: int | None
    follows: bool = False

    def wake_at(self) -> int | None:
        """Return when to look at it again, in microseconds of the log's clock."""
        return None if self.next is None else self.next + (_GRACE if self.follows else 0)


class Runner:
    """Fires the schedules of one app as long as its worker runs."""

    def __init__(self, app: App, declared: Mapping[str, Spec], lane: Lane) -> None:
        self._app = app
        self._declared = declared
        self._lane = lane
        self._known: dict[str, Known] = {}
        self.settled = threading.Event()
        self._wake = threading.Condition()
        self._stopping = False
        self._look_now = False
        self._looked = 0.0
        self._before = 0  # the log's clock when last looked at
        self._refused: set[str] = set()
        self.wakes = 0  # how often it has looked at the clock

    def stop(self) -> None:
        """Have `run` return soon."""
        with self._wake:
            self._stopping = True
            self._wake.notify_all()

    def look(self) -> None:
        """Have all positions looked at now: something was changed in this process."""
        with self._wake:
            self._look_now = True
            self._wake.notify_all()

    def now(self) -> int:
        """Return the log's clock."""
        return self._lane.now()

    def run(self) -> None:
        """Settle what the code declares, then fire ticks until stopped. Begun again after an error it settles nothing:
        what the code of later workers says has come to hold since."""
        if self.settled.is_set():
            self._look()
        else:
            self._settle()
            self.settled.set()
        while not self._stopping:
            if self._look_now or time.monotonic() - self._looked > LOOK_EVERY:
                self._look()
            self.wakes += 1
            now = self._lane.now()
            if now < self._before - SET_BACK:
                for known in list(self._known.values()):
                    self._keep(known.at, now, anew=True)
            self._before = now
            due = [
                name
                for name, known in self._known.items()
                if (at := known.wake_at()) is not None and at <= now
            ]
            if due:
                for first in range(0, len(due), _TOGETHER):
                    self._fire(due[first : first + _TOGETHER])
            else:
                self._sleep(now)

    def _sleep(self, now: int) -> None:
        soonest = min(
            (at for known in self._known.values() if (at := known.wake_at()) is not None), default=None
        )
        seconds = _CLOCK_EVERY if soonest is None else min(_CLOCK_EVERY, (soonest - now) / 1e6)
        with self._wake:
            if not (self._stopping or self._look_now):
                self._wake.wait(max(seconds, 0.0005))

    # What is there.

    def _settle(self) -> None:
        """Record the schedules that the code declares, where they are new or changed."""
        while True:
            names = {source_of(name): name for name in self._declared}
            found = self._result(self._lane.read_positions(list(names))) if names else {}
            now = self._lane.now()
            moves = []
            for source, name in names.items():
                at = found[source]
                decision = settle(name, self._declared[name], decode_state(at.position), now, declared=True)
                if decision is not None:
                    for fact in decision.facts:
                        log.info("%s", fact.text, extra={"schedule": name})
                    moves.append(move_of(self._app, name, at, decision))
            try:
                if moves:
                    self._result(self._lane.hand_over(moves))
            except PositionMoved:
                continue
            return self._look()

    def _look(self) -> None:
        """Read all schedules' positions, those made by other processes too."""
        self._look_now = False
        self._looked = time.monotonic()
        positions, now = self._app.positions(PREFIX), self._lane.now()
        for at in positions:
            self._keep(at, now)

    def _keep(self, at: SourcePosition, now: int, *, follows: bool | None = None, anew: bool = False) -> None:
        """Take a position that was read or made as what holds, unless a later one, or this one, is known.

        `anew`: this one too, since its next tick is another now.
        """
        name = name_of(at.source)
        before = self._known.get(name)
        if before is not None and not anew and _order(before.at) >= _order(at):
            return
        try:
            state = decode_state(at.position)
            if state is None or state.deleted or not self._serves(name, state):
                self._known.pop(name, None)
                return
            following = next_tick(name, state, now)
        except (DefinitionRefused, msgspec.MsgspecError) as error:
            # Made by another release. Left to workers that can read it.
            self._known.pop(name, None)
            if name not in self._refused:
                self._refused.add(name)
                log.error("schedule %r is not run by this worker: %s", name, error, extra={"schedule": name})
            return
        if follows is None:
            moved = before is not None and _order(before.at) != _order(at)
            follows = before is not None and (before.follows or moved)
        self._known[name] = Known(at, state, following, follows)

    def _serves(self, name: str, state: State) -> bool:
        """Say whether this app runs a schedule: it has the workflow, and the code still declares what it declared."""
        return state.spec.workflow in self._app.workflows and (not state.declared or name in self._declared)

    # Ticks.

    def _fire(self, names: Sequence[str]) -> None:
        """Decide about the ticks of `names` that are due, and hand the decisions over."""
        late = [self._known[name].at.source for name in names if self._known[name].follows]
        if late:
            self._read(late)
        moves = self._decide(names)
        while moves:
            try:
                handed = self._result(self._lane.hand_over(moves))
            except PositionMoved:
                # Some other worker was first with one of them at least: the others are still ours to hand over.
                self._read([move.expected.source for move in moves])
                moves = [
                    move
                    for move in moves
                    if (known := self._known.get(name_of(move.expected.source))) is not None
                    and _order(known.at) == _order(move.expected)
                ]
                continue
            now = self._lane.now()
            for at in handed.positions.values():
                self._keep(at, now, follows=False)
            return

    def _decide(self, names: Sequence[str]) -> list[Move]:
        moves = []
        # Of many schedules most have nothing open, and one question tells of all.
        busy = self._app.in_flight(PREFIX) if len(names) > _FEW else None
        for name in names:
            known = self._known.get(name)
            if known is None:
                continue
            idle = busy is not None and label_of(name) not in busy
            still_open = frozenset[str]() if idle else self._still_open(known.state)
            decision = decide(name, known.state, self._lane.now(), still_open)
            if decision is None:
                self._keep(known.at, self._lane.now(), anew=True)
                continue
            for fact in decision.facts:
                level = logging.INFO if fact.kind == "TickSkipped" else logging.WARNING
                log.log(level, "schedule %r: %s", name, fact.text, extra={"schedule": name})
            moves.append(move_of(self._app, name, known.at, decision))
        return moves

    def _still_open(self, state: State) -> frozenset[str]:
        return find_open(state, lambda id: self._app.info(id).status)

    def _read(self, sources: Sequence[str]) -> None:
        found = self._result(self._lane.read_positions(sources))
        now = self._lane.now()
        for at in found.values():
            self._keep(at, now)

    def _result(self, future: "concurrent.futures.Future[T]") -> T:
        """Wait for an answer of Postgres as long as it takes; when the worker stops, a moment only."""
        while not self._stopping:
            concurrent.futures.wait([future], timeout=0.2)
            if future.done():
                return future.result()
        try:
            return future.result(_LAST_HAND_OVER)
        except concurrent.futures.TimeoutError:
            raise Stopped from None


def find_open(state: State, status_of: Callable[[str], str]) -> frozenset[str]:
    """Return which of the workflows that the schedule began have not ended."""
    if not keeps_begun(state.spec.overlap):
        return frozenset()
    return frozenset(id for id in state.begun if _is_open(id, status_of))


def _is_open(id: str, status_of: Callable[[str], str]) -> bool:
    try:
        return status_of(id) not in _ENDED
    except RefoldError:  # deleted with its history
        return False


def _order(at: SourcePosition) -> tuple[int, int]:
    """Return what grows with each hand-over of a source: its generation, and the place in it."""
    return int(at.stream.rpartition("/")[2]), at.next_seq
