"""Slices of a corpus, and which documents a slice gives to training and to evaluation."""

import hashlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TypeVar

from ctd_core.config.text import Corpus
from ctd_core.errors import DocumentError
from ctd_core.text.documents import Document

Item = TypeVar("Item")


@dataclass(frozen=True)
class CorpusSlice:
    """`start` to `stop` of `source`, in bytes, row groups, rows or files, as the format has it.

    A corpus that lies in no files has its `documents` here, one of complete files their names in `files`. part: which
    of the parts of a mixture it is of.
    """

    number: int
    source: str
    start: int
    stop: int
    documents: tuple[Document, ...] = ()
    files: tuple[str, ...] = ()
    part: int = 0


def training_documents(
    corpus: Corpus, documents: Iterable[Document | DocumentError]
) -> Iterator[Document | DocumentError]:
    """Those of `documents` that are trained on: not held out, and in the sample. Errors pass alike, to be counted."""
    held_out, sample = corpus.held_out_fraction, corpus.sample_fraction
    stop = held_out + sample * (1 - held_out)
    for document in documents:
        if isinstance(document, DocumentError):
            if sample == 1 or hash_fraction(str(document)) < sample:
                yield document
        elif held_out <= hash_fraction(document.text) < stop:
            yield document


def held_out_documents(
    corpus: Corpus, sample_fraction: float, documents: Iterable[Document | DocumentError]
) -> Iterator[Document]:
    """Those of `documents` that are held out, or `sample_fraction` of them."""
    stop = corpus.held_out_fraction * sample_fraction
    for document in documents:
        if isinstance(document, Document) and hash_fraction(document.text) < stop:
            yield document


def hash_fraction(text: str) -> float:
    """A number in [0, 1) by the hash of `text`, evenly spread over texts."""
    digest = hashlib.sha256(text.encode(errors="surrogatepass")).digest()
    return int.from_bytes(digest[:6], "big") / 2**48


def slices_of(documents: Iterable[Document], slice_bytes: int) -> Iterator[CorpusSlice]:
    """Slices that hold `documents` of a corpus that lies in no files; each is there as soon as it is full."""
    start = 0
    for number, held in enumerate(runs_by_size(documents, lambda document: len(document.text), slice_bytes)):
        yield CorpusSlice(number, "", start, start + len(held), tuple(held))
        start += len(held)


def runs_by_size(items: Iterable[Item], size_of: Callable[[Item], int], slice_bytes: int) -> Iterator[list[Item]]:
    """Runs of consecutive items that each reach `slice_bytes`, but for the last."""
    run: list[Item] = []
    total = 0
    for item in items:
        run.append(item)
        total += size_of(item)
        if total >= slice_bytes:
            yield run
            run, total = [], 0
    if run:
        yield run
