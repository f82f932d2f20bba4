"""The teacher's side of approximate likelihood matching: two numbers for each finest chunk."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ctd_core.align.documents import ONE_TO_ONE, SCORED
from ctd_core.errors import CtdError
from ctd_core.models.scorer import Scorer, Scores, ScoringRequest
from ctd_core.shards import schema
from ctd_core.shards.batches import ordered_batches


@dataclass(frozen=True)
class TopTokens:
    """Ask for the teacher's `k` most probable tokens. student_ids: [U], a token's id with the student, −1 for none."""

    k: int
    student_ids: npt.NDArray[np.int32]


class _Targets(NamedTuple):
    """One row of TARGET_FIELDS and TOP_FIELDS."""

    chunk: npt.NDArray[np.float32]
    boundary: npt.NDArray[np.float32]
    top_counts: npt.NDArray[np.uint8]
    top_ids: npt.NDArray[np.int32]
    top_logprobs: npt.NDArray[np.float16]


def score_rows(
    teacher: Scorer,
    rows: pa.RecordBatch,
    batch_tokens: int,
    top: TopTokens | None = None,
    on_batch: Callable[[int, int], None] = lambda tokens, of_tokens: None,
) -> pa.RecordBatch:
    """Add the teacher's targets to rows.

    A chunk's log-likelihood is the sum over its teacher tokens of log p(token | all before it); 0 where the chunk has
    no token or no context. The boundary is 0 after a begin marker of no tokens.

    Args:
        teacher: answers with log-probabilities.
        rows: rows of shards without targets.
        batch_tokens: padded teacher tokens in a request.
        top: which of the teacher's top tokens are stored, where some are.
        on_batch: called after each batch with how many of the rows' tokens are scored, and of how many.

    Returns:
        `rows` with TARGET_FIELDS, and TOP_FIELDS where `top` is given.

    Raises:
        CtdError: a number is not finite, or a token is none of the teacher's.
    """
    ids, ends = _lists(rows, schema.TEACHER_IDS), _lists(rows, schema.TEACHER_CHUNK_ENDS)
    both = SCORED | ONE_TO_ONE
    one_to_one = [np.flatnonzero(kinds & both == both) for kinds in _lists(rows, schema.CHUNK_KINDS)]
    lengths = np.array([len(row) for row in ids], dtype=np.int64)
    largest = max((int(row.max(initial=-1)) for row in ids), default=-1)
    if largest >= teacher.vocab_size:
        raise CtdError(
            f"token ids reach {largest}, and the teacher's embedding has {teacher.vocab_size} entries. Take the "
            "tokenizer that belongs to the model."
        )
    order = np.argsort(lengths, kind="stable")
    targets: dict[int, _Targets] = {}
    tokens = 0
    for batch in ordered_batches(lengths, order, batch_tokens) if len(order) else []:
        requests = [_request(ids[row], ends[row], one_to_one[row]) for row in batch]
        for row, scores in zip(batch.tolist(), teacher.score(requests, top.k if top else 0), strict=True):
            targets[row] = _targets(scores, ends[row], one_to_one[row], top)
        tokens += int(lengths[batch].sum())
        on_batch(tokens, int(lengths.sum()))
    if not all(np.isfinite(row.chunk).all() and np.isfinite(row.boundary).all() for row in targets.values()):
        raise CtdError("the teacher's log-probabilities are not finite. Set teacher.dtype to bfloat16 or float32.")
    fields = schema.TARGET_FIELDS if top is None else [*schema.TARGET_FIELDS, *schema.TOP_FIELDS]
    columns = [[targets[row][number] for row in range(len(ids))] for number in range(len(fields))]
    return schema.with_columns(rows, fields, columns)


def _lists(rows: pa.RecordBatch, column: str) -> list[npt.NDArray[np.int32]]:
    offsets, values = schema.list_parts(rows.column(column))
    return [values[offsets[n] : offsets[n + 1]] for n in range(rows.num_rows)]


def _request(
    ids: npt.NDArray[np.int32], ends: npt.NDArray[np.int32], one_to_one: npt.NDArray[np.int64]
) -> ScoringRequest:
    """A boundary at the last token of every chunk; top tokens before the one token of each one-to-one chunk."""
    return ScoringRequest(ids, np.unique(ends[ends > 0].astype(np.int64)) - 1, ends[one_to_one].astype(np.int64) - 2)


def _targets(
    scores: Scores, ends: npt.NDArray[np.int32], one_to_one: npt.NDArray[np.int64], top: TopTokens | None
) -> _Targets:
    sums = np.concatenate([[0.0], np.cumsum(scores.token_logprobs)])
    chunks = np.diff(sums[ends], prepend=0.0)
    at_boundary = np.unique(ends[ends > 0])
    boundaries = np.zeros(len(ends))
    boundaries[ends > 0] = scores.boundary_logprobs[np.searchsorted(at_boundary, ends[ends > 0])]
    counts = np.zeros(len(ends), dtype=np.uint8)
    if top is None:
        none = np.zeros(0, dtype=np.int32), np.zeros(0, dtype=np.float16)
        return _Targets(chunks.astype(np.float32), boundaries.astype(np.float32), counts, *none)
    padded = np.append(top.student_ids, np.int32(-1))  # rows that pad the teacher's vocabulary are no tokens
    student_ids = padded[np.minimum(scores.top_ids, len(top.student_ids))].astype(np.int32)
    shared = student_ids >= 0
    counts[one_to_one] = shared.sum(1)
    return _Targets(
        chunks.astype(np.float32),
        boundaries.astype(np.float32),
        counts,
        student_ids[shared],
        scores.top_logprobs[shared].astype(np.float16),
    )
