"""Copies of remote shards on this machine: never read half, and never more than is allowed."""

import hashlib
import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ctd_core.errors import CtdError
from ctd_core.shards.manifest import ShardEntry


@dataclass(frozen=True)
class Cache:
    """A directory of shards by the checksum of their content, of `max_bytes` in all; what was read last stays."""

    directory: Path
    max_bytes: int

    def fetch(self, entry: ShardEntry, read: Callable[[], bytes]) -> Path:
        """The file of a shard, from what `read` gives where it is not here yet.

        Raises CtdError where that differs from the shard's checksum, or the file cannot be written.
        """
        file = self.directory / f"{entry.sha256}.arrow"
        try:
            if file.exists() and file.stat().st_size == entry.size_bytes:
                os.utime(file)
                return file
            content = read()
            if hashlib.sha256(content).hexdigest() != entry.sha256:
                raise CtdError(f"{entry.file}: what was read of it differs from its checksum. Run it again.")
            self.directory.mkdir(parents=True, exist_ok=True)
            handle, temporary = tempfile.mkstemp(dir=self.directory)
            try:
                with os.fdopen(handle, "wb") as stream:
                    stream.write(content)
                os.replace(temporary, file)
            except OSError:
                Path(temporary).unlink()
                raise
            self._make_room(file)
        except OSError as error:
            raise CtdError(f"{self.directory}: a shard cannot be kept there ({error}). Free some space.") from error
        return file

    def _make_room(self, newest: Path) -> None:
        """Take the shards away that were not read for longest; who has mapped one still reads it."""
        files = sorted(self.directory.glob("*.arrow"), key=lambda one: one.stat().st_mtime_ns)
        total = sum(one.stat().st_size for one in files)
        for one in files:
            if total <= self.max_bytes:
                return
            if one != newest:
                total -= one.stat().st_size
                one.unlink(missing_ok=True)
