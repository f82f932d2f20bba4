"""The teacher's side of approximate likelihood matching: two numbers for each finest chunk."""

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch

from ctd_core.errors import CtdError
from ctd_core.models.student import LogprobModel
from ctd_core.shards import schema
from ctd_core.shards.batches import NO_TARGET, ordered_batches


@torch.no_grad()
def score_rows(teacher: LogprobModel, rows: pa.RecordBatch, batch_tokens: int) -> pa.RecordBatch:
    """`rows` with the teacher's log-likelihood of each finest chunk and log-probability of a boundary after it.

    A chunk's log-likelihood is the sum over its teacher tokens of log p(token | all before it); 0 where the chunk has
    no token or no context. The boundary is 0 after markers of no tokens.
    Raises CtdError where a number is not finite or a token is none of the teacher's.
    """
    ids = _lists(rows, schema.TEACHER_IDS)
    ends = _lists(rows, schema.TEACHER_CHUNK_ENDS)
    chunk_logprobs: list[npt.NDArray[np.float32]] = [np.zeros(0, dtype=np.float32)] * len(ids)
    boundary_logprobs = list(chunk_logprobs)
    lengths = np.array([len(one) for one in ids], dtype=np.int64)
    largest = max((int(one.max(initial=-1)) for one in ids), default=-1)
    if largest >= len(teacher.mask):
        raise CtdError(
            f"token ids reach {largest}, and the teacher's embedding has {len(teacher.mask)} entries. Take the "
            "tokenizer that belongs to the model."
        )
    order = np.argsort(lengths, kind="stable")
    for batch in ordered_batches(lengths, order, batch_tokens) if len(order) else []:
        scored = _score(teacher, [ids[row] for row in batch], [ends[row] for row in batch])
        for row, (chunks, boundaries) in zip(batch, scored, strict=True):
            chunk_logprobs[row], boundary_logprobs[row] = chunks, boundaries
    return schema.add_targets(rows, chunk_logprobs, boundary_logprobs)


def _lists(rows: pa.RecordBatch, column: str) -> list[npt.NDArray[np.int32]]:
    offsets, values = schema.list_parts(rows.column(column))
    return [values[offsets[n] : offsets[n + 1]] for n in range(rows.num_rows)]


def _score(
    teacher: LogprobModel, ids: list[npt.NDArray[np.int32]], ends: list[npt.NDArray[np.int32]]
) -> list[tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]]:
    """Chunk and boundary log-probabilities of each row of a batch."""
    device = teacher.mask.device
    lengths = np.array([len(one) for one in ids])
    inside = np.arange(lengths.max()) < lengths[:, None]
    input_ids = np.zeros(inside.shape, dtype=np.int64)
    flat = np.concatenate(ids).astype(np.int64)
    input_ids[inside] = flat
    starts = np.cumsum(lengths) - lengths
    targets = np.append(flat[1:], NO_TARGET)
    targets[starts + lengths - 1] = NO_TARGET
    asked = [np.unique(one[one > 0].astype(np.int64)) - 1 + start for one, start in zip(ends, starts, strict=True)]
    token, boundary = teacher(
        torch.from_numpy(input_ids).to(device),
        torch.from_numpy(np.flatnonzero(inside)).to(device),
        torch.from_numpy(targets).to(device),
        torch.from_numpy(np.concatenate(asked)).to(device),
    )
    at_token = np.zeros(len(flat))
    at_token[np.concatenate(asked)] = boundary.double().cpu().numpy()
    token_logprobs = token.double().cpu().numpy()
    results = []
    for start, length, row_ends in zip(starts, lengths, ends, strict=True):
        # The log-probability of token t stands at t - 1; the first token of a row has none.
        sums = np.concatenate([[0.0, 0.0], np.cumsum(token_logprobs[start : start + length - 1])])
        chunks = np.diff(sums[row_ends], prepend=0.0)
        bounds = np.where(row_ends > 0, at_token[start + np.maximum(row_ends, 1) - 1], 0.0)
        results.append((chunks.astype(np.float32), bounds.astype(np.float32)))
    if not all(np.isfinite(chunks).all() and np.isfinite(bounds).all() for chunks, bounds in results):
        raise CtdError("the teacher's log-probabilities are not finite. Set teacher.dtype to bfloat16 or float32.")
    return results
