"""The teacher's side of approximate likelihood matching: two numbers for each finest chunk."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from torch import Tensor

from ctd_core.align.documents import ONE_TO_ONE, SCORED
from ctd_core.errors import CtdError
from ctd_core.models.loading import head_of
from ctd_core.models.logprob_model import LogprobModel
from ctd_core.ops.fused_logprobs import top_logprobs
from ctd_core.shards import schema
from ctd_core.shards.batches import ordered_batches


@dataclass(frozen=True)
class TopTokens:
    """Ask for the teacher's `k` most probable tokens. student_ids: [U], a token's id with the student, −1 for none."""

    k: int
    student_ids: npt.NDArray[np.int32]


class _Scores(NamedTuple):
    """One row of TARGET_FIELDS and TOP_FIELDS."""

    chunk: npt.NDArray[np.float32]
    boundary: npt.NDArray[np.float32]
    top_counts: npt.NDArray[np.uint8]
    top_ids: npt.NDArray[np.int32]
    top_logprobs: npt.NDArray[np.float16]


@torch.no_grad()
def score_rows(
    teacher: LogprobModel,
    rows: pa.RecordBatch,
    batch_tokens: int,
    top: TopTokens | None = None,
    on_batch: Callable[[int, int], None] = lambda tokens, of_tokens: None,
) -> pa.RecordBatch:
    """`rows` with the teacher's log-likelihood of each finest chunk and log-probability of a boundary after it.

    A chunk's log-likelihood is the sum over its teacher tokens of log p(token | all before it); 0 where the chunk has
    no token or no context. The boundary is 0 after a begin marker of no tokens. With `top`, also what TOP_FIELDS say.
    `on_batch` is called after each batch with how many of the rows' tokens are scored.
    Raises CtdError where a number is not finite or a token is none of the teacher's.
    """
    if top is not None:
        padding = np.full(max(0, len(teacher.mask) - len(top.student_ids)), -1, dtype=np.int32)
        top = replace(top, student_ids=np.append(top.student_ids, padding))
    ids, ends = _lists(rows, schema.TEACHER_IDS), _lists(rows, schema.TEACHER_CHUNK_ENDS)
    both = SCORED | ONE_TO_ONE
    one_to_one = [np.flatnonzero(kinds & both == both) for kinds in _lists(rows, schema.CHUNK_KINDS)]
    lengths = np.array([len(one) for one in ids], dtype=np.int64)
    largest = max((int(one.max(initial=-1)) for one in ids), default=-1)
    if largest >= len(teacher.mask):
        raise CtdError(
            f"token ids reach {largest}, and the teacher's embedding has {len(teacher.mask)} entries. Take the "
            "tokenizer that belongs to the model."
        )
    order = np.argsort(lengths, kind="stable")
    scores: dict[int, _Scores] = {}
    tokens = 0
    for batch in ordered_batches(lengths, order, batch_tokens) if len(order) else []:
        found = _score(
            teacher, [ids[row] for row in batch], [ends[row] for row in batch], [one_to_one[row] for row in batch], top
        )
        scores |= zip(batch.tolist(), found, strict=True)
        tokens += int(lengths[batch].sum())
        on_batch(tokens, int(lengths.sum()))
    fields = schema.TARGET_FIELDS if top is None else [*schema.TARGET_FIELDS, *schema.TOP_FIELDS]
    columns = [[scores[row][number] for row in range(len(ids))] for number in range(len(fields))]
    return schema.with_columns(rows, fields, columns)


def _lists(rows: pa.RecordBatch, column: str) -> list[npt.NDArray[np.int32]]:
    offsets, values = schema.list_parts(rows.column(column))
    return [values[offsets[n] : offsets[n + 1]] for n in range(rows.num_rows)]


def _score(
    teacher: LogprobModel,
    ids: list[npt.NDArray[np.int32]],
    ends: list[npt.NDArray[np.int32]],
    one_to_one: list[npt.NDArray[np.int64]],
    top: TopTokens | None,
) -> list[_Scores]:
    """The scores of each row of a batch; `one_to_one` holds the chunks of each that top tokens are asked for."""
    device = teacher.mask.device
    lengths = np.array([len(one) for one in ids])
    inside = np.arange(lengths.max()) < lengths[:, None]
    input_ids = np.zeros(inside.shape, dtype=np.int64)
    flat = np.concatenate(ids).astype(np.int64)
    input_ids[inside] = flat
    starts = np.cumsum(lengths) - lengths
    predicted = np.setdiff1d(np.arange(len(flat)), starts)  # all but each row's first
    asked = [np.unique(one[one > 0].astype(np.int64)) - 1 + start for one, start in zip(ends, starts, strict=True)]
    token, boundary, hidden = teacher(
        torch.from_numpy(input_ids).to(device),
        torch.from_numpy(np.flatnonzero(inside)).to(device),
        torch.from_numpy(predicted - 1).to(device),
        torch.from_numpy(flat[predicted]).to(device),
        torch.from_numpy(np.concatenate(asked)).to(device),
    )
    at_token = np.zeros(len(flat))
    at_token[np.concatenate(asked)] = boundary.double().cpu().numpy()
    token_logprobs = np.zeros(len(flat))  # 0 for the first token of a row, which nothing predicts
    token_logprobs[predicted] = token.double().cpu().numpy()
    results = []
    for start, length, row_ends, positions in zip(starts, lengths, ends, one_to_one, strict=True):
        sums = np.concatenate([[0.0], np.cumsum(token_logprobs[start : start + length])])
        chunks = np.diff(sums[row_ends], prepend=0.0)
        bounds = np.where(row_ends > 0, at_token[start + np.maximum(row_ends, 1) - 1], 0.0)
        before = hidden[torch.from_numpy(start + row_ends[positions] - 2).to(device)]
        found = _top_tokens(teacher, before, positions, len(row_ends), top)
        results.append(_Scores(chunks.astype(np.float32), bounds.astype(np.float32), *found))
    if not all(np.isfinite(one.chunk).all() and np.isfinite(one.boundary).all() for one in results):
        raise CtdError("the teacher's log-probabilities are not finite. Set teacher.dtype to bfloat16 or float32.")
    return results


def _top_tokens(
    teacher: LogprobModel, hidden: Tensor, positions: npt.NDArray[np.int64], num_chunks: int, top: TopTokens | None
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int32], npt.NDArray[np.float16]]:
    """The top tokens at `positions` of a row, predicted from `hidden`, that are tokens of the student too."""
    counts = np.zeros(num_chunks, dtype=np.uint8)
    if top is None or not len(positions):
        return counts, np.zeros(0, dtype=np.int32), np.zeros(0, dtype=np.float16)
    teacher_ids, logprobs = top_logprobs(hidden, head_of(teacher.model), top.k)
    student_ids = top.student_ids[teacher_ids.cpu().numpy()]
    shared = student_ids >= 0
    counts[positions] = shared.sum(1)
    return counts, student_ids[shared], logprobs.cpu().numpy()[shared].astype(np.float16)
