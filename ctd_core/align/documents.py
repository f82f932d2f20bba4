"""Documents under two tokenizers, aligned segment by segment, and cut into windows."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from ctd_core.align.chunks import FinestChunks, finest_chunks
from ctd_core.align.conversations import AlignedConversation, align_conversations
from ctd_core.errors import DocumentError
from ctd_core.text.documents import BEGIN, Document, Marker, Text
from ctd_core.text.encoding import EncodedPair, encode_pairs
from ctd_core.text.prepared_tokenizer import PreparedTokenizer
from ctd_core.text.token_bytes import PRETOKEN_STARTS

# What chunk_kinds holds, as flags.
SCORED, MARKER, BEFORE_WHITESPACE, ONE_TO_ONE = 1, 2, 4, 8
KINDS_BY_FOLLOWING_BYTE = np.zeros(256, dtype=np.uint8)
KINDS_BY_FOLLOWING_BYTE[list(b"".join(PRETOKEN_STARTS))] = BEFORE_WHITESPACE


@dataclass(frozen=True)
class AlignedText:
    """A document or a window of one: S student tokens, T teacher tokens, C finest chunks.

    student_ids [S], teacher_ids [T]; student_chunk_ends, teacher_chunk_ends [C], the token index after each chunk;
    chunk_bytes [C], its length; all int32.
    chunk_kinds: [C] uint8, flags. SCORED: meant for training, with a token on both sides and context before it.
    MARKER: special tokens rather than text. BEFORE_WHITESPACE: what follows is white space or no text. ONE_TO_ONE: text
    that is one token of both sides, of the same bytes: not where one of them alone invents a space before it.
    headers: of a conversation, [C] the chunk that is the header of each chunk's message, −1 for none. begin: of a
    conversation, how many tokens of each side, student before teacher, begin a text of any kind.
    """

    document_id: str
    student_ids: npt.NDArray[np.int32]
    teacher_ids: npt.NDArray[np.int32]
    student_chunk_ends: npt.NDArray[np.int32]
    teacher_chunk_ends: npt.NDArray[np.int32]
    chunk_kinds: npt.NDArray[np.uint8]
    chunk_bytes: npt.NDArray[np.int32]
    headers: npt.NDArray[np.int64] | None = None
    begin: tuple[int, int] = (0, 0)


def align_documents(
    student: PreparedTokenizer, teacher: PreparedTokenizer, documents: Sequence[Document]
) -> list[AlignedText | DocumentError]:
    """Each document encoded by both sides and aligned, or why it has to be dropped.

    Text aligns by its bytes, a marker as a unit, even where one side has no token for it. Conversations are written by
    each side's chat template.
    """
    chats = [number for number, document in enumerate(documents) if document.turns]
    conversations = dict(
        zip(chats, align_conversations(student, teacher, [documents[number] for number in chats]), strict=True)
        if chats
        else ()
    )
    texts, continues = [], []
    for document in documents:
        for before, segment in zip((None, *document.segments), document.segments, strict=False):
            if isinstance(segment, Text):
                texts.append(segment.text)
                continues.append(isinstance(before, Text) and bool(before.text))
    pairs = encode_pairs(student.encoder, teacher.encoder, texts, continues)
    good = [pair for pair in pairs if isinstance(pair, EncodedPair)]
    aligned = finest_chunks([pair.student.byte_ends for pair in good], [pair.teacher.byte_ends for pair in good])
    chunks = iter(aligned)
    pieces = iter([pair if isinstance(pair, DocumentError) else _text_piece(pair, next(chunks)) for pair in pairs])
    marker_piece = cache(lambda role: _marker_piece(role, student, teacher))
    failed: dict[int, DocumentError] = {}
    encoded: list[tuple[Document, list[_Piece]]] = []
    for number, document in enumerate(documents):
        parts: list[_Piece | DocumentError] = []
        if number in conversations:
            parts.append(_conversation_piece(conversations[number], student, teacher))
        for segment in document.segments if number not in conversations else ():
            found = marker_piece(segment.role) if isinstance(segment, Marker) else next(pieces)
            parts.append(found if isinstance(found, DocumentError) else found._replace(scored=segment.scored))
        errors = [part for part in parts if isinstance(part, DocumentError)]
        if errors:
            failed[number] = errors[0]
        else:
            encoded.append((document, [part for part in parts if isinstance(part, _Piece)]))
    joined = iter(_joined(encoded))
    return [failed[number] if number in failed else next(joined) for number in range(len(documents))]


def cut_windows(
    document: AlignedText, student_window_tokens: int, teacher_window_tokens: int
) -> list[AlignedText] | DocumentError:
    """The document in windows that fit both limits, each beginning with its begin marker; no text is lost.

    In a conversation it is the header of the message that a window begins in, behind the token that begins any text.
    A cut lies at a shared chunk end, before white space where the last quarter of the window has such an end. No end is
    scored that no text goes before in its window, and a window of markers alone is left out where one side has none. A
    chunk that fits no window makes the document an error.
    """
    fits = len(document.student_ids) <= student_window_tokens and len(document.teacher_ids) <= teacher_window_tokens
    if fits:
        return [document]
    total = len(document.chunk_kinds)
    tokenizers = (
        (document.student_chunk_ends, student_window_tokens),
        (document.teacher_chunk_ends, teacher_window_tokens),
    )
    windows = []
    start = int(document.headers is None and total > 0 and bool(document.chunk_kinds[0] & MARKER))
    while start < total:
        stop = total
        prefix = _prefix(document, start)
        for (ends, limit), before in zip(tokenizers, (prefix.student_ids, prefix.teacher_ids), strict=True):
            used = ends[start - 1] if start else 0
            stop = min(stop, int(np.searchsorted(ends, used + limit - len(before), side="right")))
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
        windows.append(_window(document, prefix, start, stop))
        start = stop
    return [window for window in windows if len(window.student_ids) and len(window.teacher_ids)]


class _Piece(NamedTuple):
    """A segment of a document: as AlignedText, with chunk ends counted from the segment's own beginning."""

    student_ids: npt.NDArray[np.int32]
    teacher_ids: npt.NDArray[np.int32]
    student_chunk_ends: npt.NDArray[np.int64]
    teacher_chunk_ends: npt.NDArray[np.int64]
    chunk_kinds: npt.NDArray[np.uint8]
    chunk_byte_ends: npt.NDArray[np.int64]
    differs: bool | npt.NDArray[np.bool_]  # which chunks begin with a space that one side alone invented
    scored: bool | npt.NDArray[np.bool_] = True
    headers: npt.NDArray[np.int64] | None = None
    begin: tuple[int, int] = (0, 0)


def _text_piece(pair: EncodedPair, chunks: FinestChunks) -> _Piece:
    following = np.frombuffer(pair.text_bytes + b" ", dtype=np.uint8)[chunks.byte_ends]
    kinds = KINDS_BY_FOLLOWING_BYTE[following]
    differs = np.zeros(len(kinds), dtype=np.bool_)
    differs[:1] = pair.student.invents_space != pair.teacher.invents_space
    return _Piece(
        pair.student.ids, pair.teacher.ids, chunks.student_ends, chunks.teacher_ends, kinds, chunks.byte_ends, differs
    )


def _conversation_piece(
    aligned: AlignedConversation | DocumentError, student: PreparedTokenizer, teacher: PreparedTokenizer
) -> _Piece | DocumentError:
    if isinstance(aligned, DocumentError):
        return aligned
    begin = _begin_tokens(student, aligned.student_ids), _begin_tokens(teacher, aligned.teacher_ids)
    kinds = np.where(aligned.is_marker, MARKER, 0) | np.where(aligned.before_whitespace, BEFORE_WHITESPACE, 0)
    return _Piece(
        aligned.student_ids, aligned.teacher_ids, aligned.student_ends, aligned.teacher_ends, kinds.astype(np.uint8),
        aligned.byte_ends, aligned.differs, aligned.is_scored, aligned.headers, begin,
    )  # fmt: skip


def _begin_tokens(tokenizer: PreparedTokenizer, ids: npt.NDArray[np.int32]) -> int:
    """How many of a conversation's first tokens begin a text of any kind."""
    markers = [list(tokenizer.markers.get(BEGIN, ())), [tokenizer.encoder.tokenizer.bos_token_id]]
    return next((len(marker) for marker in markers if marker and ids[: len(marker)].tolist() == marker), 0)


def _marker_piece(role: str, student: PreparedTokenizer, teacher: PreparedTokenizer) -> _Piece:
    student_ids, teacher_ids = (
        np.array(tokenizer.markers.get(role, ()), dtype=np.int32) for tokenizer in (student, teacher)
    )
    kinds = np.array([MARKER | BEFORE_WHITESPACE], dtype=np.uint8)
    student_end, teacher_end = (np.array([len(ids)]) for ids in (student_ids, teacher_ids))
    return _Piece(student_ids, teacher_ids, student_end, teacher_end, kinds, np.zeros(1, dtype=np.int64), False)


def _joined(documents: Sequence[tuple[Document, list[_Piece]]]) -> list[AlignedText]:
    """The pieces of each document one behind the other, in one pass over all documents."""
    pieces = [piece for _, parts in documents for piece in parts]
    if not pieces:
        return []
    first_pieces = np.cumsum([0, *(len(parts) for _, parts in documents)])
    chunk_counts = np.array([len(piece.chunk_kinds) for piece in pieces])
    chunk_starts = _starts(chunk_counts)
    chunk_cuts = chunk_starts[first_pieces]
    scored = np.concatenate([np.broadcast_to(piece.scored, len(piece.chunk_kinds)) for piece in pieces])
    kinds = np.concatenate([piece.chunk_kinds for piece in pieces])
    one_to_one = kinds & MARKER == 0
    one_to_one &= ~np.concatenate([np.broadcast_to(piece.differs, len(piece.chunk_kinds)) for piece in pieces])
    ids, cuts, ends = [], [], []
    for token_ids, token_ends in (
        ([piece.student_ids for piece in pieces], [piece.student_chunk_ends for piece in pieces]),
        ([piece.teacher_ids for piece in pieces], [piece.teacher_chunk_ends for piece in pieces]),
    ):
        starts = _starts([len(row_ids) for row_ids in token_ids])
        within = starts[:-1] - np.repeat(starts[first_pieces[:-1]], np.diff(first_pieces))
        ends.append((np.concatenate(token_ends) + np.repeat(within, chunk_counts)).astype(np.int32))
        begins = np.concatenate([[0], ends[-1][:-1]])
        begins[chunk_cuts[:-1]] = 0
        scored &= (begins > 0) & (ends[-1] > begins)  # context before it, and a token of its own
        one_to_one &= ends[-1] - begins == 1
        ids.append(np.concatenate(token_ids))
        cuts.append(starts[first_pieces])
    kinds[scored] |= SCORED
    kinds[one_to_one] |= ONE_TO_ONE
    byte_ends = np.concatenate([piece.chunk_byte_ends for piece in pieces])
    lengths = np.diff(byte_ends, prepend=0)
    lengths[chunk_starts[:-1]] = byte_ends[chunk_starts[:-1]]
    lengths = lengths.astype(np.int32)
    results = []
    for number, (document, (first, *_)) in enumerate(documents):
        student_tokens, teacher_tokens = (slice(cut[number], cut[number + 1]) for cut in cuts)
        chunks = slice(chunk_cuts[number], chunk_cuts[number + 1])
        results.append(
            AlignedText(
                document.id, ids[0][student_tokens], ids[1][teacher_tokens],
                ends[0][chunks], ends[1][chunks], kinds[chunks],
                lengths[chunks], first.headers, first.begin,
            )
        )  # fmt: skip
    return results


def _starts(counts: Sequence[int] | npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Where each of several consecutive stretches begins, and where the last one ends."""
    return np.cumsum([0, *counts])


class _Prefix(NamedTuple):
    """What a window has before its own chunks: the tokens of one chunk, or of none."""

    student_ids: npt.NDArray[np.int32]
    teacher_ids: npt.NDArray[np.int32]
    kinds: npt.NDArray[np.uint8]


def _prefix(document: AlignedText, start: int) -> _Prefix:
    """What stands before chunk `start` in a window that begins with it."""
    if document.headers is None:
        header = 0 if start and document.chunk_kinds[0] & MARKER else -1
        begin = (0, 0)
    else:
        header = int(document.headers[start]) if start else -1
        begin = document.begin if start and header != 0 else (0, 0)
    ids = []
    for all_ids, all_ends, begin_tokens in (
        (document.student_ids, document.student_chunk_ends, begin[0]),
        (document.teacher_ids, document.teacher_chunk_ends, begin[1]),
    ):
        header_begin = int(all_ends[header - 1]) if header > 0 else 0
        header_end = int(all_ends[header]) if header >= 0 else 0
        begin_ids, header_ids = all_ids[:begin_tokens], all_ids[header_begin:header_end]
        follows = header_ids if header >= 0 or not start else all_ids[int(all_ends[start - 1]) :]
        if np.array_equal(follows[:begin_tokens], begin_ids):  # every header begins so
            begin_ids = begin_ids[:0]
        ids.append(np.concatenate([begin_ids, header_ids]))
    is_there = header >= 0 or len(ids[0]) or len(ids[1])
    return _Prefix(ids[0], ids[1], np.array([MARKER | BEFORE_WHITESPACE] if is_there else [], dtype=np.uint8))


def _window(document: AlignedText, prefix: _Prefix, start: int, stop: int) -> AlignedText:
    """Chunks `start` to `stop` behind `prefix`."""
    ids, ends, first = [], [], len(prefix.kinds)
    for all_ids, all_ends, before in (
        (document.student_ids, document.student_chunk_ends, prefix.student_ids),
        (document.teacher_ids, document.teacher_chunk_ends, prefix.teacher_ids),
    ):
        begin, end = int(all_ends[start - 1]) if start else 0, int(all_ends[stop - 1])
        ids.append(np.concatenate([before, all_ids[begin:end]]))
        own_ends = all_ends[start:stop] - np.int32(begin - len(before))
        ends.append(np.concatenate([np.full(first, len(before), dtype=np.int32), own_ends]))
    kinds = np.concatenate([prefix.kinds, document.chunk_kinds[start:stop]])
    without_text = np.cumsum(kinds & MARKER == 0) == 0
    if start or without_text.all():
        kinds[without_text] &= ~np.uint8(SCORED)  # the text does not end where its window begins
    for own_ends in ends:
        kinds[np.concatenate([[0], own_ends[:-1]]) == 0] &= ~np.uint8(SCORED)  # nothing stands before it on one side
    lengths = np.concatenate([np.zeros(first, dtype=np.int32), document.chunk_bytes[start:stop]])
    return AlignedText(document.document_id, ids[0], ids[1], ends[0], ends[1], kinds, lengths)
