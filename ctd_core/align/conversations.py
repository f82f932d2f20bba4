"""Conversations aligned: contents by their bytes, and what each chat template writes around them as units.

Both sides are put on one axis: a cell for each header, each byte of the contents that both templates write, each end.
A token that ends within a header or an end has no place of its own on the axis: it counts to the next token that has.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ctd_core.errors import DocumentError
from ctd_core.text.chat import with_calls_written
from ctd_core.text.conversations import EncodedConversation
from ctd_core.text.documents import Document, Turn
from ctd_core.text.normalisation import Normaliser, canonical_form
from ctd_core.text.prepared_tokenizer import PreparedTokenizer
from ctd_core.text.token_bytes import PRETOKEN_STARTS

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
    for number, student_side, teacher_side in zip(turns, *encoded, strict=True):
        if isinstance(student_side, DocumentError):
            results[number] = student_side
        elif isinstance(teacher_side, DocumentError):
            results[number] = teacher_side
        else:
            results[number] = _align(turns[number], student_side, teacher_side)
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


def _align(turns: list[Turn], student: EncodedConversation, teacher: EncodedConversation) -> AlignedConversation:
    starts = np.maximum(student.contents[:, 0], teacher.contents[:, 0])
    stops = np.maximum(np.minimum(student.contents[:, 1], teacher.contents[:, 1]), starts)
    widths = np.ones(3 * len(turns), dtype=np.int64)
    widths[1::3] = stops - starts
    cell_starts = np.cumsum([0, *widths])
    size = int(cell_starts[-1])
    counts = [_tokens_by_cell(side, starts, stops, cell_starts) for side in (student, teacher)]
    ends = np.flatnonzero((counts[0] >= 0) & (counts[1] >= 0))[1:]  # all but the beginning
    is_content = np.zeros(size, dtype=np.bool_)
    is_scored = np.zeros(size, dtype=np.bool_)
    following = np.ones(size + 1, dtype=np.bool_)  # white space or no content
    message = np.full(size, -1)  # of which message's content or end a cell is
    for number, turn in enumerate(turns):
        begin, stop = cell_starts[3 * number + 1], cell_starts[3 * number + 2]
        is_content[begin:stop] = True
        message[begin : stop + 1] = number
        is_scored[begin : stop + 1] = turn.scored  # with its end
        raw = np.frombuffer(turn.text.encode(), dtype=np.uint8)[starts[number] : stops[number]]
        following[begin:stop] = IS_WHITESPACE[raw]
    begins = np.concatenate([[0], ends])[: len(ends)]
    bytes_before = np.concatenate([[0], np.cumsum(is_content)])
    has_content = bytes_before[ends] > bytes_before[begins]
    scored_before = np.concatenate([[0], np.cumsum(is_scored)])
    student_ends, teacher_ends = counts[0][ends], counts[1][ends]
    invented = [
        np.diff(np.concatenate([[0], np.cumsum(side.invented)])[side_ends], prepend=0)
        for side, side_ends in ((student, student_ends), (teacher, teacher_ends))
    ]
    contents_begin = cell_starts[1::3][: len(turns)]
    header = np.searchsorted(ends, contents_begin)  # the chunk that ends there, if one does
    is_header = (header < len(ends)) & (ends[np.minimum(header, len(ends) - 1)] == contents_begin)
    of_message = message[begins]
    headers = np.where((of_message >= 0) & is_header[of_message], header[of_message], -1)
    with_lead = contents_begin[(student.leads > 0) | (teacher.leads > 0)]
    differs = (invented[0] != invented[1]) | np.isin(begins, with_lead)
    return AlignedConversation(
        student_ids=student.ids,
        teacher_ids=teacher.ids,
        student_ends=student_ends,
        teacher_ends=teacher_ends,
        byte_ends=bytes_before[ends],
        is_marker=~has_content,
        is_scored=scored_before[ends] - scored_before[begins] == ends - begins,
        before_whitespace=following[ends],
        differs=differs | (bytes_before[ends] - bytes_before[begins] != ends - begins),
        headers=headers,
    )


def _tokens_by_cell(
    side: EncodedConversation,
    starts: npt.NDArray[np.int64],
    stops: npt.NDArray[np.int64],
    cell_starts: npt.NDArray[np.int64],
) -> npt.NDArray[np.int64]:
    """For each position on the axis how many tokens end by then, −1 where a token reaches over it."""
    cuts = side.cuts.copy()
    # What this side alone writes of a content belongs to the markers around it.
    written = cuts[1::3][: len(starts)] - side.contents[:, 0]
    cuts[1::3][: len(starts)] = written + starts
    cuts[2::3][: len(starts)] = written + stops
    contents = cuts[1::3][: len(starts)].copy()
    cuts[1::3][: len(starts)] -= side.leads  # a token may begin there and end in the content
    segment = np.searchsorted(cuts, side.byte_ends, side="left") - 1  # the segment that holds a token's last byte
    segment = np.maximum(segment, 0)
    is_content = segment % 3 == 1
    at_end = side.byte_ends == cuts[segment + 1]
    within = side.byte_ends - contents[np.minimum(segment // 3, len(contents) - 1)]
    position = np.where(is_content, cell_starts[segment] + within, cell_starts[segment + 1])
    position[side.byte_ends == 0] = 0  # an invented space alone
    counts = np.full(int(cell_starts[-1]) + 1, -1, dtype=np.int64)
    counts[0] = 0
    placed = (is_content & (within >= 0)) | (~is_content & at_end) | (side.byte_ends == 0)
    counts[position[placed]] = np.flatnonzero(placed) + 1  # of several the last
    for number in np.flatnonzero(np.diff(cuts) == 0):  # nothing is written there: its end is where it begins
        begin, end = cell_starts[number], cell_starts[number + 1]
        if end > begin and counts[end] < 0:
            counts[end] = counts[begin]
    return counts
