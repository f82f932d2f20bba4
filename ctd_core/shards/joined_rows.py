"""Several sets of rows as one."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from ctd_core.shards.manifest import Counts, add_counts
from ctd_core.shards.rows import Rows, RowSource


class JoinedRows:
    """The rows of several sources, one behind the other; a RowSource whose sources are theirs, by label.

    It has targets, top tokens or prefixes where all of them have.
    """

    def __init__(self, parts: Mapping[str, RowSource]) -> None:
        self._parts = list(parts.values())
        self.name = " and ".join(part.name for part in self._parts)
        self.counts: Counts = add_counts([part.counts for part in self._parts])
        self.counts_by_source: Mapping[str, Counts] = {label: part.counts for label, part in parts.items()}
        self.has_targets = all(part.has_targets for part in self._parts)
        self.has_top = all(part.has_top for part in self._parts)
        self.has_prefixes = all(part.has_prefixes for part in self._parts)
        self._starts = np.cumsum([0, *(len(part) for part in self._parts)])

    def __len__(self) -> int:
        return int(self._starts[-1])

    def student_lengths(self) -> Rows:
        """[R], the number of student tokens of every row."""
        return np.concatenate([part.student_lengths() for part in self._parts])

    def read(self, column: str, rows: Rows) -> list[npt.NDArray[Any]]:
        """The values of a list column in some rows."""
        return [part.read(column, row)[0] for part, row in self._located(rows)]

    def documents(self, rows: Rows) -> list[str]:
        """The ids of the documents of some rows."""
        return [part.documents(row)[0] for part, row in self._located(rows)]

    def _located(self, rows: Rows) -> list[tuple[RowSource, Rows]]:
        parts = np.searchsorted(self._starts, rows, side="right") - 1
        within = (rows - self._starts[parts])[:, None]
        return [(self._parts[part], row) for part, row in zip(parts.tolist(), within, strict=True)]
