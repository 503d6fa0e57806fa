"""The errors a user of refold can meet: one root, one class for each different reaction.

Every message says what was found, what was expected, where, and the next move. Every class takes its facts as
constructor arguments and hands all of them to `Exception.__init__`, so that it survives pickling and the
round trip through the log.
"""

from typing import Final

_CHANGING: Final = "docs/changing-workflows.md"


class RefoldError(Exception):
    """Root of every error that refold raises on purpose."""


class Evicted(BaseException):
    """Raised inside workflow code that is being dropped from memory; never catch it without raising it again.

    It is no `Exception`, so that `except Exception:` lets it through. What runs on the way out (`finally`,
    `with`) can still do things of its own, such as printing, but every refold call in it raises `Evicted`
    before it does anything.
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
