"""Compressed files of a corpus, by their names: .gz, .bz2, .xz and .zst."""

import bz2
import gzip
import io
import lzma
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO

import pyarrow as pa

from ctd_core.errors import CtdError
from ctd_core.storage.locations import is_uri
from ctd_core.text.corpora.files import open_file

READERS: dict[str, Callable[[Any], Any]] = {
    ".gz": lambda stream: gzip.GzipFile(fileobj=stream),
    ".bz2": bz2.BZ2File,
    ".xz": lzma.LZMAFile,
    ".zst": lambda stream: io.BufferedReader(pa.CompressedInputStream(pa.PythonFile(stream), "zstd")),
}


def compression_of(file: str) -> str | None:
    """The ending of a compressed file's name, None for others; a URI's query is not part of the name."""
    name = file.partition("?")[0] if is_uri(file) else file
    return next((ending for ending in READERS if name.endswith(ending)), None)


@contextmanager
def open_decompressed(file: str) -> Iterator[BinaryIO]:
    """Open a file of a corpus to read what it holds.

    Args:
        file: a path or a URI.

    Yields:
        A stream of bytes.

    Raises:
        CtdError: it cannot be read, or is not a complete compressed file.
    """
    ending = compression_of(file)
    with open_file(file) as stream:
        if ending is None:
            yield stream
            return
        try:
            yield READERS[ending](stream)
        except (OSError, EOFError, lzma.LZMAError, zlib.error) as error:
            raise CtdError(f"{file}: not a complete {ending} file ({error}). Copy it again.") from error
