"""How far the workers of `ctd prepare` are within their slices: a slice may take minutes."""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import cast

import ray
from ray.exceptions import RayError

from pipelines.artifacts.background import repeating
from pipelines.cluster.tally import Handle
from pipelines.display.progress import Reporter


@dataclass(frozen=True)
class SliceProgress:
    """What is done of one slice. text_bytes: read and aligned. tokens: the teacher's, scored, of so many."""

    text_bytes: int = 0
    tokens: int = 0
    of_tokens: int = 0


@contextmanager
def watched(
    tally: Handle, reporter: Reporter, sizes: Mapping[str, float]
) -> Iterator[Callable[[str, SliceProgress], None]]:
    """Show every two seconds how far slices are, by their names of the expected `sizes`, in any unit.

    Yields what is to be called with each finished slice.
    """
    finished: dict[str, SliceProgress] = {}
    first: tuple[int, float] | None = None  # when tokens were first seen scored: a model had to be loaded before

    def show() -> None:
        nonlocal first
        slices = dict(finished)
        with suppress(RayError):
            recorded = cast("dict[str, SliceProgress]", ray.get(tally.pieces.remote()))
            slices = {**recorded, **finished}
        tokens = sum(progress.tokens for progress in slices.values())
        known = {key: progress.of_tokens for key, progress in slices.items() if progress.of_tokens or key in finished}
        known_share = sum(sizes[key] for key in known) / (sum(sizes.values()) or 1.0)
        share = tokens / sum(known.values()) * known_share if tokens else len(finished) / len(sizes)
        words = f"shards, {sum(progress.text_bytes for progress in slices.values()) / 1e6:.2f} MB of text"
        if tokens:
            first = first or (tokens, time.monotonic())
            words += f", {tokens:,} teacher tokens scored"
            if tokens > first[0]:
                words += f", {(tokens - first[0]) / (time.monotonic() - first[1]):,.0f} a second"
        reporter.update(len(finished), words, share)

    with repeating(2.0, show):
        yield finished.__setitem__
    show()
