"""How far a long run is, on stderr: a line that is written over on a terminal, a line now and then in a log."""

from __future__ import annotations

import sys
import time
from types import TracebackType

EVERY = 20.0
"""Seconds between lines of one kind in a log."""


def say(text: str) -> None:
    """One line on stderr."""
    print(" ".join(text.split()), file=sys.stderr, flush=True)


class Meter:
    """Counts to `total`: called with how many are there, or stepped by one with a line of its own."""

    def __init__(self, what: str, total: int, unit: str, each: bool = False) -> None:
        self.what, self.total, self.unit, self.each = what, total, unit, each
        self.count, self.first = 0, None if not each else 0
        self.began = self.told = time.monotonic()
        self.terminal = sys.stderr.isatty()

    def __enter__(self) -> Meter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.terminal and self.count and not self.each:
            print(file=sys.stderr)

    def __call__(self, count: int) -> None:
        """`count` of them are there now; the first call says how many were before."""
        if self.first is None:
            self.first = count
        self.count = count
        now = time.monotonic()
        if now - self.told < (0.2 if self.terminal else EVERY) and count < self.total:
            return
        self.told = now
        line = f"{self.what}: {count} of {self.total} {self.unit}{self.left()}"
        if self.terminal:
            print(f"\r\x1b[2K{line}", end="", file=sys.stderr, flush=True)
        elif self.first < self.total:
            say(line)

    def step(self, line: str) -> None:
        """One more; `line` says which."""
        self.count += 1
        say(f"[{self.count}/{self.total}] {line}{self.left()}")

    def left(self) -> str:
        """How long the rest will take at the pace so far; empty where none is left, or none was made."""
        made = self.count - (self.first or 0)
        if made < 1 or self.count >= self.total:
            return ""
        seconds = (time.monotonic() - self.began) / made * (self.total - self.count)
        return f"; about {seconds:.0f} s left" if seconds < 90 else f"; about {seconds / 60:.0f} min left"
