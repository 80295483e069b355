"""One progress interface for everything that takes longer than two seconds.

On a terminal: a Rich bar on stderr. Elsewhere (a log, CI): plain lines, ever more seldom. With `--json` or in tests: silence.
"""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Self

_quiet = False
INTERVALS = (5.0, 10.0, 20.0, 30.0, 60.0)  # seconds before the first plain line, the second, …, and between all further ones


def set_quiet(quiet: bool) -> None:
    """Turns all progress output of this process off (or on again)."""
    global _quiet
    _quiet = quiet


def say(line: str) -> None:
    """Prints a status line to stderr unless quiet."""
    if not _quiet:
        warn(line)


def warn(line: str) -> None:
    """Prints a line to stderr, quiet or not."""
    print(printable(line), file=sys.stderr, flush=True)


def tell(text: str) -> None:
    """Prints lines of a result to stdout."""
    print("\n".join(map(printable, text.split("\n"))))


def printable(text: str) -> str:
    """`text` with control characters replaced, so that data cannot steer a terminal, turn the order of letters around, or break a line."""
    return text if text.isprintable() else "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)


@contextmanager
def quiet(active: bool = True) -> Iterator[None]:
    """Silences progress inside the block."""
    before = _quiet
    set_quiet(active or before)
    try:
        yield
    finally:
        set_quiet(before)


class Progress:
    """Counts `total` steps of `label`; use as a context manager and call `advance`.

    Plain lines come at growing intervals, or every `interval` seconds, so that a log stays readable. The time that is left is told
    once there is something to judge it by: 5 % of the steps, or three of them and 10 s.
    """

    def __init__(self, label: str, total: int, interval: float | None = None) -> None:
        self.label, self.total, self.intervals = label, total, INTERVALS if interval is None else (interval,)
        self.done = 0
        self.note = ""
        self._before = 0  # steps that were done before the clock began
        self._said, self._lines = -1, 0  # `done` of the last plain line, and how many there were
        self._bar = None

    def __enter__(self) -> Self:
        self._start = self._begun = self._last = time.monotonic()
        if not _quiet and sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
            from rich.progress import Progress as RichProgress

            self._bar = RichProgress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                TimeRemainingColumn(),
                TextColumn("{task.fields[note]}"),
                console=Console(stderr=True),
            )
            self._bar.start()
            self._task = self._bar.add_task(self.label, total=self.total, note="")
        return self

    def begin(self, total: int, done: int = 0) -> None:
        """Sets the total where it is known only after the start; `done` steps come from an earlier attempt and took no time now."""
        self.total, self.done, self._before = total, done, done
        self._begun = time.monotonic()
        if self._bar is not None:
            self._bar.reset(self._task, total=total, completed=done)

    def advance(self, steps: int = 1, note: str = "") -> None:
        """Adds `steps`, which may be 0; `note` is a few words shown behind the bar."""
        self.done += steps
        self.note = note or self.note
        now = time.monotonic()
        if self._bar is not None:
            self._bar.update(self._task, completed=self.done, note=self.note)
        elif not _quiet and now - self._last >= self.intervals[min(self._lines, len(self.intervals) - 1)]:
            self._last, self._said, self._lines = now, self.done, self._lines + 1
            say(self._line(now))

    def _line(self, now: float) -> str:
        elapsed, seconds = now - self._start, now - self._begun
        new, rest = self.done - self._before, self.total - self.done
        known = new > 0 and (new >= 0.05 * (new + rest) or (new >= 3 and seconds >= 10))
        left = f", {seconds / new * rest:.0f} s left" if known and rest > 0 else ""
        return f"{self.label}: {self.done}/{self.total} in {elapsed:.0f} s{left}{' · ' + self.note if self.note else ''}"

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        now = time.monotonic()
        if self._bar is not None:
            self._bar.stop()
        elif kind is None and not _quiet and now - self._start >= 2 and self._said != self.done:
            say(self._line(now))
