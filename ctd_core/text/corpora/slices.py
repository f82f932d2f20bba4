"""Slices of a corpus, and which documents a slice gives to training and to evaluation."""

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from ctd_core.config.text import Corpus
from ctd_core.errors import DocumentError
from ctd_core.text.documents import Document


@dataclass(frozen=True)
class CorpusSlice:
    """`start` to `stop` of `source`, in bytes, row groups, rows or files, as the format has it.

    A corpus that lies in no files has its `documents` here, one of complete files their names in `files`.
    """

    number: int
    source: str
    start: int
    stop: int
    documents: tuple[Document, ...] = ()
    files: tuple[str, ...] = ()


def training_documents(
    corpus: Corpus, documents: Iterable[Document | DocumentError]
) -> Iterator[Document | DocumentError]:
    """Those of `documents` that are trained on: not held out, and in the sample. Errors pass, to be counted."""
    held_out, sample = corpus.held_out_fraction, corpus.sample_fraction
    stop = held_out + sample * (1 - held_out)
    for document in documents:
        if isinstance(document, DocumentError) or held_out <= hash_fraction(document.text) < stop:
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


def slices_of(documents: tuple[Document, ...], slice_bytes: int) -> Iterator[CorpusSlice]:
    """Slices that hold `documents` of a corpus that lies in no files."""
    for number, (start, stop) in enumerate(cut_by_size([len(document.text) for document in documents], slice_bytes)):
        yield CorpusSlice(number, "", start, stop, documents[start:stop])


def cut_by_size(sizes: list[int], slice_bytes: int) -> Iterator[tuple[int, int]]:
    """Ranges of consecutive items that each reach `slice_bytes`, but for the last."""
    start = total = 0
    for number, size in enumerate(sizes):
        total += size
        if total >= slice_bytes or number == len(sizes) - 1:
            yield start, number + 1
            start, total = number + 1, 0
