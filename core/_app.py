"""The app: what a program declares its workflows on, and what runs them."""

import asyncio
import builtins
import concurrent.futures
import contextlib
import os
import signal
import threading
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from datetime import timedelta
from pathlib import Path
from types import TracebackType
from typing import Any, Final, ParamSpec, Protocol, Self, TypeVar, overload

from refold.core import _garbage
from refold.core._accept import Ticket
from refold.core._client import Client, Page, WorkflowInfo
from refold.core._codec import encode_message
from refold.core._connector import Connector
from refold.core._definitions import AsyncWorkflow, SyncWorkflow, Workflow, define_workflow, is_in_step
from refold.core._engine import Engine, Mailbox, refuse_on_a_loop
from refold.core._errors import DefinitionRefused, NotAccepted, WrongCall
from refold.core._handle import WorkflowHandle
from refold.core._home import find_instance
from refold.core._ids import check_id
from refold.core._source import Accepted, Cancel, HandedOver, Lane, Move, Send, Start
from refold.core._worker import CAPACITY, SHUTDOWN_GRACE, Observer, Worker
from refold.eventlog import DatabaseUnreachable, EmbeddedServer, check, embedded_postgres
from refold.eventlog._events import Recorded
from refold.eventlog._read import ParkedWorkflow, SourceFact, SourcePosition

P = ParamSpec("P")
R = TypeVar("R")

DATABASE_URL: Final = "REFOLD_DATABASE_URL"
_SIGNALS_SEEN_WITHIN: Final = 0.5  # seconds
ACCEPT_WITHIN: Final = 10.0  # seconds


class App:
    """Workflows, the connectors that start them, and the Postgres that remembers them.

    Making one does nothing. At first use it takes `database_url`, or REFOLD_DATABASE_URL, or starts the embedded
    Postgres under `.refold/`. `threads` bounds the threads for `def` steps; `concurrency` the workflows that a worker
    has in hand at once, those that wait not counted.
    """

    def __init__(
        self, name: str, *, database_url: str | None = None, threads: int = 32, concurrency: int = CAPACITY
    ) -> None:
        self.name = name
        self.database_url = database_url
        self.workflows: dict[str, Workflow[..., Any]] = {}
        self.connectors: list[Connector] = []
        self.shutdown_grace = timedelta(seconds=SHUTDOWN_GRACE)
        self.always_replay = False  # replay each workflow before each of its events; `refold dev` does
        self._threads, self._concurrency = threads, concurrency
        self._observers: list[Observer] = []
        self._lock = threading.RLock()
        self._opening_lock = threading.Lock()
        self._opened: concurrent.futures.Future[Engine] | None = None
        self._engine: Engine | None = None
        self._client: Client | None = None
        self._worker: Worker | None = None
        self._server: EmbeddedServer | None = None
        self._steps_engine: Engine | None = None
        self._host_loop: asyncio.AbstractEventLoop | None = None
        self._started: list[Connector] = []
        self._lanes: list[Lane] = []

    def __repr__(self) -> str:
        return f"<App {self.name!r}, {len(self.workflows)} workflows>"

    # Declaring.

    @overload
    def workflow(  # type: ignore[overload-overlap]
        self, fn: Callable[P, Coroutine[Any, Any, R]], /
    ) -> AsyncWorkflow[P, R]: ...
    @overload
    def workflow(self, fn: Callable[P, R], /) -> SyncWorkflow[P, R]: ...
    @overload
    def workflow(self, /, *, name: str | None = None) -> "_WorkflowDecorator": ...
    def workflow(self, fn: Any = None, /, *, name: str | None = None) -> Any:
        """Make a function a workflow of this app. `name` (default: the function's) is what the log holds: keep it.

        Raises DefinitionRefused when the app has a workflow of that name, or a parameter can't be decoded.
        """

        def decorate(fn: Callable[..., Any]) -> Workflow[..., Any]:
            made: Workflow[..., Any] = define_workflow(fn, self, name=name, depth=2)
            if made.name in self.workflows:
                raise DefinitionRefused(
                    f"workflow {made.name!r}",
                    f"app {self.name!r} has a workflow of that name already",
                    'Give one of them another: @app.workflow(name="...").',
                )
            self.workflows[made.name] = made
            return made

        return decorate if fn is None else decorate(fn)

    def connect(self, connector: Connector) -> None:
        """Have the worker start and stop `connector`; connectors' decorators call this."""
        self.connectors.append(connector)

    def observe(self, callback: Observer) -> None:
        """Call `callback(workflow_id, recorded)` for each event of this process's worker, after its commit.

        It is called on the engine's thread and must not wait.
        """
        self._observers.append(callback)

    # Running.

    def __enter__(self) -> Self:
        self.start_worker()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        self._host_loop = asyncio.get_running_loop()
        await asyncio.to_thread(self.start_worker)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await asyncio.to_thread(self.close)
        self._host_loop = None

    @contextlib.asynccontextmanager
    async def lifespan(self, _server: Any = None) -> AsyncIterator[None]:
        """Run a worker as long as a Starlette or FastAPI server runs: `FastAPI(lifespan=app.lifespan)`."""
        async with self:
            yield

    def start_worker(self) -> None:
        """Run a worker and the connectors in the background; on return they run.

        Raises DatabaseUnreachable, SchemaMismatch, SchemaForbidden; EmbeddedMissing without URL and extra.
        """
        with self._lock:
            if self._worker is not None:
                return
            engine = self._open()
            _garbage.tune()
            if self._client is not None:
                engine.submit(self._client.close()).result()
                self._client = None
            self._worker = engine.submit(self._make_worker(engine)).result()
            try:
                for connector in self.connectors:
                    connector.start(self)
                    self._started.append(connector)
            except BaseException:
                self.close()
                raise

    def stop_worker(self, *, grace: timedelta | None = None) -> None:
        """Stop the connectors, release what waits at once and what is in a step as it ends, and leave.

        What is not done after `grace` (default `app.shutdown_grace`, 20 s) is left for other workers to take over.
        """
        with self._lock:
            worker, engine = self._worker, self._engine
            if worker is None or engine is None:
                return
            if grace is not None:
                worker.shutdown_grace = grace.total_seconds()
            engine.submit(worker.let_go()).result()
            for connector in reversed(self._started):
                connector.stop()
            self._started.clear()
            for lane in self._lanes:
                lane.close()
            self._lanes.clear()
            engine.submit(worker.stop()).result()
            engine.submit(self._without_worker()).result()

    async def _without_worker(self) -> None:
        # Together, on the engine's thread: a client made meanwhile must not go on with a worker that is gone.
        self._worker = None
        client, self._client = self._client, None
        if client is not None:
            await client.close()

    def run(self, *, started: Callable[[], object] | None = None) -> None:
        """Run a worker in the foreground until SIGTERM or SIGINT, then stop it gracefully.

        A second signal ends the process at once. `started` is called once the worker and its connectors run.
        """
        over = threading.Event()

        def stop(number: int, _: Any) -> None:
            signal.signal(number, signal.SIG_DFL)
            over.set()

        before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            with self:
                if started is not None:
                    started()
                # Not for ever at once: a signal that the kernel gives to another thread does not wake this one, and
                # Python runs the handler only here.
                while not over.wait(_SIGNALS_SEEN_WITHIN):
                    pass
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def close(self) -> None:
        """Stop the worker if one runs, and close every connection. The app can be used again."""
        with self._lock:
            self.stop_worker()
            engine, client = self._engine, self._client
            if engine is not None:
                if client is not None:
                    engine.submit(client.close()).result()
                    self._client = None
                engine.close()
                self._engine = None
            if self._steps_engine is not None:
                self._steps_engine.close()
                self._steps_engine = None
            if self._server is not None:
                self._server.close()
                self._server = None

    async def _make_worker(self, engine: Engine) -> Worker:
        worker = Worker(
            self._url,
            engine,
            self.workflows,
            threads=self._threads,
            steps_loop=self._steps_loop,
            observers=self._observers,
            capacity=self._concurrency,
            shutdown_grace=self.shutdown_grace.total_seconds(),
            always_replay=self.always_replay,
        )
        await worker.start()
        return worker

    def _steps_loop(self) -> asyncio.AbstractEventLoop:
        """Return the loop that `async def` steps run on: the one that started the app, else one of our own."""
        if self._host_loop is not None:
            return self._host_loop
        if self._steps_engine is None:
            self._steps_engine = Engine(f"{self.name}-steps")
        return self._steps_engine.loop

    # Connecting.

    def _open(self) -> Engine:
        """Find the database, make sure of its schema, and start the engine's thread; once."""
        # Without the lock: whoever stops the worker holds it while steps end, and those may call the app.
        if (engine := self._engine) is not None:
            return engine
        if is_in_step():
            raise WrongCall(
                f"a step called app {self.name!r} after its worker had stopped",
                "Nothing was done; the step runs again on another worker.",
            )
        with self._lock:
            if self._engine is None:
                self._url = self._find_database()
                try:
                    check(self._url)
                except BaseException:
                    if self._server is not None:
                        self._server.close()
                        self._server = None
                    raise
                self._engine = Engine(self.name)
            return self._engine

    def _find_database(self) -> str:
        url = self.database_url or os.environ.get(DATABASE_URL)
        if url:
            return url
        self._server = embedded_postgres()
        folder = _shown(self._server.folder)
        print(f"refold: no {DATABASE_URL}; using the embedded Postgres in {folder}/", flush=True)
        return self._server.url

    def _client_now(self) -> Client:
        """Return the client; on the engine's loop."""
        if self._client is None:
            self._client = Client(self._url, self._worker)
        return self._client

    def _call(self, coroutine: Coroutine[Any, Any, R], what: str, instead: str) -> R:
        try:
            refuse_on_a_loop(what, instead)
            engine = self._open()
        except BaseException:
            coroutine.close()
            raise
        return engine.call(coroutine, what, instead)

    async def _acall(self, coroutine: Coroutine[Any, Any, R]) -> R:
        engine = self._engine
        if engine is None:
            try:
                engine = await asyncio.to_thread(self._open)
            except BaseException:
                coroutine.close()
                raise
        return await engine.acall(coroutine)

    # Starting (what a Workflow asks of its app).

    def start(
        self, workflow: Workflow[..., R], input: bytes, digest: str, *, id: str | None
    ) -> WorkflowHandle[R]:
        """Start a workflow with an encoded input; `workflow.start(...)` calls this."""
        name = workflow.name
        started = self._call(
            self._start(workflow, input, digest, id), f"{name}.start(...)", f"await {name}.astart(...)"
        )
        return WorkflowHandle(self, started, workflow)

    async def astart(
        self, workflow: Workflow[..., R], input: bytes, digest: str, *, id: str | None
    ) -> WorkflowHandle[R]:
        """Do what `start` does, from async code."""
        return WorkflowHandle(self, await self._acall(self._start(workflow, input, digest, id)), workflow)

    async def _start(self, workflow: Workflow[..., Any], input: bytes, digest: str, id: str | None) -> str:
        return await self._client_now().start(workflow, input, digest, id)

    # Looking and sending.

    def get(self, id: str) -> WorkflowHandle[Any]:
        """Return the handle of a workflow. Raises WorkflowNotFound with the nearest IDs."""
        info = self._call(self._info(id), "app.get(...)", "await app.aget(...)")
        return WorkflowHandle(self, id, self.workflows.get(info.name))

    async def aget(self, id: str) -> WorkflowHandle[Any]:
        """Do what `get` does, from async code."""
        info = await self.ainfo(id)
        return WorkflowHandle(self, id, self.workflows.get(info.name))

    def info(self, id: str) -> WorkflowInfo:
        """Return what is known of a workflow without its history. Raises WorkflowNotFound."""
        return self._call(self._info(id), "app.info(...)", "await app.ainfo(...)")

    async def ainfo(self, id: str) -> WorkflowInfo:
        """Do what `info` does, from async code."""
        return await self._acall(self._info(id))

    async def _info(self, id: str) -> WorkflowInfo:
        return await self._client_now().info(id)

    def list(
        self,
        *,
        status: str | None = None,
        name: str | None = None,
        limit: int = 100,
        cursor: str | None = None,
    ) -> Page:
        """Return workflows, newest first, `limit` at a time; `cursor` is the `next_cursor` of the page before."""
        return self._call(self._list(status, name, limit, cursor), "app.list(...)", "await app.alist(...)")

    async def alist(
        self,
        *,
        status: str | None = None,
        name: str | None = None,
        limit: int = 100,
        cursor: str | None = None,
    ) -> Page:
        """Do what `list` does, from async code."""
        return await self._acall(self._list(status, name, limit, cursor))

    async def _list(self, status: str | None, name: str | None, limit: int, cursor: str | None) -> Page:
        return await self._client_now().list(status, name, limit, cursor)

    def history(self, id: str) -> builtins.list[Recorded]:
        """Return the events of a workflow, in order. Raises WorkflowNotFound."""
        return self._call(self._history(id), "app.history(...)", "await app.ahistory(...)")

    async def ahistory(self, id: str) -> builtins.list[Recorded]:
        """Do what `history` does, from async code."""
        return await self._acall(self._history(id))

    async def _history(self, id: str) -> builtins.list[Recorded]:
        return await self._client_now().history(id)

    def send(self, id: str, value: Any, topic: str = "") -> None:
        """Send a message to a workflow, for its `refold.recv(topic)`; durable on return. One not started yet gets it
        when it starts.

        In workflow code this is `refold.send`: recorded, and sent in the transaction that records it. Raises
        WorkflowEnded, ValueRefused for a value that is no JSON.
        """
        instance = find_instance()
        if instance is not None:
            from refold.core._context import send

            send(id, value, topic)
            return
        self._call(
            self._send(id, encode_message(value, f"the message to {id}"), topic),
            "app.send(...)",
            "await app.asend(...)",
        )

    async def asend(self, id: str, value: Any, topic: str = "") -> None:
        """Do what `send` does, from async code."""
        await self._acall(self._send(id, encode_message(value, f"the message to {id}"), topic))

    async def _send(self, id: str, value: bytes, topic: str) -> None:
        await self._client_now().send(id, value, topic)

    def cancel(self, id: str, reason: str = "") -> None:
        """Ask a workflow to cancel; durable on return. It ends as `cancelled` when its code lets it.

        What it waits for raises: `asyncio.CancelledError` in `async def` workflows, its subclass `refold.Cancelled` in
        `def` ones; code on the way out may run steps to undo what was done. The child that it waits for is cancelled
        first. One that never ran, is parked or stuck ends at once, without its code. To cancel it again does nothing.
        Raises WorkflowNotFound, WorkflowEnded when it has ended otherwise.
        """
        refuse_in_a_workflow("app.cancel(...)", "a child is cancelled by its handle")
        self._call(self._cancel(id, reason), "app.cancel(...)", "await app.acancel(...)")

    async def acancel(self, id: str, reason: str = "") -> None:
        """Do what `cancel` does, from async code."""
        refuse_in_a_workflow("app.acancel(...)", "a child is cancelled by its handle")
        await self._acall(self._cancel(id, reason))

    async def _cancel(self, id: str, reason: str) -> None:
        await self._client_now().cancel(id, reason)

    def retry(self, id: str) -> builtins.list[str]:
        """Set a parked workflow going again; return the names of the steps that run again.

        Those are the ones that failed, in the workflow itself or in a child that failed it, if its code has not
        answered the failure by something that is recorded. They run with attempts counted on and all their retries;
        whatever else is recorded stays as it is. Where no step failed, the code is run again over its history as it
        is now. Raises WorkflowNotFound, WorkflowNotParked.
        """
        refuse_in_a_workflow("app.retry(...)", "a person decides this")
        return self._call(self._retry(id), "app.retry(...)", "await app.aretry(...)")

    async def aretry(self, id: str) -> builtins.list[str]:
        """Do what `retry` does, from async code."""
        refuse_in_a_workflow("app.aretry(...)", "a person decides this")
        return await self._acall(self._retry(id))

    async def _retry(self, id: str) -> builtins.list[str]:
        return await self._client_now().retry(id)

    def skip(self, id: str, reason: str = "") -> None:
        """End a parked workflow as failed, with the error that parked it; what waits behind it goes on.

        `reason` is recorded as a note of the error. Raises WorkflowNotFound, WorkflowNotParked.
        """
        refuse_in_a_workflow("app.skip(...)", "a person decides this")
        self._call(self._skip(id, reason), "app.skip(...)", "await app.askip(...)")

    async def askip(self, id: str, reason: str = "") -> None:
        """Do what `skip` does, from async code."""
        refuse_in_a_workflow("app.askip(...)", "a person decides this")
        await self._acall(self._skip(id, reason))

    async def _skip(self, id: str, reason: str) -> None:
        await self._client_now().skip(id, reason)

    def in_flight(self, prefix: str = "") -> dict[str, dict[str, int]]:
        """Count the open workflows of each source whose label begins with `prefix`: label -> status -> how many."""
        return self._call(self._in_flight(prefix), "app.in_flight(...)", "await app.ain_flight(...)")

    async def ain_flight(self, prefix: str = "") -> dict[str, dict[str, int]]:
        """Do what `in_flight` does, from async code."""
        return await self._acall(self._in_flight(prefix))

    async def _in_flight(self, prefix: str) -> dict[str, dict[str, int]]:
        return await self._client_now().in_flight(prefix)

    def delete(self, id: str) -> None:
        """Delete the history of a workflow that has ended; its ID stays taken for ever.

        Raises WorkflowNotFound, WorkflowEnded when it has not ended.
        """
        self._call(self._delete(id), "app.delete(...)", "await app.adelete(...)")

    async def adelete(self, id: str) -> None:
        """Do what `delete` does, from async code."""
        await self._acall(self._delete(id))

    async def _delete(self, id: str) -> None:
        await self._client_now().delete(id)

    # Connectors.

    def lane(self, name: str) -> Lane:
        """Return a new sequence of hand-overs for a connector; needs a running worker."""
        engine = self._engine
        if engine is None or self._worker is None:
            raise RuntimeError("a lane needs a running worker")
        lane = Lane(name, self._running_worker, engine.submit)
        self._lanes.append(lane)
        return lane

    def hand_over(self, moves: Sequence[Move]) -> HandedOver:
        """Start the workflows of `moves` and move the positions on, in one transaction; without a lane, for once.

        Raises PositionMoved, and nothing was written, when somebody else was first.
        """
        return self._call(self._hand_over(moves), "app.hand_over(...)", "await app.ahand_over(...)")

    async def ahand_over(self, moves: Sequence[Move]) -> HandedOver:
        """Do what `hand_over` does, from async code."""
        return await self._acall(self._hand_over(moves))

    async def _hand_over(self, moves: Sequence[Move]) -> HandedOver:
        return await self._client_now().hand_over(moves)

    def accept(
        self, items: Sequence[Start | Send | Cancel], *, label: str, timeout: float = ACCEPT_WITHIN
    ) -> builtins.list[Accepted]:
        """Start workflows and send messages; on return they are durable, and their sender may be told so.

        Shares its transaction with all that this process accepts at the moment. A start whose ID exists is no error,
        whatever its input: see `Accepted`. Works in a process without a worker too; with one, that begins at once.

        Raises NotAccepted after `timeout` seconds (Postgres is away, or stalled): what has not left this process by
        then is taken back, what is on its way may still be done. Raises InvalidId.
        """
        refuse_on_a_loop("app.accept(...)", "await app.aaccept(...)")
        answer: concurrent.futures.Future[builtins.list[Accepted]] = concurrent.futures.Future()

        def tell(accepted: builtins.list[Accepted] | None, error: Exception | None) -> None:
            with contextlib.suppress(concurrent.futures.InvalidStateError):
                answer.set_exception(error) if error is not None else answer.set_result(accepted or [])

        ticket = _ticket(items, label, tell)
        deadline = time.monotonic() + timeout
        try:
            self._opening().result(timeout)
            self._post(self._take, ticket)
            return answer.result(max(0.0, deadline - time.monotonic()))
        except TimeoutError as error:
            self._take_back(ticket)
            raise _not_in_time(ticket, timeout) from error
        except DatabaseUnreachable as error:
            raise NotAccepted(label, len(items), str(error).splitlines()[0]) from error
        except BaseException:
            self._take_back(ticket)
            raise

    async def aaccept(
        self, items: Sequence[Start | Send | Cancel], *, label: str, timeout: float = ACCEPT_WITHIN
    ) -> builtins.list[Accepted]:
        """Do what `accept` does, from async code."""
        host = asyncio.get_running_loop()
        answer: asyncio.Future[builtins.list[Accepted]] = host.create_future()

        def answered(accepted: builtins.list[Accepted] | None, error: Exception | None) -> None:
            if not answer.done():
                answer.set_exception(error) if error is not None else answer.set_result(accepted or [])

        ticket = _ticket(items, label, answered)
        late = host.call_later(timeout, lambda: answered(None, _not_in_time(ticket, timeout)))
        try:
            if self._engine is None:
                opening = asyncio.wrap_future(self._opening())
                await asyncio.wait((opening, answer), return_when=asyncio.FIRST_COMPLETED)
                if opening.done():
                    opening.result()
            if not answer.done():
                back = self._engine_now().mailbox_of(host)
                ticket.tell = lambda accepted, error: _post_back(back, answered, accepted, error)
                self._post(self._take, ticket)
            return await answer
        except DatabaseUnreachable as error:
            raise NotAccepted(label, len(items), str(error).splitlines()[0]) from error
        except BaseException:
            self._take_back(ticket)
            raise
        finally:
            late.cancel()

    def _opening(self) -> "concurrent.futures.Future[Engine]":
        """Open the app in a thread, one for all who ask meanwhile: Postgres may not answer for long."""
        with self._opening_lock:
            if self._opened is None or (self._opened.done() and self._engine is None):
                future: concurrent.futures.Future[Engine] = concurrent.futures.Future()
                self._opened = future

                def work() -> None:
                    try:
                        future.set_result(self._open())
                    except BaseException as error:
                        future.set_exception(error)

                threading.Thread(target=work, name=f"refold-open-{self.name}", daemon=True).start()
            return self._opened

    def _engine_now(self) -> Engine:
        if self._engine is None:
            raise concurrent.futures.CancelledError("the app was closed")
        return self._engine

    def _post(self, act: Callable[[Ticket], None], ticket: Ticket) -> None:
        try:
            self._engine_now().post(act, ticket)
        except (RuntimeError, concurrent.futures.CancelledError) as error:  # its loop is closed
            raise NotAccepted(ticket.label, len(ticket.items), "the app was closed") from error

    def _take(self, ticket: Ticket) -> None:
        self._client_now().acceptor.take(ticket)

    def _take_back(self, ticket: Ticket) -> None:
        with contextlib.suppress(NotAccepted):
            self._post(lambda given_up: self._client_now().acceptor.take_back(given_up), ticket)

    def _running_worker(self) -> Worker:
        worker = self._worker
        if worker is None:
            raise RuntimeError("the worker has stopped")
        return worker

    def log_now(self) -> int:
        """Return the time by the log's clock, Postgres's, in microseconds since 1970 UTC."""
        return self._call(self._log_now(), "app.log_now()", "await app.alog_now()")

    async def alog_now(self) -> int:
        """Do what `log_now` does, from async code."""
        return await self._acall(self._log_now())

    async def _log_now(self) -> int:
        return await self._client_now().log_now()

    def parked(
        self, prefix: str = "", *, limit: int = 100, after: ParkedWorkflow | None = None
    ) -> builtins.list[ParkedWorkflow]:
        """Return the workflows of orders whose key begins with `prefix` that were set aside, by key and place.

        At most `limit`; `after` is the last one of the page before. `retry` and `skip` settle them.
        """
        call = self._parked(prefix, limit, after)
        return self._call(call, "app.parked(...)", "await app.aparked(...)")

    async def aparked(
        self, prefix: str = "", *, limit: int = 100, after: ParkedWorkflow | None = None
    ) -> builtins.list[ParkedWorkflow]:
        """Do what `parked` does, from async code."""
        return await self._acall(self._parked(prefix, limit, after))

    async def _parked(
        self, prefix: str, limit: int, after: ParkedWorkflow | None
    ) -> builtins.list[ParkedWorkflow]:
        return [*await self._client_now().parked(prefix, limit, after)]

    def runnable(self, label: str, *, limit: int = 10_000) -> builtins.list[str]:
        """Return the IDs of the unfinished workflows of `label` that don't wait for something, up to `limit`."""
        return self._call(self._runnable(label, limit), "app.runnable(...)", "await app.arunnable(...)")

    async def arunnable(self, label: str, *, limit: int = 10_000) -> builtins.list[str]:
        """Do what `runnable` does, from async code."""
        return await self._acall(self._runnable(label, limit))

    async def _runnable(self, label: str, limit: int) -> builtins.list[str]:
        return [*await self._client_now().runnable_ids(label, limit)]

    def positions(self, prefix: str = "") -> builtins.list[SourcePosition]:
        """Return how far each source whose name begins with `prefix` was handed over."""
        return self._call(self._positions(prefix), "app.positions(...)", "await app.apositions(...)")

    async def apositions(self, prefix: str = "") -> builtins.list[SourcePosition]:
        """Do what `positions` does, from async code."""
        return await self._acall(self._positions(prefix))

    async def _positions(self, prefix: str) -> builtins.list[SourcePosition]:
        return [*await self._client_now().positions(prefix)]

    def source_facts(self, prefix: str = "", *, limit: int = 100) -> builtins.list[SourceFact]:
        """Return what happened to the sources whose name begins with `prefix`, newest first: gaps, dropped messages.

        That is what their streams say, which reach back some 10,000 hand-overs of a source.
        """
        call = self._source_facts(prefix, limit)
        return self._call(call, "app.source_facts(...)", "await app.asource_facts(...)")

    async def asource_facts(self, prefix: str = "", *, limit: int = 100) -> builtins.list[SourceFact]:
        """Do what `source_facts` does, from async code."""
        return await self._acall(self._source_facts(prefix, limit))

    async def _source_facts(self, prefix: str, limit: int) -> builtins.list[SourceFact]:
        return [*await self._client_now().source_facts(prefix, limit)]


def _ticket(
    items: Sequence[Start | Send | Cancel],
    label: str,
    tell: Callable[[list[Accepted] | None, Exception | None], None],
) -> Ticket:
    for item in items:
        check_id(item.id if isinstance(item, Start) else item.to)
    return Ticket(items, label, tell)


def _not_in_time(ticket: Ticket, timeout: float) -> NotAccepted:
    return NotAccepted(ticket.label, len(ticket.items), f"Postgres has not answered within {timeout:g} s")


def _post_back(back: Mailbox, callback: Callable[..., object], *arguments: Any) -> None:
    with contextlib.suppress(RuntimeError):  # the caller's loop is closed: nobody waits
        back.post(callback, *arguments)


class _WorkflowDecorator(Protocol):
    """The type of `app.workflow(name=...)`."""

    @overload
    def __call__(  # type: ignore[overload-overlap]
        self, fn: Callable[P, Coroutine[Any, Any, R]], /
    ) -> AsyncWorkflow[P, R]: ...
    @overload
    def __call__(self, fn: Callable[P, R], /) -> SyncWorkflow[P, R]: ...


def refuse_in_a_workflow(call: str, instead: str) -> None:
    """Raise WrongCall if workflow code is calling: a replay would do it again."""
    instance = find_instance()
    if instance is not None:
        raise WrongCall(
            f"{call} was called in workflow {instance.workflow_id!r}, and would be done again at each replay",
            f"Put it into a step; {instead}.",
        )


def _shown(path: Path) -> str:
    with contextlib.suppress(ValueError):
        return str(path.relative_to(Path.cwd()))
    return str(path)
