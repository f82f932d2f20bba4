"""JSON lines, gzip too. A slice is a range of bytes; a line belongs to the slice in which it begins."""

import gzip
import json
import sys
import zlib
from collections.abc import Iterator
from typing import Any

from ctd_core.config.text import JsonLines
from ctd_core.errors import CtdError, DocumentError
from ctd_core.storage.locations import is_uri, size_and_time
from ctd_core.text.corpora.files import matching_files, open_file
from ctd_core.text.corpora.records import document_of
from ctd_core.text.corpora.slices import CorpusSlice
from ctd_core.text.documents import Document


def plan(corpus: JsonLines, slice_bytes: int) -> Iterator[CorpusSlice]:
    """Ranges of bytes of each file; a compressed file, which cannot be entered in its middle, is one slice."""
    number = 0
    for file in matching_files(corpus.paths):
        size, _ = size_and_time(file)
        step = max(size, 1) if is_gzip(file) else slice_bytes
        for start in range(0, size, step):
            yield CorpusSlice(number, file, start, min(start + step, size))
            number += 1


def read(corpus: JsonLines, part: CorpusSlice) -> Iterator[Document | DocumentError]:
    """The documents whose lines begin in the slice; raises CtdError for a line that is not JSON."""
    with open_file(part.source) as compressed:
        stream: Any = gzip.GzipFile(fileobj=compressed) if is_gzip(part.source) else compressed
        stop = sys.maxsize if stream is not compressed else part.stop
        if part.start:
            stream.seek(part.start - 1)
            stream.readline()
        while (at := stream.tell()) < stop and (line := _line(stream, part.source)):
            if not line.strip():
                continue
            path = f"{part.source}:byte {at}"
            try:
                record = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise CtdError(f"{path}: not a line of JSON ({error}).") from error
            yield document_of(record, corpus, path)


def is_gzip(file: str) -> bool:
    """Whether a file is compressed, by its name; a URI's query is not part of it."""
    return file.partition("?")[0].endswith(".gz") if is_uri(file) else file.endswith(".gz")


def _line(stream: Any, file: str) -> bytes:
    try:
        return bytes(stream.readline())
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise CtdError(f"{file}: not a complete gzip file ({error}). Copy it again.") from error
