"""What the kit has to be told of a connector to judge it; the author of the connector writes it."""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import ClassVar, Literal

from refold.core import App
from refold.testing._work import Work

Kind = Literal["pull", "push", "clock"]


class Harness:
    """One connector and the system that it takes messages from.

    The kit makes one object of the class in its own process, for the outer side: to open the system, and to do what
    its senders do. In each worker process that it starts it makes another one, for the inner side: to declare the
    connector there. The two have only `settings` in common: what `begin` returned.

    `kind` says who moves first. "pull": the connector fetches messages, or has them delivered, and acknowledges them.
    "push": a sender calls, waits for the answer, and calls again if there is none. "clock": nobody sends anything,
    time passes.
    """

    name: ClassVar[str]
    """What the report calls the connector."""
    kind: ClassVar[Kind]
    not_applicable: ClassVar[Mapping[str, str]] = {}
    """Clauses that make no sense for this connector, by name, and why, in a sentence. The report shows it."""
    max_in_flight: ClassVar[int | None] = None
    """How many runnable workflows `declare` allows the connector, 10 say; None when it knows no such bound."""
    redelivers_live: ClassVar[bool] = False
    """Whether `redeliver` works while workers run; if not, the kit stops them first. For "pull"."""
    can_refuse: ClassVar[bool] = True
    """Whether the protocol has an answer that refuses; if not, silence is the refusal. For "push"."""
    grace: ClassVar[float] = 5.0
    """Seconds that a worker is given after SIGTERM for what is in its hands. (What the kit waits is more.)"""
    patience: ClassVar[float] = 60.0
    """Seconds that the kit waits for what must happen. Only a connector that is refused costs them."""

    def __init__(self, folder: Path) -> None:
        """`folder` is the kit's, the same for both sides, and removed at the end; a subclass needs no __init__."""
        self.folder = folder
        self.settings: dict[str, str] = {}
        """What `begin` returned, on both sides."""
        self.worker: int = -1
        """In a worker process: which one it is, 0 or 1; a worker that is started again has the number it had."""

    # The outer side: the system and its senders

    def open(self) -> None:
        """Start the system, or connect to it. Called once, before everything."""

    def close(self) -> None:
        """Stop what `open` started."""

    def begin(self) -> dict[str, str]:
        """Make an empty topic, queue or schedule that nobody has used, and return what `declare` needs to know of it.

        Called before each clause; no worker runs.
        """
        return {}

    def end(self) -> None:
        """Remove what `begin` made, if it is in the way. Called after each clause, when no worker runs any more."""

    def send(self, work: Work) -> bool | None:
        """Send a message whose identity is made of `work.key`, and whose body is `work.body` (or says the same).

        pull: return when the system has it for good; the result does not count. push: send it once, as the sender
        does, with the sender's own patience, and return True when the answer was an acknowledgement, False for an
        answer that refuses, None when there was no answer in time or at all. The kit sends what was not acknowledged
        again, as the sender would. Raises when the system itself fails; a worker that is away is no failure.
        """
        raise NotImplementedError

    def tick(self, work: Work) -> Work:
        """clock, instead of `send`: let one tick come due, and return the Work that its workflow performs.

        Its `key` is the tick's identity, and two ticks never have one key. `do` is `work.do` if the connector's
        workflow can know it; a harness that has no way lists the clauses with other work under `not_applicable`.
        """
        raise NotImplementedError

    def redeliver(self, works: Sequence[Work]) -> None:
        """pull: have the system deliver these messages again, although they were acknowledged, under their identity.

        As it does when an acknowledgement was lost, an operator resets a position, or a failover forgets one. (A
        second message with the same body is another message.) The system may deliver others again as well.
        """
        raise NotImplementedError

    def send_undecodable(self, key: str) -> bool | None:
        """Send a message whose body is no Work: bytes that are no JSON, say. Returns as `send` does."""
        raise NotImplementedError

    def unacknowledged(self) -> int | None:
        """pull: return how many messages the system holds that were not acknowledged; None when it can't tell."""
        return None

    # The inner side: a program with the connector in it

    def declare(self, app: App) -> None:
        """Declare workflow and connector on `app`, as a user's program does; the workflow returns `perform(work)`."""
        raise NotImplementedError

    def running(self, app: App) -> AbstractContextManager[object]:
        """Return what is entered when the worker is up, and left before it stops. push: the server of the endpoint."""
        return nullcontext()


__all__ = ["Harness", "Kind"]
