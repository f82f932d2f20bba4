"""Parquet files. A slice is a range of row groups."""

from collections.abc import Iterator

import pyarrow as pa
import pyarrow.parquet as pq

from ctd_core.config.text import Parquet
from ctd_core.errors import CtdError, DocumentError, UsageError
from ctd_core.storage.locations import open_to_read
from ctd_core.text.corpora.files import matching_files, open_file
from ctd_core.text.corpora.records import columns_of, document_of
from ctd_core.text.corpora.slices import CorpusSlice
from ctd_core.text.documents import Document


def plan(corpus: Parquet, slice_bytes: int) -> Iterator[CorpusSlice]:
    """Ranges of row groups of each file.

    Args:
        corpus: the files.
        slice_bytes: the size of a slice, about, uncompressed.

    Yields:
        A slice.

    Raises:
        UsageError: a file is no Parquet file, or has no such column.
        CtdError: a file cannot be read.
    """
    number = 0
    for file in matching_files(corpus.paths):
        try:
            with open_to_read(file) as stream:
                metadata = pq.read_metadata(stream)
        except pa.ArrowInvalid as error:
            raise UsageError(f"corpus.paths: {file}: not a Parquet file ({error}).") from error
        except OSError as error:
            raise CtdError(f"corpus.paths: {file}: cannot be read ({error}).") from error
        columns_of(corpus, metadata.schema.to_arrow_schema().names, file)
        start = size = 0
        for group in range(metadata.num_row_groups):
            size += metadata.row_group(group).total_byte_size
            if size >= slice_bytes or group == metadata.num_row_groups - 1:
                yield CorpusSlice(number, file, start, group + 1)
                start, size, number = group + 1, 0, number + 1


def read(corpus: Parquet, part: CorpusSlice) -> Iterator[Document | DocumentError]:
    """The documents of the slice's row groups; raises CtdError for one that is damaged."""
    with open_file(part.source) as stream, pq.ParquetFile(stream) as file:
        for group in range(part.start, part.stop):
            try:
                names = columns_of(corpus, file.schema_arrow.names, part.source)
                records = file.read_row_group(group, columns=names).to_pylist()
            except (OSError, pa.ArrowInvalid) as error:
                raise CtdError(f"{part.source}: row group {group} cannot be read ({error}). Copy it again.") from error
            for row, record in enumerate(records):
                yield document_of(record, corpus, f"{part.source}:row group {group}, row {row}")
