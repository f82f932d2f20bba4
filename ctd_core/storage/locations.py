"""Files by local path or by the URI of any file system that pyarrow knows (s3://, gs://, file://)."""

import fnmatch
import glob
import io
import os
import posixpath
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO
from urllib.parse import urlsplit

from pyarrow import fs

from ctd_core.errors import CtdError, UsageError

LOCAL = fs.LocalFileSystem()
LISTINGS = 5  # tries to list folders, some of which vanish meanwhile


def is_missing_path(name: str) -> bool:
    """Whether `name` can only be a path, and nothing is there: hub ids are `name` or `owner/name`."""
    is_path = name.startswith((".", "/", "~")) or name.count("/") > 1
    return is_path and not Path(name).expanduser().exists()


def is_uri(location: str) -> bool:
    """Whether `location` is a URI, not a local path."""
    return "://" in location


def below(location: str, *names: str) -> str:
    """The location of `names` below the folder `location`, whose URI may have a query."""
    bare, mark, query = location.partition("?") if is_uri(location) else (location, "", "")
    return posixpath.join(bare, *names) + mark + query


def file_system(location: str) -> tuple[fs.FileSystem, str]:
    """The file system of `location`, and its path there; raises UsageError where there is no such file system."""
    if not is_uri(location):
        return LOCAL, str(Path(location).resolve())
    try:
        files, path = fs.FileSystem.from_uri(location)
    except (OSError, ValueError) as error:  # pyarrow's ArrowInvalid is a ValueError
        raise UsageError(f"{location}: no file system could be found for this URI ({error}).") from error
    return files, path


def find_files(pattern: str) -> list[str]:
    """The locations of all files that `pattern` matches, in order: a location, or one with *, [] or ** in its path.

    A ? is of the pattern in a local path, and begins the query in a URI. Raises UsageError where the file system does
    not answer.
    """
    if not is_uri(pattern):
        pattern = os.path.expanduser(pattern)
        if Path(pattern).is_file():  # also one whose name has brackets
            return [pattern]
        return [match for match in sorted(_glob(pattern)) if Path(match).is_file()]
    parts = urlsplit(pattern)
    bare = pattern.removesuffix("?" + parts.query)
    fixed = bare[: next((n for n, character in enumerate(bare) if character in "*["), len(bare))]
    folder = fixed if fixed == bare else posixpath.dirname(fixed)
    query = f"?{parts.query}" if parts.query else ""
    files, root = file_system(folder + query)
    try:
        if fixed == bare:
            return [pattern] if files.get_file_info(root).type == fs.FileType.File else []
        found = files.get_file_info(fs.FileSelector(root, recursive=True, allow_not_found=True))
    except OSError as error:
        raise UsageError(f"{pattern}: the file system does not answer ({error}).") from error
    wanted = root + bare.removeprefix(folder)
    steps = wanted.split("/")
    inside = [
        entry.path for entry in found if entry.type == fs.FileType.File and _matches(entry.path.split("/"), steps)
    ]
    return [folder + path.removeprefix(root) + query for path in sorted(inside)]


def _glob(pattern: str) -> list[str]:
    """What a local pattern matches; the folders at its beginning that are there by this very name are no pattern."""
    folder, steps = Path(), Path(pattern).parts
    for number, step in enumerate(steps):
        if not (folder / step).is_dir():
            rest = "/".join(steps[number:]) + ("/" if pattern.endswith("/") else "")
            return glob.glob(os.path.join(glob.escape(str(folder)), rest) if number else rest, recursive=True)
        folder /= step
    return []


def _matches(path: list[str], pattern: list[str]) -> bool:
    """As glob has it: * stays within a folder, ** stands for any number of them, neither for what begins with a dot."""
    if not pattern:
        return not path
    if pattern[0] == "**":
        visible = next((n for n, character in enumerate(path) if character.startswith(".")), len(path))
        return any(_matches(path[n:], pattern[1:]) for n in range(visible + 1))
    if not path or (path[0].startswith(".") and not pattern[0].startswith(".")):
        return False
    return fnmatch.fnmatchcase(path[0], pattern[0]) and _matches(path[1:], pattern[1:])


def size_and_time(location: str) -> tuple[int, int]:
    """The size of a file in bytes, and when it changed last in nanoseconds; raises FileNotFoundError without one."""
    if not is_uri(location):
        status = Path(location).stat()
        return status.st_size, status.st_mtime_ns
    files, path = file_system(location)
    info = files.get_file_info(path)
    if info.type == fs.FileType.NotFound:
        raise FileNotFoundError(location)
    return int(info.size), int(info.mtime_ns or 0)


def open_to_read(location: str) -> BinaryIO:
    """A file's bytes, from any place of it; raises OSError where it cannot be read."""
    if not is_uri(location):
        return open(location, "rb")
    files, path = file_system(location)
    return io.BufferedReader(files.open_input_file(path))


def names_in(location: str | Path) -> list[str]:
    """The names of what lies in a folder, in order; none where there is no such folder."""
    files, path = file_system(str(location))
    with _named_errors(f"{location}: cannot be read"):
        found = files.get_file_info(fs.FileSelector(path, allow_not_found=True))
    return sorted(entry.base_name for entry in found)


def files_below(location: str | Path) -> dict[str, float]:
    """Every file in a folder and in those below it, by its path from there: when it changed last, in seconds.

    Raises UsageError where there is no such folder, CtdError where it cannot be read.
    """
    files, path = file_system(str(location))
    for left in reversed(range(LISTINGS)):
        try:
            found = files.get_file_info(fs.FileSelector(path, recursive=True))
            break
        except (FileNotFoundError, NotADirectoryError) as error:
            if not left or files.get_file_info(path).type != fs.FileType.Directory:
                raise UsageError(f"{location}: no such folder ({error}).") from error
        except OSError as error:
            raise CtdError(f"{location}: cannot be read ({error}).") from error
    inside = [entry for entry in found if entry.type == fs.FileType.File]
    return {posixpath.relpath(entry.path, path): (entry.mtime_ns or 0) / 1e9 for entry in inside}


def delete_folder(location: str | Path) -> None:
    """Delete a folder recursively; raises CtdError where that cannot be done."""
    files, path = file_system(str(location))
    with _named_errors(f"{location}: cannot be deleted"):
        files.delete_dir(path)


def delete_file(location: str | Path) -> None:
    """Delete a file, where there is one; raises CtdError where that cannot be done."""
    files, path = file_system(str(location))
    with _named_errors(f"{location}: cannot be deleted"):
        if files.get_file_info(path).type == fs.FileType.File:
            files.delete_file(path)


def write_text(location: str | Path, text: str) -> None:
    """Write a file; raises CtdError where that cannot be done."""
    files, path = file_system(str(location))
    with _named_errors(f"{location}: cannot be written"):
        if files.type_name not in {"s3", "gcs"}:  # these have no folders
            files.create_dir(posixpath.dirname(path), recursive=True)
        with files.open_output_stream(path) as stream:
            stream.write(text.encode())


def upload(source: Path, location: str) -> None:
    """Copy a local file, or a folder with all that is in it; raises CtdError where it cannot be written."""
    files, path = file_system(location)
    with _named_errors(f"{location}: cannot be written"):
        files.create_dir(posixpath.dirname(path) if source.is_file() else path, recursive=True)
        fs.copy_files(str(source), path, source_filesystem=LOCAL, destination_filesystem=files)


def download(location: str, target: Path) -> None:
    """Copy a file, or a folder with all that is in it, to this machine; raises CtdError where it cannot be read."""
    files, path = file_system(location)
    with _named_errors(f"{location}: cannot be read"):
        if files.get_file_info(path).type == fs.FileType.Directory:
            target.mkdir(parents=True)
        fs.copy_files(path, str(target), source_filesystem=files, destination_filesystem=LOCAL)


@contextmanager
def _named_errors(failure: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise CtdError(f"{failure} ({error}). Run the same command again.") from error
