"""A run's files: on this machine and, where `output` is a URI, in its store; each whole or not there."""

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from ctd_core.storage.locations import below, delete_file, delete_folder, download, names_in, upload, write_text

WHOLE_IN_STORE = ".whole"  # an object beside what was copied to a store, written after it


@dataclass(frozen=True)
class RunFiles:
    """The files below `directory`, on this machine; `store` is the URI where all that is kept of them lies, if any."""

    directory: Path
    store: str | None

    def within(self, path: Path) -> str:
        """The location of what this machine has, or would have, at `path`: in the store, where there is one."""
        return str(path) if self.store is None else below(self.store, *path.relative_to(self.directory).parts)

    def has(self, path: Path) -> bool:
        """Whether `path` is there whole: on this machine and, where there is a store, in it."""
        return path.exists() and (self.store is None or self._is_stored(path))

    def bring(self, path: Path, anew: bool = False) -> None:
        """Copy what is in the store, and not at `path` on this machine; with `anew` also what is. Nothing without one.

        Raises CtdError where the store does not answer.
        """
        if self.store is None or (path.exists() and not anew):
            return
        if not self._is_stored(path):
            return
        with alone_in(self.directory):  # workers of one machine want the same
            if anew or not path.exists():
                with tempfile.TemporaryDirectory(prefix=".copy-", dir=self.directory) as temporary:
                    copied = Path(temporary) / path.name
                    download(self.within(path), copied)
                    path.parent.mkdir(parents=True, exist_ok=True)
                    if path.is_dir():
                        shutil.rmtree(path)
                    os.replace(copied, path)

    def _is_stored(self, path: Path) -> bool:
        return path.name + WHOLE_IN_STORE in names_in(self.within(path.parent))

    def share(self, path: Path, anew: bool = True) -> None:
        """Copy a file or directory to the store, where there is one; what is there is replaced, or kept if not `anew`.

        Raises CtdError where that cannot be done.
        """
        if self.store is None:
            return
        there = names_in(self.within(path.parent))
        if not anew and path.name + WHOLE_IN_STORE in there:
            return
        marker = path.with_name(path.name + WHOLE_IN_STORE)
        if path.is_dir() and path.name in there:  # no mixture of two
            delete_file(self.within(marker))
            delete_folder(self.within(path))
        upload(path, self.within(path))
        write_text(self.within(marker), "")


@contextmanager
def alone_in(directory: Path) -> Iterator[None]:
    """Make `directory` and work in it alone: whoever else asks waits, on all machines whose storage shares locks."""
    directory.mkdir(parents=True, exist_ok=True)
    with (directory / ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
