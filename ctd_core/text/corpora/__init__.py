"""Corpora in numbered slices, each of which a worker can read by itself.

A format is a module with `plan`, which cuts a corpus into slices, and `read`, which yields the documents of one.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from itertools import zip_longest
from types import ModuleType

from ctd_core.config.text import (
    Arrow,
    Corpus,
    Csv,
    GeneralText,
    HubDataset,
    JsonLines,
    Mixture,
    OwnTexts,
    Parquet,
    StdlibDocs,
    TextFiles,
    WrittenConversations,
)
from ctd_core.errors import DocumentError, UsageError
from ctd_core.text.corpora import (
    general_text,
    hub_dataset,
    json_lines,
    parquet,
    stdlib_docs,
    tables,
    text_files,
    written_conversations,
)
from ctd_core.text.corpora.files import matching_files
from ctd_core.text.corpora.slices import CorpusSlice
from ctd_core.text.documents import Document

__all__ = ["CorpusSlice", "corpus_files", "in_turn", "plan_slices", "read_documents", "read_slice"]

FORMATS: dict[type[Corpus], ModuleType] = {
    Arrow: tables,
    Csv: tables,
    GeneralText: general_text,
    HubDataset: hub_dataset,
    JsonLines: json_lines,
    OwnTexts: json_lines,
    Parquet: parquet,
    StdlibDocs: stdlib_docs,
    TextFiles: text_files,
    WrittenConversations: written_conversations,
}


def plan_slices(corpus: Corpus, slice_bytes: int) -> list[CorpusSlice]:
    """The slices of `corpus`, of about `slice_bytes` of text each; what they hold depends on nothing else.

    Args:
        corpus: the corpus.
        slice_bytes: the size of a slice, about.

    Returns:
        All slices, in order: those of a mixture's sources one source after another.

    Raises:
        UsageError: a file is missing or there is nothing to read.
    """
    slices: list[CorpusSlice] = []
    for number, part in enumerate(corpus.parts):
        found = list(FORMATS[type(part)].plan(part, slice_bytes))
        if not found:
            raise UsageError(_nothing_in(part))
        slices += [replace(item, number=len(slices) + item.number, part=number) for item in found]
    return slices


def in_turn(slices: list[CorpusSlice]) -> list[CorpusSlice]:
    """`slices` with those of a mixture's sources in turn, so that the first of them hold something of each."""
    seen: Counter[int] = Counter()
    ranks = []
    for item in slices:
        ranks.append((seen[item.part], item.part))
        seen[item.part] += 1
    return [slices[place] for place in sorted(range(len(slices)), key=ranks.__getitem__)]


def read_documents(corpus: Corpus, slice_bytes: int) -> Iterator[Document | DocumentError]:
    """The documents of all slices, read as they are asked for.

    Args:
        corpus: the corpus.
        slice_bytes: the size of a slice, about.

    Yields:
        A document, or why there is no text where one should be: at least one. Those of a mixture's sources in turn.

    Raises:
        UsageError: as plan_slices, or there is no document.
        CtdError: as read_slice.
    """
    for documents in zip_longest(*(_documents_of(part, slice_bytes) for part in corpus.parts)):
        yield from (document for document in documents if document is not None)


def _documents_of(corpus: Corpus, slice_bytes: int) -> Iterator[Document | DocumentError]:
    is_empty = True
    for part in FORMATS[type(corpus)].plan(corpus, slice_bytes):
        for document in read_slice(corpus, part):
            is_empty = False
            yield document
    if is_empty:
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
    corpus = corpus.parts[part.part]
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
    if isinstance(corpus, Mixture):
        return list(dict.fromkeys(file for part in corpus.parts for file in corpus_files(part)))
    if isinstance(corpus, JsonLines | Parquet | Csv | Arrow | TextFiles):
        return matching_files(corpus.paths)
    return [str(file) for file in hub_dataset.files_of(corpus)] if isinstance(corpus, HubDataset) else []
