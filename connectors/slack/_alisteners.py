"""The same as `_listeners` for an `AsyncApp`. Imported only when there is one: it needs aiohttp."""

import copy
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from slack_bolt import BoltResponse
from slack_bolt.async_app import AsyncAck, AsyncApp, AsyncBoltRequest
from slack_bolt.kwargs_injection.async_utils import build_async_required_kwargs
from slack_bolt.lazy_listener.async_runner import AsyncLazyListenerRunner
from slack_bolt.listener.async_listener_error_handler import AsyncListenerErrorHandler
from slack_bolt.listener.async_listener_start_handler import AsyncListenerStartHandler
from slack_bolt.middleware.async_middleware import AsyncMiddleware
from slack_bolt.middleware.authorization.async_authorization import AsyncAuthorization
from slack_bolt.util.utils import get_arg_names_of_callable

from refold.connectors.slack._listeners import Outcome, Tell, authorizing, current, judge, noting


def prepare(bolt: AsyncApp) -> None:
    """Have bolt run listeners before it answers, and hand lazy ones to us; once, when it is mounted."""
    runner = bolt.listener_runner
    runner.process_before_response = True
    if not isinstance(runner.lazy_listener_runner, _Collected):
        runner.lazy_listener_runner = _Collected(runner.lazy_listener_runner)
    listed = bolt._async_middleware_list
    listed[:] = [_Authorizing(each) if isinstance(each, AsyncAuthorization) else each for each in listed]


async def run(bolt: AsyncApp, body: Mapping[str, Any], tell: Tell) -> Outcome:
    """Do what `_listeners.run` does."""
    _watch(bolt)
    with noting() as noted:
        request = AsyncBoltRequest(body=dict(body), mode="socket_mode", context={"ack": _Ack(tell)})
        response = await bolt.async_dispatch(request)
        outcome = judge(noted, response)
        for function, copied in noted.lazy:
            names = get_arg_names_of_callable(function)
            await function(
                **build_async_required_kwargs(
                    logger=bolt.logger,
                    required_arg_names=names,
                    request=copied,
                    response=None,
                    this_func=function,
                )
            )
    return outcome


class _Ack(AsyncAck):
    """An `ack` that tells at once what it was called with."""

    def __init__(self, tell: Tell) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._tell = tell

    async def __call__(self, *args: Any, **kwargs: Any) -> BoltResponse:
        response = await super().__call__(*args, **kwargs)
        self._tell(response)
        return response

    def __deepcopy__(self, memo: dict[int, Any]) -> AsyncAck:
        copied = AsyncAck()  # type: ignore[no-untyped-call]
        copied.response = copy.copy(self.response)
        return copied


class _Collected(AsyncLazyListenerRunner):
    """Keeps lazy listeners for the step to run: a task of bolt's own would be lost with the process."""

    def __init__(self, inner: AsyncLazyListenerRunner) -> None:
        self.logger = inner.logger
        self._inner = inner

    def start(self, function: Callable[..., Awaitable[None]], request: AsyncBoltRequest) -> None:
        noted = current.get()
        if noted is None:  # by an adapter of bolt's own, beside us
            self._inner.start(function, request)
        elif noted.error is None:
            noted.lazy.append((function, request))


class _Authorizing(AsyncMiddleware):
    """The same as `_listeners._Authorizing`."""

    def __init__(self, inner: AsyncMiddleware) -> None:
        self._inner = inner

    async def async_process(
        self, *, req: AsyncBoltRequest, resp: BoltResponse, next: Callable[[], Awaitable[BoltResponse]]
    ) -> BoltResponse | None:
        noted = current.get()
        if noted is None:
            return await self._inner.async_process(req=req, resp=resp, next=next)

        async def go_on() -> BoltResponse:
            noted.authorized = True
            return await next()

        with authorizing(noted, req):
            response = await self._inner.async_process(req=req, resp=resp, next=go_on)
            noted.refusal = "" if response is None else str(response.body)
        return response


def _watch(bolt: AsyncApp) -> None:
    runner = bolt.listener_runner
    if not isinstance(runner.listener_error_handler, _Errors):
        runner.listener_error_handler = _Errors(runner.listener_error_handler)
    if not isinstance(runner.listener_start_handler, _Starts):
        runner.listener_start_handler = _Starts(runner.listener_start_handler)


class _Errors(AsyncListenerErrorHandler):
    def __init__(self, inner: AsyncListenerErrorHandler) -> None:
        self._inner = inner

    async def handle(
        self, error: Exception, request: AsyncBoltRequest, response: BoltResponse | None
    ) -> None:
        noted = current.get()
        if noted is not None:
            noted.error = error
        await self._inner.handle(error, request, response)


class _Starts(AsyncListenerStartHandler):
    def __init__(self, inner: AsyncListenerStartHandler) -> None:
        self._inner = inner

    async def handle(self, request: AsyncBoltRequest, response: BoltResponse | None) -> None:
        noted = current.get()
        if noted is not None:
            noted.began = True
        await self._inner.handle(request, response)
