"""How far the workers of `ctd prepare` are within their slices: a slice may take minutes."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, cast

import ray
from ray.exceptions import RayError

from pipelines.artifacts.background import repeating
from pipelines.display.progress import Reporter

Handle = ray.actor.ActorHandle[Any]
SECONDS_BETWEEN_RECORDS = 1.0


@dataclass(frozen=True)
class SliceProgress:
    """What is done of one slice. text_bytes: read and aligned. tokens: the teacher's, scored, of so many."""

    text_bytes: int = 0
    tokens: int = 0
    of_tokens: int = 0


class Tally:
    """An actor that records the progress of every slice by its key: workers write it and the command reads it."""

    def __init__(self) -> None:
        self._slices: dict[str, SliceProgress] = {}

    def record(self, key: str, progress: SliceProgress) -> None:
        self._slices[key] = progress

    def slices(self) -> dict[str, SliceProgress]:
        return self._slices


def reporting(tally: Handle, key: str) -> Callable[[SliceProgress], None]:
    """A function for a worker to call as often as it likes with the progress of a slice; few calls go through."""
    last = time.monotonic()

    def report(progress: SliceProgress) -> None:
        nonlocal last
        if time.monotonic() - last > SECONDS_BETWEEN_RECORDS:
            tally.record.remote(key, progress)
            last = time.monotonic()

    return report


@contextmanager
def watched(tally: Handle, reporter: Reporter, total: int) -> Iterator[Callable[[str, SliceProgress], None]]:
    """Show every two seconds how far `total` slices are; yields what is to be called with each finished slice."""
    finished: dict[str, SliceProgress] = {}
    first: tuple[int, float] | None = None  # when tokens were first seen scored: a model had to be loaded before

    def show() -> None:
        nonlocal first
        slices = dict(finished)
        with suppress(RayError):
            recorded = cast("dict[str, SliceProgress]", ray.get(tally.slices.remote()))
            slices = {**recorded, **finished}
        tokens = sum(progress.tokens for progress in slices.values())
        known = [progress.of_tokens for key, progress in slices.items() if progress.of_tokens or key in finished]
        share = tokens / (sum(known) / len(known) * total) if tokens else len(finished) / total
        words = f"shards, {sum(progress.text_bytes for progress in slices.values()) / 1e6:.2f} MB of text"
        if tokens:
            first = first or (tokens, time.monotonic())
            words += f", {tokens / 1e3:,.0f} thousand teacher tokens scored"
            if tokens > first[0]:
                words += f", {(tokens - first[0]) / (time.monotonic() - first[1]):,.0f} a second"
        reporter.update(len(finished), words, share)

    with repeating(2.0, show):
        yield finished.__setitem__
    show()
