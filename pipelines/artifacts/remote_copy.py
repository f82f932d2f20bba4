"""A run's files: on this machine and, where `output` is a URI, in its store. Incomplete copies do not count."""

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from ctd_core.storage.locations import below, delete_file, delete_folder, download, names_in, upload, write_text

COMPLETE_MARKER = ".complete"  # an object beside what was copied to a store, written after it


@dataclass(frozen=True)
class RunFiles:
    """The files below `directory` on this machine; `store` is the URI of their copies, None where there are none."""

    directory: Path
    store: str | None

    def within(self, path: Path) -> str:
        """The location of what this machine has, or would have, at `path`: in the store, where there is one."""
        return str(path) if self.store is None else below(self.store, *path.relative_to(self.directory).parts)

    def has(self, path: Path) -> bool:
        """Whether `path` is complete: on this machine and, where there is a store, in it."""
        return path.exists() and (self.store is None or self._is_stored(path))

    def fetch(self, path: Path, overwrite: bool = False) -> None:
        """Copy `path` from the store, if there is one and it has it.

        Args:
            path: a file or directory on this machine.
            overwrite: whether to replace what is at `path` already.

        Raises:
            CtdError: the store does not answer.
        """
        if self.store is None or (path.exists() and not overwrite):
            return
        if not self._is_stored(path):
            return
        with locked_directory(self.directory):  # workers of one machine want the same
            if overwrite or not path.exists():
                with tempfile.TemporaryDirectory(prefix=".copy-", dir=self.directory) as temporary:
                    copied = Path(temporary) / path.name
                    download(self.within(path), copied)
                    path.parent.mkdir(parents=True, exist_ok=True)
                    if path.is_dir():
                        shutil.rmtree(path)
                    os.replace(copied, path)

    def _is_stored(self, path: Path) -> bool:
        return path.name + COMPLETE_MARKER in names_in(self.within(path.parent))

    def upload(self, path: Path, overwrite: bool = True) -> None:
        """Copy a file or directory to the store, if there is one.

        Args:
            path: a file or directory on this machine.
            overwrite: whether to replace a complete copy that is there already.

        Raises:
            CtdError: it cannot be written.
        """
        if self.store is None:
            return
        there = names_in(self.within(path.parent))
        if not overwrite and path.name + COMPLETE_MARKER in there:
            return
        marker = path.with_name(path.name + COMPLETE_MARKER)
        if path.is_dir() and path.name in there:  # no mixture of two
            delete_file(self.within(marker))
            delete_folder(self.within(path))
        upload(path, self.within(path))
        write_text(self.within(marker), "")


@contextmanager
def locked_directory(directory: Path) -> Iterator[None]:
    """Make `directory` and lock it: others wait, on all machines whose file system shares locks."""
    directory.mkdir(parents=True, exist_ok=True)
    with (directory / ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
