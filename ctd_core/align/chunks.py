"""The finest chunks on which two tokenizations agree (arXiv 2503.20083, section 3)."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Positions = npt.NDArray[np.int64]


@dataclass(frozen=True)
class FinestChunks:
    """The C chunks of one text, in order; together they cover every byte and every token of both sides.

    student_ends, teacher_ends: [C] int64, the token index after each chunk.
    byte_ends: [C] int64, the byte after each chunk.
    """

    student_ends: Positions
    teacher_ends: Positions
    byte_ends: Positions


def finest_chunks(student_byte_ends: Sequence[Positions], teacher_byte_ends: Sequence[Positions]) -> list[FinestChunks]:
    """The finest chunks of each text of a batch, from the byte at which each token ends on either side.

    A chunk ends wherever a student token and a teacher token end at the same byte. Tokens of no bytes belong to the
    chunk that ends where they stand: `finest_chunks([[1, 3, 6]], [[3, 4, 6]])` ends chunks at bytes 3 and 6.
    One pass over the whole batch. Raises ValueError where the two sides of a text do not end at the same byte.
    """
    if not student_byte_ends:
        return []
    last = np.array([_last(ends) for ends in student_byte_ends], dtype=np.int64)
    if len(last) != len(teacher_byte_ends) or np.any(last != [_last(ends) for ends in teacher_byte_ends]):
        raise ValueError("student and teacher do not spell the same number of bytes")
    starts = np.concatenate([[0], np.cumsum(last + 1)])  # each text owns the positions 0 .. last
    student, student_first = _flatten(student_byte_ends, starts)
    teacher, teacher_first = _flatten(teacher_byte_ends, starts)
    student_chunk, teacher_chunk = _shared(student, teacher, starts[-1]), _shared(teacher, student, starts[-1])
    byte_ends = student[student_chunk]
    cuts = np.searchsorted(byte_ends, starts)
    chunks = zip(cuts[:-1], cuts[1:], student_first, teacher_first, starts[:-1], strict=True)
    return [
        FinestChunks(
            student_chunk[begin:end] + 1 - student_start,
            teacher_chunk[begin:end] + 1 - teacher_start,
            byte_ends[begin:end] - byte_start,
        )
        for begin, end, student_start, teacher_start, byte_start in chunks
    ]


def _last(ends: Positions) -> int:
    return int(ends[-1]) if len(ends) else 0


def _flatten(ends: Sequence[Positions], starts: Positions) -> tuple[Positions, Positions]:
    """All ends as positions in the batch, and the index of each text's first token among them."""
    counts = np.array([len(row_ends) for row_ends in ends], dtype=np.int64)
    flat = np.concatenate([np.asarray(row_ends, dtype=np.int64) for row_ends in ends])
    return flat + np.repeat(starts[:-1], counts), np.cumsum(counts) - counts


def _shared(ends: Positions, other: Positions, size: int) -> Positions:
    """The indices of those `ends` at which a token of the other side ends too; the last one where several do."""
    marked = np.zeros(size, dtype=np.bool_)
    marked[other] = True
    shared = marked[ends]
    shared[:-1] &= ends[1:] != ends[:-1]
    return np.flatnonzero(shared)
