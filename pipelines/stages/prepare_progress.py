"""How far the workers of `ctd prepare` are within their parts: a part may take minutes."""

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
SECONDS_BETWEEN_NOTES = 1.0


@dataclass(frozen=True)
class Within:
    """What is done of one part. text_bytes: read and aligned. tokens: the teacher's, scored, of so many."""

    text_bytes: int = 0
    tokens: int = 0
    of_tokens: int = 0


class Tally:
    """What each part came to, by a key of the part: an actor, which workers tell and the command asks."""

    def __init__(self) -> None:
        self._parts: dict[str, Within] = {}

    def note(self, part: str, within: Within) -> None:
        self._parts[part] = within

    def parts(self) -> dict[str, Within]:
        return self._parts


def noting(tally: Handle, part: str) -> Callable[[Within], None]:
    """A function for a worker to call as often as it likes with what is done of `part`; few calls go through."""
    last = time.monotonic()

    def note(within: Within) -> None:
        nonlocal last
        if time.monotonic() - last > SECONDS_BETWEEN_NOTES:
            tally.note.remote(part, within)
            last = time.monotonic()

    return note


@contextmanager
def watched(tally: Handle, reporter: Reporter, total: int) -> Iterator[Callable[[str, Within], None]]:
    """Report every two seconds how far `total` parts are; yields what is to be called with each that is finished."""
    finished: dict[str, Within] = {}
    first: tuple[int, float] | None = None  # when tokens were first seen scored: a model had to be loaded before

    def show() -> None:
        nonlocal first
        parts = dict(finished)
        with suppress(RayError):
            told = cast("dict[str, Within]", ray.get(tally.parts.remote()))
            parts = {**told, **finished}
        tokens = sum(one.tokens for one in parts.values())
        known = [one.of_tokens for part, one in parts.items() if one.of_tokens or part in finished]
        share = tokens / (sum(known) / len(known) * total) if tokens else len(finished) / total
        words = f"shards, {sum(one.text_bytes for one in parts.values()) / 1e6:.2f} MB of text"
        if tokens:
            first = first or (tokens, time.monotonic())
            words += f", {tokens / 1e3:,.0f} thousand teacher tokens scored"
            if tokens > first[0]:
                words += f", {(tokens - first[0]) / (time.monotonic() - first[1]):,.0f} a second"
        reporter.update(len(finished), words, share)

    with repeating(2.0, show):
        yield finished.__setitem__
    show()
