"""The body of an `async def` workflow: an event loop that has a ready queue and durable timers, and nothing else.

`asyncio.gather`, `TaskGroup`, `wait`, `timeout`, `sleep` and their kin are asyncio's own and run on it. Where
asyncio by itself is not deterministic, the loop makes it so: its tasks and futures hash by the workflow's ID
and a counter instead of their address, so that sets of them iterate alike in every process; `as_completed`
starts its coroutines in the order in which they were given; `time()` is the time of the last event.
"""

import asyncio
import asyncio.tasks
import inspect
import sys
from asyncio import Handle, TimerHandle
from collections.abc import AsyncGenerator, Callable, Coroutine
from contextvars import Context, copy_context
from types import FrameType
from typing import TYPE_CHECKING, Any, Final, NoReturn, TypeVarTuple, cast
from zlib import crc32

from refold.core._errors import Evicted, WrongCall
from refold.core._home import home

if TYPE_CHECKING:
    from refold.core._driver import Instance

Ts = TypeVarTuple("Ts")

_ASYNCIO_TASKS: Final = vars(asyncio.tasks)
_CLOSE_TRIES: Final = 100
_HASH_MASK: Final = (1 << 61) - 1


class _Handle(Handle):
    """A callback in the ready queue. Leaner than asyncio's: no debug mode."""

    __slots__ = ()
    _callback: Callable[..., Any]
    _context: Context
    _loop: "LoopBody"

    def __init__(
        self, callback: Callable[..., Any], args: tuple[Any, ...], loop: "LoopBody", context: Context
    ) -> None:
        self._callback = callback
        self._args = args
        self._cancelled = False
        self._loop = loop
        self._source_traceback = None
        self._repr = None
        self._context = context

    def cancel(self) -> None:
        self._cancelled = True


class _TimerHandle(TimerHandle):
    """A durable timer, and the waiter of its command."""

    __slots__ = ("_no",)
    _callback: Callable[..., Any]
    _context: Context
    _loop: "LoopBody"

    def __init__(
        self,
        when: float,
        callback: Callable[..., Any],
        args: tuple[Any, ...],
        loop: "LoopBody",
        context: Context,
    ) -> None:
        self._callback = callback
        self._args = args
        self._cancelled = False
        self._loop = loop
        self._source_traceback = None
        self._repr = None
        self._context = context
        self._when = when
        self._scheduled = True
        self._no = -1

    def cancel(self) -> None:
        if not self._cancelled:
            self._cancelled = True
            if self._no >= 0:
                self._loop._instance.cancel(self._no)

    def done(self) -> bool:
        return self._cancelled

    def set_result(self, value: Any, /) -> None:
        self._no = -1
        self._loop.ready.append(self)

    def set_exception(self, error: BaseException, /) -> NoReturn:
        raise AssertionError("a timer does not fail")


class _Future(asyncio.Future[Any]):
    """A future whose hash is the same in every process that runs this workflow."""

    def __init__(self, loop: "LoopBody") -> None:
        self._hash = loop.next_hash()  # before the base class, which may put it into a set
        super().__init__(loop=loop)

    def __hash__(self) -> int:
        return self._hash


class _Task(asyncio.Task[Any]):
    """A task whose hash and name are the same in every process that runs this workflow."""

    def __init__(
        self, coro: Any, loop: "LoopBody", *, name: str | None, context: Context, **options: Any
    ) -> None:
        self._hash = loop.next_hash()  # before the base class, which puts it into a WeakSet of all tasks
        self._own_context = context  # Python 3.11 has no Task.get_context
        super().__init__(
            coro, loop=loop, name=name if name is not None else str(loop.births), context=context, **options
        )

    def __hash__(self) -> int:
        return self._hash


class LoopBody(asyncio.AbstractEventLoop):
    """The event loop of one `async def` workflow."""

    def __init__(self, instance: "Instance") -> None:
        self._instance = instance
        # A bare counter would give the tasks of all workflows the same few hashes, and asyncio keeps all in one set.
        self._salt = crc32(instance.workflow_id.encode("utf-8", "surrogatepass")) << 29
        self._context = Context()
        self._context.run(home.set, instance.home)
        self._tasks: list[_Task] = []
        self._prune_at = 64
        self._generators: list[AsyncGenerator[Any, Any]] = []
        self._early: dict[int, _Task] | None = None
        self._driven = False
        self._closed = False
        self.births = 0
        self.ready: list[_Handle | _TimerHandle] = []
        self.outcome: tuple[Any, BaseException | None] | None = None

    # What the driver calls.

    def new_waiter(self) -> "asyncio.Future[Any]":
        # Seen by nobody but the coroutine of one refold call, so it needs no hash of its own; the exact C type
        # takes the fast path through Task.
        return asyncio.Future(loop=self)

    def start(self, fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._new_task(self._main(fn, args, kwargs), None, self._context)

    async def _main(self, fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        try:
            value = await fn(*args, **kwargs)
        except (Evicted, GeneratorExit):
            raise
        except BaseException as exc:  # SystemExit and KeyboardInterrupt too: they fail the workflow alone
            self.outcome = (None, exc)
        else:
            self.outcome = (value, None)

    def drain(self) -> None:
        """Run what is ready until everything waits, or the workflow has ended."""
        host = self._enter()
        try:
            while self.ready:
                # A fresh list for what becomes ready meanwhile: a deque costs 600 bytes for as long as one waits.
                batch, self.ready = self.ready, []
                for handle in batch:
                    if handle._cancelled:
                        continue
                    try:
                        handle._context.run(handle._callback, *handle._args)
                    except (SystemExit, KeyboardInterrupt) as exc:
                        self.outcome = (None, exc)
                    except BaseException as exc:
                        self.call_exception_handler({"message": "a callback raised", "exception": exc})
                    if self.outcome is not None:
                        return
        finally:
            self._leave(host)

    def _enter(self) -> tuple[Any, Any, Any]:
        """Make this thread's running loop, current task and async generator hooks this loop's; return the old ones."""
        instance = self._instance
        instance.home.instance = instance
        host = _get_running_loop()
        host_task = _take_current_task(host)
        hooks = sys.get_asyncgen_hooks()
        _set_running_loop(self)
        sys.set_asyncgen_hooks(self.hold_generator, _leave_alone)
        self._driven = True
        return host, host_task, hooks

    def _leave(self, before: tuple[Any, Any, Any]) -> None:
        host, host_task, hooks = before
        self._driven = False
        sys.set_asyncgen_hooks(*hooks)
        _set_running_loop(host)
        if host_task is not None and _swap_current_task is not None:
            _swap_current_task(host, host_task)
        self._instance.home.instance = None

    def cancel(self, reason: str) -> None:
        """Cancel the workflow's main task, as asyncio does it, at the next drain."""
        self._tasks[0].cancel(reason)

    @property
    def is_cancelling(self) -> bool:
        """Whether the main task was cancelled, and has not called `uncancel` since."""
        return self._tasks[0].cancelling() > 0

    def has_branches(self) -> bool:
        return any(not task.done() for task in self._tasks[1:])

    def tell_unheard(self) -> None:
        """Log the errors of tasks that nobody awaited, as asyncio does when it drops such a task."""
        for task in self._tasks:
            if task.done() and task._log_traceback:
                self.call_exception_handler(
                    {"message": "Task exception was never retrieved", "exception": task.exception()}
                )

    def close(self) -> None:
        """Close every coroutine and async generator that still lives, in its own context."""
        if self._closed:
            return
        self._closed = True
        tasks, self._tasks = [task for task in self._tasks if not task.done()], []
        generators, self._generators = self._generators, []
        if tasks or generators:
            before = self._enter()
            try:
                for task in tasks:
                    task._own_context.run(_close_coroutine, cast("Coroutine[Any, Any, Any]", task.get_coro()))
                for generator in generators:
                    self._context.run(_close_generator, generator)
                for task in tasks:
                    # Takes the task out of what it waits for, and what it waits for out of the task: no cycle is
                    # left for the garbage collector. The loop is closed, so nothing is scheduled by it.
                    task.cancel()
            finally:
                self._leave(before)
        self.ready.clear()
        self.outcome = None

    def next_hash(self) -> int:
        self.births = births = self.births + 1
        return (self._salt ^ (births * 0x9E3779B97F4A7C15)) & _HASH_MASK

    def hold_generator(self, generator: AsyncGenerator[Any, Any]) -> None:
        """Keep an async generator until the workflow ends, so that the garbage collector never ends it."""
        held = self._generators
        if len(held) >= 64 and len(held) & (len(held) - 1) == 0:
            self._generators = held = [g for g in held if g.ag_frame is not None]  # type: ignore[attr-defined]
        held.append(generator)

    # asyncio's loop interface, as far as it is deterministic.

    def call_soon(
        self, callback: Callable[[*Ts], object], *args: *Ts, context: Context | None = None
    ) -> Handle:
        handle = _Handle(callback, args, self, context if context is not None else copy_context())
        if not self._closed:
            self.ready.append(handle)
        return handle

    def call_later(
        self, delay: float, callback: Callable[[*Ts], object], *args: *Ts, context: Context | None = None
    ) -> TimerHandle:
        return self._call_at(self._instance.now + round(delay * 1_000_000), callback, args, context)

    def call_at(
        self, when: float, callback: Callable[[*Ts], object], *args: *Ts, context: Context | None = None
    ) -> TimerHandle:
        return self._call_at(round(when * 1_000_000), callback, args, context)

    def _call_at(
        self, until: int, callback: Callable[..., object], args: tuple[Any, ...], context: Context | None
    ) -> TimerHandle:
        if self._closed:
            raise Evicted
        instance = self._instance
        handle = _TimerHandle(
            until / 1_000_000, callback, args, self, context if context is not None else copy_context()
        )
        if until <= instance.now:
            self.ready.append(handle)  # no time passes: no timer
        else:
            handle._no = instance._next_no
            instance.ask_timer(until, handle)
        return handle

    def time(self) -> float:
        """The time of the last event delivered, in seconds since 1970 UTC: it stands still while the code runs."""
        return self._instance.now / 1_000_000

    def create_future(self) -> "asyncio.Future[Any]":
        caller = sys._getframe(1)
        if caller.f_code.co_name == "_wait" and caller.f_globals is _ASYNCIO_TASKS:
            for awaited in caller.f_locals.get("fs", ()):
                if not isinstance(awaited, _Task | _Future):
                    raise WrongCall(
                        f"asyncio.wait was given a {type(awaited).__name__}, and would look at it in the order of "
                        "memory addresses, which a replay cannot repeat",
                        "Wrap it in an async function and give asyncio.wait a task of that (asyncio.create_task).",
                    )
        return _Future(self)

    def create_task(
        self, coro: Any, *, name: str | None = None, context: Context | None = None, **options: Any
    ) -> Any:
        if self._closed:
            coro.close()
            raise Evicted
        caller = sys._getframe(1)
        if caller.f_globals is _ASYNCIO_TASKS and (frame := _find_as_completed(caller)) is not None:
            return self._as_completed_task(coro, frame)
        return self._new_task(coro, name, context if context is not None else copy_context(), **options)

    def _new_task(self, coro: Any, name: str | None, context: Context, **options: Any) -> _Task:
        task = _Task(coro, self, name=name, context=context, **options)
        task._log_destroy_pending = False  # type: ignore[attr-defined]  # eviction is no mistake of the user's
        tasks = self._tasks
        tasks.append(task)
        if len(tasks) > self._prune_at:
            self._tasks = [tasks[0], *(t for t in tasks[1:] if not t.done())]
            self._prune_at = 64 + 2 * len(self._tasks)
        return task

    def _as_completed_task(self, coro: Any, frame: FrameType) -> _Task:
        """Return the task of one coroutine of an `asyncio.as_completed` call.

        asyncio makes a set of the coroutines it is given and starts them in the order of their addresses, which
        no other process repeats. So at the first of them, tasks are made for all, in the order of the call.
        """
        early = self._early
        if early is None or id(coro) not in early:
            given = frame.f_locals.get("aws" if "aws" in frame.f_locals else "fs")
            if not isinstance(given, list | tuple):
                for awaitable in given if isinstance(given, set | frozenset) else [coro]:
                    if asyncio.iscoroutine(awaitable):
                        awaitable.close()  # or Python warns that it was never awaited
                raise WrongCall(
                    f"asyncio.as_completed was given a {type(given).__name__} of coroutines, and would start them "
                    "in the order of memory addresses, which a replay cannot repeat",
                    "Give it a list.",
                )
            early = self._early = {}
            context = copy_context()
            for awaitable in given:
                if asyncio.iscoroutine(awaitable) and id(awaitable) not in early:
                    early[id(awaitable)] = self._new_task(awaitable, None, context.copy())
        task = early.pop(id(coro))
        if not early:
            self._early = None
        return task

    def is_running(self) -> bool:
        return self._driven

    def is_closed(self) -> bool:
        return self._closed

    def get_debug(self) -> bool:
        return False

    def get_task_factory(self) -> None:
        return None

    def get_exception_handler(self) -> None:
        return None

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        if not self._closed and not self._instance.replaying:
            from refold.core._driver import _log

            _log.error(
                "workflow: %s",
                context.get("message"),
                exc_info=context.get("exception"),
                extra={"workflow": self._instance.workflow_id},
            )

    def default_exception_handler(self, context: dict[str, Any]) -> None:
        self.call_exception_handler(context)


# Python 3.12 and later; 3.14 keeps one current task a thread, not one a loop, so the host's must step aside.
_get_running_loop: Final = asyncio._get_running_loop
_set_running_loop: Final = asyncio._set_running_loop
_swap_current_task: Callable[[Any, Any], Any] | None = getattr(asyncio.tasks, "_swap_current_task", None)


def _take_current_task(host: asyncio.AbstractEventLoop | None) -> asyncio.Task[Any] | None:
    """Return the task that `host` is running, which from now on it is not; None when it runs a plain callback."""
    if host is None or _swap_current_task is None or asyncio.current_task(host) is None:
        return None  # asked first: where there is none, Python 3.12 raises KeyError for taking it away
    return _swap_current_task(host, None)  # type: ignore[no-any-return]


def _leave_alone(generator: AsyncGenerator[Any, Any]) -> None:
    """The loop holds every generator until it is closed, so none is ever finalized before."""


def _find_as_completed(frame: FrameType | None) -> FrameType | None:
    """Return the frame of `asyncio.as_completed` among the callers inside asyncio.tasks, if there is one."""
    while frame is not None and frame.f_globals is _ASYNCIO_TASKS:
        if (
            frame.f_code.co_name == "as_completed"
            or frame.f_code.co_qualname == "_AsCompletedIterator.__init__"
        ):
            return frame
        frame = frame.f_back
    return None


def _close_coroutine(coro: Coroutine[Any, Any, Any]) -> None:
    if inspect.getcoroutinestate(coro) == inspect.CORO_CREATED:
        coro.close()  # nothing of it runs
        return
    # Evicted is thrown, and not GeneratorExit by close(): one that awaits again on its way out is then still
    # suspended as a whole, and the next throw goes on; close() would give up on the inner part and leave it to
    # the garbage collector.
    for _ in range(_CLOSE_TRIES):
        try:
            coro.throw(Evicted())
        except BaseException:  # Evicted itself, or what a `finally` made of it: nobody is left to tell
            return
    _CLINGING.append(coro)


def _close_generator(generator: AsyncGenerator[Any, Any]) -> None:
    closing: Any = generator.aclose()
    try:
        closing.send(None)
        for _ in range(_CLOSE_TRIES):
            closing.throw(Evicted())
    except BaseException:
        return
    _CLINGING.append(closing)


# Code that catches Evicted and waits again, every time. It is kept for ever, so that no garbage collector runs it.
_CLINGING: Final[list[Any]] = []


_REFUSED: Final = {
    "run_in_executor": "run_in_executor (and asyncio.to_thread)",
    "call_soon_threadsafe": "call_soon_threadsafe",
}


def _refuse(name: str) -> Callable[..., NoReturn]:
    def refused(self: LoopBody, *args: Any, **kwargs: Any) -> NoReturn:
        if self._closed:
            raise Evicted
        for arg in args:
            if asyncio.iscoroutine(arg):
                arg.close()
        raise WrongCall(
            f"workflow {self._instance.workflow_id!r} used the event loop's {_REFUSED.get(name, name)}, "
            "which a replay cannot repeat",
            "Put it into a step (@refold.step async def ...) and await that.",
        )

    refused.__name__ = name
    return refused


def _refuse_the_rest() -> None:
    for name, member in vars(asyncio.AbstractEventLoop).items():
        if callable(member) and not name.startswith("__") and name not in vars(LoopBody):
            setattr(LoopBody, name, _refuse(name))


_refuse_the_rest()
