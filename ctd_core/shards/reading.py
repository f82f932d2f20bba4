"""Rows of a set of shards by number, straight from memory-mapped files."""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ctd_core.errors import CtdError
from ctd_core.shards.cache import Cache
from ctd_core.shards.files import Folder, check_columns, read_manifest
from ctd_core.shards.manifest import add_counts
from ctd_core.shards.schema import STUDENT_IDS, TARGET_FIELDS, TOP_FIELDS, list_parts


class ShardSet:
    """All rows of a folder of shards, numbered through in the order of the manifest.

    `verify` reads every byte once to compare checksums, and checks that the columns fit each other. Shards that are not
    local are kept in `cache`, or read into memory where there is none.

    Raises:
        CtdError: the folder is not finished, or a shard is not what was written.
    """

    def __init__(self, location: str | Path, verify: bool, cache: Cache | None = None) -> None:
        folder = Folder(location)
        self.name = folder.name
        self.manifest = read_manifest(folder)
        filled = [entry for entry in self.manifest.shards if entry.counts.rows]
        if not filled:
            raise CtdError(f"{self.name}: the shards hold no rows.")
        batches = [folder.open_batch(entry, verify, cache) for entry in filled]
        if verify:
            if add_counts([entry.counts for entry in self.manifest.shards]) != self.manifest.counts:
                raise CtdError(f"{self.name}: the manifest's counts are not those of its shards. Prepare again.")
            for entry, batch in zip(filled, batches, strict=True):
                check_columns(batch, entry.counts, f"{self.name}/{entry.file}")
        self.has_targets, self.has_top = (
            all(field.name in batches[0].schema.names for field in fields) for fields in (TARGET_FIELDS, TOP_FIELDS)
        )
        self._columns: dict[str, list[tuple[npt.NDArray[np.int64], npt.NDArray[Any]]]] = {
            name: [list_parts(batch.column(name)) for batch in batches] for name in batches[0].schema.names[1:]
        }
        self._documents = [batch.column(0) for batch in batches]
        self._starts = np.cumsum([0, *(batch.num_rows for batch in batches)])

    def __len__(self) -> int:
        return int(self._starts[-1])

    def student_lengths(self) -> npt.NDArray[np.int64]:
        """The number of student tokens of every row."""
        return np.concatenate([np.diff(offsets) for offsets, _ in self._columns[STUDENT_IDS]])

    def read(self, column: str, rows: npt.NDArray[np.int64]) -> list[npt.NDArray[Any]]:
        """One list column of some rows, as views of the files."""
        parts = self._columns[column]
        result = []
        for shard, row in self._places(rows):
            offsets, values = parts[shard]
            result.append(values[offsets[row] : offsets[row + 1]])
        return result

    def documents(self, rows: npt.NDArray[np.int64]) -> list[str]:
        """The ids of the documents of some rows."""
        return [self._documents[shard][row].as_py() for shard, row in self._places(rows)]

    def _places(self, rows: npt.NDArray[np.int64]) -> list[tuple[int, int]]:
        shards = np.searchsorted(self._starts, rows, side="right") - 1
        return list(zip(shards.tolist(), (rows - self._starts[shards]).tolist(), strict=True))
