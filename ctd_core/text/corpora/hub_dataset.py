"""Datasets of the Hugging Face hub, or written by `save_to_disk`. A slice is a range of rows."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ctd_core.config.text import HubDataset
from ctd_core.errors import DocumentError, UsageError
from ctd_core.text.corpora.records import columns_of, document_of
from ctd_core.text.corpora.slices import CorpusSlice
from ctd_core.text.documents import Document

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
    rows = _dataset(corpus)
    rows = rows.select_columns(columns_of(corpus, rows.column_names, corpus.name)).select(range(part.start, part.stop))
    for number, row in enumerate(rows, part.start):
        yield document_of(row, corpus, f"{corpus.name}[{corpus.split}]:row {number}")


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
        return datasets.load_dataset(corpus.name, corpus.configuration, split=corpus.split, revision=corpus.revision)
    except (OSError, ValueError, KeyError, datasets.exceptions.DatasetsError) as error:  # by where the dataset is
        raise UsageError(
            f"corpus.name: {corpus.name}: no dataset could be loaded ({type(error).__name__}: {error}). Give a hub id "
            "or a directory written by save_to_disk."
        ) from error
