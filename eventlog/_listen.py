"""Notifications: a hint that something is there, never the only way to learn of it."""

import asyncio
import contextlib
import logging
from collections.abc import Callable, Sequence

import psycopg
from psycopg import sql

from refold.eventlog._connect import AsyncConnection, connect, is_pooled
from refold.eventlog._errors import DatabaseUnreachable

log = logging.getLogger("refold.worker")


class Listener:
    """A connection that listens on `channels` and calls `heard(channel, payload)` from a plain callback of the loop.

    `reconnected()` is called after every (re)connection: what was notified meanwhile has to be looked for. Behind a
    pooler nothing is ever heard; then the connection is closed again and the slow poll is all there is.
    """

    def __init__(
        self,
        url: str,
        channels: Sequence[str],
        heard: Callable[[str, str], None],
        reconnected: Callable[[], None],
    ) -> None:
        self._url, self._channels = url, tuple(channels)
        self._heard, self._reconnected = heard, reconnected
        self.listening = asyncio.Event()
        self._task = asyncio.create_task(self._run(), name="refold-listen")

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        delay = 0.05
        while True:
            connection: AsyncConnection | None = None
            try:
                connection = await connect(self._url)
                if await is_pooled(connection):
                    return
                for channel in self._channels:
                    await connection.execute(sql.SQL("listen {}").format(sql.Identifier(channel)))
                self.listening.set()
                delay = 0.05
                loop.call_soon(self._reconnected)
                async for notify in connection.notifies():
                    loop.call_soon(self._heard, notify.channel, notify.payload)
            except (psycopg.OperationalError, psycopg.InterfaceError, DatabaseUnreachable) as error:
                log.debug("the line for notifications broke: %s", error)
            finally:
                self.listening.clear()
                if connection is not None:
                    with contextlib.suppress(Exception):
                        await connection.close()
            await asyncio.sleep(delay)
            delay = min(delay * 2, 2.0)

    async def close(self) -> None:
        """Stop listening."""
        self._task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._task
