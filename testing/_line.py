"""The line between the workers and Postgres, which the kit can cut, and on which it can let nothing through."""

import asyncio
import threading
from collections.abc import Coroutine
from contextlib import suppress
from typing import Any, Final, TypeVar
from urllib.parse import quote

from psycopg.conninfo import conninfo_to_dict

T = TypeVar("T")
_CALL_TIMEOUT: Final = 30


class Line:
    """A TCP proxy on the loopback address in front of one Postgres; open until told otherwise."""

    def __init__(self, url: str) -> None:
        """Listen, and pass on to the server of `url`. Only the server, port and socket of `url` count."""
        given = conninfo_to_dict(url)
        self._host = str(given.get("host") or "localhost").split(",")[0]
        self._port = int(str(given.get("port") or 5432).split(",")[0])
        self._user = str(given.get("user") or "postgres")
        self._password = str(given.get("password") or "")
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="refold-kit-line", daemon=True)
        self._thread.start()
        self._writers: set[asyncio.StreamWriter] = set()
        self._flowing: asyncio.Event
        self._server: asyncio.Server | None = None
        self.port = 0
        self._do(self._begin())

    def url(self, database: str) -> str:
        """Return the URL of a database of the server, through this line."""
        who = quote(self._user, safe="") + (f":{quote(self._password, safe='')}" if self._password else "")
        # Its one end is not the server that a certificate would name.
        return f"postgresql://{who}@127.0.0.1:{self.port}/{database}?sslmode=disable&gssencmode=disable"

    def cut(self) -> None:
        """End all connections, and refuse new ones."""
        self._do(self._cut())

    def stall(self) -> None:
        """Let nothing through in either direction; connections stay, new ones are taken and get no answer."""
        self._do(self._stall())

    def mend(self) -> None:
        """Be open again; what was held back goes on."""
        self._do(self._listen())
        self._loop.call_soon_threadsafe(self._flowing.set)

    def close(self) -> None:
        """End it."""
        self._do(self._cut())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(_CALL_TIMEOUT)
        self._loop.close()

    def _do(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(_CALL_TIMEOUT)

    async def _begin(self) -> None:
        self._flowing = asyncio.Event()
        self._flowing.set()
        await self._listen()

    async def _listen(self) -> None:
        if self._server is None:
            # The same port each time: it is in the workers' URL.
            self._server = await asyncio.start_server(self._pass_on, "127.0.0.1", self.port)
            self.port = self._server.sockets[0].getsockname()[1]

    async def _cut(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None
        for writer in list(self._writers):
            writer.transport.abort()
        self._flowing.set()

    async def _stall(self) -> None:
        self._flowing.clear()

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        there: asyncio.StreamWriter | None = None
        try:
            if self._host.startswith("/"):
                back, there = await asyncio.open_unix_connection(f"{self._host}/.s.PGSQL.{self._port}")
            else:
                back, there = await asyncio.open_connection(self._host, self._port)
            self._writers.add(there)
            pumps = [
                asyncio.ensure_future(self._pump(reader, there)),
                asyncio.ensure_future(self._pump(back, writer)),
            ]
            await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
            for pump in pumps:
                pump.cancel()
        except OSError:
            pass
        finally:
            for each in (writer, there):
                if each is not None:
                    self._writers.discard(each)
                    each.close()

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while data := await reader.read(65_536):
                await self._flowing.wait()
                writer.write(data)
                await writer.drain()


__all__ = ["Line"]
