"""One worker process, seen from the kit: what it has said so far, and how it ends."""

import contextlib
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Final

import msgspec

from refold.testing._orders import ORDERS, Orders

_TAIL: Final = 12


class Worker:
    """A process that runs the harness's connector."""

    def __init__(self, orders: Orders, log: Path) -> None:
        reading, writing = os.pipe()
        orders.tell = writing
        self._said: list[str] = []
        self.changed = threading.Condition()
        self.log_path = log
        environment = {
            **os.environ,
            ORDERS: msgspec.json.encode(orders).decode(),
            "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
            "PYTHONUNBUFFERED": "1",
        }
        with log.open("ab") as out:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "refold.testing._child"],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                pass_fds=[writing],
            )
        os.close(writing)
        self._reader = threading.Thread(target=self._read, args=(reading,), daemon=True)
        self._reader.start()

    def _read(self, reading: int) -> None:
        with os.fdopen(reading) as lines:
            for line in lines:
                with self.changed:
                    self._said.append(line.strip())
                    self.changed.notify_all()

    def said(self, what: str) -> int:
        """Return how often it has said this."""
        return self._said.count(what)

    @property
    def exit_code(self) -> int | None:
        """How it ended, negative by a signal; None while it runs."""
        return self._process.poll()

    def terminate(self) -> None:
        """SIGTERM."""
        self._process.terminate()

    def kill(self) -> None:
        """SIGKILL; on return the kernel has ended it."""
        self._process.kill()
        self._process.wait()
        self._reader.join(5)

    @property
    def was_killed(self) -> bool:
        """Whether SIGKILL has ended it."""
        return self.exit_code == -signal.SIGKILL

    def stacks(self) -> str:
        """Return where its threads stand now."""
        before = self.log_path.stat().st_size
        self._process.send_signal(signal.SIGUSR1)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(1)  # it is to write them meanwhile, not to end
        with self.log_path.open("rb") as log:
            log.seek(before)
            return "\n".join(f"    {line}" for line in log.read().decode(errors="replace").splitlines())

    def last_lines(self) -> str:
        """Return the end of its log."""
        lines = self.log_path.read_text(errors="replace").splitlines()
        return "\n".join(f"    {line}" for line in lines[-_TAIL:])


__all__ = ["Worker"]
