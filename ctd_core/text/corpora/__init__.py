"""Corpora in numbered slices, each of which a worker can read by itself.

A format is a module with `plan`, which cuts a corpus into slices, and `read`, which yields the documents of one.
"""

from collections.abc import Iterator
from itertools import islice
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

__all__ = ["CorpusSlice", "corpus_files", "first_documents", "plan_slices", "read_slice"]

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


def first_documents(corpus: Corpus, slice_bytes: int, count: int) -> list[Document | DocumentError]:
    """The first documents of `corpus`, without looking further.

    Args:
        corpus: the corpus.
        slice_bytes: the size of a slice, about.
        count: how many documents; fewer where it has no more.

    Returns:
        At least one document, or why there is no text where one should be.

    Raises:
        UsageError: as plan_slices, or there is no document.
        CtdError: as read_slice.
    """
    slices = FORMATS[type(corpus)].plan(corpus, slice_bytes)
    documents = list(islice((document for part in slices for document in read_slice(corpus, part)), count))
    if not documents:
        raise UsageError(_nothing_in(corpus))
    return documents


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
    match corpus:
        case HubDataset():
            return f"corpus.name: there is no document in {corpus.name}, split {corpus.split}."
        case JsonLines() | Parquet() | Csv() | Arrow() | TextFiles():
            return f"corpus.paths: there is no document in {', '.join(corpus.paths)}."
    return "corpus: there is no document in it."


def corpus_files(corpus: Corpus) -> list[str]:
    """The locations of the files that `corpus` is read from; none where it is a dataset of a hub, or in no files."""
    if isinstance(corpus, JsonLines | Parquet | Csv | Arrow | TextFiles):
        return matching_files(corpus.paths)
    folder = Path(corpus.name) if isinstance(corpus, HubDataset) else None
    inside = sorted(folder.rglob("*")) if folder is not None and folder.is_dir() else []
    return [str(file) for file in inside if file.is_file()]
