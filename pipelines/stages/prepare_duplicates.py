"""Documents of a corpus that are the same as an earlier one: `corpus.deduplicate` leaves them out."""

import hashlib
import pickle
from dataclasses import replace
from typing import Any

import numpy as np
import ray

from ctd_core.text.documents import Document
from pipelines.cluster.connection import connect, reraised_errors
from pipelines.display.progress import progress
from pipelines.stages.prepare_tasks import SliceTask, outcome, raise_error_of

DIGEST_BYTES = 16  # of each document, in the memory of the command


def without_duplicates(name: str, tasks: list[SliceTask]) -> list[SliceTask]:
    """The tasks of all slices of a set, which leave out each document that an earlier slice, or their own, has.

    Args:
        name: the set's, for the progress bar.
        tasks: one for each slice, in order.

    Returns:
        The same tasks with `duplicates`.

    Raises:
        CtdError: a slice cannot be read.
    """
    connect(1, 0, "prepare")
    found: dict[int, tuple[list[int], bytes]] = {}
    items = [{"task": pickle.dumps(task)} for task in tasks]
    stream: Any = ray.data.from_items(items, override_num_blocks=len(tasks)).map(_digests)
    with reraised_errors(), progress(f"prepare: {name}: duplicates", len(tasks)) as reporter:
        for row in stream.iter_rows():
            raise_error_of(row)
            found[row["slice"]] = row["positions"], row["digests"]
            reporter.update(len(found))
    seen: set[bytes] = set()
    marked = []
    for task in tasks:
        positions, digests = found[task.slice.number]
        duplicates = set()
        for place, position in enumerate(positions):
            digest = digests[place * DIGEST_BYTES : (place + 1) * DIGEST_BYTES]
            if digest in seen:
                duplicates.add(int(position))
            seen.add(digest)
        marked.append(replace(task, duplicates=frozenset(duplicates)))
    return marked


def _digests(row: dict[str, Any]) -> dict[str, Any]:
    """The positions of a slice's documents, and the digests of what they hold, one after another."""

    def work() -> dict[str, Any]:
        task: SliceTask = pickle.loads(row["task"])
        positions, digests = [], []
        for position, document in task.documents():
            if isinstance(document, Document):
                content = repr(document.segments).encode(errors="surrogatepass")
                positions.append(position)
                digests.append(hashlib.sha256(content).digest()[:DIGEST_BYTES])
        return {"slice": task.slice.number, "positions": np.array(positions), "digests": b"".join(digests)}

    return outcome(row, work)
