"""Socket Mode: Slack's payloads over a WebSocket that the app opens, for machines that no request can reach.

An envelope is acknowledged when its payload is in the log, and not before; an event that was not acknowledged comes
again. Slack moves a connection every few hours: the next one is open before the old one is let go, and what came by
the old one is acknowledged there.

On aiohttp itself, not on slack_sdk's clients: those take no message for seconds while they change a connection.
"""

import asyncio
import contextlib
import logging
import threading
from typing import Any, Final

import aiohttp
import msgspec

from refold.connectors.slack._acks import Ack
from refold.connectors.slack._errors import CallFailed
from refold.connectors.slack._intake import Intake
from refold.connectors.slack._kinds import delivery_of

log: Final = logging.getLogger("refold.slack")

_OPEN: Final = "apps.connections.open"
_BACKOFF: Final = (1.0, 2.0, 5.0, 10.0, 30.0)
_HEARTBEAT: Final = 15.0  # a line that is dead on the way is seen within that, and half of it
_LET_GO: Final = 30.0  # Slack closes a connection that it has asked to renew within ten seconds
_HAND_SHAKE: Final = aiohttp.ClientTimeout(total=10)
_MESSAGE_MAX: Final = 16 * 1024 * 1024
# Why Slack closes what it has just opened, and would again.
_REFUSALS: Final = {
    "link_disabled": "Socket Mode is switched off in this Slack app's settings",
    "too_many_websockets": "this Slack app has as many connections open as Slack allows, ten",
}

Link = aiohttp.ClientWebSocketResponse


class Socket:
    """The connection of one Slack app, on a thread of its own."""

    def __init__(self, intake: Intake, app_token: str, client: Any, name: str) -> None:
        """`client` is bolt's: where the API is, and how it is reached."""
        self._intake = intake
        self._app_token = app_token
        self._client = client
        self._name = name
        self._loop = asyncio.new_event_loop()
        self._stopping = asyncio.Event()
        self._links: set[Link] = set()
        self._under_way: set[asyncio.Task[None]] = set()
        self._readers: set[asyncio.Task[Any]] = set()
        self._thread = threading.Thread(target=self._live, name=f"{name}-socket", daemon=True)

    def is_connected(self) -> bool:
        """Say whether there is a connection now."""
        return bool(self._links)

    def start(self) -> None:
        """Begin to connect; Slack may be away."""
        self._thread.start()

    def stop(self) -> None:
        """Return when what has arrived is answered and the connection is closed."""
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._stopping.set)
        self._thread.join()

    def _live(self) -> None:
        with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
            runner.run(self._run())

    async def _run(self) -> None:
        async with aiohttp.ClientSession() as session:
            connecting = asyncio.create_task(self._stay_connected(session))
            await self._stopping.wait()
            connecting.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await connecting
            await self._end()

    async def _stay_connected(self, session: aiohttp.ClientSession) -> None:
        tries, away = 0, False
        while True:
            try:
                link = await self._connect(session)
            except Exception as error:  # whatever it is: nobody else would connect again
                if not away:
                    log.warning("%s: can't connect to Slack, it goes on trying: %s", self._name, error)
                away = True
                await asyncio.sleep(max(_pause(tries), getattr(error, "retry_after_s", None) or 0.0))
                tries += 1
                continue
            if away:
                log.warning("%s: connected to Slack again", self._name)
            away = False
            began = self._loop.time()
            why = await self._until_it_is_over(link)
            if why in _REFUSALS:
                if tries == 0:
                    log.error("%s: %s; it goes on trying", self._name, _REFUSALS[why])
                await asyncio.sleep(_pause(tries))
                tries += 1
                continue
            tries = 0
            if self._loop.time() - began < _BACKOFF[0]:
                await asyncio.sleep(_BACKOFF[0])  # a Slack that closes what it has just opened

    async def _connect(self, session: aiohttp.ClientSession) -> Link:
        headers = {"Authorization": f"Bearer {self._app_token}"}
        how: dict[str, Any] = {"proxy": self._client.proxy}
        if self._client.ssl is not None:
            how["ssl"] = self._client.ssl
        async with session.post(
            f"{self._client.base_url}{_OPEN}", headers=headers, timeout=_HAND_SHAKE, **how
        ) as answer:
            found = msgspec.json.decode(await answer.read()) if answer.status == 200 else {}
            if not found.get("ok"):
                after = answer.headers.get("Retry-After", "")
                said = str(found.get("error") or f"status {answer.status}")
                raise CallFailed(_OPEN, said, "", float(after) if after.isdigit() else None)
        async with asyncio.timeout(_HAND_SHAKE.total):
            link: Link = await session.ws_connect(
                found["url"], heartbeat=_HEARTBEAT, max_msg_size=_MESSAGE_MAX, **how
            )
            return link

    async def _until_it_is_over(self, link: Link) -> str:
        """Read from `link` until it has ended or Slack wants another, and return why; it is read on meanwhile."""
        over: asyncio.Future[str] = self._loop.create_future()
        reader = asyncio.create_task(self._read(link, over))
        self._readers.add(reader)
        reader.add_done_callback(self._readers.discard)
        return await over

    async def _read(self, link: Link, over: "asyncio.Future[str]") -> None:
        self._links.add(link)
        try:
            async for message in link:
                why = self._heard(link, message.data) if message.type is aiohttp.WSMsgType.TEXT else None
                if why is not None and not over.done():
                    over.set_result(why)
                    self._loop.call_later(_LET_GO, self._close_soon, link)
        finally:
            self._links.discard(link)
            if not over.done():
                over.set_result("")

    def _close_soon(self, link: Link) -> None:
        closing = asyncio.create_task(link.close())
        self._readers.add(closing)
        closing.add_done_callback(self._readers.discard)

    def _heard(self, link: Link, text: str) -> str | None:
        """Take one message; return why when Slack wants this connection closed."""
        try:
            message = msgspec.json.decode(text)
        except msgspec.MsgspecError:
            message = None
        if not isinstance(message, dict):
            log.warning("%s: Slack sent what is no JSON object", self._name)
            return None
        if message.get("type") == "disconnect":
            return str(message.get("reason"))
        if (
            isinstance(message.get("payload"), dict)
            and message.get("envelope_id")
            and not self._stopping.is_set()
        ):
            task = asyncio.create_task(self._take(link, message))
            self._under_way.add(task)
            task.add_done_callback(self._under_way.discard)
        return None

    async def _take(self, link: Link, message: dict[str, Any]) -> None:
        answer = await self._intake.take(delivery_of(message["payload"]))
        if answer.status != 200:
            return  # no acknowledgement: Slack sends an event again, and tells the person that a click failed
        response = {"envelope_id": message["envelope_id"]}
        if message.get("accepts_response_payload") and (payload := _payload(answer)):
            response["payload"] = payload
        try:
            await link.send_str(msgspec.json.encode(response).decode())
        except (ConnectionError, RuntimeError) as error:
            log.info("%s: an acknowledgement did not go out, Slack sends it again: %s", self._name, error)

    async def _end(self) -> None:
        if self._under_way:
            await asyncio.wait(self._under_way, timeout=self._intake.answer_within + 1)
        for link in list(self._links):
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(2):
                    await link.close()
        for reader in list(self._readers):
            reader.cancel()


def _pause(tries: int) -> float:
    return _BACKOFF[min(tries, len(_BACKOFF) - 1)]


def _payload(answer: Ack) -> dict[str, Any] | None:
    if not answer.body:
        return None
    try:
        found = msgspec.json.decode(answer.body)
    except msgspec.MsgspecError:
        return {"text": answer.body.decode("utf-8", "replace")}
    return found if isinstance(found, dict) else None
