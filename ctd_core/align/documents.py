"""Whole documents under two tokenizers, segment by segment, and their windows."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ctd_core.align.chunks import FinestChunks, finest_chunks
from ctd_core.errors import DocumentError
from ctd_core.text.encoding import EncodedPair, encode_pairs
from ctd_core.text.segments import Document, Marker, Side, Text
from ctd_core.text.spelling import PRETOKEN_STARTS

# What chunk_kinds holds, as flags.
SCORED, MARKER, BEFORE_WHITESPACE = 1, 2, 4
WHITESPACE_BYTES = np.frombuffer(b"".join(PRETOKEN_STARTS), dtype=np.uint8)


@dataclass(frozen=True)
class AlignedText:
    """A document or a window of one: S student tokens, T teacher tokens, C finest chunks.

    student_ids [S], teacher_ids [T]; student_chunk_ends, teacher_chunk_ends [C], the token index after each chunk;
    chunk_bytes [C], its length; all int32.
    chunk_kinds: [C] uint8, flags. SCORED: meant for training, with a token on both sides and context before it.
    MARKER: special tokens rather than text. BEFORE_WHITESPACE: what follows is white space or no text.
    """

    document_id: str
    student_ids: npt.NDArray[np.int32]
    teacher_ids: npt.NDArray[np.int32]
    student_chunk_ends: npt.NDArray[np.int32]
    teacher_chunk_ends: npt.NDArray[np.int32]
    chunk_kinds: npt.NDArray[np.uint8]
    chunk_bytes: npt.NDArray[np.int32]


def align_documents(student: Side, teacher: Side, documents: Sequence[Document]) -> list[AlignedText | DocumentError]:
    """Each document encoded by both sides and aligned, or why it has to be dropped.

    Text aligns by its bytes, a marker as a unit, even where one side has no token for it.
    """
    texts = [segment.text for document in documents for segment in document.segments if isinstance(segment, Text)]
    pairs = encode_pairs(student.encoder, teacher.encoder, texts)
    good = [pair for pair in pairs if isinstance(pair, EncodedPair)]
    aligned = finest_chunks([pair.student.byte_ends for pair in good], [pair.teacher.byte_ends for pair in good])
    chunks = iter(aligned)
    pieces = iter([pair if isinstance(pair, DocumentError) else _text_piece(pair, next(chunks)) for pair in pairs])
    results: list[AlignedText | DocumentError] = []
    for document in documents:
        parts = [
            _marker_piece(segment, student, teacher) if isinstance(segment, Marker) else next(pieces)
            for segment in document.segments
        ]
        failed = next((part for part in parts if isinstance(part, DocumentError)), None)
        results.append(failed or _join(document, [part for part in parts if isinstance(part, AlignedText)]))
    return results


def cut_windows(
    document: AlignedText, student_window_tokens: int, teacher_window_tokens: int
) -> list[AlignedText] | DocumentError:
    """The document in windows that fit both limits, each beginning with its begin marker; no text is lost.

    A cut lies at a shared chunk end, before white space where the last quarter of the window has such an end.
    A chunk that fits no window makes the whole document an error.
    """
    fits = len(document.student_ids) <= student_window_tokens and len(document.teacher_ids) <= teacher_window_tokens
    if fits:
        return [document]
    total = len(document.chunk_kinds)
    first = int(total > 0 and bool(document.chunk_kinds[0] & MARKER))
    sides = (
        (document.student_chunk_ends, student_window_tokens),
        (document.teacher_chunk_ends, teacher_window_tokens),
    )
    windows, start = [], first
    while start < total:
        stop = total
        for ends, limit in sides:
            prefix = ends[0] if first else 0
            used = ends[start - 1] if start else 0
            stop = min(stop, int(np.searchsorted(ends, used + limit - prefix, side="right")))
        if stop <= start:
            return DocumentError(
                "a chunk longer than a window",
                f"chunk {start} has more tokens than a window of {student_window_tokens} student and "
                f"{teacher_window_tokens} teacher tokens",
            )
        if stop < total:
            late = stop - (stop - start) // 4
            ends_words = np.flatnonzero(document.chunk_kinds[late:stop] & BEFORE_WHITESPACE)
            stop = late + int(ends_words[-1]) + 1 if len(ends_words) else stop
        windows.append(_window(document, first, start, stop))
        start = stop
    return windows


def _text_piece(pair: EncodedPair, chunks: FinestChunks) -> AlignedText:
    following = np.frombuffer(pair.text_bytes + b" ", dtype=np.uint8)[chunks.byte_ends]
    before_whitespace = np.isin(following, WHITESPACE_BYTES)
    kinds = np.where(before_whitespace, BEFORE_WHITESPACE, 0).astype(np.uint8)
    ends = (chunks.student_ends.astype(np.int32), chunks.teacher_ends.astype(np.int32))
    lengths = np.diff(chunks.byte_ends, prepend=0).astype(np.int32)
    return AlignedText("", pair.student.ids, pair.teacher.ids, *ends, kinds, lengths)


def _marker_piece(marker: Marker, student: Side, teacher: Side) -> AlignedText:
    mine, theirs = (np.array(side.markers.get(marker.role, ()), dtype=np.int32) for side in (student, teacher))
    kinds = np.array([MARKER | BEFORE_WHITESPACE], dtype=np.uint8)
    my_end, their_end = (np.array([len(ids)], dtype=np.int32) for ids in (mine, theirs))
    return AlignedText("", mine, theirs, my_end, their_end, kinds, np.zeros(1, dtype=np.int32))


def _join(document: Document, pieces: list[AlignedText]) -> AlignedText:
    student_ids, student_ends = _joined([(piece.student_ids, piece.student_chunk_ends) for piece in pieces])
    teacher_ids, teacher_ends = _joined([(piece.teacher_ids, piece.teacher_chunk_ends) for piece in pieces])
    scored = np.repeat([segment.scored for segment in document.segments], [len(piece.chunk_kinds) for piece in pieces])
    for ends in (student_ends, teacher_ends):
        begins = np.concatenate([[0], ends[:-1]])
        scored &= (begins > 0) & (ends > begins)  # context before it, and a token of its own
    kinds = np.concatenate([piece.chunk_kinds for piece in pieces])
    kinds[scored] |= SCORED
    lengths = np.concatenate([piece.chunk_bytes for piece in pieces])
    return AlignedText(document.id, student_ids, teacher_ids, student_ends, teacher_ends, kinds, lengths)


def _joined(pieces: list[tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]]]) -> list[npt.NDArray[np.int32]]:
    """The ids of all pieces, and their chunks' ends counted from the beginning of the first."""
    starts = np.cumsum([0, *(len(ids) for ids, _ in pieces[:-1])])
    ends = [ends + start for (_, ends), start in zip(pieces, starts, strict=True)]
    return [np.concatenate([ids for ids, _ in pieces]), np.concatenate(ends).astype(np.int32)]


def _window(document: AlignedText, first: int, start: int, stop: int) -> AlignedText:
    """Chunks `start` to `stop` behind the document's begin marker (its chunks before `first`)."""
    ids, ends = [], []
    for all_ids, all_ends in (
        (document.student_ids, document.student_chunk_ends),
        (document.teacher_ids, document.teacher_chunk_ends),
    ):
        prefix = int(all_ends[first - 1]) if first else 0
        begin, end = int(all_ends[start - 1]) if start else 0, int(all_ends[stop - 1])
        ids.append(np.concatenate([all_ids[:prefix], all_ids[begin:end]]))
        ends.append(np.concatenate([all_ends[:first], all_ends[start:stop] - (begin - prefix)]))
    kinds = np.concatenate([document.chunk_kinds[:first], document.chunk_kinds[start:stop]])
    if not all(len(one) and one[0] for one in (ends[0][:first], ends[1][:first])):
        kinds[first] &= ~np.uint8(SCORED)  # nothing stands before it on one side
    lengths = np.concatenate([document.chunk_bytes[:first], document.chunk_bytes[start:stop]])
    return AlignedText(document.document_id, ids[0], ids[1], ends[0], ends[1], kinds, lengths)
