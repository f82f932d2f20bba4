"""JSON lines, compressed too. A slice is a range of bytes; a line belongs to the slice in which it begins.

A compressed file cannot be entered in its middle, and a JSON array is no lines: such a file is one slice.
"""

import json
import sys
from collections.abc import Iterator
from typing import BinaryIO

from ctd_core.config.text import JsonLines
from ctd_core.errors import CtdError, DocumentError
from ctd_core.storage.locations import size_and_time
from ctd_core.text.corpora.compression import compression_of, open_decompressed
from ctd_core.text.corpora.files import matching_files
from ctd_core.text.corpora.records import document_of
from ctd_core.text.corpora.slices import CorpusSlice
from ctd_core.text.documents import Document


def plan(corpus: JsonLines, slice_bytes: int) -> Iterator[CorpusSlice]:
    """Ranges of bytes of each file."""
    number = 0
    for file in matching_files(corpus.paths):
        size, _ = size_and_time(file)
        step = max(size, 1) if compression_of(file) or _is_array(file) else slice_bytes
        for start in range(0, size, step):
            yield CorpusSlice(number, file, start, min(start + step, size))
            number += 1


def read(corpus: JsonLines, part: CorpusSlice) -> Iterator[Document | DocumentError]:
    """The documents whose lines begin in the slice; raises CtdError for a line that is not JSON."""
    with open_decompressed(part.source) as stream:
        if part.start == 0 and _is_array(part.source):
            yield from _read_array(corpus, part.source, stream)
            return
        at = 0
        if part.start:
            stream.seek(part.start - 1)
            at = part.start - 1 + len(stream.readline())
        stop = sys.maxsize if compression_of(part.source) else part.stop
        while at < stop and (line := stream.readline()):
            path = f"{part.source}:byte {at}"
            at += len(line)
            text = line.removeprefix(b"\xef\xbb\xbf") if at == len(line) else line  # a byte order mark
            if text.strip():
                yield document_of(_parsed(text, path), corpus, path)


def _read_array(corpus: JsonLines, file: str, stream: BinaryIO) -> Iterator[Document | DocumentError]:
    records = _parsed(stream.read().removeprefix(b"\xef\xbb\xbf"), file)
    for number, record in enumerate(records if isinstance(records, list) else [records]):
        yield document_of(record, corpus, f"{file}:item {number}")


def _parsed(text: bytes, path: str) -> object:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise CtdError(f"{path}: not a line of JSON ({error}).") from error


def _is_array(file: str) -> bool:
    """Whether a file is one JSON array, which is named .json and begins with a bracket."""
    if ".json" not in file or ".jsonl" in file:
        return False
    with open_decompressed(file) as stream:
        return stream.read(64).removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"[")
