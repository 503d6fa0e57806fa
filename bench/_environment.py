"""The other system's virtual environment, and the facts of the machine that figures mean nothing without."""

import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
import venv
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ENVIRONMENT = HERE.parent / ".cache" / "bench-dbos"
CONSTRAINTS = HERE / "constraints-dbos.txt"


def dbos_python() -> Path:
    """Return the Python of DBOS's environment, made anew when the constraints change."""
    python = ENVIRONMENT / "bin" / "python"
    made_from = ENVIRONMENT / "made-from.txt"
    wanted = f"{sys.version}\n{CONSTRAINTS.read_text()}"
    if made_from.exists() and made_from.read_text() == wanted:
        return python
    print("making DBOS's environment (once) ...", flush=True)
    venv.create(ENVIRONMENT, clear=True, with_pip=True)
    pip = [str(python), "-m", "pip", "install", "-q", "--disable-pip-version-check"]
    subprocess.run([*pip, "-r", str(CONSTRAINTS)], check=True)
    made_from.write_text(wanted)
    return python


def dbos_version() -> str:
    pinned = (line for line in CONSTRAINTS.read_text().splitlines() if line.startswith("dbos=="))
    return next(pinned).removeprefix("dbos==")


def machine_facts() -> dict[str, Any]:
    return {
        "when": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "os": platform.platform(),
        "python": platform.python_version(),
        "load_before": os.getloadavg()[0],
        "fdatasync_8kb_us": _fdatasync_us(),
        "python_loop_mturns_per_s": _loop_speed(),
        "packages": {name: _version(name) for name in ("refold", "psycopg", "msgspec", "greenlet")},
        "dbos": dbos_version(),
    }


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next(
        (line.partition(": ")[2] for line in lines if line.startswith("model name")), platform.machine()
    )


def _fdatasync_us() -> float:
    """Median microseconds to make 8 kB durable: what a commit costs at least on this disk."""
    took = []
    with tempfile.TemporaryFile() as file:
        for _ in range(200):
            began = time.perf_counter()
            os.pwrite(file.fileno(), b"x" * 8192, 0)
            os.fdatasync(file.fileno())
            took.append(time.perf_counter() - began)
    return round(1e6 * statistics.median(took), 1)


def _loop_speed() -> float:
    """Millions of turns of an empty loop a second: tells a slow spell of the machine from a slow engine."""
    turns, began = 2_000_000, time.perf_counter()
    for _ in range(turns):
        pass
    return round(turns / (time.perf_counter() - began) / 1e6, 1)


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
