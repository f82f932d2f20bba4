"""Corpora in numbered slices, each of which a worker can read by itself.

A format is a module with `plan`, which cuts a corpus into slices, and `read`, which yields the documents of one.
"""

from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

from ctd_core.config.text import (
    Arrow,
    Corpus,
    Csv,
    GeneralText,
    HubDataset,
    JsonLines,
    Parquet,
    StdlibDocs,
    TextFiles,
)
from ctd_core.errors import DocumentError, UsageError
from ctd_core.text.corpora import general_text, hub_dataset, json_lines, parquet, stdlib_docs, tables, text_files
from ctd_core.text.corpora.files import matching_files
from ctd_core.text.corpora.slices import CorpusSlice
from ctd_core.text.documents import Document

__all__ = ["CorpusSlice", "corpus_files", "first_slice", "plan_slices", "read_slice"]

FORMATS: dict[type[Corpus], ModuleType] = {
    Arrow: tables,
    Csv: tables,
    GeneralText: general_text,
    HubDataset: hub_dataset,
    JsonLines: json_lines,
    Parquet: parquet,
    StdlibDocs: stdlib_docs,
    TextFiles: text_files,
}


def plan_slices(corpus: Corpus, slice_bytes: int) -> list[CorpusSlice]:
    """The slices of `corpus`, of about `slice_bytes` of text each; what they hold depends on nothing else.

    Args:
        corpus: the corpus.
        slice_bytes: the size of a slice, about.

    Returns:
        All slices, in order.

    Raises:
        UsageError: a file is missing or there is nothing to read.
    """
    slices = list(FORMATS[type(corpus)].plan(corpus, slice_bytes))
    if not slices:
        raise UsageError(_nothing_in(corpus))
    return slices


def first_slice(corpus: Corpus, slice_bytes: int) -> CorpusSlice:
    """The first of `plan_slices`, without looking further.

    Args:
        corpus: the corpus.
        slice_bytes: the size of a slice, about.

    Returns:
        The first slice.

    Raises:
        UsageError: as plan_slices.
    """
    for corpus_slice in FORMATS[type(corpus)].plan(corpus, slice_bytes):
        first: CorpusSlice = corpus_slice
        return first
    raise UsageError(_nothing_in(corpus))


def read_slice(corpus: Corpus, part: CorpusSlice) -> Iterator[Document | DocumentError]:
    """The documents of `part`, or why there is no text where one should be.

    Args:
        corpus: the corpus.
        part: one of its slices.

    Yields:
        A document, or why there is no text where one should be.

    Raises:
        CtdError: the slice cannot be read; the message names the path.
    """
    yield from FORMATS[type(corpus)].read(corpus, part)


def _nothing_in(corpus: Corpus) -> str:
    return f"corpus: there is nothing in {corpus!r}. Name files or a dataset that hold documents."


def corpus_files(corpus: Corpus) -> list[str]:
    """The locations of the files that `corpus` is read from; none where it is a dataset of a hub, or in no files."""
    if isinstance(corpus, JsonLines | Parquet | Csv | Arrow | TextFiles):
        return matching_files(corpus.paths)
    folder = Path(corpus.name) if isinstance(corpus, HubDataset) else None
    inside = sorted(folder.rglob("*")) if folder is not None and folder.is_dir() else []
    return [str(file) for file in inside if file.is_file()]
