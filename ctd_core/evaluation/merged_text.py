"""The merged chunks of one row of shards, as text, with the teacher's numbers."""

from dataclasses import dataclass

import numpy as np

from ctd_core.align.merging import merge
from ctd_core.config.align import AnyChunks
from ctd_core.shards import schema
from ctd_core.shards.batches import collate
from ctd_core.shards.rows import RowSource
from ctd_core.text.token_bytes import TokenBytes


@dataclass(frozen=True)
class MergedText:
    """One merged chunk. scored: meant for training. The teacher's numbers are None where the shards have no targets.

    teacher_logprob: its log-likelihood. boundary_probability: of a pretoken boundary after it. Both are None also where
    the teacher has no token for it.
    """

    text_bytes: bytes
    student_tokens: int
    teacher_tokens: int
    scored: bool
    teacher_logprob: float | None
    boundary_probability: float | None


def merged_text(shards: RowSource, row: int, rule: AnyChunks, student: TokenBytes) -> list[MergedText]:
    """The merged chunks of a row under `rule`; `student` are the token bytes of the student's tokenizer.

    Markers have no bytes. Raises IndexError where there is no such row.
    """
    if not 0 <= row < len(shards):
        raise IndexError(row)
    chunks = collate(shards, np.array([row])).chunks
    ids = shards.read(schema.STUDENT_IDS, np.array([row]))[0]
    merged = merge(rule, chunks.before_whitespace, chunks.teacher_boundary_logprobs, chunks.breaks)
    student_ends, teacher_ends = np.cumsum(chunks.num_student_tokens), np.cumsum(chunks.num_teacher_tokens)
    result = []
    first = student_start = teacher_start = 0
    for last in merged.last:
        asked = shards.has_targets and teacher_ends[last] > teacher_start
        inside = ids[student_start : student_ends[last]]
        spelled = b"".join(student.by_id[token] or b"" for token in inside)
        num_bytes = int(chunks.num_bytes[first : last + 1].sum())
        result.append(
            MergedText(
                text_bytes=spelled[len(spelled) - num_bytes :],  # without an invented space
                student_tokens=int(student_ends[last] - student_start),
                teacher_tokens=int(teacher_ends[last] - teacher_start),
                scored=bool(chunks.scored[last]),
                teacher_logprob=float(chunks.teacher_logprobs[first : last + 1].sum()) if asked else None,
                boundary_probability=float(np.exp(chunks.teacher_boundary_logprobs[last])) if asked else None,
            )
        )
        first, student_start, teacher_start = last + 1, student_ends[last], teacher_ends[last]
    return result
