"""The packaged general set."""

import json
from collections.abc import Iterator
from functools import cache
from importlib import resources

from ctd_core.config.text import GeneralText
from ctd_core.text.corpora.slices import CorpusSlice, slices_of
from ctd_core.text.documents import Document, plain_document


def plan(corpus: GeneralText, slice_bytes: int) -> Iterator[CorpusSlice]:
    """Slices that hold their documents."""
    yield from slices_of(general_documents(), slice_bytes)


def read(corpus: GeneralText, part: CorpusSlice) -> Iterator[Document]:
    """The documents that the slice holds."""
    yield from part.documents


@cache
def general_documents() -> tuple[Document, ...]:
    """All of them."""
    lines = resources.files(__package__).joinpath("general.jsonl").read_text(encoding="utf-8").splitlines()
    return tuple(plain_document(f"general:{number}", json.loads(line)["text"]) for number, line in enumerate(lines))
