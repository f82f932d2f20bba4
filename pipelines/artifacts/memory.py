"""How much memory a command and the processes below it have, Ray's among them where it runs on this machine alone."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress

import psutil

from pipelines.artifacts.background import repeating

SECONDS = 0.5  # between looks: what comes and goes between them is not seen


@contextmanager
def peak_memory(peaks: dict[str, int], stage: str) -> Iterator[None]:
    """Write the most memory in MB that was in use at once within the context into `peaks`, under `stage`.

    Memory that processes share, such as Ray's object store, is left out.
    """

    def look() -> None:
        peaks[stage] = max(peaks.get(stage, 0), used_mb())

    look()
    with repeating(SECONDS, look):
        yield
    look()


def used_mb() -> int:
    """Memory of this process and all below it that is theirs alone, in MB."""
    own = psutil.Process()
    total = 0
    for process in (own, *own.children(recursive=True)):
        with suppress(psutil.Error):  # it ended meanwhile
            found = process.memory_info()
            total += found.rss - getattr(found, "shared", 0)
    return total // 2**20
