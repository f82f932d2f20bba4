"""Progress for long work: a bar where somebody watches, a line now and then where nobody does."""

import logging
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from ctd_core.config.secrets import redact

SECONDS_BETWEEN_LINES = 15.0

console = Console(stderr=True)


class Reporter:
    """What long work calls: how far it is, with a few words."""

    def __init__(self, title: str, total: int, bar: Progress | None) -> None:
        self._title, self._total, self._bar = title, total, bar
        self._task = bar.add_task(title, total=total, words="") if bar else None
        self._last_line, self._said = time.monotonic(), 0
        self._first: tuple[float, float] | None = None

    def update(self, done: int, words: str = "", share: float | None = None) -> None:
        """`done` pieces are done, which is this fraction of the work where pieces differ, or are done in part."""
        share = done / self._total if share is None else share
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=share * self._total, words=words)
        elif time.monotonic() - self._last_line > SECONDS_BETWEEN_LINES or self._said < done == self._total:
            self._last_line, self._said = time.monotonic(), done
            _print_line(f"{self._title}: {done} of {self._total} {words}".rstrip() + self._left(share))

    def _left(self, share: float) -> str:
        """The time left in words, by the pace since the first work that was seen done."""
        if share and (self._first is None or share < self._first[0]):  # less is done where workers began again
            self._first = share, time.monotonic()
        if self._first is None or share == self._first[0] or share >= 1:
            return ""
        first, since = self._first
        seconds = (time.monotonic() - since) / (share - first) * (1 - share)
        return f", {seconds / 60:.0f} min left" if seconds >= 90 else f", {seconds:.0f} s left"


@contextmanager
def progress(title: str, total: int) -> Iterator[Reporter]:
    """A reporter for `total` pieces of work."""
    if not console.is_terminal or threading.current_thread() is not threading.main_thread():  # one bar at a time
        yield Reporter(title, total, None)
        return
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[words]}", markup=False),
    )
    with Progress(*columns, console=console) as bar:
        yield Reporter(title, total, bar)


class _Lines(logging.Handler):
    """What is logged, as lines on standard error, without secrets; standard output is for results."""

    def emit(self, record: logging.LogRecord) -> None:
        _print_line(redact(record.getMessage()))


def show_log() -> None:
    """Show what this project logs, as a command does."""
    for name in ("ctd_core", "pipelines"):
        logger = logging.getLogger(name)
        logger.setLevel(logging.INFO)
        if not any(isinstance(handler, _Lines) for handler in logger.handlers):
            logger.addHandler(_Lines())


def _print_line(line: str) -> None:
    if console.is_terminal:
        console.print(line, highlight=False, markup=False, emoji=False)  # a line may hold [/INST], or :end:
    else:
        print(line, file=sys.stderr, flush=True)
