"""What formats of files have in common: patterns and opening."""

import re
from pathlib import Path
from typing import BinaryIO
from urllib.parse import urlsplit

from ctd_core.errors import CtdError, UsageError
from ctd_core.storage.locations import file_system, find_files, is_uri, open_to_read


def matching_files(patterns: list[str]) -> list[str]:
    """The files that `patterns` match, each once.

    Args:
        patterns: paths or URIs, with *, ? and [...].

    Returns:
        Their locations, in order.

    Raises:
        UsageError: a pattern matches none.
    """
    found: dict[tuple[str, ...], str] = {}
    for pattern in patterns:
        files = find_files(pattern)
        if not files:
            raise UsageError(_no_file(pattern))
        for file in files:
            found.setdefault(_place(file), file)  # patterns may overlap, and paths be links
    return list(found.values())


def _place(file: str) -> tuple[str, ...]:
    """What is the same for a file however it is named: its path, and of a URI the store."""
    parts = urlsplit(file) if is_uri(file) else None
    return file_system(file)[1], *((parts.scheme, parts.query) if parts else ())


def _no_file(pattern: str) -> str:
    if not is_uri(pattern):
        path = Path(pattern).expanduser()
        if path.is_dir():
            return f"corpus.paths: {pattern} is a directory. Say which files in it: {pattern.rstrip('/')}/*.jsonl"
        fixed = next(parent for parent in (path, *path.parents) if not re.search(r"[*?\[]", str(parent)))
        if fixed != path and not fixed.exists():
            return f"corpus.paths: {pattern}: there is no directory {fixed}."
        if fixed == path and not path.parent.exists():
            return f"corpus.paths: {pattern}: there is no directory {path.parent}."
    return f"corpus.paths: {pattern}: no such file."


def open_file(file: str) -> BinaryIO:
    """Open a file of a corpus.

    Args:
        file: a path or a URI.

    Returns:
        A stream of bytes.

    Raises:
        CtdError: it cannot be read.
    """
    try:
        return open_to_read(file)
    except OSError as error:
        raise CtdError(f"{file}: cannot be read ({error.strerror or error}).") from error
