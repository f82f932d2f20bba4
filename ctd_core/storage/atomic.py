"""Files and directories that are there complete or not at all, whatever is killed."""

import errno
import os
import platform
import posixpath
import shutil
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pyarrow as pa
from safetensors import SafetensorError

from ctd_core.errors import CtdError
from ctd_core.storage.locations import file_system

REPLACE_TRIES = 5
OTHERS_SECONDS = 3600.0  # without a change, after which a directory of another machine counts as left behind


def write_atomic(location: str | Path, content: str | bytes | pa.Buffer, temporary: str | None = None) -> None:
    """Write a file, local or at a URI, atomically; its folder is created where it is missing.

    Args:
        location: a path or a URI.
        content: what the file then holds; text is written as UTF-8.
        temporary: the file's name until it is complete; one that nobody else has by default.

    Raises:
        OSError: it could not be written; what was there before still is.
    """
    files, path = file_system(str(location))
    folder, name = posixpath.split(path)
    partial = posixpath.join(folder, temporary or f".{name}.{uuid.uuid4().hex}.partial")
    files.create_dir(folder, recursive=True)
    try:
        with files.open_output_stream(partial) as stream:
            stream.write(content.encode() if isinstance(content, str) else content)
        files.move(partial, path)
    except OSError:
        with suppress(OSError):  # the first error is the one to raise
            files.delete_file(partial)
        raise


@contextmanager
def atomic_directory(directory: Path) -> Iterator[Path]:
    """A directory to fill, which replaces `directory` once the context ends without an error.

    What a killed process left of an earlier try is removed.

    Args:
        directory: what is replaced.

    Yields:
        The temporary directory to fill.

    Raises:
        CtdError: the disk does not take it.
    """
    directory.parent.mkdir(parents=True, exist_ok=True)
    for left in directory.parent.glob(f".{directory.name}.*"):
        if not _is_filled(left):
            shutil.rmtree(left, ignore_errors=True)
    begun = f".{directory.name}.{platform.node()}.{os.getpid()}."
    temporary = Path(tempfile.mkdtemp(prefix=begun, dir=directory.parent))
    try:
        yield temporary
        temporary.chmod(0o755)
        _replace_directory(temporary, directory)
    except (OSError, SafetensorError) as error:
        raise CtdError(f"{directory}: cannot be written ({error}). Free some space and run it again.") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _replace_directory(temporary: Path, directory: Path) -> None:
    """Put `temporary` in the place of `directory`, whose old content is moved aside first, also where others do so."""
    for left in reversed(range(REPLACE_TRIES)):
        aside = Path(tempfile.mkdtemp(prefix=f".{directory.name}.old.", dir=directory.parent)) / "old"
        try:
            with suppress(FileNotFoundError):
                os.replace(directory, aside)
            os.replace(temporary, directory)
            return
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST) or not left:
                raise
        finally:
            shutil.rmtree(aside.parent, ignore_errors=True)


def _is_filled(temporary: Path) -> bool:
    """Whether another process is filling a directory of `atomic_directory`'s: another machine's by its last change."""
    machine, _, pid = temporary.name.rpartition(".")[0].rpartition(".")
    if not pid.isdigit():
        return False
    if not machine.endswith("." + platform.node()):
        with suppress(FileNotFoundError):
            return time.time() - temporary.stat().st_mtime < OTHERS_SECONDS
        return False
    if int(pid) == os.getpid():
        return False
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # somebody else's
        pass
    return True
