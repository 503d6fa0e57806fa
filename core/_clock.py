"""The worker's estimate of the log's clock."""

import time


class LogClock:
    """The last `log_now()` that was seen, plus monotonic time since, in microseconds since 1970 UTC.

    The log's clock is Postgres's (rule 10); every flush and every tick refreshes the estimate, so that a worker
    with a wrong wall clock stamps right times, and a clock that is set in a test is noticed at the next of either.
    """

    def __init__(self) -> None:
        self._seen = 0
        self._at = time.monotonic_ns()

    def refresh(self, log_time: int) -> None:
        """Take `log_time`, which Postgres just returned, as the time of now."""
        self._seen, self._at = log_time, time.monotonic_ns()

    def now(self) -> int:
        """Return the estimate."""
        return self._seen + (time.monotonic_ns() - self._at) // 1000
