"""What formats of files have in common: patterns, opening, the text of a record."""

import re
from pathlib import Path
from typing import BinaryIO

from ctd_core.errors import CtdError, DocumentError, UsageError
from ctd_core.storage.locations import file_system, find_files, is_uri, open_to_read
from ctd_core.text.documents import Document, plain_document


def matching_files(patterns: list[str]) -> list[str]:
    """The files that `patterns` match, each once.

    Args:
        patterns: paths or URIs, with *, ? and [...].

    Returns:
        Their locations, in order.

    Raises:
        UsageError: a pattern matches none.
    """
    found: list[str] = []
    for pattern in patterns:
        files = find_files(pattern)
        if not files:
            raise UsageError(_no_file(pattern))
        found += files
    by_path = {file_system(file)[1]: file for file in reversed(found)}  # patterns may overlap, and paths be links
    return [file for file in dict.fromkeys(found) if by_path[file_system(file)[1]] == file]


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


def document_of(record: object, field: str, path: str) -> Document | DocumentError:
    """The text in `field` of a record that was read at `path`, or why there is none."""
    found = record.get(field) if isinstance(record, dict) else None
    if isinstance(found, str):
        return plain_document(path, found)
    if isinstance(found, bytes):  # a Parquet column of type binary
        try:
            return plain_document(path, found.decode())
        except UnicodeDecodeError as error:
            return DocumentError("not UTF-8 text", f"{path}: {error.reason} at byte {error.start}")
    known = ", ".join(sorted(record)) if isinstance(record, dict) else f"a {type(record).__name__}"
    return DocumentError(f"no text in the field {field!r}", f"{path}, where there is {known}; corpus.field names it")
