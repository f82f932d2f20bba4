"""Rows to train on and to measure on, by number, whatever holds them."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ctd_core.shards.manifest import Counts
from ctd_core.shards.schema import PREFIX_FIELDS, STUDENT_IDS, TARGET_FIELDS, TOP_FIELDS, list_parts

Rows = npt.NDArray[np.int64]


class RowSource(Protocol):
    """R rows of ALIGNMENT_SCHEMA, and of TARGET_FIELDS, TOP_FIELDS and PREFIX_FIELDS where `has_targets`, `has_top` and
    `has_prefixes` say so.

    name: what messages call it. counts: what it holds. counts_by_source: what of each source of a mixture, whose rows
    follow one another in this order; none of any other corpus.
    """

    name: str
    counts: Counts
    counts_by_source: Mapping[str, Counts]
    has_targets: bool
    has_top: bool
    has_prefixes: bool

    def __len__(self) -> int: ...

    def student_lengths(self) -> Rows:
        """[R], the number of student tokens of every row."""

    def read(self, column: str, rows: Rows) -> list[npt.NDArray[Any]]:
        """The values of a list column in some rows."""

    def documents(self, rows: Rows) -> list[str]:
        """The ids of the documents of some rows."""


class MemoryRows:
    """The rows of record batches, numbered through; a RowSource. batches: these."""

    def __init__(
        self,
        name: str,
        batches: Sequence[pa.RecordBatch],
        counts: Counts,
        counts_by_source: Mapping[str, Counts] = MappingProxyType({}),
    ) -> None:
        self.name, self.batches, self.counts, self.counts_by_source = name, batches, counts, counts_by_source
        self.has_targets, self.has_top, self.has_prefixes = (
            all(field.name in batches[0].schema.names for field in fields)
            for fields in (TARGET_FIELDS, TOP_FIELDS, PREFIX_FIELDS)
        )
        self._columns: dict[str, list[tuple[Rows, npt.NDArray[Any]]]] = {
            name: [list_parts(batch.column(name)) for batch in batches] for name in batches[0].schema.names[1:]
        }
        self._documents = [batch.column(0) for batch in batches]
        self._starts = np.cumsum([0, *(batch.num_rows for batch in batches)])

    def __len__(self) -> int:
        return int(self._starts[-1])

    def student_lengths(self) -> Rows:
        """[R], the number of student tokens of every row."""
        return np.concatenate([np.diff(offsets) for offsets, _ in self._columns[STUDENT_IDS]])

    def read(self, column: str, rows: Rows) -> list[npt.NDArray[Any]]:
        """The values of a list column in some rows, as views of the batches."""
        parts = self._columns[column]
        result = []
        for batch, row in self._positions(rows):
            offsets, values = parts[batch]
            result.append(values[offsets[row] : offsets[row + 1]])
        return result

    def documents(self, rows: Rows) -> list[str]:
        """The ids of the documents of some rows."""
        return [self._documents[batch][row].as_py() for batch, row in self._positions(rows)]

    def _positions(self, rows: Rows) -> list[tuple[int, int]]:
        batches = np.searchsorted(self._starts, rows, side="right") - 1
        return list(zip(batches.tolist(), (rows - self._starts[batches]).tolist(), strict=True))
