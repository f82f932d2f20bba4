"""Progress for long work: a bar where somebody watches, a line now and then where nobody does."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

SECONDS_BETWEEN_LINES = 15.0

console = Console(stderr=True)


class Reporter:
    """What long work calls: how far it is, with a few words."""

    def __init__(self, title: str, total: int, bar: Progress | None) -> None:
        self._title, self._total, self._bar = title, total, bar
        self._task = bar.add_task(title, total=total, words="") if bar else None
        self._last_line, self._said = time.monotonic(), 0
        self._first: tuple[int, float] | None = None

    def update(self, done: int, words: str = "") -> None:
        """`done` of the total are done."""
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=done, words=words)
        elif time.monotonic() - self._last_line > SECONDS_BETWEEN_LINES or self._said < done == self._total:
            self._last_line, self._said = time.monotonic(), done
            say(f"{self._title}: {done} of {self._total} {words}".rstrip() + self._left(done))

    def _left(self, done: int) -> str:
        """The time left in words, by the pace since the first piece of work that was seen done."""
        if self._first is None:
            self._first = done, time.monotonic()
        first, since = self._first
        if done in (first, self._total):
            return ""
        seconds = (time.monotonic() - since) / (done - first) * (self._total - done)
        return f", {seconds / 60:.0f} min left" if seconds >= 90 else f", {seconds:.0f} s left"


@contextmanager
def progress(title: str, total: int) -> Iterator[Reporter]:
    """A reporter for `total` pieces of work."""
    if not console.is_terminal:
        yield Reporter(title, total, None)
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[words]}"),
    )
    with Progress(*columns, console=console) as bar:
        yield Reporter(title, total, bar)


def say(line: str) -> None:
    """One line on standard error; standard output is for results."""
    if console.is_terminal:
        console.print(line, highlight=False)
    else:
        print(line, file=sys.stderr, flush=True)
