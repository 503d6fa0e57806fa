"""The bench's side of a peer: one process, asked one question at a time."""

import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from types import TracebackType
from typing import Any

ROOT = Path(__file__).resolve().parent.parent


class PeerFailed(RuntimeError):
    """A peer answered with an error or ended; the message has its traceback."""


class PeerProcess:
    """A peer that was started and is ready. Leaving the `with` block kills it: measures are over by then."""

    def __init__(self, module: str, python: Path, url: str, log: Path, options: tuple[str, ...] = ()) -> None:
        self._log = log
        with log.open("ab") as errors:
            self._process = subprocess.Popen(
                [str(python), "-m", module, url, *options],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                cwd=ROOT,
                env={**os.environ, "PYTHONHASHSEED": "0"},
            )
        self._read()

    @property
    def pid(self) -> int:
        return self._process.pid

    def ask(self, question: str, timeout: float = 300.0, **arguments: Any) -> Any:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"ask": question, **arguments}) + "\n")
        self._process.stdin.flush()
        # A peer that hangs is ended, so that the read below ends too.
        watchdog = threading.Timer(timeout, self._process.kill)
        watchdog.start()
        try:
            return self._read()["answer"]
        finally:
            watchdog.cancel()

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()

    def close(self) -> None:
        """End it in order: stdin is closed, and the peer stops by itself."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(30)
        except subprocess.TimeoutExpired:
            self.kill()

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise PeerFailed(
                f"the peer ended (exit code {self._process.wait()}):\n{self._log.read_text()[-3000:]}"
            )
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise PeerFailed(answer["error"])
        return answer

    def __enter__(self) -> "PeerProcess":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()


def own_python() -> Path:
    return Path(sys.executable)
