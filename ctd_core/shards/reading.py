"""Rows of a set of shards, straight from memory-mapped files."""

from pathlib import Path

from ctd_core.errors import CtdError
from ctd_core.shards.cache import Cache
from ctd_core.shards.files import Folder, check_columns, read_manifest
from ctd_core.shards.manifest import add_counts
from ctd_core.shards.rows import MemoryRows


class ShardSet(MemoryRows):
    """All rows of a folder of shards, numbered through in the order of the manifest; a RowSource.

    Args:
        location: a directory or a URI.
        verify: whether every byte is read once to compare checksums, and the columns are held against each other.
        cache: where copies of remote shards lie; None reads them into memory.

    Raises:
        CtdError: the folder is not finished, or a shard is not what was written.
    """

    def __init__(self, location: str | Path, verify: bool, cache: Cache | None = None) -> None:
        folder = Folder(location)
        self.manifest = read_manifest(folder)
        filled = [entry for entry in self.manifest.shards if entry.counts.rows]
        if not filled:
            raise CtdError(f"{folder.name}: the shards hold no rows.")
        batches = [folder.open_batch(entry, verify, cache) for entry in filled]
        if verify:
            if add_counts([entry.counts for entry in self.manifest.shards]) != self.manifest.counts:
                raise CtdError(f"{folder.name}: the manifest's counts are not those of its shards. Prepare again.")
            for entry, batch in zip(filled, batches, strict=True):
                check_columns(batch, entry.counts, f"{folder.name}/{entry.file}")
        super().__init__(folder.name, batches, self.manifest.counts, self.manifest.counts_by_source)
