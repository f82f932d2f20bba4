"""From documents to the content of a shard."""

import re
from collections.abc import Iterable, Iterator
from itertools import islice

import pyarrow as pa

from ctd_core.align.documents import SCORED, AlignedText, align_documents, cut_windows
from ctd_core.align.window_selection import most_fragmented
from ctd_core.errors import DocumentError
from ctd_core.shards.manifest import Counts, count_rows
from ctd_core.shards.schema import rows_batch
from ctd_core.text.documents import Document, Marker
from ctd_core.text.prepared_tokenizer import PreparedTokenizer

DOCUMENTS_A_BATCH = 256


def build_rows(
    student: PreparedTokenizer,
    teacher: PreparedTokenizer,
    documents: Iterable[Document | DocumentError],
    student_window_tokens: int,
    teacher_window_tokens: int,
    fragmented_fraction: float = 1.0,
) -> tuple[pa.RecordBatch, Counts]:
    """Encode, align and cut `documents`; a record batch of ALIGNMENT_SCHEMA and what it holds.

    Documents without text make no rows. Those that cannot be read or aligned are counted by reason, and so are those
    that hold names of special tokens, which are plain text here. Of a document in several windows those in which
    nothing is to be learned, as of a long prompt, are left out. A `fragmented_fraction` below 1 leaves out more, see
    align.window_selection.
    """
    rows: list[AlignedText] = []
    errors: list[DocumentError] = []
    names = _special_names(student, teacher)
    named: list[str] = []
    count = empty = left_out = 0
    for batch in _batches(documents):
        errors += [aligned for aligned in batch if isinstance(aligned, DocumentError)]
        given = [aligned for aligned in batch if isinstance(aligned, Document)]
        full = [document for document in given if document.text]
        count, empty = count + len(batch), empty + len(given) - len(full)
        named += [found for document in full if (found := _find_name(document, names))]
        for document, aligned in zip(full, align_documents(student, teacher, full), strict=True):
            made: list[AlignedText] | DocumentError = (
                aligned
                if isinstance(aligned, DocumentError)
                else cut_windows(aligned, student_window_tokens, teacher_window_tokens)
            )
            if isinstance(made, DocumentError):
                errors.append(DocumentError(made.reason, f"document {document.id}: {made}"))
            else:
                learned = made if len(made) == 1 else [window for window in made if (window.chunk_kinds & SCORED).any()]
                rows += learned
                left_out += len(made) - len(learned)
    kept = most_fragmented(rows, fragmented_fraction)
    return rows_batch(kept), count_rows(count, empty, errors, kept, left_out + len(rows) - len(kept), named)


def _batches(documents: Iterable[Document | DocumentError]) -> Iterator[list[Document | DocumentError]]:
    remaining = iter(documents)
    while batch := list(islice(remaining, DOCUMENTS_A_BATCH)):
        yield batch


def _special_names(*tokenizers: PreparedTokenizer) -> re.Pattern[str] | None:
    """Finds names of special tokens in a text; those of one or two characters are left out, since texts hold them."""
    tokens = [token for tokenizer in tokenizers for token in tokenizer.encoder.tokenizer.added_tokens_decoder.values()]
    names = sorted({token.content for token in tokens if token.special and len(token.content) > 2})
    return re.compile("|".join(map(re.escape, names))) if names else None


def _find_name(document: Document, names: re.Pattern[str] | None) -> str | None:
    """The first special token named in a document's text, and where; None where there is none."""
    texts = (segment.text for segment in document.segments if not isinstance(segment, Marker))
    found = next((match for text in texts if names is not None and (match := names.search(text))), None)
    return f"{found[0]} in document {document.id}" if found else None
