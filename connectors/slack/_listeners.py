"""Bolt's listeners, run to their end inside of a step.

Left to itself bolt acknowledges an event before its listener runs, runs lazy listeners on threads that nobody waits
for, logs their errors and says 200 when it could not authorize. Here a listener, its lazy ones included, has run
when `run` returns, and whatever went wrong is an error of the step.
"""

import contextlib
import copy
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Final

import msgspec
from slack_bolt import Ack, App, BoltRequest, BoltResponse
from slack_bolt.kwargs_injection import build_required_kwargs
from slack_bolt.lazy_listener import LazyListenerRunner
from slack_bolt.listener.listener_error_handler import ListenerErrorHandler
from slack_bolt.listener.listener_start_handler import ListenerStartHandler
from slack_bolt.middleware import Middleware
from slack_bolt.middleware.authorization import Authorization
from slack_bolt.util.utils import get_arg_names_of_callable

from refold.connectors.slack._errors import ListenerFailed, NotAuthorized
from refold.connectors.slack._identity import team_of

if TYPE_CHECKING:
    from slack_bolt.async_app import AsyncBoltRequest

Tell = Callable[[BoltResponse], None]


class Outcome(msgspec.Struct, frozen=True):
    """What became of a payload that bolt's listeners got: whether one was there for it, and bolt's status."""

    handled: bool
    status: int = 200


class Run:
    """What is noted while bolt has one payload in hand."""

    def __init__(self) -> None:
        self.began = False
        self.authorized = False
        self.refusal = ""  # what bolt said when it did not authorize
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
    if not isinstance(runner.lazy_listener_runner, _Collected):
        runner.lazy_listener_runner = _Collected(runner.lazy_listener_runner)
    listed = bolt._middleware_list
    listed[:] = [_Authorizing(each) if isinstance(each, Authorization) else each for each in listed]


def run(bolt: App, body: Mapping[str, Any], tell: Tell) -> Outcome:
    """Have bolt's listeners handle a payload, and return when they have; `tell` gets their `ack(...)` at once.

    Raises what a listener raised (unless the app's error handler made a 200 of it), NotAuthorized, ListenerFailed.
    """
    _watch(bolt)
    with noting() as noted:
        request = BoltRequest(body=dict(body), mode="socket_mode", context={"ack": _Ack(tell)})
        response = bolt.dispatch(request)
        outcome = judge(noted, response)
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


def judge(noted: Run, response: BoltResponse) -> Outcome:
    """Return what bolt's answer means; raises when it means that the payload was not handled as it should."""
    if isinstance(noted.error, NotAuthorized):
        raise noted.error
    if response.status == 404 and noted.error is None:
        return Outcome(noted.began, 200 if noted.began else 404)
    if response.status >= 400:
        if noted.error is not None:
            raise noted.error
        raise ListenerFailed(response.status, str(response.body)[:200])
    return Outcome(handled=True, status=response.status)


@contextlib.contextmanager
def authorizing(noted: Run, request: "BoltRequest | AsyncBoltRequest") -> Iterator[None]:
    """Note as the payload's error when bolt has not authorized it by the end, for whatever reason.

    Meanwhile it finds no `response_url` to tell the person by.
    """
    where = f"workspace {team_of(request.body) or 'unknown'}"
    url = request.context.pop("response_url", None)
    try:
        yield
    except Exception as error:  # Slack, or where installations are stored, can't be reached
        noted.error = NotAuthorized(where, f"{type(error).__name__}: {error}"[:200])
        noted.error.__cause__ = error
        raise
    else:
        if not noted.authorized:
            noted.error = NotAuthorized(where, noted.refusal[:200])
    finally:
        if url is not None:
            request.context["response_url"] = url


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

    def __init__(self, inner: LazyListenerRunner) -> None:
        self.logger = inner.logger
        self._inner = inner

    def start(self, function: Callable[..., None], request: BoltRequest) -> None:
        noted = current.get()
        if noted is None:  # by an adapter of bolt's own, beside us
            self._inner.start(function, request)
        elif noted.error is None:
            noted.lazy.append((function, request))


class _Authorizing(Middleware):
    """Bolt's authorization, that says so when it could not authorize.

    Bolt tells Slack then that all is well, and the person that the app is not installed: each time the step is tried,
    and wrongly in an outage. What it answers can't be told from what a middleware before it may answer.
    """

    def __init__(self, inner: Middleware) -> None:
        self._inner = inner

    def process(
        self, *, req: BoltRequest, resp: BoltResponse, next: Callable[[], BoltResponse]
    ) -> BoltResponse | None:
        noted = current.get()
        if noted is None:
            return self._inner.process(req=req, resp=resp, next=next)

        def go_on() -> BoltResponse:
            noted.authorized = True
            return next()

        with authorizing(noted, req):
            response = self._inner.process(req=req, resp=resp, next=go_on)
            noted.refusal = "" if response is None else str(response.body)
        return response


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
