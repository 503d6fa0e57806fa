"""Reading a stream: pull, look whether the consumer is still the same one, hand over, acknowledge last.

All on one loop in one thread. Whatever fails, it begins again with a new connection; what was not acknowledged comes
again after the consumer's `ack_wait`. JetStream keeps who has acknowledged what, so there is no position in Postgres:
the ID of each workflow is its message's identity, and a message that comes twice starts nothing.
"""

import asyncio
import contextlib
import logging
from collections.abc import Sequence
from typing import Any, Final

import msgspec
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription
from nats.errors import Error as ClientError
from nats.errors import NoServersError

from refold.connectors.nats._jetstream import (
    NOT_FOUND,
    Client,
    ConsumerConfig,
    ConsumerInfo,
    JetStream,
    JetStreamRefused,
    place_of,
    status_of,
)
from refold.connectors.nats._message import start_of
from refold.core import App, Envelope, Lane, NotAccepted, Start

log: Final = logging.getLogger("refold.nats")

_RETRY: Final = 1.0
_TIMEOUT: Final = 2.0  # for an answer of the server, or of Postgres; a stop waits that long for each
_PULL: Final = 5.0  # how long the server keeps a request that it has nothing for
_LATE: Final = 3.0  # after that, a server that has not even said so counts as away
_COUNT_EVERY: Final = 1.0
_FULL: Final = 0.1
_MOST_BYTES: Final = 16 * 1024 * 1024  # of one request; a single message may be as large as the server allows
_AROUND: Final = 64 * 1024  # bytes that the server counts and that are not in the message: its subjects
_CONFLICT: Final = 409
# What ends a request and nothing else: there was nothing in time, or the next message did not fit into it.
_OVER: Final = (404, 408)
_FULL_REQUEST: Final = ("message size exceeds maxbytes", "batch completed")
_EXCEEDED: Final = "exceeded "  # a limit of the consumer: of a request, or of requests at once


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """What a consumer was declared with. Times in seconds."""

    envelope: Envelope
    name: str
    stream: str
    durable: str
    subject: str
    from_now: bool
    ack_wait: float
    batch_size: int
    max_in_flight: int
    options: dict[str, Any]


class _Again(Exception):
    """What was read may not be what it was taken for: bind to the stream anew."""


class Reader:
    """The life of a consumer in this process, from the first connection to the last."""

    def __init__(self, settings: Settings, servers: str, app: App, lane: Lane) -> None:
        self._settings = settings
        self._servers = servers
        self._app = app
        self._lane = lane
        self._said: str | None = None
        self._problem: Exception | None = None  # what the client was told, and does not raise
        self._since: str | None = None  # when the first durable consumer was made that this one knows
        # What the server said last, for people.
        self.lag: int | None = None
        self.floor: int | None = None
        self.subjects: list[str] = []
        self.is_paused = False

    async def run(self) -> None:
        """Read until cancelled, whatever happens to the server and to Postgres meanwhile."""
        while True:
            try:
                client = await self._connect()
                try:
                    await self._read(client)
                finally:
                    # Acknowledgements leave with it; a server that is away is not waited for.
                    with contextlib.suppress(Exception):
                        await asyncio.wait_for(client.close(), _TIMEOUT)
            except _Again as again:
                log.info("consumer %s looks anew at its stream: %s", self._settings.name, again)
            except JetStreamRefused as exc:
                self._say(str(exc))
            except (ClientError, OSError, TimeoutError) as exc:
                why = f" ({_words(self._problem)})" if self._problem is not None else ""
                self._say(f"{_words(exc)}{why}; it goes on trying")
            except asyncio.CancelledError:
                # An answer out of a worker that begins anew may be cancelled as well; that is not our end.
                task = asyncio.current_task()
                if task is None or task.cancelling():
                    raise
            except Exception as exc:
                log.exception("consumer %r begins again with a new connection: %s", self._settings.name, exc)
            await asyncio.sleep(_RETRY)

    async def _connect(self) -> Client:
        self._problem = None

        async def keep(problem: Exception) -> None:
            self._problem = problem

        async def quiet() -> None:
            """A connection that ends is an exception to whoever uses it; the client would print it as well."""

        client, options = Client(), self._settings.options
        try:
            await client.connect(
                [each.strip() for each in self._servers.split(",")],
                **{"name": "refold", "connect_timeout": _TIMEOUT, **options, "reconnect_time_wait": 0.2},
                # A new connection is made by `run`, which then looks at everything anew. (With 0 the client would go
                # round its servers for ever before it says a word.)
                allow_reconnect=False,
                max_reconnect_attempts=1,
                error_cb=keep,
                disconnected_cb=quiet,
                closed_cb=quiet,
            )
        except NoServersError as exc:
            problem, self._problem = self._problem or exc, None
            raise ConnectionError(
                f"can't reach NATS at {without_secrets(self._servers)}: {_words(problem)}"
            ) from exc
        return client

    async def _read(self, client: Client) -> None:
        binding = _Binding(JetStream(client, _TIMEOUT), self._settings, self._since)
        await binding.bind()
        self._since = self._since or binding.info.created
        self.subjects = binding.subjects
        self._saw(binding.info)
        try:
            await self._take_and_finish(binding)
        finally:
            with contextlib.suppress(Exception):
                await asyncio.wait_for(binding.release(), _TIMEOUT)

    async def _take_and_finish(self, binding: "_Binding") -> None:
        loop = asyncio.get_running_loop()
        most = self._settings.max_in_flight
        room, counted_at, seen_at = 0, 0.0, loop.time()
        reads = False
        while True:
            if room <= 0 or (room < most and loop.time() - counted_at >= _COUNT_EVERY):
                room, counted_at = await self._count_room(), loop.time()
                self.is_paused = room <= 0
                if self.is_paused:
                    if counted_at - seen_at >= _COUNT_EVERY:
                        seen_at = counted_at
                        self._saw(await binding.verify())
                    await asyncio.sleep(_FULL)
                    continue
            messages = await binding.take(min(room, self._settings.batch_size))
            if not reads:
                reads = True
                self._say(None)
            if messages:
                room -= len(messages)
                await self._finish(binding, messages)
            else:
                self._saw(await binding.verify())

    async def _count_room(self) -> int:
        """Return how many workflows may still be started; none while Postgres does not say."""
        most = self._settings.max_in_flight
        runnable = asyncio.wrap_future(self._lane.count_runnable(self._settings.name, most))
        try:
            return most - await asyncio.wait_for(runnable, _TIMEOUT)
        except TimeoutError:
            self._say("Postgres does not answer; it goes on trying")
            return 0

    async def _finish(self, binding: "_Binding", messages: Sequence[Msg]) -> None:
        """Hand over and acknowledge; when this reader is stopped meanwhile, that first comes to its end."""
        work = asyncio.ensure_future(self._hand_over(binding, messages))
        try:
            await asyncio.shield(work)
        except asyncio.CancelledError:
            done, _ = await asyncio.wait({work}, timeout=3 * _TIMEOUT)
            for each in done:
                each.exception()  # it is told by what follows: these messages come again
            raise

    async def _hand_over(self, binding: "_Binding", messages: Sequence[Msg]) -> None:
        info = await binding.verify()
        self._saw(info)
        starts = [binding.start_of(message) for message in messages]
        try:
            await self._app.aaccept(starts, label=self._settings.name, timeout=_TIMEOUT)
        except NotAccepted as exc:
            self._say(f"{exc}; the messages come again")
            for message in messages:
                await message.nak(delay=_RETRY)
            return
        self._say(None)
        for message in messages:
            await message.ack()

    def _saw(self, info: ConsumerInfo) -> None:
        self.lag = info.num_pending + info.num_ack_pending
        self.floor = info.ack_floor.stream_seq

    def _say(self, problem: str | None) -> None:
        """Say a problem once, and once that it is over."""
        if problem == self._said:
            return
        if problem is not None:
            log.warning("consumer %r: %s", self._settings.name, problem)
        elif self._said is not None:
            log.warning("consumer %r: reads stream %s again", self._settings.name, self._settings.stream)
        self._said = problem


class _Binding:
    """A durable consumer of one stream, as both were when it was bound, and the messages that come from it."""

    def __init__(self, jetstream: JetStream, settings: Settings, since: str | None) -> None:
        self._jetstream = jetstream
        self._settings = settings
        self._since = since
        self._inbox: Subscription | None = None
        self._asked = 0  # messages that the server may still send for the last request
        self._asked_at = 0.0
        self._came = False  # one of them, at least
        self._taking: list[Msg] = []  # what `take` has and has not returned
        self.info: ConsumerInfo
        self.subjects: list[str] = []

    async def bind(self) -> None:
        """Find the stream, and the consumer, or make it. Raises JetStreamRefused, and _Again for a race with others."""
        settings = self._settings
        try:
            self.info = await self._consumer()
        except JetStreamRefused as exc:
            if exc.code != NOT_FOUND:
                raise
            await self._make()
            self.info = await self._consumer()
        self.subjects = (await self._jetstream.stream(settings.stream)).config.subjects
        problem = problem_of(self.info.config, settings)
        if problem is not None:
            raise JetStreamRefused(
                f"nothing, but its consumer {settings.durable!r} is of no use here", _CONFLICT, problem
            )
        client = self._jetstream.client
        self._inbox = await client.subscribe(client.new_inbox())

    async def verify(self) -> ConsumerInfo:
        """Return what is known of the consumer now. Raises _Again when it is another one, or gone.

        Asked after messages have come. Another consumer is to be looked at before it is used; and an acknowledgement
        names a place in a stream, so it must not go to one that was made since under its name.
        """
        try:
            info = await self._consumer()
        except JetStreamRefused as exc:
            if exc.code == NOT_FOUND:
                raise _Again("its consumer is gone") from exc
            raise
        if info.created != self.info.created:
            raise _Again("its consumer was made again")
        return info

    async def take(self, most: int) -> list[Msg]:
        """Return up to `most` messages as soon as there is one; none when the server had nothing for a while."""
        loop = asyncio.get_running_loop()
        inbox = self._inbox
        assert inbox is not None
        if self._asked == 0:
            limits = self.info.config
            most = min(most, limits.max_batch or most)
            most_bytes = max(_MOST_BYTES, self._jetstream.client.max_payload + _AROUND)
            self._asked, self._asked_at, self._came = most, loop.time(), False
            await self._jetstream.pull(
                self._settings.stream, self._settings.durable, inbox.subject,
                batch=most, most_bytes=min(most_bytes, limits.max_bytes or most_bytes),
                seconds=min(_PULL, limits.max_expires / 1e9 or _PULL),
            )  # fmt: skip
        messages = self._taking
        while self._asked and len(messages) < most and (inbox.pending_msgs or not messages):
            left = self._asked_at + _PULL + _LATE - loop.time()
            try:
                message = await inbox.next_msg(timeout=max(left, 0.01))
            except TimeoutError:
                raise _Again("the server has not answered a request for messages") from None
            status = status_of(message)
            if status is None:
                self._asked -= 1
                self._came = True
                messages.append(message)
            elif not self._is_over(*status):
                continue
            else:
                self._asked = 0
        self._taking = []
        return messages

    async def release(self) -> None:
        """Give back what has come and is not handed over: it is delivered again soon, not after `ack_wait`."""
        inbox = self._inbox
        back, self._taking = self._taking, []
        while inbox is not None and inbox.pending_msgs:
            back.append(await inbox.next_msg(timeout=_FULL))
        for message in back:
            if status_of(message) is None:
                # Not at once: it would come here again, for the request that is still open.
                await message.nak(delay=_RETRY)
        await self._jetstream.client.flush(timeout=1)

    def start_of(self, message: Msg) -> Start:
        """Return the start that a message is."""
        sequence, time_ns = place_of(message)
        return start_of(
            self._settings.envelope,
            consumer=self._settings.name,
            stream=self._settings.stream,
            sequence=sequence,
            time_ns=time_ns,
            subject=message.subject,
            headers=message.headers,
            body=message.data,
        )

    def _is_over(self, code: int, words: str) -> bool:
        """Say whether a status ends the request. Raises JetStreamRefused and _Again for one that says more."""
        if code == 100:  # a sign of life
            return False
        said = words.lower()
        if code in _OVER or (self._came and said in _FULL_REQUEST):
            return True
        if said in _FULL_REQUEST or said.startswith(_EXCEEDED):
            raise JetStreamRefused("a request for messages", code, words)
        raise _Again(f"{words or 'the server has ended a request'} ({code})")

    async def _consumer(self) -> ConsumerInfo:
        return await self._jetstream.consumer(self._settings.stream, self._settings.durable)

    async def _make(self) -> None:
        settings = self._settings
        config: dict[str, Any] = {
            "ack_policy": "explicit",
            "ack_wait": int(settings.ack_wait * 1e9),
            "deliver_policy": "new" if settings.from_now else "all",
            "max_deliver": -1,
            # What all workers together may have in their hands.
            "max_ack_pending": max(1_000, 10 * settings.batch_size),
        }
        if settings.from_now and self._since is not None:
            # Somebody has deleted it, or its stream. What came since the first one is not to be missed.
            config |= {"deliver_policy": "by_start_time", "opt_start_time": self._since}
        if settings.subject:
            config["filter_subject"] = settings.subject
        await self._jetstream.make_consumer(settings.stream, settings.durable, config)


def problem_of(config: ConsumerConfig, settings: Settings) -> str | None:
    """Return why a consumer that is there can't keep the promise, or takes other messages than were declared."""
    if config.deliver_subject:
        return "it is a push consumer; give durable= another name, or delete it"
    if config.ack_policy != "explicit":
        return f"its ack policy is {config.ack_policy!r}, not 'explicit': messages would be lost; delete it"
    if config.max_deliver > 0:
        return f"it gives a message up after {config.max_deliver} deliveries; set max_deliver to -1"
    if config.headers_only:
        return "it delivers headers only, and no message's body; delete it"
    found = config.filter_subject or ",".join(config.filter_subjects)
    if found != settings.subject:
        return f"its filter is {found!r}, declared is {settings.subject!r}; change one of them"
    return None


def _words(exc: BaseException) -> str:
    return str(exc) or type(exc).__name__


def without_secrets(servers: str) -> str:
    """Return the addresses as they may be shown: without the user and password that they may hold."""
    return ",".join(f"nats://{each.rpartition('@')[2].rpartition('/')[2]}" for each in servers.split(","))
