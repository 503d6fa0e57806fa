"""Bolt's listeners, run to their end inside of a step.

Left to itself bolt acknowledges an event before its listener runs, runs lazy listeners on threads that nobody waits
for, logs their errors and says 200 when it could not authorize. Here a listener, its lazy ones included, has run
when `run` returns, and whatever went wrong is an error of the step.
"""

import contextlib
import copy
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from typing import Any, Final

import msgspec
from slack_bolt import Ack, App, BoltRequest, BoltResponse
from slack_bolt.kwargs_injection import build_required_kwargs
from slack_bolt.lazy_listener import LazyListenerRunner
from slack_bolt.listener.listener_error_handler import ListenerErrorHandler
from slack_bolt.listener.listener_start_handler import ListenerStartHandler
from slack_bolt.util.utils import get_arg_names_of_callable

from refold.connectors.slack._errors import ListenerFailed, NotAuthorized

Tell = Callable[[BoltResponse], None]


class Outcome(msgspec.Struct, frozen=True):
    """What became of a payload that bolt's listeners got: whether one was there for it, and bolt's status."""

    handled: bool
    status: int = 200


class Run:
    """What is noted while bolt has one payload in hand."""

    def __init__(self) -> None:
        self.began = False
        self.error: Exception | None = None
        self.lazy: list[tuple[Callable[..., Any], Any]] = []


current: Final[ContextVar[Run | None]] = ContextVar("refold_slack_run", default=None)


@contextlib.contextmanager
def noting() -> Iterator[Run]:
    """Note what happens to the payload inside."""
    run = Run()
    token = current.set(run)
    try:
        yield run
    finally:
        current.reset(token)


def prepare(bolt: App) -> None:
    """Have bolt run listeners before it answers, and hand lazy ones to us; once, when it is mounted."""
    runner = bolt.listener_runner
    runner.process_before_response = True
    runner.lazy_listener_runner = _Collected(bolt.logger)


def run(bolt: App, body: Mapping[str, Any], tell: Tell) -> Outcome:
    """Have bolt's listeners handle a payload, and return when they have; `tell` gets their `ack(...)` at once.

    Raises what a listener raised (unless the app's error handler made a 200 of it), NotAuthorized, ListenerFailed.
    """
    _watch(bolt)
    with noting() as noted:
        request = BoltRequest(body=dict(body), mode="socket_mode", context={"ack": _Ack(tell)})
        response = bolt.dispatch(request)
        outcome = judge(noted, response, authorized=request.context.authorize_result is not None, body=body)
        for function, copied in noted.lazy:
            names = get_arg_names_of_callable(function)
            function(
                **build_required_kwargs(
                    logger=bolt.logger,
                    required_arg_names=names,
                    request=copied,
                    response=None,
                    this_func=function,
                )
            )
    return outcome


def judge(noted: Run, response: BoltResponse, *, authorized: bool, body: Mapping[str, Any]) -> Outcome:
    """Return what bolt's answer means; raises when it means that the payload was not handled as it should."""
    if not authorized and response.status == 200 and response.body:
        # Bolt tells the person that it is not installed, and Slack that all is well.
        raise NotAuthorized(_where(body), str(response.body)[:200])
    if response.status == 404 and noted.error is None:
        return Outcome(noted.began, 200 if noted.began else 404)
    if response.status >= 400:
        if noted.error is not None:
            raise noted.error
        raise ListenerFailed(response.status, str(response.body)[:200])
    return Outcome(handled=True, status=response.status)


def _where(body: Mapping[str, Any]) -> str:
    from refold.connectors.slack._identity import team_of

    return f"workspace {team_of(body) or 'unknown'}"


class _Ack(Ack):
    """An `ack` that tells at once what it was called with."""

    def __init__(self, tell: Tell) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._tell = tell

    def __call__(self, *args: Any, **kwargs: Any) -> BoltResponse:
        response = super().__call__(*args, **kwargs)
        self._tell(response)
        return response

    def __deepcopy__(self, memo: dict[int, Any]) -> Ack:
        # Bolt copies the request for lazy listeners; theirs has nobody to tell.
        copied = Ack()  # type: ignore[no-untyped-call]
        copied.response = copy.copy(self.response)
        return copied


class _Collected(LazyListenerRunner):
    """Keeps lazy listeners for the step to run: on a thread of bolt's they would be lost with the process."""

    def __init__(self, logger: Any) -> None:
        self.logger = logger

    def start(self, function: Callable[..., None], request: BoltRequest) -> None:
        noted = current.get()
        if noted is not None and noted.error is None:
            noted.lazy.append((function, request))


def _watch(bolt: App) -> None:
    # Each time: `@bolt.error` may have put another handler there since.
    runner = bolt.listener_runner
    if not isinstance(runner.listener_error_handler, _Errors):
        runner.listener_error_handler = _Errors(runner.listener_error_handler)
    if not isinstance(runner.listener_start_handler, _Starts):
        runner.listener_start_handler = _Starts(runner.listener_start_handler)


class _Errors(ListenerErrorHandler):
    def __init__(self, inner: ListenerErrorHandler) -> None:
        self._inner = inner

    def handle(self, error: Exception, request: BoltRequest, response: BoltResponse | None) -> None:
        noted = current.get()
        if noted is not None:
            noted.error = error
        self._inner.handle(error, request, response)


class _Starts(ListenerStartHandler):
    def __init__(self, inner: ListenerStartHandler) -> None:
        self._inner = inner

    def handle(self, request: BoltRequest, response: BoltResponse | None) -> None:
        noted = current.get()
        if noted is not None:
            noted.began = True
        self._inner.handle(request, response)
