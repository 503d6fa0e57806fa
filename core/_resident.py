"""A workflow that this worker owns and holds in memory: its driver, and what of it is on the way to the log."""

from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Any

from refold.core._commands import RunStep
from refold.core._definitions import Workflow
from refold.core._driver import Instance
from refold.core._retry import NONE
from refold.eventlog._events import CancelRequested, Recorded
from refold.eventlog._log import Append


@dataclass(slots=True, eq=False)
class StepCall:
    """One attempt at a step, on its way through a thread or a loop. Compared by identity: a late one is dropped."""

    workflow_id: str
    workflow_name: str
    command: RunStep
    attempt: int
    failures: int = 0  # recorded ones before this attempt, since a person retried it
    over: bool = False  # nobody waits for its outcome any more
    timed_out: bool = False
    handle: Any = None  # asyncio.Task of an async step, once it runs


@dataclass(slots=True, eq=False)
class Resident:
    """All that the executor knows of one workflow in memory. Touched on the engine's thread only."""

    id: str
    workflow: Workflow[..., Any]
    instance: Instance
    source: str | None = None
    parent: str | None = None
    parent_no: int | None = None
    parks: bool = False  # an error out of it parks it
    ordered: bool = False  # others may be behind it
    next_seq: int = 0
    durable_seq: int = 0
    last_at: int = 0
    part: Append | None = None  # rows that wait for the next flush
    in_flight: Append | None = None  # rows of the flush on the wire
    news: list[Recorded] = field(default_factory=list)  # appended, to be told to observers when durable
    allowed_after: list[tuple[int, RunStep]] = field(default_factory=list)  # steps, and the seq they wait for
    running: dict[int, StepCall] = field(default_factory=dict)
    unstarted: dict[int, RunStep] = field(
        default_factory=dict
    )  # asked for and neither running nor to be retried
    timers: dict[int, int] = field(default_factory=dict)  # no -> until
    # no -> when, and what; during a replay the code has not asked for it yet (None).
    retries: dict[int, tuple[int, RunStep | None]] = field(default_factory=dict)
    failures: dict[int, int] = field(default_factory=dict)  # no -> recorded failed attempts
    undelivered: Collection[int] = NONE  # seqs that the code is not told of
    forgiven: dict[int, int] | None = (
        None  # no -> those failed attempts that a person's retry has put behind it
    )
    # no -> (workflow, ID, input) of a child that has not answered
    children: dict[int, tuple[str, str, bytes]] = field(default_factory=dict)
    watchers: list[tuple[str, int]] = field(default_factory=list)  # other parents that adopted this workflow
    history: list[Recorded] = field(default_factory=list)  # kept in always-replay mode only
    folded: set[str] = field(default_factory=set)  # message IDs in the stream
    cancelling: bool = False  # CancelRequested is in the stream
    # A cancel that waits in the inbox while it is replayed: should code and history differ, it ends by it.
    cancel_mail: tuple[str, CancelRequested] | None = None
    deaths: int = 0  # workers that died on it since its last event
    alone: bool = False
    held: list[Any] | None = None  # stimuli kept back while a transactional step has the next seq
    gives: list[Callable[[None], None]] = field(default_factory=list)  # of steps that queue for the next seq
    ended: bool = False  # finished, stuck or released: its head says so in the part
    evicting: bool = False
    parked: bool = False
    mail_missed: bool = False
    claimed_again: bool = False  # by this very worker, before it heard that the eviction was done
    idle_since: float = 0.0
    dead: bool = False  # dropped from memory

    def next_wake(self) -> int | None:
        """Return when its earliest timer or retry is due, None when only a message or child can wake it."""
        times = [*self.timers.values(), *(when for when, _ in self.retries.values())]
        return min(times) if times else None

    @property
    def idle(self) -> bool:
        """Whether nothing of it is going on in this worker: it waits for time or mail only."""
        return not (
            self.part is not None
            or self.in_flight is not None
            or self.running
            or self.allowed_after
            or self.held is not None
            or self.ended
        )
