"""Conversations aligned: contents by their bytes, and what each chat template writes around them as units.

Both sides are put on one axis: a cell for each header, each byte of the contents that both templates write, each end.
A token that ends within a header or an end has no place of its own on the axis: it counts to the next token that has.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ctd_core.errors import DocumentError
from ctd_core.text.conversations import EncodedConversation
from ctd_core.text.documents import Document, Turn
from ctd_core.text.normalisation import Normaliser, canonical_form
from ctd_core.text.prepared_tokenizer import PreparedTokenizer
from ctd_core.text.token_bytes import PRETOKEN_STARTS
from ctd_core.text.tool_calls import with_calls_written

IS_WHITESPACE = np.isin(np.arange(256), np.frombuffer(b"".join(PRETOKEN_STARTS), dtype=np.uint8))  # by byte


class AlignedConversation(NamedTuple):
    """C finest chunks of a conversation: the token index on each side after each, and arrays [C] about each.

    byte_ends: the content bytes before its end. is_marker: it holds no content. is_scored: all of it is to be learned.
    before_whitespace: what follows is white space or no content. differs: not the same bytes on both sides. headers:
    the chunk that is the header of its message, −1 where it is none of the message's content and end, or no chunk is.
    """

    student_ids: npt.NDArray[np.int32]
    teacher_ids: npt.NDArray[np.int32]
    student_ends: npt.NDArray[np.int64]
    teacher_ends: npt.NDArray[np.int64]
    byte_ends: npt.NDArray[np.int64]
    is_marker: npt.NDArray[np.bool_]
    is_scored: npt.NDArray[np.bool_]
    before_whitespace: npt.NDArray[np.bool_]
    differs: npt.NDArray[np.bool_]
    headers: npt.NDArray[np.int64]


def align_conversations(
    student: PreparedTokenizer, teacher: PreparedTokenizer, documents: Sequence[Document]
) -> list[AlignedConversation | DocumentError]:
    """Each conversation encoded by both templates and aligned, or why it has to be dropped."""
    normalise = [side.encoder.normalise for side in (student, teacher) if side.encoder.normalise is not None]
    templates = [side.conversations.template for side in (student, teacher)]
    results: list[AlignedConversation | DocumentError | None] = [None] * len(documents)
    turns: dict[int, list[Turn]] = {}
    for number, document in enumerate(documents):
        try:
            turns[number] = with_calls_written(templates, [_canonical(turn, normalise) for turn in document.turns])
        except DocumentError as error:
            results[number] = error
    given = list(turns.values())
    encoded = student.conversations.encode_batch(given), teacher.conversations.encode_batch(given)
    accepted: dict[int, tuple[list[Turn], EncodedConversation, EncodedConversation]] = {}
    for number, student_side, teacher_side in zip(turns, *encoded, strict=True):
        if isinstance(student_side, DocumentError):
            results[number] = student_side
        elif isinstance(teacher_side, DocumentError):
            results[number] = teacher_side
        else:
            accepted[number] = turns[number], student_side, teacher_side
    for number, aligned in zip(accepted, _align(list(accepted.values())), strict=True):
        results[number] = aligned
    return [result for result in results if result is not None]


def _canonical(turn: Turn, normalise: list[Normaliser]) -> Turn:
    calls = tuple(_canonical_value(call, normalise) for call in turn.tool_calls)
    return replace(turn, text=canonical_form(turn.text, normalise), tool_calls=calls)


def _canonical_value(value: Any, normalise: list[Normaliser]) -> Any:
    """A value of JSON with all its strings in the form that both tokenizers leave alone."""
    match value:
        case str():
            return canonical_form(value, normalise)
        case list():
            return [_canonical_value(item, normalise) for item in value]
        case dict():
            return {
                canonical_form(str(key), normalise): _canonical_value(item, normalise) for key, item in value.items()
            }
    return value


@dataclass(frozen=True)
class _Axis:
    """The axis of K conversations of N messages in all: 3 N + K segments, made of cells.

    A conversation begins with a segment in which no token ends, so that its beginning is no other's end; then come
    header, content and end of each message. cell_starts: [3 N + K + 1], the cell with which each segment begins, and
    the end. kinds: [3 N + K]. messages: [3 N + K], the message that each is of, −1 for beginnings. headers: [N], the
    segment of each message's header. beginnings: [K], the segment of each conversation's beginning.
    """

    cell_starts: npt.NDArray[np.int64]
    kinds: npt.NDArray[np.int64]
    messages: npt.NDArray[np.int64]
    headers: npt.NDArray[np.int64]
    beginnings: npt.NDArray[np.int64]


BEGINNING, HEADER, CONTENT, END = range(4)


def _axis(message_counts: npt.NDArray[np.int64], content_bytes: npt.NDArray[np.int64]) -> _Axis:
    """For conversations with so many messages each [K], whose contents have so many cells [N]."""
    total = int(message_counts.sum())
    conversation = np.repeat(np.arange(len(message_counts)), message_counts)
    headers = 3 * np.arange(total) + conversation + 1
    segments = 3 * total + len(message_counts)
    kinds, messages = np.full(segments, BEGINNING), np.full(segments, -1)
    widths = np.ones(segments, dtype=np.int64)
    for offset, kind in enumerate((HEADER, CONTENT, END)):
        kinds[headers + offset], messages[headers + offset] = kind, np.arange(total)
    widths[headers + 1] = content_bytes
    return _Axis(np.cumsum([0, *widths]), kinds, messages, headers, np.flatnonzero(kinds == BEGINNING))


def _align(
    given: Sequence[tuple[Sequence[Turn], EncodedConversation, EncodedConversation]],
) -> list[AlignedConversation]:
    """All at once, on one axis."""
    if not given:
        return []
    conversations, students, teachers = zip(*given, strict=True)
    turns = [turn for conversation in conversations for turn in conversation]
    student, teacher = _Side.of(students), _Side.of(teachers)
    starts = np.maximum(student.contents[:, 0], teacher.contents[:, 0])
    stops = np.maximum(np.minimum(student.contents[:, 1], teacher.contents[:, 1]), starts)
    axis = _axis(np.array([len(conversation) for conversation in conversations]), stops - starts)
    cell_starts, origins = axis.cell_starts, axis.cell_starts[axis.beginnings + 1]
    counts = [_tokens_by_cell(side, starts, stops, axis) for side in (student, teacher)]
    ends_both = (counts[0] >= 0) & (counts[1] >= 0)
    ends_both[origins] = False
    ends = np.flatnonzero(ends_both)
    of = np.searchsorted(origins, ends, side="left") - 1  # the conversation of each chunk
    is_first = np.diff(of, prepend=-1) > 0
    begins = np.where(is_first, origins[of], np.concatenate([[0], ends[:-1]]))

    segment = np.repeat(np.arange(len(axis.kinds)), np.diff(cell_starts))
    is_content = axis.kinds[segment] == CONTENT
    message = np.where(axis.kinds[segment] >= CONTENT, axis.messages[segment], -1)
    is_scored = np.array([*(turn.scored for turn in turns), False])[message]  # a content with its end
    # an end is not one where an answer is cut, nor where one side alone writes white space before it
    no_end = np.array([turn.is_cut for turn in turns]) | (student.contents[:, 1] != teacher.contents[:, 1])
    is_scored[np.append(no_end, False)[message] & ~is_content] = False
    following = np.ones(len(segment) + 1, dtype=np.bool_)  # white space or no content
    raw = b"".join(turn.text.encode()[start:stop] for turn, start, stop in zip(turns, starts, stops, strict=True))
    following[:-1][is_content] = IS_WHITESPACE[np.frombuffer(raw, dtype=np.uint8)]
    bytes_before, scored_before = (np.concatenate([[0], np.cumsum(cells)]) for cells in (is_content, is_scored))
    num_bytes = bytes_before[ends] - bytes_before[begins]

    token_ends, invented = [], []
    for side, side_counts in ((student, counts[0]), (teacher, counts[1])):
        token_ends.append(side_counts[ends])
        token_begins = np.where(is_first, side.token_starts[of], np.concatenate([[0], token_ends[-1][:-1]]))
        invented_before = np.concatenate([[0], np.cumsum(side.invented)])
        invented.append(invented_before[token_ends[-1]] - invented_before[token_begins])
    contents_begin = cell_starts[axis.headers + 1]
    header = np.searchsorted(ends, contents_begin)  # the chunk that ends there, if one does
    is_header = (header < len(ends)) & (ends[np.minimum(header, len(ends) - 1)] == contents_begin)
    of_message = message[begins]
    first = np.flatnonzero(is_first)
    headers = np.where((of_message >= 0) & is_header[of_message], header[of_message] - first[of], -1)
    with_lead = contents_begin[(student.leads > 0) | (teacher.leads > 0)]
    arrays = {
        "student_ends": token_ends[0] - student.token_starts[of],
        "teacher_ends": token_ends[1] - teacher.token_starts[of],
        "byte_ends": bytes_before[ends] - bytes_before[origins][of],
        "is_marker": num_bytes == 0,
        "is_scored": scored_before[ends] - scored_before[begins] == ends - begins,
        "before_whitespace": following[ends],
        "differs": (invented[0] != invented[1]) | np.isin(begins, with_lead) | (num_bytes != ends - begins),
        "headers": headers,
    }
    bounds = [*first, len(ends)]
    return [
        AlignedConversation(
            student_side.ids, teacher_side.ids, **{name: array[start:stop] for name, array in arrays.items()}
        )
        for student_side, teacher_side, start, stop in zip(students, teachers, bounds[:-1], bounds[1:], strict=True)
    ]


@dataclass(frozen=True)
class _Side:
    """One tokenizer's side of K conversations, of N messages and S tokens, on one axis of bytes.

    A byte stands before each conversation. byte_ends: [S]. invented: [S]. token_starts: [K]. cuts: [3 N + K + 1], the
    bytes with which the segments of the axis begin, and the end. contents: [N, 2]. leads: [N].
    """

    byte_ends: npt.NDArray[np.int64]
    invented: npt.NDArray[np.bool_]
    token_starts: npt.NDArray[np.int64]
    cuts: npt.NDArray[np.int64]
    contents: npt.NDArray[np.int64]
    leads: npt.NDArray[np.int64]

    @classmethod
    def of(cls, encoded: Sequence[EncodedConversation]) -> "_Side":
        offsets = np.cumsum([1, *(side.cuts[-1] + 1 for side in encoded)])
        cuts = [
            piece
            for side, offset in zip(encoded, offsets, strict=False)
            for piece in ([offset - 1], side.cuts[:-1] + offset)
        ]
        return cls(
            byte_ends=np.concatenate([side.byte_ends + offset for side, offset in zip(encoded, offsets, strict=False)]),
            invented=np.concatenate([side.invented for side in encoded]),
            token_starts=np.cumsum([0, *(len(side.ids) for side in encoded[:-1])]),
            cuts=np.concatenate([*cuts, offsets[-1:] - 1]),
            contents=np.concatenate([side.contents for side in encoded]),
            leads=np.concatenate([side.leads for side in encoded]),
        )


def _tokens_by_cell(
    side: _Side, starts: npt.NDArray[np.int64], stops: npt.NDArray[np.int64], axis: _Axis
) -> npt.NDArray[np.int64]:
    """For each position on the axis how many tokens end by then, −1 where a token reaches over it."""
    cuts, content = side.cuts.copy(), axis.headers + 1
    # What this side alone writes of a content belongs to the markers around it.
    written = cuts[content] - side.contents[:, 0]
    contents_begin = written + starts
    cuts[content] = contents_begin - side.leads  # a token may begin there and end in the content
    cuts[content + 1] = written + stops
    segment = np.searchsorted(cuts, side.byte_ends, side="left") - 1  # the segment that holds a token's last byte
    is_content = axis.kinds[segment] == CONTENT
    at_end = side.byte_ends == cuts[segment + 1]
    within = side.byte_ends - contents_begin[axis.messages[segment]]
    position = np.where(is_content, axis.cell_starts[segment] + within, axis.cell_starts[segment + 1])
    counts = np.full(int(axis.cell_starts[-1]) + 1, -1, dtype=np.int64)
    counts[axis.cell_starts[axis.beginnings + 1]] = side.token_starts
    placed = np.where(is_content, within >= 0, at_end)
    counts[position[placed]] = np.flatnonzero(placed) + 1  # of several the last
    is_unwritten = (np.diff(cuts) == 0) & (np.diff(axis.cell_starts) > 0)
    for number in np.flatnonzero(is_unwritten).tolist():  # its end is where it begins
        begin, end = axis.cell_starts[number], axis.cell_starts[number + 1]
        if counts[end] < 0:
            counts[end] = counts[begin]
    return counts
