"""Datasets of the Hugging Face hub, or written by `save_to_disk`. A slice is a range of rows.

The beginning of a dataset that is streamed is written once a machine, as JSON lines, whose slices are ranges of bytes.
"""

import json
import logging
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from filelock import FileLock

from ctd_core.config.base import fingerprint
from ctd_core.config.text import HubDataset, JsonLines, Records
from ctd_core.errors import DocumentError, UsageError
from ctd_core.storage.atomic import write_atomic
from ctd_core.storage.locations import size_and_time
from ctd_core.text.corpora import json_lines
from ctd_core.text.corpora.records import columns_of, document_of, without_nulls
from ctd_core.text.corpora.slices import CorpusSlice
from ctd_core.text.documents import Document

logger = logging.getLogger(__name__)
STREAMED_VERSION = 2  # of what is kept of a row: since 2, fields without a value are not
PROBED_ROWS = 100  # by which a row's bytes are estimated


def plan(corpus: HubDataset, slice_bytes: int) -> Iterator[CorpusSlice]:
    """Ranges of rows.

    Args:
        corpus: the dataset.
        slice_bytes: the text of a slice, about, by its first rows.

    Yields:
        A slice.

    Raises:
        UsageError: no dataset could be loaded, or it has no such column.
    """
    if corpus.streaming:
        for item in json_lines.plan(_written(corpus), slice_bytes):
            yield replace(item, source=corpus.name)  # the same on every machine
        return
    rows = _dataset(corpus)
    columns = columns_of(corpus, rows.column_names, corpus.name)
    if not len(rows):
        return
    first = rows[: min(len(rows), PROBED_ROWS)]
    probe = [sum(len(str(value)) for value in row) for row in zip(*(first[column] for column in columns), strict=True)]
    step = max(1, slice_bytes * len(probe) // max(sum(probe), 1))
    for number, start in enumerate(range(0, len(rows), step)):
        yield CorpusSlice(number, corpus.name, start, min(start + step, len(rows)))


def read(corpus: HubDataset, part: CorpusSlice) -> Iterator[Document | DocumentError]:
    """The documents of the slice's rows."""
    if corpus.streaming:
        lines = _written(corpus)
        yield from json_lines.read(lines, replace(part, source=lines.paths[0]))
        return
    rows = _dataset(corpus)
    rows = rows.select_columns(columns_of(corpus, rows.column_names, corpus.name)).select(range(part.start, part.stop))
    for number, row in enumerate(rows, part.start):
        yield document_of(row, corpus, f"{corpus.name}[{corpus.split}]:row {number}")


def files_of(corpus: HubDataset) -> list[Path]:
    """The files of a dataset in a directory; none where it is one of the hub."""
    folder = Path(corpus.name)
    return [file for file in sorted(folder.rglob("*")) if file.is_file()] if folder.is_dir() else []


def _written(corpus: HubDataset) -> JsonLines:
    """The beginning of a streamed dataset as JSON lines on this machine, which are written where they are not there."""
    import datasets  # takes seconds

    names = {"kind", "name", "configuration", "revision", "split", "max_documents", "max_text_bytes"}
    # a directory may change, and another project may have one of the same name
    files = [(str(path.resolve()), *size_and_time(str(path))) for path in files_of(corpus)]
    read = [corpus.columns, corpus.messages is not None]  # beside messages stand a system prompt and tools
    stamp = fingerprint(STREAMED_VERSION, corpus.model_dump(mode="json", include=names), read, files)
    file = Path(datasets.config.HF_DATASETS_CACHE) / "ctd-streamed" / f"{stamp}.jsonl"
    file.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{file}.lock"):
        if not file.exists():
            logger.info("corpus: streaming the beginning of %s, into %s", corpus.name, file)
            write_atomic(file, "".join(_first_lines(corpus)))
    options = {name: getattr(corpus, name) for name in Records.model_fields}
    return JsonLines(kind="jsonl", paths=[str(file)], **options)


def _first_lines(corpus: HubDataset) -> Iterator[str]:
    """Rows as JSON, with what is read of them alone, up to the bounds."""
    text_bytes = 0
    for number, row in enumerate(_dataset(corpus)):
        columns = columns_of(corpus, list(row), corpus.name)
        line = json.dumps(without_nulls({column: row[column] for column in columns}), default=_decoded) + "\n"
        text_bytes += len(line)
        is_over = corpus.max_text_bytes is not None and text_bytes > corpus.max_text_bytes and number
        if number == corpus.max_documents or is_over:
            return
        yield line


def _decoded(value: Any) -> str:
    """The text of a binary column's value."""
    try:
        return bytes(value).decode()
    except (TypeError, UnicodeDecodeError) as error:
        raise UsageError(
            f"corpus: a column that is read holds {type(value).__name__}, and no text ({error})."
        ) from error


def _dataset(corpus: HubDataset) -> Any:
    import datasets  # takes seconds

    folder = Path(corpus.name)
    try:
        if folder.is_dir() and ((folder / "state.json").exists() or (folder / "dataset_dict.json").exists()):
            saved = datasets.load_from_disk(corpus.name)
            if isinstance(saved, datasets.DatasetDict):
                return saved[corpus.split]
            if corpus.split != "train" or corpus.configuration is not None or corpus.revision is not None:
                raise UsageError(
                    f"corpus.name: {corpus.name}: a directory of one dataset, which has no split, configuration or "
                    "revision to choose. Leave them out."
                )
            return saved
        return datasets.load_dataset(
            corpus.name, corpus.configuration, split=corpus.split, revision=corpus.revision, streaming=corpus.streaming
        )
    except (OSError, ValueError, KeyError, datasets.exceptions.DatasetsError) as error:  # by where the dataset is
        raise UsageError(
            f"corpus.name: {corpus.name}: no dataset could be loaded ({type(error).__name__}: {error}). Give a hub id "
            "or a directory written by save_to_disk."
        ) from error
