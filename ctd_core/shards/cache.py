"""A local cache of remote shards: complete files by checksum, up to a size."""

import hashlib
import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from ctd_core.errors import CtdError
from ctd_core.shards.manifest import ShardEntry
from ctd_core.storage.atomic import write_atomic


@dataclass(frozen=True)
class Cache:
    """A directory of shards by the checksum of their content, of `max_bytes` in all; what was read last stays."""

    directory: Path
    max_bytes: int

    def fetch(self, entry: ShardEntry, read: Callable[[], bytes], verify: bool) -> pa.Buffer:
        """A shard, memory-mapped, from what `read` gives where it is not here yet, or here but damaged.

        With `verify` what is here is compared with its checksum, without by its size alone. Raises CtdError where what
        was read differs from the checksum, or cannot be written.
        """
        file = self.directory / f"{entry.sha256}.arrow"
        try:
            if (cached := _mapped(file, entry, verify)) is not None:
                return cached
            content = read()
            if hashlib.sha256(content).hexdigest() != entry.sha256:
                raise CtdError(f"{entry.file}: what was read of it differs from its checksum. Run it again.")
            write_atomic(file, content)
            self._evict(file)
        except OSError as error:
            raise CtdError(f"{self.directory}: a shard cannot be cached there ({error}). Free some space.") from error
        return _mapped(file, entry, verify=False) or pa.py_buffer(content)  # another process may have evicted it

    def _evict(self, newest: Path) -> None:
        """Evict least recently used shards; a process that has mapped one still reads it."""
        found = []
        for file in self.directory.glob("*.arrow"):
            with suppress(FileNotFoundError):  # another process evicts as well
                status = file.stat()
                found.append((status.st_mtime_ns, status.st_size, file))
        total = sum(size for _, size, _ in found)
        for _, size, file in sorted(found):
            if total <= self.max_bytes:
                return
            if file != newest:
                total -= size
                file.unlink(missing_ok=True)


def _mapped(file: Path, entry: ShardEntry, verify: bool) -> pa.Buffer | None:
    """The content of `file`, None where it is not there or not what `entry` says."""
    try:
        buffer = pa.memory_map(str(file)).read_buffer()
        os.utime(file)
    except FileNotFoundError:
        return None
    if buffer.size != entry.size_bytes or (verify and hashlib.sha256(buffer).hexdigest() != entry.sha256):
        return None
    return buffer
