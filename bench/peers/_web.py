"""uvicorn in a thread of the peer's process, on a loop of uvloop where it is installed, as `uvicorn` itself does."""

import asyncio
import importlib
import threading
import time
from typing import Any

_uvicorn: Any = importlib.import_module("uvicorn")


class WebPeer:
    """A peer that serves an ASGI app. The same server, with the same settings, for everybody."""

    def __init__(self, api: Any, lifespan: str = "off") -> None:
        self._server = _uvicorn.Server(
            _uvicorn.Config(
                api, host="127.0.0.1", port=0, access_log=False, log_level="warning", lifespan=lifespan
            )
        )

    async def launch(self) -> None:
        """Do what has to be done on the server's loop before it serves."""

    def start_working(self) -> int:
        """Begin to work and to serve; returns the port."""
        threading.Thread(target=self._run, name="bench-web", daemon=True).start()
        while not self._server.started:
            time.sleep(0.01)
        port: int = self._server.servers[0].sockets[0].getsockname()[1]
        return port

    def cpu_seconds(self) -> float:
        return time.process_time()

    def _run(self) -> None:
        async def run() -> None:
            await self.launch()
            await self._server.serve()

        try:
            loop: Any = importlib.import_module("uvloop").new_event_loop()
        except ImportError:
            loop = asyncio.new_event_loop()
        loop.run_until_complete(run())
