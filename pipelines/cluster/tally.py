"""How far workers are within pieces of work that take minutes each."""

import time
from collections.abc import Callable
from typing import Any

import ray

Handle = ray.actor.ActorHandle[Any]
SECONDS_BETWEEN_RECORDS = 1.0


class Tally:
    """An actor that records the progress of every piece by its key: workers write it and the command reads it."""

    def __init__(self) -> None:
        self._pieces: dict[str, Any] = {}

    def record(self, key: str, progress: Any) -> None:
        self._pieces[key] = progress

    def pieces(self) -> dict[str, Any]:
        return self._pieces


def reporting(tally: Handle, key: str) -> Callable[[Any], None]:
    """A function for a worker to call as often as it likes with the progress of a piece; few calls go through."""
    last = time.monotonic()

    def report(progress: Any) -> None:
        nonlocal last
        if time.monotonic() - last > SECONDS_BETWEEN_RECORDS:
            tally.record.remote(key, progress)
            last = time.monotonic()

    return report
