"""How much memory the processes of a run have had at most, by Linux's own account of each."""

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


class Memory:
    """The largest size, in MB, that a process of each kind has had while it was watched."""

    def __init__(self) -> None:
        self.peak: dict[str, float] = {}

    @contextmanager
    def watching(self, worker: int, postmaster: int) -> Iterator[None]:
        """Look once a second at the worker, the server's processes, and the broker that we have started."""
        over = threading.Event()

        def watch() -> None:
            while True:
                self._look(worker, postmaster)
                if over.wait(1):
                    return

        thread = threading.Thread(target=watch, name="bench-memory", daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()

    def _look(self, worker: int, postmaster: int) -> None:
        self._saw("worker", worker, "VmHWM")
        children = _children()
        for pid in (postmaster, *children.get(postmaster, ())):
            self._saw("Postgres, a process", pid, "VmHWM")
            self._saw("Postgres, a process without the shared cache", pid, "RssAnon")
        for shell in children.get(os.getpid(), ()):  # the broker's keeper
            for pid in children.get(shell, ()):
                if _name(pid) == "tansu":
                    self._saw("broker", pid, "VmHWM")

    def _saw(self, kind: str, pid: int, field: str) -> None:
        with suppress(OSError):  # it has ended
            status = Path(f"/proc/{pid}/status").read_text()
            values = dict(line.split(":", 1) for line in status.splitlines() if ":" in line)
            if field in values:
                size = int(values[field].split()[0]) / 1024
                self.peak[kind] = max(self.peak.get(kind, 0.0), size)


def _children() -> dict[int, list[int]]:
    found: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            parent = int(stat.read_text().rpartition(") ")[2].split()[1])
            found.setdefault(parent, []).append(int(stat.parent.name))
    return found


def _name(pid: int) -> str:
    with suppress(OSError):
        return Path(f"/proc/{pid}/comm").read_text().strip()
    return ""
