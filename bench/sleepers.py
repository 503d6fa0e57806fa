"""100,000 workflows asleep in one worker: its threads, its memory, and how late each wakes.

    python -m bench.sleepers [--count 100000] [--over 60]

They are started by another process, so that the worker's memory is the worker's. Lateness is the commit time of the
wake-up, as Postgres recorded it (`track_commit_timestamp`), less the time that the code asked for. Exit code 1 when a
limit is passed.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import psycopg

from bench._server import Server, running_server

ROOT = Path(__file__).resolve().parent.parent
LIMITS = {"threads": 32, "peak_rss_mb": 500.0, "late_p99_s": 1.0, "late_max_s": 5.0}

LATE = """
    with late as (
        select extract(epoch from pg_xact_commit_timestamp(e.xid::xid))
               - (convert_from(e.body, 'UTF8')::json ->> 'until')::bigint / 1e6 as s
          from refold.events e where e.type = 'TimerFired'
    )
    select count(*), percentile_cont(array[0.5, 0.99]) within group (order by s), max(s), min(s) from late
"""
DONE = "select count(*) from refold.workflows where status = 'completed'"
ASLEEP = "select count(*) from refold.workflows where status in ('waiting', 'completed')"


@dataclass(frozen=True)
class Result:
    """What one run showed; `early_s` below zero would be a workflow woken before its time."""

    count: int
    completed: int
    started_per_s: float
    threads: int
    rss_asleep_mb: float
    peak_rss_mb: float
    late_p50_s: float
    late_p99_s: float
    late_max_s: float
    late_min_s: float

    def passed_limits(self) -> list[str]:
        found = {name: getattr(self, name) for name in LIMITS}
        over = [
            f"{name} {found[name]:g}, limit {limit:g}"
            for name, limit in LIMITS.items()
            if found[name] > limit
        ]
        if self.completed != self.count:
            over.append(f"{self.completed} of {self.count} workflows completed")
        if self.late_min_s < 0:
            over.append(f"a workflow was woken {-self.late_min_s:.3f} s early")
        return over


def measure(server: Server, folder: Path, count: int, over: float) -> Result:
    url = server.create("sleepers")
    log = (folder / "worker.log").open("wb")
    worker = subprocess.Popen(
        [sys.executable, "-m", "bench.peers.sleepers", url], cwd=ROOT, stdout=log, stderr=log
    )
    try:
        return _measure(server, url, worker, count, over)
    except BaseException:
        print((folder / "worker.log").read_text(errors="replace")[-3000:], file=sys.stderr)
        raise
    finally:
        worker.kill()
        worker.wait()
        log.close()


def _measure(server: Server, url: str, worker: "subprocess.Popen[bytes]", count: int, over: float) -> Result:
    threads = 0
    _wait(lambda: server.value("select count(*) > 0 from pg_stat_activity where datname = 'sleepers'"), 30)
    with psycopg.connect(url, autocommit=True) as connection:
        now = _one(connection, "select clock_timestamp()")
        # Starting takes a second for some thousands, on a slow machine; nobody may come due before all are asleep.
        first = now + timedelta(seconds=15 + count / 1_500)
        last = first + timedelta(seconds=over)
        began = time.monotonic()
        subprocess.run(
            [sys.executable, "-m", "bench.peers.sleepers", url,
             "--start", str(count), first.isoformat(), last.isoformat()],
            cwd=ROOT, check=True,
        )  # fmt: skip
        started_per_s = count / (time.monotonic() - began)
        _wait(lambda: _one(connection, ASLEEP) >= count, 120)
        # Let go of what waits, as a worker does after a moment.
        time.sleep(3)
        if _one(connection, "select clock_timestamp()") > first:
            raise RuntimeError(
                f"starting was too slow ({started_per_s:.0f}/s): some came due before all slept"
            )
        asleep = _status(worker.pid)
        while _one(connection, DONE) < count:
            status = _status(worker.pid)
            threads = max(threads, int(status["Threads"]))
            if _one(connection, "select clock_timestamp()") > last + timedelta(seconds=60):
                break
            time.sleep(0.5)
        status = _status(worker.pid)
        _, (p50, p99), largest, smallest = connection.execute(LATE).fetchone() or (0, (0, 0), 0, 0)
        return Result(
            count=count,
            completed=_one(connection, DONE),
            started_per_s=started_per_s,
            threads=max(threads, int(asleep["Threads"])),
            rss_asleep_mb=int(asleep["VmRSS"].split()[0]) / 1024,
            peak_rss_mb=int(status["VmHWM"].split()[0]) / 1024,
            late_p50_s=float(p50),
            late_p99_s=float(p99),
            late_max_s=float(largest),
            late_min_s=float(smallest),
        )


def _one(connection: psycopg.Connection[Any], statement: Any) -> Any:
    found = connection.execute(statement).fetchone()
    assert found is not None
    return found[0]


def _status(pid: int) -> dict[str, str]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


def _wait(condition: Any, timeout: float) -> None:
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"not within {timeout:g} s")
        time.sleep(0.2)


def run(count: int = 100_000, over: float = 60.0) -> Result:
    with (
        running_server({"track_commit_timestamp": "on"}) as server,
        tempfile.TemporaryDirectory() as folder,
    ):
        return measure(server, Path(folder), count, over)


def main() -> int:
    parser = argparse.ArgumentParser(
        "python -m bench.sleepers", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--count", type=int, default=100_000)
    parser.add_argument(
        "--over", type=float, default=60.0, metavar="SECONDS", help="they come due over so long"
    )
    options = parser.parse_args()
    result = run(options.count, options.over)
    print(json.dumps(asdict(result), indent=1))
    for passed in (found := result.passed_limits()):
        print(f"NOT within the limit: {passed}")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
