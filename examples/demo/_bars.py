"""Progress bars on a terminal; a plain line every few seconds where there is none."""

import shutil
import sys
import time
from collections.abc import Mapping

_PLAIN_SECONDS = 5.0
_EIGHTHS = " ▏▎▍▌▋▊▉█"


class Bars:
    """One bar for each name, drawn again in place by `show`; `note` prints a line above them."""

    def __init__(self, total: int) -> None:
        self._total = total
        self._is_terminal = sys.stdout.isatty()
        self._drawn = 0
        self._last: Mapping[str, int] = {}
        self._plain_at = 0.0

    def show(self, done: Mapping[str, int]) -> None:
        self._last = dict(done)
        if self._is_terminal:
            self._erase()
            print("\n".join(self._line(name, number) for name, number in done.items()), flush=True)
            self._drawn = len(done)
        elif time.monotonic() - self._plain_at >= _PLAIN_SECONDS:
            self._plain_at = time.monotonic()
            print("  " + ", ".join(f"{number:,} {name}" for name, number in done.items()), flush=True)

    def note(self, text: str) -> None:
        self._erase()
        print(text, flush=True)
        if self._last and self._is_terminal:
            self.show(self._last)

    def finish(self) -> None:
        """Leave the last state standing."""
        if not self._is_terminal and self._last:
            self._plain_at = 0.0
            self.show(self._last)
        self._drawn = 0
        self._last = {}

    def _erase(self) -> None:
        if self._drawn:
            print(f"\x1b[{self._drawn}A\x1b[J", end="")
            self._drawn = 0

    def _line(self, name: str, number: int) -> str:
        width = max(10, min(50, shutil.get_terminal_size().columns - 40))
        eighths = min(8 * width, 8 * width * number // self._total)
        bar = (_EIGHTHS[8] * (eighths // 8) + _EIGHTHS[eighths % 8]).ljust(width)[:width]
        return f"  {name:20} ▕{bar}▏ {number:>7,}"
