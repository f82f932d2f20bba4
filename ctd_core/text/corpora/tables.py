"""Tables as text (CSV, TSV), compressed too, and Arrow files. A slice is a file."""

from collections.abc import Iterator

import pyarrow as pa
from pyarrow import csv, ipc

from ctd_core.config.text import Arrow, Csv
from ctd_core.errors import CtdError, DocumentError
from ctd_core.storage.locations import size_and_time
from ctd_core.text.corpora.compression import open_decompressed
from ctd_core.text.corpora.files import matching_files, open_file
from ctd_core.text.corpora.records import columns_of, document_of
from ctd_core.text.corpora.slices import CorpusSlice
from ctd_core.text.documents import Document


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
    row = 0
    try:
        for batch in _csv(corpus, part.source) if isinstance(corpus, Csv) else _arrow(corpus, part.source):
            for record in batch.to_pylist():
                yield document_of(record, corpus, f"{part.source}:row {row}")
                row += 1
    except (pa.ArrowInvalid, UnicodeDecodeError) as error:
        raise CtdError(f"{part.source}: cannot be read after row {row} ({error}).") from error


def _csv(corpus: Csv, file: str) -> Iterator[pa.RecordBatch]:
    with open_decompressed(file) as stream:
        parse = csv.ParseOptions(delimiter=corpus.delimiter, newlines_in_values=True)
        reader = csv.open_csv(pa.PythonFile(stream, "r"), parse_options=parse, convert_options=_as_text(corpus))
        columns = columns_of(corpus, reader.schema.names, file)
        yield from (batch.select(columns) for batch in reader)


def _as_text(corpus: Csv) -> csv.ConvertOptions:
    """Everything that is read is text, also where it looks like numbers or dates."""
    types = {column: pa.string() for column in corpus.columns}
    return csv.ConvertOptions(column_types=types, strings_can_be_null=False)


def _arrow(corpus: Arrow, file: str) -> Iterator[pa.RecordBatch]:
    with open_file(file) as stream:
        source = pa.PythonFile(stream, "r")
        try:
            reader = ipc.open_file(source)
            batches = (reader.get_batch(number) for number in range(reader.num_record_batches))
        except pa.ArrowInvalid:
            stream.seek(0)
            reader = ipc.open_stream(source)
            batches = iter(reader)
        columns = columns_of(corpus, reader.schema.names, file)
        yield from (batch.select(columns) for batch in batches)
