"""The body of a `def` workflow: greenlets that switch out to the driver when they wait, and back in for the answer.

A waiting `def` workflow is a few KB of saved stack and no thread. Greenlets cannot change threads, so an
instance is driven and closed on the thread that began it.
"""

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from contextvars import Context, copy_context
from datetime import timedelta
from typing import TYPE_CHECKING, Any, cast

from greenlet import getcurrent, greenlet

from refold.core._errors import Cancelled, Evicted, TimedOut, show_span
from refold.core._home import home

if TYPE_CHECKING:
    from refold.core._driver import Instance, Waiter


class Answer:
    """What a greenlet waits on: it is made ready when the answer comes."""

    __slots__ = ("_body", "_done", "error", "value", "waiting")

    def __init__(self, body: "GreenletBody") -> None:
        self._body = body
        self._done = False
        self.value: Any = None
        self.error: BaseException | None = None
        self.waiting: greenlet | _Tally | None = None

    def done(self) -> bool:
        return self._done

    def set_result(self, value: Any, /) -> None:
        self.value = value
        self._wake()

    def set_exception(self, error: BaseException, /) -> None:
        self.error = error
        self._wake()

    def _wake(self) -> None:
        self._done = True
        waiting, self.waiting = self.waiting, None
        if waiting is None:
            return
        if isinstance(waiting, _Tally):
            waiting.left -= 1
            if waiting.left and (self.error is None or not waiting.stops_at_errors):
                return
            woken, waiting.branch = waiting.branch, None  # once: a second error may come before it runs
            if woken is None:
                return
            waiting = woken
        self._body.ready.append(waiting)

    def result(self) -> Any:
        if self.error is not None:
            raise self.error
        return self.value


class _BranchAnswer(Answer):
    """The answer of a branch: the greenlet that it comes from is known, so that it can be cancelled."""

    __slots__ = ("branch",)

    branch: greenlet


class _Tally:
    """Several answers that one greenlet waits for: it is woken by the last, or by the first error."""

    __slots__ = ("branch", "left", "stops_at_errors")

    def __init__(self, branch: greenlet, left: int, stops_at_errors: bool) -> None:
        self.branch: greenlet | None = branch
        self.left = left
        self.stops_at_errors = stops_at_errors


class GreenletBody:
    """Runs a plain function and its branches until each of them waits or ends."""

    __slots__ = (
        "_branches",
        "_context",
        "_hub",
        "_instance",
        "_reason",
        "_to_cancel",
        "outcome",
        "ready",
    )

    def __init__(self, instance: "Instance") -> None:
        self._instance = instance
        self._context = Context()
        self._context.run(home.set, instance.home)
        self._hub: greenlet | None = None
        self._branches: list[greenlet] = []
        self._to_cancel: list[greenlet] = []
        self._reason = ""
        self.ready: list[greenlet] = []
        self.outcome: tuple[Any, BaseException | None] | None = None

    def new_waiter(self) -> Answer:
        return Answer(self)

    def start(self, fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        def main() -> None:
            try:
                value = fn(*args, **kwargs)
            except Evicted:
                raise
            except BaseException as exc:  # SystemExit and KeyboardInterrupt too: they fail the workflow alone
                self.outcome = (None, exc)
            else:
                self.outcome = (value, None)

        self._spawn(main, self._context)

    def begin_branch(self, fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Answer:
        answer = _BranchAnswer(self)

        def branch() -> None:
            try:
                value = fn(*args, **kwargs)
            except Evicted:
                raise
            except (Exception, Cancelled) as exc:
                answer.set_exception(exc)
            except BaseException as exc:
                self.outcome = (None, exc)
            else:
                answer.set_result(value)

        answer.branch = self._spawn(branch, copy_context())
        return answer

    def cancel(self, reason: str) -> None:
        """Raise Cancelled in the workflow's main code, where it waits, at the next drain."""
        self._reason = reason
        self._cancel_branch(self._branches[0])

    def _cancel_branch(self, branch: greenlet) -> None:
        self._to_cancel.append(branch)
        self.ready.append(branch)

    def drain(self) -> None:
        """Run what is ready until everything waits, or the workflow has ended."""
        host = asyncio._get_running_loop()
        if host is not None:
            asyncio._set_running_loop(None)
        self._hub = hub = getcurrent()
        mark = self._instance.home
        mark.instance = self._instance
        try:
            while self.ready:
                # A fresh list for what becomes ready meanwhile: a deque costs 600 bytes for as long as one waits.
                batch, self.ready = self.ready, []
                for branch in batch:
                    if branch.parent is not hub:
                        branch.parent = hub
                    if self._to_cancel and branch in self._to_cancel:
                        self._to_cancel.remove(branch)
                        if not branch.dead:
                            branch.throw(Cancelled(self._reason))
                    else:
                        branch.switch()
                    if self.outcome is not None:
                        return
        finally:
            mark.instance = None
            self._hub = None
            if host is not None:
                asyncio._set_running_loop(host)

    def wait(self, waiter: "Waiter") -> Any:
        """Wait, in the greenlet that calls, and return the answer or raise it."""
        answer = cast(Answer, waiter)
        me = getcurrent()
        try:
            while not answer._done:
                answer.waiting = me
                cast(greenlet, self._hub).switch()
        except Cancelled:
            answer.waiting = None
            raise
        return answer.result()

    def wait_all(
        self, waiters: "Sequence[Waiter]", stop: "Callable[[Waiter], bool]", *, return_exceptions: bool
    ) -> tuple[Any, ...]:
        """Wait for all; unless exceptions are to be returned, the first to come is raised at once.

        When the code that waits is cancelled, so is all that it waits for: branches here, the rest by `stop`, which
        says whether an end is still to come. Cancelled is raised when all of them have ended.
        """
        answers = cast("Sequence[Answer]", waiters)
        open_ = [answer for answer in answers if not answer._done]
        failed = [a for a in answers if a._done and a.error is not None] if not return_exceptions else []
        if open_ and not failed:
            tally = _Tally(getcurrent(), len(open_), not return_exceptions)
            for answer in open_:
                answer.waiting = tally
            try:
                while tally.branch is not None:
                    cast(greenlet, self._hub).switch()
            except Cancelled:
                for answer in open_:
                    answer.waiting = None
                self._end_all([answer for answer in open_ if not answer._done], stop)
                raise
            failed = [a for a in answers if a.error is not None] if not return_exceptions else []
            for answer in open_:
                answer.waiting = None
        if failed:
            raise cast(BaseException, failed[0].error)
        return tuple(a.error if a.error is not None else a.value for a in answers)

    def _end_all(self, answers: "Sequence[Answer]", stop: "Callable[[Waiter], bool]") -> None:
        """Cancel what a cancelled gather waits for and wait for its end; raise what a branch makes of it, if an error.

        That is mostly compensation that failed, which nobody else would hear of.
        """
        branches = [answer for answer in answers if isinstance(answer, _BranchAnswer)]
        ending: list[Answer] = [*branches]
        for answer in answers:
            if isinstance(answer, _BranchAnswer):
                self._cancel_branch(answer.branch)
            elif stop(answer):
                ending.append(answer)
        if ending:
            tally = _Tally(getcurrent(), len(ending), stops_at_errors=False)
            for answer in ending:
                answer.waiting = tally
            while tally.branch is not None:
                cast(greenlet, self._hub).switch()
        for answer in branches:
            if isinstance(answer.error, Exception):
                raise answer.error

    def wait_end(self, waiter: "Waiter") -> None:
        """Wait until the answer is there, whatever it is."""
        answer = cast(Answer, waiter)
        while not answer._done:
            answer.waiting = getcurrent()
            cast(greenlet, self._hub).switch()

    def wait_for(self, waiter: "Waiter", until: int | None, what: str) -> Any:
        """Wait until the answer comes or the log's clock reaches `until`; then raise TimedOut."""
        if until is None or waiter.done():
            return self.wait(waiter)
        instance = self._instance
        answer, timer = cast(Answer, waiter), Answer(self)
        no = instance._next_no
        before = instance.now
        if until > before:
            instance.ask_timer(until, timer)
            me = getcurrent()
            try:
                while not answer._done and not timer._done:
                    answer.waiting = timer.waiting = me
                    cast(greenlet, self._hub).switch()
            finally:
                answer.waiting = timer.waiting = None
                instance.cancel(no)
        if answer._done:
            return answer.result()
        raise TimedOut(what, show_span(timedelta(microseconds=until - before)))

    def has_branches(self) -> bool:
        return any(not branch.dead for branch in self._branches)

    def tell_unheard(self) -> None:
        """Nothing: every branch was given to a gather, which has heard it or has raised before."""

    def close(self) -> None:
        """Throw Evicted into every greenlet that still lives, in its own context."""
        hub = getcurrent()
        host = asyncio._get_running_loop()
        if host is not None:
            asyncio._set_running_loop(None)
        try:
            self.ready.clear()
            self._to_cancel.clear()
            for branch in self._branches:
                if not branch.dead:
                    branch.parent = hub
                    # Evicted comes back, or what a `finally` made of it: nobody is left to tell.
                    with contextlib.suppress(BaseException):
                        branch.throw(Evicted)
            self._branches = []
            self.outcome = None
        finally:
            if host is not None:
                asyncio._set_running_loop(host)

    def _spawn(self, run: Callable[[], None], context: Context) -> greenlet:
        branch = greenlet(run, self._hub)
        branch.gr_context = context
        branches = self._branches
        branches.append(branch)
        if len(branches) >= 64 and len(branches) & (len(branches) - 1) == 0:
            self._branches = [b for b in branches if not b.dead]
        self.ready.append(branch)
        return branch
