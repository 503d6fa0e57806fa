"""What a clause has at hand: a database of its own, workers to start and to kill, messages to send, and the facts."""

import contextlib
import itertools
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Final, TypeVar

import psycopg

from refold.core import App, WorkflowInfo
from refold.testing._harness import Harness
from refold.testing._line import Line
from refold.testing._orders import Orders
from refold.testing._probe import Moment
from refold.testing._work import TABLE, Work
from refold.testing._worker import Worker

T = TypeVar("T")
_LOOK: Final = 0.02
# How long the kit watches for what must not happen. It can only miss a wrong connector on a slow machine, never
# refuse a right one.
WATCH: Final = 2.0
# Beyond the grace: what starting, stopping and a slow machine take.
_STOP_MARGIN: Final = 60.0
_COMING_UP: Final = 60.0
OPEN: Final = ("pending", "running")
SET_ASIDE: Final = ("failed", "parked")


class Refused(AssertionError):
    """The connector does not keep a clause; the message says what was done and what was seen."""


class Stage:
    """One clause's own world. What it offers ends with the clause, workers included."""

    def __init__(self, harness: Harness, place: str, line: Line, database: str, url: str) -> None:
        self.harness = harness
        self.kind = harness.kind
        self.line = line
        self._place = place
        self._url = line.url(database)
        self._workers: list[Worker] = []
        self._numbers = itertools.count(1)
        self._turn = threading.Lock()
        self._unanswered: list[Work] = []
        self.refusals = 0
        self.silences = 0
        self.sent: list[Work] = []
        self.log = App("kit-looks", database_url=url)
        self._facts = psycopg.connect(url, autocommit=True)
        self._facts.execute(TABLE)

    def close(self) -> None:
        """End every worker, and the looks at the database."""
        for worker in self._workers:
            worker.kill()
        self.line.mend()
        self.log.close()
        self._facts.close()

    # Workers

    def start(self, number: int = 0, *, die: Moment | None = None) -> Worker:
        """Start a worker and wait until it is up. `number` tells two that run together apart."""
        worker = self.start_soon(number, die=die)
        self.wait_up(worker)
        if worker.exit_code is not None and not worker.was_killed:
            raise Refused(
                f"the worker ended at once, with exit code {worker.exit_code}:\n{worker.last_lines()}"
            )
        return worker

    def wait_up(self, worker: Worker) -> None:
        """Wait until a worker is up, or has ended."""
        # On a slow machine that alone takes longer than a harness may want to wait for a connector.
        self.wait(
            lambda: worker.said("up") or worker.exit_code is not None,
            "the worker to come up",
            worker,
            at_least=_COMING_UP,
        )

    def start_soon(self, number: int = 0, *, die: Moment | None = None) -> Worker:
        """Start a worker; it is not up yet."""
        orders = Orders(
            harness=self._place,
            settings=self.harness.settings,
            worker=number,
            database_url=self._url,
            folder=str(self.harness.folder),
            tell=-1,
            die=die,
        )
        log = self.harness.folder / f"worker-{len(self._workers)}.log"
        worker = Worker(orders, log)
        self._workers.append(worker)
        return worker

    def stop(self, worker: Worker) -> None:
        """SIGTERM, and wait for the end. Refuses a worker that does not end by itself, and in order."""
        worker.terminate()
        self.wait_stopped(worker)

    def wait_stopped(self, worker: Worker) -> None:
        """Wait for the end of a worker that has got SIGTERM."""
        allowed = self.harness.grace + min(_STOP_MARGIN, self.harness.patience)
        deadline = time.monotonic() + allowed
        while worker.exit_code is None:
            if time.monotonic() > deadline:
                raise Refused(
                    f"SIGTERM, and the worker had not ended {allowed:g} s later; its grace is {self.harness.grace:g} s."
                    f" Does stop() return, whatever the other system does? Its threads:\n{worker.stacks()}"
                )
            self._pause(worker)
        if worker.exit_code != 0:
            raise Refused(
                f"after SIGTERM the worker ended with exit code {worker.exit_code}, not 0:\n{worker.last_lines()}"
            )

    def running(self) -> list[Worker]:
        """Return the workers that run."""
        return [worker for worker in self._workers if worker.exit_code is None]

    # Gates for workflows and hand-overs

    def hold_work(self, on: bool) -> None:
        """Have workflows of messages that say "hold" wait, or let them go on."""
        _switch(self.harness.folder / "hold", on)

    def hold_hand_overs(self, on: bool) -> None:
        """Have hand-overs wait before they reach Postgres, or let them go on."""
        _switch(self.harness.folder / "gate", on)

    # Messages

    def make(self, count: int, do: str = "finish") -> list[Work]:
        """Return new messages."""
        return [Work(f"m{next(self._numbers):04}", do) for _ in range(count)]  # type: ignore[arg-type]

    def send(self, count: int = 1, do: str = "finish") -> list[Work]:
        """Send new messages, one after the other, and return them."""
        return [self.send_one(work) for work in self.make(count, do)]

    def send_one(self, work: Work) -> Work:
        """Send this one. A push message that is not acknowledged is kept, as its sender keeps it, for `send_due`."""
        if self.kind == "clock":
            work = self.harness.tick(work)
            self.sent.append(work)
            return work
        self.sent.append(work)
        if self.kind == "push":
            self._push(work)
        else:
            self.harness.send(work)
        return work

    def _push(self, work: Work) -> bool | None:
        answer = self.harness.send(work)
        if answer is not True:
            with self._turn:
                self._unanswered.append(work)
                self.refusals += answer is False
                self.silences += answer is None
        return answer

    def send_due(self) -> None:
        """push: send once more what was not acknowledged, as the sender does."""
        with self._turn:
            due, self._unanswered = self._unanswered, []
        for work in due:
            self._push(work)

    def redeliver(self, works: Sequence[Work]) -> None:
        """Have these messages delivered once more, although they were acknowledged."""
        if self.kind == "push":
            for work in works:
                self._push(work)
        else:
            self.harness.redeliver(works)

    def unacknowledged(self) -> int | None:
        """Return how many messages are not acknowledged; None when nobody can tell."""
        if self.kind == "push":
            return len(self._unanswered)
        return self.harness.unacknowledged() if self.kind == "pull" else None

    # Facts

    def done(self) -> Counter[str]:
        """Return how often the workflow of each message has done its work."""
        return Counter(key for (key,) in self._facts.execute("select key from kit_done"))

    def workflows(self, *statuses: str) -> list[WorkflowInfo]:
        """Return the workflows in one of `statuses`; all of them without. Children are left out."""
        found: list[WorkflowInfo] = []
        for status in statuses or (None,):
            cursor = None
            while True:
                page = self.log.list(status=status, limit=500, cursor=cursor)
                found += [info for info in page.items if info.parent is None]
                cursor = page.next_cursor
                if cursor is None:
                    break
        return found

    # Waiting and judging

    def wait(self, fact: Callable[[], object], what: str, *workers: Worker, at_least: float = 0.0) -> None:
        """Wait for what must happen; refuses after the harness's patience, with the workers' last lines.

        Senders that had no answer go on trying meanwhile.
        """
        patience = max(self.harness.patience, at_least)
        deadline = time.monotonic() + patience
        while not fact():
            if self.kind == "push":
                self.send_due()
            if time.monotonic() > deadline:
                logs = "".join(f"\n{worker.last_lines()}" for worker in workers or self.running())
                raise Refused(f"waited {patience:g} s in vain for {what}{logs}")
            self._pause(*workers)

    def watch(self, wrong: Callable[[], object], seconds: float = WATCH) -> bool:
        """Watch for what must not happen; returns True as soon as it does."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if wrong():
                return True
            self._pause()
        return bool(wrong())

    def _pause(self, *workers: Worker) -> None:
        if workers:
            with workers[0].changed:
                workers[0].changed.wait(_LOOK)
        else:
            threading.Event().wait(_LOOK)

    def wait_done(self, works: Iterable[Work], what: str) -> None:
        """Wait until the workflow of each of these has done its work; refuses those that are lost."""
        keys = {work.key for work in works}
        deadline = time.monotonic() + self.harness.patience
        while missing := keys - set(self.done()):
            if self.kind == "push":
                self.send_due()
            if time.monotonic() > deadline:
                logs = "".join(f"\n{worker.last_lines()}" for worker in self.running())
                raise Refused(
                    f"{len(missing)} of {len(keys)} messages were never processed ({_some(missing)}): {what}{logs}"
                )
            self._pause(*self.running())

    def settle(self, works: Iterable[Work], what: str) -> None:
        """Wait until these are done and nothing is on its way any more; refuses what was lost or done twice."""
        expected = list(works)
        self.wait_done(expected, what)
        # What may still be on its way is behind this one, or goes beside it.
        if self.running():
            marker = self.send(1)
            self.wait_done(marker, f"a message that was sent after that: {what}")
        # A sign that nothing is on its way any more. That it must come is a clause of its own.
        self.watch(lambda: self._all_sent() and self.unacknowledged() in (0, None))
        self.wait(lambda: not self.workflows(*OPEN), "the end of every workflow")
        self.check_once(what)

    def wait_acknowledged(self) -> None:
        """Wait until every message is acknowledged, if anybody can tell."""
        if self.unacknowledged() is not None:
            self.wait(
                lambda: self.unacknowledged() == 0,
                "the acknowledgement of messages that are in Postgres",
            )

    def _all_sent(self) -> bool:
        if self.kind == "push":
            self.send_due()
        return True

    def check_once(self, what: str) -> None:
        """Refuse messages that were processed more than once."""
        doubled = {key for key, times in self.done().items() if times > 1}
        if doubled:
            ids = [info.id for info in self.workflows()]
            raise Refused(
                f"{len(doubled)} messages were processed more than once ({_some(doubled)}): {what}. The IDs of all "
                f"workflows: {_some(ids, 6)}"
            )

    @contextlib.contextmanager
    def traffic(self) -> Iterator[list[Work]]:
        """Send messages one after the other, in the background, as long as the block runs."""
        going: list[Work] = []
        over = threading.Event()
        failed: list[BaseException] = []

        def go() -> None:
            try:
                while not over.is_set():
                    going.extend(self.send(1))
                    over.wait(_LOOK)
            except BaseException as error:
                failed.append(error)

        thread = threading.Thread(target=go, name="refold-kit-traffic", daemon=True)
        thread.start()
        try:
            yield going
        finally:
            over.set()
            thread.join(self.harness.patience)
        if failed:
            raise failed[0]


def _switch(file: Path, on: bool) -> None:
    if on:
        file.touch()
    else:
        file.unlink(missing_ok=True)


def _some(names: Iterable[str], count: int = 3) -> str:
    listed = sorted(names)
    more = f" and {len(listed) - count} more" if len(listed) > count else ""
    return ", ".join(listed[:count]) + more


__all__ = ["OPEN", "SET_ASIDE", "WATCH", "Refused", "Stage"]
