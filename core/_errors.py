"""The errors a user of refold can meet: one root, one class for each different reaction.

Every message says what was found, what was expected, where, and the next move. Every class takes its facts as
constructor arguments and hands all of them to `Exception.__init__`, so that it survives pickling and the
round trip through the log.
"""

import asyncio
from datetime import timedelta
from typing import Final

from refold.eventlog import RefoldError as RefoldError  # the root of all floors; core shows it as its own

_CHANGING: Final = "docs/changing-workflows.md"


def show_span(span: timedelta) -> str:
    """Return a span as a person says it: `3 days`, `2.5 s`, `1 day, 2:00:00`."""
    if span < timedelta(minutes=1):
        return f"{span.total_seconds():g} s"
    return str(span).removesuffix(", 0:00:00")


class Evicted(BaseException):
    """Raised inside workflow code that is being dropped from memory; never catch it without raising it again.

    It is no `Exception`, so that `except Exception:` lets it through. What runs on the way out (`finally`,
    `with`) can still do things of its own, such as printing, but every refold call in it raises `Evicted`
    before it does anything.
    """


class Cancelled(asyncio.CancelledError):
    """Raised in a `def` workflow, where it waits, when it was asked to cancel; its text is the reason.

    In `async def` workflows asyncio's own `CancelledError` is raised, of which this is a subclass: one `except` serves
    both. It is no `Exception`, so that `except Exception:` lets it through. What runs on the way out (`finally`,
    `except`) may call steps, sleep, send: that is how work is undone. Code that catches it and goes on is not
    cancelled.
    """


class DefinitionRefused(RefoldError):
    """A step or workflow cannot be defined like this. Reaction: change its signature or options."""

    def __init__(self, where: str, found: str, fix: str) -> None:
        super().__init__(where, found, fix)
        self.where, self.found, self.fix = where, found, fix

    def __str__(self) -> str:
        return f"{self.where}: {self.found}. {self.fix}"


class ValueRefused(RefoldError):
    """A value would come back from the log as something else. Reaction: return or pass another type."""

    def __init__(self, where: str, found: str, fix: str) -> None:
        super().__init__(where, found, fix)
        self.where, self.found, self.fix = where, found, fix

    def __str__(self) -> str:
        return f"{self.where}: {self.found}. {self.fix}"


class DecodeFailed(RefoldError):
    """Bytes from outside do not fit the declared type. Reaction: send others, or widen the type."""

    def __init__(self, where: str, problem: str) -> None:
        super().__init__(where, problem)
        self.where, self.problem = where, problem

    def __str__(self) -> str:
        return (
            f"{self.where} does not fit the type that the code declares: {self.problem}. "
            "Send a value of that type, or declare a type that takes this one too."
        )


class WrongCall(RefoldError):
    """Something was called where it cannot work. Reaction: write the call that the message names."""

    def __init__(self, found: str, fix: str) -> None:
        super().__init__(found, fix)
        self.found, self.fix = found, fix

    def __str__(self) -> str:
        return f"{self.found}. {self.fix}"


class TimedOut(RefoldError, TimeoutError):
    """What was waited for did not come in time. Reaction: catch it and decide, or wait longer."""

    def __init__(self, where: str, after: str) -> None:
        super().__init__(where, after)
        self.where, self.after = where, after

    def __str__(self) -> str:
        return f"{self.where}: nothing came within {self.after}. Catch refold.TimedOut to go on without it."


class StepError(RefoldError):
    """A step (or child) failed with an error whose type the log cannot rebuild. Reaction: look at `type`.

    `type` is the original class as `module.qualname`, `message` its text. That it was not rebuildable is
    recorded, so a replay meets a `StepError` in the same place.
    """

    def __init__(self, type: str, message: str) -> None:
        super().__init__(type, message)
        self.type, self.message = type, message

    def __str__(self) -> str:
        return (
            f"{self.type}: {self.message} (given as StepError because {self.type} cannot be rebuilt from the log; "
            "an exception class at module level whose arguments are plain JSON values can)"
        )


class HistoryMismatch(RefoldError):
    """A recorded event is not what the code asks for. Reaction: bring back code that fits this history.

    `expected` is what the history holds at event `seq`, `got` what the code did instead, `diff` the difference
    in values, if there is one. The workflow is marked stuck, never failed, and goes on by itself when other
    code arrives.
    """

    def __init__(self, workflow_id: str, seq: int, expected: str, got: str, diff: str = "") -> None:
        super().__init__(workflow_id, seq, expected, got, diff)
        self.workflow_id, self.seq, self.expected, self.got, self.diff = workflow_id, seq, expected, got, diff

    def __str__(self) -> str:
        diff = f"\n{self.diff}\n" if self.diff else " "
        return (
            f"{self.workflow_id}, event {self.seq}: history says {self.expected}, but the code now {self.got}.{diff}"
            "A running workflow has met changed code. Keep the old order for old runs, or let them finish on the "
            f"last release: {_CHANGING}"
        )


class WorkflowIdReused(RefoldError):
    """An ID was used again for another workflow or another input. Reaction: choose another ID, or ask for the first.

    Only a person's code gets this; a source's identity decides alone.
    """

    def __init__(self, workflow_id: str, found: str, asked: str) -> None:
        super().__init__(workflow_id, found, asked)
        self.workflow_id, self.found, self.asked = workflow_id, found, asked

    def __str__(self) -> str:
        return (
            f"workflow ID {self.workflow_id!r} belongs to {self.found}; it was used again for {self.asked}. "
            "Choose another ID, or get the first one with app.get(id)."
        )


class WorkflowNotFound(RefoldError):
    """No workflow has this ID. Reaction: look at the IDs that are near it."""

    def __init__(self, workflow_id: str, nearest: tuple[str, ...] = ()) -> None:
        super().__init__(workflow_id, nearest)
        self.workflow_id, self.nearest = workflow_id, tuple(nearest)

    def __str__(self) -> str:
        near = f"the nearest: {', '.join(self.nearest)}" if self.nearest else "there are no others like it"
        return f"no workflow has the ID {self.workflow_id!r}; {near}.\nSee what there is: refold list"


class WorkflowEnded(RefoldError):
    """A message or a deletion does not fit the state of its workflow. Reaction: look at its history first."""

    def __init__(self, workflow_id: str, status: str, what: str) -> None:
        super().__init__(workflow_id, status, what)
        self.workflow_id, self.status, self.what = workflow_id, status, what

    def __str__(self) -> str:
        return (
            f"workflow {self.workflow_id!r} is {self.status}: {self.what}.\n"
            f"See its history: refold show {self.workflow_id}"
        )


class WorkflowDeleted(RefoldError):
    """The history was deleted, and with it the result; the ID stays taken. Reaction: don't ask, or keep it longer."""

    def __init__(self, workflow_id: str) -> None:
        super().__init__(workflow_id)
        self.workflow_id = workflow_id

    def __str__(self) -> str:
        return (
            f"the history of workflow {self.workflow_id!r} was deleted; only its ID is kept, so that it never starts "
            "twice. Keep histories as long as somebody asks for their results."
        )


class NotAccepted(RefoldError):
    """Messages could not be made durable in time. Reaction: tell their sender so, and let it send them again.

    What had not left this process is taken back. What was on its way may still be done; the sender's next try then
    finds it there.
    """

    def __init__(self, label: str, count: int, why: str) -> None:
        super().__init__(label, count, why)
        self.label, self.count, self.why = label, count, why

    def __str__(self) -> str:
        return (
            f"{self.count} message(s) for {self.label} were not accepted: {self.why}. Answer the sender that it failed "
            "(over HTTP: 503), so that it sends them again; under the same identity they are started once."
        )


class WorkflowCancelled(RefoldError):
    """The workflow was cancelled, so it has no result. Reaction: find out by `reason` who wanted that."""

    def __init__(self, workflow_id: str, reason: str = "") -> None:
        super().__init__(workflow_id, reason)
        self.workflow_id, self.reason = workflow_id, reason

    def __str__(self) -> str:
        why = f": {self.reason}" if self.reason else ""
        return (
            f"workflow {self.workflow_id!r} was cancelled{why}. It has no result; start it again under another ID, "
            f"or see what it had done: refold show {self.workflow_id}"
        )


class WorkflowNotParked(RefoldError):
    """Only a parked workflow can be retried or skipped. Reaction: look at it again, somebody may have been first."""

    def __init__(self, workflow_id: str, status: str, asked: str) -> None:
        super().__init__(workflow_id, status, asked)
        self.workflow_id, self.status, self.asked = workflow_id, status, asked

    def __str__(self) -> str:
        return (
            f"workflow {self.workflow_id!r} is {self.status}, and only a parked one can be {self.asked}.\n"
            f"See what became of it: refold show {self.workflow_id}"
        )


class WorkflowSkipped(RefoldError):
    """A workflow that killed its workers was ended by a person. Reaction: look at the step that it was in."""

    def __init__(self, workflow_id: str, why: str) -> None:
        super().__init__(workflow_id, why)
        self.workflow_id, self.why = workflow_id, why

    def __str__(self) -> str:
        return (
            f"workflow {self.workflow_id!r} was parked ({self.why}) and then skipped by a person. "
            f"See where it was: refold show {self.workflow_id}"
        )


class InvalidId(RefoldError):
    """A workflow ID can't be stored. Reaction: choose one of 1 to 512 bytes without control characters."""

    def __init__(self, workflow_id: str, problem: str) -> None:
        super().__init__(workflow_id, problem)
        self.workflow_id, self.problem = workflow_id, problem

    def __str__(self) -> str:
        shown = self.workflow_id if len(self.workflow_id) < 80 else self.workflow_id[:77] + "..."
        return (
            f"workflow ID {shown!r} {self.problem}. An ID has 1 to 512 bytes of UTF-8, no control characters, "
            "and does not begin with source:, schedule: or queue:."
        )
