"""Tables as text (CSV, TSV), compressed too, and Arrow files. A slice is a file."""

import csv
import io
import json
import sys
from collections.abc import Iterator

import pyarrow as pa
from pyarrow import ipc

from ctd_core.config.text import Arrow, Csv
from ctd_core.errors import CtdError, DocumentError
from ctd_core.storage.locations import size_and_time
from ctd_core.text.corpora.compression import open_decompressed
from ctd_core.text.corpora.files import matching_files, open_file
from ctd_core.text.corpora.records import columns_of, document_of
from ctd_core.text.corpora.slices import CorpusSlice
from ctd_core.text.documents import Document

END_OF_STREAM = b"\xff\xff\xff\xff\0\0\0\0"


def plan(corpus: Csv | Arrow, slice_bytes: int) -> Iterator[CorpusSlice]:
    """The files, each one slice.

    Args:
        corpus: the files.
        slice_bytes: not used, as a file cannot be entered in its middle.

    Yields:
        A slice.

    Raises:
        UsageError: a file has no such column.
    """
    for number, file in enumerate(matching_files(corpus.paths)):
        size, _ = size_and_time(file)
        yield CorpusSlice(number, file, 0, size)


def read(corpus: Csv | Arrow, part: CorpusSlice) -> Iterator[Document | DocumentError]:
    """The documents of the file; raises CtdError for one that is damaged, UsageError where it has no such column."""
    if isinstance(corpus, Csv):
        for line, row in _csv(corpus, part.source):
            yield document_of(row, corpus, f"{part.source}:line {line}")
        return
    number = 0
    try:
        for batch in _arrow(corpus, part.source):
            for record in batch.to_pylist():
                yield document_of(record, corpus, f"{part.source}:row {number}")
                number += 1
    except (pa.ArrowInvalid, OSError) as error:  # an OSError is a file that ends too early
        raise CtdError(f"{part.source}: cannot be read after row {number} ({error}).") from error


def _csv(corpus: Csv, file: str) -> Iterator[tuple[int, dict[str, str]]]:
    """The rows, each with the number of its last line; every value is text."""
    csv.field_size_limit(sys.maxsize)
    with open_decompressed(file) as stream, io.TextIOWrapper(stream, encoding="utf-8-sig", newline="") as text:
        reader = csv.reader(text, delimiter=corpus.delimiter, strict=True)
        try:
            names = next(reader, None)
            if names is None:
                return  # an empty file
            columns = {name: names.index(name) for name in columns_of(corpus, names, file, _other_delimiter(names))}
            for row in reader:
                if len(row) != len(names) and row:  # a line without anything is no row
                    raise CtdError(
                        f"{file}:line {reader.line_num}: {len(row)} values, and there are {len(names)} names. A value "
                        "with a separator, a quotation mark or a line break has to stand in quotation marks."
                    )
                if row:
                    yield reader.line_num, {name: row[column] for name, column in columns.items()}
        except (csv.Error, UnicodeDecodeError) as error:
            raise CtdError(f"{file}: cannot be read after line {reader.line_num} ({error}).") from error


def _other_delimiter(names: list[str]) -> str:
    """What to say where a table seems to have another separator than the one that made `names` of its first line."""
    found = next((mark for mark in "\t;|," if len(names) == 1 and mark in names[0]), None)
    return f" It seems to be separated by {json.dumps(found)}: set corpus.delimiter." if found is not None else ""


def _arrow(corpus: Arrow, file: str) -> Iterator[pa.RecordBatch]:
    with open_file(file) as stream:
        source = pa.PythonFile(stream, "r")
        try:
            reader = ipc.open_file(source)
            batches = (reader.get_batch(number) for number in range(reader.num_record_batches))
        except pa.ArrowInvalid:
            stream.seek(-len(END_OF_STREAM), io.SEEK_END)
            if stream.read() != END_OF_STREAM:
                raise CtdError(f"{file}: a stream that does not end: it was cut. Write or copy it again.") from None
            stream.seek(0)
            reader = ipc.open_stream(source)
            batches = iter(reader)
        columns = columns_of(corpus, reader.schema.names, file)
        yield from (batch.select(columns) for batch in batches)
