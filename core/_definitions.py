"""Steps and workflows: a function, its name, its codecs and its options. Defining one does nothing else.

A call has the type that the function declares. In a `def` workflow a `def` step is called, in an `async def`
workflow an `async def` step is awaited; across the colours it is said explicitly, `await charge.acall(order)`
and `ship.call(order)`. The wrong form raises at once and names the right one.
"""

import asyncio
import hashlib
import inspect
import sys
import types
from collections.abc import Callable, Coroutine, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import timedelta
from typing import (
    TYPE_CHECKING,
    Any,
    Concatenate,
    Final,
    Generic,
    Literal,
    ParamSpec,
    Protocol,
    TypeVar,
    cast,
    get_args,
    overload,
)

import msgspec

from refold.core import _codec
from refold.core._errors import DefinitionRefused, WrongCall
from refold.core._home import find_instance

if TYPE_CHECKING:
    import psycopg

    from refold.core._driver import Instance, Waiter

P = ParamSpec("P")
R = TypeVar("R")
A = TypeVar("A")
B = TypeVar("B")
C = TypeVar("C")
R_co = TypeVar("R_co", covariant=True)


class Handle(Protocol[R_co]):
    """A workflow that was started: where its result can be had, now or later, here or elsewhere."""

    @property
    def id(self) -> str: ...
    def result(self, timeout: float | None = None) -> R_co: ...
    async def aresult(self, timeout: float | None = None) -> R_co: ...
    def status(self) -> str: ...
    async def astatus(self) -> str: ...
    def cancel(self, reason: str = "") -> None: ...
    async def acancel(self, reason: str = "") -> None: ...


class Runtime(Protocol):
    """What starts workflows from outside; an `App` is one."""

    def start(
        self, workflow: "Workflow[..., R]", input: bytes, digest: str, *, id: str | None
    ) -> Handle[R]: ...
    async def astart(
        self, workflow: "Workflow[..., R]", input: bytes, digest: str, *, id: str | None
    ) -> Handle[R]: ...


class StepInfo(msgspec.Struct, frozen=True):
    """Which try of which step is running. `idempotency_key` is the same on all tries."""

    workflow_id: str
    step: str
    no: int
    attempt: int

    @property
    def idempotency_key(self) -> str:
        """The key to hand to the other side, so that it can drop a repeat: `{workflow_id}/{no}`."""
        return f"{self.workflow_id}/{self.no}"


class _RunningStep:
    __slots__ = ("info", "starts")

    def __init__(self, info: StepInfo) -> None:
        self.info = info
        self.starts = 0  # workflows that this try has started


_running: ContextVar[_RunningStep | None] = ContextVar("refold_running_step", default=None)


@contextmanager
def running_step(info: StepInfo) -> Iterator[None]:
    """Make `info` what `step_info()` returns inside, in this context."""
    token = _running.set(_RunningStep(info))
    try:
        yield
    finally:
        _running.reset(token)


def is_in_step() -> bool:
    """Whether a running step is calling."""
    return _running.get() is not None


def step_info() -> StepInfo:
    """Return which try of which step is running; raises WrongCall outside of a running step."""
    running = _running.get()
    if running is None:
        raise WrongCall(
            "refold.step_info() was called outside of a running step",
            "Call it in the body of a function under @refold.step while a workflow runs it.",
        )
    return running.info


class Later(Generic[R_co]):
    """A call that has not begun: `refold.gather` begins it, in the order in which they were given."""

    __slots__ = ("_begin", "_plain")

    def __init__(self, begin: "Callable[[Instance], Waiter]", plain: Callable[[], R_co]) -> None:
        self._begin = begin
        self._plain = plain


class StepOptions(msgspec.Struct, frozen=True):
    """How a step is tried: `retries` more tries after the first, waiting longer before each.

    `jitter` is the share of a delay that is drawn at random, so that steps that failed together do not come
    back together.
    """

    retries: int = 0
    retry_delay: timedelta = timedelta(seconds=1)
    backoff: float = 2.0
    max_delay: timedelta = timedelta(hours=1)
    jitter: float = 0.2
    retry_if: Callable[[Exception], bool] | None = None
    timeout: timedelta | None = None
    compare: Literal["args", "name"] = "args"
    transaction: bool = False

    def delay(self, failures: int, draw: float) -> timedelta:
        """Return how long to wait after the `failures`-th failed try; `draw` in [0, 1) is the dice of it."""
        try:
            whole = min(self.retry_delay * self.backoff ** (failures - 1), self.max_delay)
        except OverflowError:
            whole = self.max_delay
        return whole * (1 - self.jitter * draw)


class Step(Generic[P, R]):
    """A named piece of work, recorded when a workflow calls it and a plain function everywhere else.

    `P` is what callers pass (without the connection of a transactional step), `R` what they get.
    """

    name: str
    fn: Callable[..., Any]
    is_async: bool
    options: StepOptions

    def __init__(
        self, fn: Callable[..., Any], name: str, options: StepOptions, locals_: Mapping[str, Any]
    ) -> None:
        what = f"step {name!r}"
        hints = _codec.hints_of(fn, what, locals_)
        self.name = name
        self.fn = fn
        self.is_async = inspect.iscoroutinefunction(fn)
        self.options = options
        if options.transaction:
            _check_connection(fn, what, self.is_async, hints)
        _check_function(fn, what)
        self._calls = _codec.CallCodec(fn, what, skip=1 if options.transaction else 0, hints=hints)
        self._results = _codec.ValueCodec(_codec.result_hint(hints), f"the result of {what}")
        self.encode_args = self._calls.encode
        self.decode_args = self._calls.decode
        self.encode_result = self._results.encode
        self.decode_result = self._results.decode
        self.__doc__ = fn.__doc__
        self.__name__ = fn.__name__
        self.__qualname__ = fn.__qualname__
        self.__module__ = fn.__module__
        self.__wrapped__ = fn

    encode_args: Callable[[tuple[Any, ...], dict[str, Any]], bytes]
    decode_args: Callable[[Any], tuple[tuple[Any, ...], dict[str, Any]]]
    encode_result: Callable[[Any], bytes]
    decode_result: Callable[[Any], Any]

    def __repr__(self) -> str:
        return f"<step {self.name!r}>"

    def canonical_args(self, raw: Any) -> bytes:
        """Return recorded arguments as today's types read them, in one canonical form; may raise DecodeFailed."""
        return self._calls.canonical(raw)

    def call(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Run the step and return its result, from a `def` workflow or from outside; for both colours of step."""
        instance = find_instance()
        if instance is None:
            if self.is_async:
                return cast(
                    R,
                    _run_outside(
                        self.fn(*args, **kwargs), f"{self.name}.call(...)", f"await {self.name}(...)"
                    ),
                )
            return cast(R, self.fn(*args, **kwargs))
        if instance.is_async:
            raise self._wrong_colour(f"{self.name}.call(...)", is_async=True)
        return cast(R, instance.run_step(self, self.encode_args(args, kwargs)))

    def acall(self, *args: P.args, **kwargs: P.kwargs) -> Coroutine[object, None, R]:
        """Return the coroutine of the step, for an `async def` workflow or outside; for both colours of step.

        Outside of a workflow a `def` step runs in a thread, so that it does not block the loop.
        """
        instance = find_instance()
        if instance is None:
            if self.is_async:
                return cast("Coroutine[object, None, R]", self.fn(*args, **kwargs))
            return asyncio.to_thread(cast("Callable[P, R]", self.fn), *args, **kwargs)
        if not instance.is_async:
            raise self._wrong_colour(f"{self.name}.acall(...)", is_async=False)
        return _await_step(instance, self, self.encode_args(args, kwargs))

    def later(self, *args: P.args, **kwargs: P.kwargs) -> Later[R]:
        """Return the call not begun, for `refold.gather` in a `def` workflow."""
        if find_instance() is None:
            return Later(_begin_outside, lambda: self.call(*args, **kwargs))
        raw = self.encode_args(args, kwargs)
        return Later(lambda instance: instance.ask_step(self, raw), _begun_inside)

    def _wrong_colour(self, call: str, *, is_async: bool) -> WrongCall:
        found = f"{call} was called in {'an async def' if is_async else 'a def'} workflow"
        kind = "an async def step" if self.is_async else "a def step"
        right = (
            (f"await {self.name}(...)" if self.is_async else f"await {self.name}.acall(...)")
            if is_async
            else f"{self.name}.call(...)"
        )
        if not is_async and not self.is_async:
            right = f"{self.name}(...)"
        return WrongCall(found, f"{self.name} is {kind}: write {right} there.")


class SyncStep(Step[P, R]):
    """A step made of a `def` function."""

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Run the step and return its result."""
        instance = find_instance()
        if instance is None:
            return cast(R, self.fn(*args, **kwargs))
        if instance.is_async:
            raise self._wrong_colour(f"{self.name}(...)", is_async=True)
        return cast(R, instance.run_step(self, self.encode_args(args, kwargs)))


class AsyncStep(Step[P, R]):
    """A step made of an `async def` function."""

    # Coroutine[object, None, R], not [Any, Any, R]: with an Any in it mypy takes any overload of asyncio.gather.

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> Coroutine[object, None, R]:
        """Return the coroutine of the step; awaiting it gives the result."""
        instance = find_instance()
        if instance is None:
            return cast("Coroutine[object, None, R]", self.fn(*args, **kwargs))
        if not instance.is_async:
            raise self._wrong_colour(f"{self.name}(...)", is_async=False)
        return _await_step(instance, self, self.encode_args(args, kwargs))


def _await_step(instance: "Instance", step: Step[..., R], args: bytes) -> Coroutine[object, None, R]:
    # The command is asked for when the coroutine starts, so that numbers follow the order of starting.
    coroutine = instance.arun_step(step, args)
    cast(Any, coroutine).__qualname__ = step.__qualname__  # what Python names when it was never awaited
    return coroutine


class _StepDecorator(Protocol):
    @overload
    # The overlap is meant: a function that returns a coroutine is an async one.
    def __call__(self, fn: Callable[P, Coroutine[Any, Any, R]], /) -> AsyncStep[P, R]: ...  # type: ignore[overload-overlap]
    @overload
    def __call__(self, fn: Callable[P, R], /) -> SyncStep[P, R]: ...


class _TransactionDecorator(Protocol):
    @overload
    def __call__(
        self, fn: "Callable[Concatenate[psycopg.AsyncConnection[Any], P], Coroutine[Any, Any, R]]", /
    ) -> AsyncStep[P, R]: ...
    @overload
    def __call__(self, fn: "Callable[Concatenate[psycopg.Connection[Any], P], R]", /) -> SyncStep[P, R]: ...


@overload
def step(fn: Callable[P, Coroutine[Any, Any, R]], /) -> AsyncStep[P, R]: ...  # type: ignore[overload-overlap]
@overload
def step(fn: Callable[P, R], /) -> SyncStep[P, R]: ...
@overload
def step(
    *,
    transaction: Literal[True],
    name: str | None = None,
    retries: int = 0,
    retry_delay: timedelta = ...,
    backoff: float = 2.0,
    max_delay: timedelta = ...,
    jitter: float = 0.2,
    retry_if: Callable[[Exception], bool] | None = None,
    timeout: timedelta | None = None,
    compare: Literal["args", "name"] = "args",
) -> _TransactionDecorator: ...
@overload
def step(
    *,
    transaction: Literal[False] = False,
    name: str | None = None,
    retries: int = 0,
    retry_delay: timedelta = ...,
    backoff: float = 2.0,
    max_delay: timedelta = ...,
    jitter: float = 0.2,
    retry_if: Callable[[Exception], bool] | None = None,
    timeout: timedelta | None = None,
    compare: Literal["args", "name"] = "args",
) -> _StepDecorator: ...
def step(
    fn: Callable[..., Any] | None = None,
    /,
    *,
    transaction: bool = False,
    name: str | None = None,
    retries: int = 0,
    retry_delay: timedelta = timedelta(seconds=1),
    backoff: float = 2.0,
    max_delay: timedelta = timedelta(hours=1),
    jitter: float = 0.2,
    retry_if: Callable[[Exception], bool] | None = None,
    timeout: timedelta | None = None,
    compare: Literal["args", "name"] = "args",
) -> Any:
    """Make a function a step: recorded once when a workflow calls it, a plain function everywhere else.

    A step that fails is tried again up to `retries` times, after `retry_delay`, then `backoff` times as long
    each, at most `max_delay`, less a random share of up to `jitter`; `retry_if(error)` returning False ends
    that. `timeout` bounds each try. With `transaction=True` the function takes a psycopg connection first, and
    its SQL commits together with the event that records it: exactly once. On replay the arguments are compared
    with the recorded ones; `compare="name"` compares only the step's name. `name` (default: the function's) is
    what the log holds: keep it when the function is renamed.
    """
    options = StepOptions(
        retries, retry_delay, backoff, max_delay, jitter, retry_if, timeout, compare, transaction
    )
    locals_ = _codec.caller_locals(1)

    def decorate(fn: Callable[..., Any]) -> Step[..., Any]:
        called = name or _name_of(fn, "@refold.step")
        _check_options(f"step {called!r}", options)
        cls = AsyncStep if inspect.iscoroutinefunction(fn) else SyncStep
        return cls(fn, called, options, locals_)

    return decorate if fn is None else decorate(fn)


class Workflow(Generic[P, R]):
    """A function whose run is recorded, so that it goes on where it was after any crash.

    Called inside another workflow it is a child; outside it is started and waited for. `start` does not wait.
    """

    name: str
    fn: Callable[..., Any]
    is_async: bool
    app: Runtime

    encode_args: Callable[[tuple[Any, ...], dict[str, Any]], bytes]
    decode_args: Callable[[Any], tuple[tuple[Any, ...], dict[str, Any]]]
    encode_result: Callable[[Any], bytes]
    decode_result: Callable[[Any], Any]

    def __init__(self, fn: Callable[..., Any], name: str, app: Runtime, locals_: Mapping[str, Any]) -> None:
        what = f"workflow {name!r}"
        hints = _codec.hints_of(fn, what, locals_)
        _check_function(fn, what)
        self.name = name
        self.fn = fn
        self.is_async = inspect.iscoroutinefunction(fn)
        self.app = app
        self._calls = _codec.CallCodec(fn, what, hints=hints)
        self._results = _codec.ValueCodec(_codec.result_hint(hints), f"the result of {what}")
        self.encode_args = self._calls.encode
        self.decode_args = self._calls.decode
        self.encode_result = self._results.encode
        self.decode_result = self._results.decode
        self._fingerprint = ""
        self.__doc__ = fn.__doc__
        self.__name__ = fn.__name__
        self.__qualname__ = fn.__qualname__
        self.__module__ = fn.__module__
        self.__wrapped__ = fn

    def __repr__(self) -> str:
        return f"<workflow {self.name!r}>"

    @property
    def parameters(self) -> Mapping[str, Any]:
        """What the workflow takes: the hint of each parameter, Any where it has none."""
        return self._calls.parameters

    @property
    def fingerprint(self) -> str:
        """What tells this code from another release: a digest of the function and of all that it uses."""
        if not self._fingerprint:
            self._fingerprint = _fingerprint_of(self.fn)
        return self._fingerprint

    def canonical_args(self, raw: Any) -> bytes:
        """Return a recorded input as today's types read it, in one canonical form; may raise DecodeFailed."""
        return self._calls.canonical(raw)

    def canonical_result(self, raw: Any) -> bytes:
        """Return a recorded result as today's type reads it, in one canonical form; may raise DecodeFailed."""
        return self._results.canonical(raw)

    def digest(self, input: bytes) -> str:
        """Return the digest of an encoded input: the same for the same values, in every process."""
        return _codec.digest_of(self._calls.canonical(input))

    def start(self, *args: P.args, **kwargs: P.kwargs) -> Handle[R]:
        """Start the workflow and return its handle, once it is durable; inside a workflow, a child's handle.

        With `id=`, the same ID again returns the first workflow's handle. `id` is always the workflow's ID here:
        pass a parameter of that name by position, or the ID by `options(id=...)`.
        """
        id = cast("str | None", kwargs.pop("id", None))
        return self.options(id=id).start(*args, **kwargs)

    async def astart(self, *args: P.args, **kwargs: P.kwargs) -> Handle[R]:
        """Start the workflow from async code and return its handle, once it is durable; `id=` as in `start`."""
        id = cast("str | None", kwargs.pop("id", None))
        return await self.options(id=id).astart(*args, **kwargs)

    def options(self, *, id: str | None = None) -> "WorkflowCall[P, R]":
        """Return the workflow with options for its next start: `checkout.options(id="order-42").start(order)`."""
        return WorkflowCall(self, id)

    def call(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Run the workflow and return its result, from a `def` workflow (as a child) or from sync code outside."""
        return self.options().call(*args, **kwargs)

    def acall(self, *args: P.args, **kwargs: P.kwargs) -> Coroutine[object, None, R]:
        """Run the workflow and return its result, from an `async def` workflow (as a child) or from async code."""
        return self.options().acall(*args, **kwargs)

    def later(self, *args: P.args, **kwargs: P.kwargs) -> Later[R]:
        """Return the child's call not begun, for `refold.gather` in a `def` workflow."""
        return self.options().later(*args, **kwargs)


class SyncWorkflow(Workflow[P, R]):
    """A workflow made of a `def` function."""

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Run the workflow and return its result."""
        instance = find_instance()
        if instance is not None and instance.is_async:
            raise _wrong_child(self, f"{self.name}(...)", is_async=True)
        return self.call(*args, **kwargs)

    # `id=` cannot be put beside a ParamSpec, so the forms with it go by the number of parameters; with more, or
    # with keyword arguments, it is `options(id=...).start(...)`.
    @overload
    def start(self: "Callable[[], R]", *, id: str | None) -> Handle[R]: ...
    @overload
    def start(self: "Callable[[A], R]", a: A, /, *, id: str | None) -> Handle[R]: ...
    @overload
    def start(self: "Callable[[A, B], R]", a: A, b: B, /, *, id: str | None) -> Handle[R]: ...
    @overload
    def start(self: "Callable[[A, B, C], R]", a: A, b: B, c: C, /, *, id: str | None) -> Handle[R]: ...
    @overload
    def start(self, *args: P.args, **kwargs: P.kwargs) -> Handle[R]: ...
    def start(self, *args: Any, **kwargs: Any) -> Handle[Any]:
        """As in `Workflow`."""
        return super().start(*args, **kwargs)

    @overload
    async def astart(self: "Callable[[], R]", *, id: str | None) -> Handle[R]: ...
    @overload
    async def astart(self: "Callable[[A], R]", a: A, /, *, id: str | None) -> Handle[R]: ...
    @overload
    async def astart(self: "Callable[[A, B], R]", a: A, b: B, /, *, id: str | None) -> Handle[R]: ...
    @overload
    async def astart(self: "Callable[[A, B, C], R]", a: A, b: B, c: C, /, *, id: str | None) -> Handle[R]: ...
    @overload
    async def astart(self, *args: P.args, **kwargs: P.kwargs) -> Handle[R]: ...
    async def astart(self, *args: Any, **kwargs: Any) -> Handle[Any]:
        """As in `Workflow`."""
        return await super().astart(*args, **kwargs)


class AsyncWorkflow(Workflow[P, R]):
    """A workflow made of an `async def` function."""

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> Coroutine[object, None, R]:
        """Return the coroutine that runs the workflow; awaiting it gives the result."""
        instance = find_instance()
        if instance is not None and not instance.is_async:
            raise _wrong_child(self, f"{self.name}(...)", is_async=False)
        return self.acall(*args, **kwargs)

    # `id=` cannot be put beside a ParamSpec, so the forms with it go by the number of parameters; with more, or
    # with keyword arguments, it is `options(id=...).start(...)`.
    @overload
    def start(self: "Callable[[], Coroutine[Any, Any, R]]", *, id: str | None) -> Handle[R]: ...
    @overload
    def start(self: "Callable[[A], Coroutine[Any, Any, R]]", a: A, /, *, id: str | None) -> Handle[R]: ...
    @overload
    def start(
        self: "Callable[[A, B], Coroutine[Any, Any, R]]", a: A, b: B, /, *, id: str | None
    ) -> Handle[R]: ...
    @overload
    def start(
        self: "Callable[[A, B, C], Coroutine[Any, Any, R]]", a: A, b: B, c: C, /, *, id: str | None
    ) -> Handle[R]: ...
    @overload
    def start(self, *args: P.args, **kwargs: P.kwargs) -> Handle[R]: ...
    def start(self, *args: Any, **kwargs: Any) -> Handle[Any]:
        """As in `Workflow`."""
        return super().start(*args, **kwargs)

    @overload
    async def astart(self: "Callable[[], Coroutine[Any, Any, R]]", *, id: str | None) -> Handle[R]: ...
    @overload
    async def astart(
        self: "Callable[[A], Coroutine[Any, Any, R]]", a: A, /, *, id: str | None
    ) -> Handle[R]: ...
    @overload
    async def astart(
        self: "Callable[[A, B], Coroutine[Any, Any, R]]", a: A, b: B, /, *, id: str | None
    ) -> Handle[R]: ...
    @overload
    async def astart(
        self: "Callable[[A, B, C], Coroutine[Any, Any, R]]", a: A, b: B, c: C, /, *, id: str | None
    ) -> Handle[R]: ...
    @overload
    async def astart(self, *args: P.args, **kwargs: P.kwargs) -> Handle[R]: ...
    async def astart(self, *args: Any, **kwargs: Any) -> Handle[Any]:
        """As in `Workflow`."""
        return await super().astart(*args, **kwargs)


class WorkflowCall(Generic[P, R]):
    """A workflow with the options of one start."""

    __slots__ = ("_id", "_workflow")

    def __init__(self, workflow: Workflow[P, R], id: str | None) -> None:
        self._workflow = workflow
        self._id = id

    def start(self, *args: P.args, **kwargs: P.kwargs) -> Handle[R]:
        """Start the workflow and return its handle, once it is durable; inside a workflow, a child's handle."""
        instance = find_instance()
        workflow = self._workflow
        raw = workflow.encode_args(args, kwargs)
        if instance is not None:
            return instance.start_child(workflow, raw, workflow.digest(raw), self._id)
        return workflow.app.start(workflow, raw, workflow.digest(raw), id=self._id or _id_in_step(workflow))

    async def astart(self, *args: P.args, **kwargs: P.kwargs) -> Handle[R]:
        """Start the workflow from async code and return its handle, once it is durable."""
        workflow = self._workflow
        raw = workflow.encode_args(args, kwargs)
        instance = find_instance()
        if instance is not None:
            return instance.start_child(workflow, raw, workflow.digest(raw), self._id)
        return await workflow.app.astart(
            workflow, raw, workflow.digest(raw), id=self._id or _id_in_step(workflow)
        )

    def call(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Start the workflow, wait, and return its result."""
        instance = find_instance()
        if instance is not None and instance.is_async:
            raise _wrong_child(self._workflow, f"{self._workflow.name}.call(...)", is_async=True)
        return self.start(*args, **kwargs).result()

    def acall(self, *args: P.args, **kwargs: P.kwargs) -> Coroutine[object, None, R]:
        """Start the workflow, wait, and return its result, from async code."""
        instance = find_instance()
        if instance is not None and not instance.is_async:
            raise _wrong_child(self._workflow, f"{self._workflow.name}.acall(...)", is_async=False)
        return self._acall(*args, **kwargs)

    def later(self, *args: P.args, **kwargs: P.kwargs) -> Later[R]:
        """Return the child's call not begun, for `refold.gather` in a `def` workflow."""
        if find_instance() is None:
            return Later(_begin_outside, lambda: self.call(*args, **kwargs))
        workflow = self._workflow
        raw = workflow.encode_args(args, kwargs)
        return Later(
            lambda instance: instance.ask_child(workflow, raw, workflow.digest(raw), self._id)[0],
            _begun_inside,
        )

    async def _acall(self, *args: P.args, **kwargs: P.kwargs) -> R:
        handle = await self.astart(*args, **kwargs)
        return await handle.aresult()


@overload
def define_workflow(  # type: ignore[overload-overlap]
    fn: Callable[P, Coroutine[Any, Any, R]], app: Runtime, *, name: str | None = None, depth: int = 1
) -> AsyncWorkflow[P, R]: ...
@overload
def define_workflow(
    fn: Callable[P, R], app: Runtime, *, name: str | None = None, depth: int = 1
) -> SyncWorkflow[P, R]: ...
def define_workflow(fn: Callable[..., Any], app: Runtime, *, name: str | None = None, depth: int = 1) -> Any:
    """Return `fn` as a workflow of `app`. `depth` frames above the caller stands the user's decorator."""
    cls = AsyncWorkflow if inspect.iscoroutinefunction(fn) else SyncWorkflow
    return cls(fn, name or _name_of(fn, "@app.workflow"), app, _codec.caller_locals(depth))


def _id_in_step(workflow: Workflow[..., Any]) -> str | None:
    """Return the ID of a workflow started inside a step: the same on each try, or each would start another."""
    running = _running.get()
    if running is None:
        return None
    running.starts += 1
    return f"{running.info.idempotency_key}/{workflow.name}/{running.starts - 1}"


def _wrong_child(workflow: Workflow[..., Any], call: str, *, is_async: bool) -> WrongCall:
    name = workflow.name
    if is_async:
        right = f"await {name}(...)" if workflow.is_async else f"await {name}.acall(...)"
    else:
        right = f"{name}.call(...)" if workflow.is_async else f"{name}(...)"
    kind = "an async def" if workflow.is_async else "a def"
    return WrongCall(
        f"{call} was called in {'an async def' if is_async else 'a def'} workflow",
        f"{name} is {kind} workflow: write {right} there.",
    )


def _begin_outside(instance: "Instance") -> "Waiter":
    raise WrongCall(
        "a .later(...) made outside of the workflow was given to refold.gather",
        "Make it where it is gathered.",
    )


def _begun_inside() -> Any:
    raise WrongCall(
        "a .later(...) made in a workflow was given to refold.gather outside", "Gather it where it was made."
    )


def _run_outside(coroutine: Coroutine[Any, Any, R], call: str, right: str) -> R:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(coroutine)
    coroutine.close()
    raise WrongCall(f"{call} was called on a running event loop and would block it", f"Write {right} there.")


def _name_of(fn: Any, decorator: str) -> str:
    if not inspect.isfunction(fn):
        raise DefinitionRefused(
            decorator, f"it stands on {fn!r}, which is no function", "Put it on a def or an async def."
        )
    return fn.__name__


def _check_function(fn: Callable[..., Any], what: str) -> None:
    if inspect.isgeneratorfunction(fn) or inspect.isasyncgenfunction(fn):
        raise DefinitionRefused(
            what, "it is a generator, and a generator has no result to record", "Return a list."
        )


def _check_connection(fn: Callable[..., Any], what: str, is_async: bool, hints: Mapping[str, Any]) -> None:
    first = next(iter(inspect.signature(fn).parameters), None)
    wanted = "AsyncConnection" if is_async else "Connection"
    hint = hints.get(first) if first else None
    origin = getattr(hint, "__origin__", hint)
    if not (
        isinstance(origin, type)
        and any(c.__name__ == wanted and c.__module__.startswith("psycopg") for c in origin.__mro__)
    ):
        raise DefinitionRefused(
            what,
            f"transaction=True passes a connection first, and its first parameter is {first!r}"
            if first
            else "it takes no parameter",
            f"Write (conn: psycopg.{wanted}, ...).",
        )


def _check_options(what: str, options: StepOptions) -> None:
    zero = timedelta(0)
    problem = (
        f"retries={options.retries}" if options.retries < 0
        else f"retry_delay={options.retry_delay!r}" if options.retry_delay < zero
        else f"max_delay={options.max_delay!r}" if options.max_delay < zero
        else f"backoff={options.backoff}" if options.backoff < 1
        else f"jitter={options.jitter}" if not 0 <= options.jitter <= 1
        else f"timeout={options.timeout!r}" if options.timeout is not None and options.timeout <= zero
        else f"compare={options.compare!r}" if options.compare not in ("args", "name")
        else ""
    )  # fmt: skip
    if problem:
        raise DefinitionRefused(
            what,
            f"{problem} makes no sense",
            "retries and delays are 0 or more, backoff 1 or more, jitter 0 to 1, timeout above 0, compare 'args' "
            "or 'name'.",
        )


_OWN_KINDS: Final = (types.FunctionType, type, Step, Workflow)


def _fingerprint_of(fn: Callable[..., Any]) -> str:
    """Return a digest over `fn` and, as far as names lead, the functions, classes, steps and workflows it uses.

    Too wide is harmless (a stuck workflow is tried once more after a deploy that changed something else), too
    narrow is not: it would stay stuck after the helper that broke it was mended. Other people's packages are
    left out, since following them would read the world.
    """
    seen: set[int] = set()
    digest = hashlib.sha256()
    todo: list[Any] = [fn]
    while todo:
        thing = todo.pop()
        if isinstance(thing, Step | Workflow):
            digest.update(f"{thing.name}:".encode())
            thing = thing.fn
        thing = inspect.unwrap(thing) if isinstance(thing, types.FunctionType) else thing
        if id(thing) in seen:
            continue
        seen.add(id(thing))
        notes = _annotations_of(thing)
        digest.update(repr(sorted((name, str(hint)) for name, hint in notes.items())).encode())
        if isinstance(thing, types.FunctionType):
            _feed_code(digest, thing.__code__)
            used = _used_by(thing)
        else:
            members = vars(thing)
            digest.update(f"{thing.__qualname__}{sorted(k for k in members if k[:2] != '__')}".encode())
            used = [member for member in members.values() if isinstance(member, types.FunctionType)]
        used.extend(part for hint in notes.values() for part in (hint, *get_args(hint)))
        todo.extend(t for t in used if isinstance(t, _OWN_KINDS) and _is_the_programs_own(t.__module__))
    return digest.hexdigest()[:32]


def _used_by(fn: types.FunctionType) -> list[Any]:
    found: list[Any] = []
    names = sorted(_names_in(fn.__code__))
    closure = [_find_content(cell) for cell in fn.__closure__ or ()]
    for thing in [*(fn.__globals__.get(name) for name in names), *closure]:
        if isinstance(thing, types.ModuleType):
            found.extend(vars(thing).get(name) for name in names)
        else:
            found.append(thing)
    return found


def _annotations_of(thing: Any) -> dict[str, Any]:
    try:
        return inspect.get_annotations(thing)
    except Exception:  # Python 3.14 evaluates them only now, and they may name what is not there
        return {}


def _is_the_programs_own(module: str) -> bool:
    root = module.partition(".")[0]
    if root == "refold" or (root in sys.stdlib_module_names and root != "__main__"):
        return False
    file = getattr(sys.modules.get(module), "__file__", None) or ""
    return "site-packages" not in file and "dist-packages" not in file


def _find_content(cell: types.CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # not filled yet
        return None


def _names_in(code: types.CodeType) -> set[str]:
    names = set(code.co_names)
    for const in code.co_consts:
        if isinstance(const, types.CodeType):
            names |= _names_in(const)
    return names


def _feed_code(digest: "hashlib._Hash", code: types.CodeType) -> None:
    digest.update(code.co_code)
    digest.update(repr((code.co_names, code.co_varnames, code.co_freevars)).encode())
    for const in code.co_consts:
        if isinstance(const, types.CodeType):
            _feed_code(digest, const)
        elif isinstance(const, frozenset):  # its order is that of this process's hashes
            digest.update(repr(sorted(map(repr, const))).encode())
        else:
            digest.update(repr(const).encode())
