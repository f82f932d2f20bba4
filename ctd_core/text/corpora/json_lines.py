"""JSON lines, compressed too. A slice is a range of bytes; a line belongs to the slice in which it begins.

A compressed file cannot be entered in its middle, and a JSON array, which begins with a bracket, is no lines: such a
file is one slice.
"""

import codecs
import json
import sys
from collections.abc import Iterator

from ctd_core.config.text import JsonLines, OwnTexts
from ctd_core.errors import CtdError, DocumentError
from ctd_core.storage.locations import size_and_time
from ctd_core.text.corpora.compression import compression_of, open_decompressed
from ctd_core.text.corpora.files import matching_files
from ctd_core.text.corpora.records import document_of
from ctd_core.text.corpora.slices import CorpusSlice
from ctd_core.text.documents import Document

READ_BYTES = 4096


def plan(corpus: JsonLines | OwnTexts, slice_bytes: int) -> Iterator[CorpusSlice]:
    """Ranges of bytes of each file."""
    number = 0
    for file in matching_files(corpus.paths):
        size, _ = size_and_time(file)
        is_one = compression_of(file) or (size > slice_bytes and _is_array(file))
        step = max(size, 1) if is_one else slice_bytes
        for start in range(0, size, step):
            yield CorpusSlice(number, file, start, min(start + step, size))
            number += 1


def read(corpus: JsonLines | OwnTexts, part: CorpusSlice) -> Iterator[Document | DocumentError]:
    """The documents whose lines begin in the slice; raises CtdError for a line that is not JSON."""
    if part.start == 0 and _is_array(part.source):
        yield from _read_array(corpus, part.source)
        return
    with open_decompressed(part.source) as stream:
        at = number = 0
        if part.start:
            stream.seek(part.start - 1)
            at = part.start - 1 + len(stream.readline())
        stop = sys.maxsize if compression_of(part.source) else part.stop
        while at < stop and (line := stream.readline()):
            number += 1  # within the slice: of others than the first, the lines before it are not known
            path = f"{part.source}:byte {at}" if part.start else f"{part.source}:line {number}"
            at += len(line)
            text = line.removeprefix(codecs.BOM_UTF8) if at == len(line) else line
            if text.strip():
                yield document_of(_parsed(text, path, "a line of JSON"), corpus, path)


def _read_array(corpus: JsonLines | OwnTexts, file: str) -> Iterator[Document | DocumentError]:
    with open_decompressed(file) as stream:
        records = _parsed(stream.read().removeprefix(codecs.BOM_UTF8), file, "a JSON array")
    for number, record in enumerate(records if isinstance(records, list) else [records]):
        yield document_of(record, corpus, f"{file}:item {number}")


def _parsed(text: bytes, path: str, expected: str) -> object:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise CtdError(f"{path}: not {expected} ({error}). Mend it, or take it out.") from error


def _is_array(file: str) -> bool:
    """Whether a file is one JSON array; raises CtdError where it is not UTF-8 text."""
    with open_decompressed(file) as stream:
        first = stream.read(READ_BYTES)
        if first.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
            raise CtdError(f"{file}: UTF-16 text. Convert it to UTF-8: iconv -f UTF-16 -t UTF-8.")
        first = first.removeprefix(codecs.BOM_UTF8)
        while first and not first.strip():
            first = stream.read(READ_BYTES)
        return first.lstrip().startswith(b"[")
