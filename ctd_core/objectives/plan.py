"""What an objective is to the training step: a plan made before the forward pass, a sum made after it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ctd_core.shards.batches import Batch

Indices = npt.NDArray[np.int64]
NO_CHUNKS: Indices = np.zeros(0, dtype=np.int64)


@dataclass(frozen=True)
class StudentLogprobs:
    """What the student says of a batch.

    token: [Q], log-probability of each target. chunk: [C], sums over each finest chunk's tokens.
    boundary: [C], log-probability that a pretoken boundary follows, 0 at chunks where no plan asked.
    top: [E], log-probability of each of the teacher's most probable tokens, empty where no plan asked.
    """

    token: Tensor
    chunk: Tensor
    boundary: Tensor
    top: Tensor


@dataclass(frozen=True)
class Plan:
    """One objective for one batch.

    count: what the sum is divided by, once it has been added up over the step. It is known from the shards alone, so
    it is added up over all workers before any gradient exists; each objective says what it counts.
    loss_sum: the objective's sum over the batch, a scalar in float32 or wider.
    boundary_chunks: the finest chunks after which the boundary is needed. needs_top: whether `top` is.
    """

    count: float
    loss_sum: Callable[[StudentLogprobs], Tensor]
    boundary_chunks: Indices = field(default_factory=lambda: NO_CHUNKS)
    needs_top: bool = False


def boundary_chunks(plans: Sequence[Plan]) -> Indices:
    """The finest chunks [K] at which some plan needs the boundary, ascending."""
    return np.unique(np.concatenate([one.boundary_chunks for one in plans] or [NO_CHUNKS]))


def student_logprobs(batch: Batch, asked: Indices, token: Tensor, boundary: Tensor, top: Tensor) -> StudentLogprobs:
    """Sums over finest chunks of `token` [Q]; `boundary` [K] put at the chunks `asked` [K]; `top` as it is."""
    count = len(batch.chunk_rows)
    chunk = token.new_zeros(count).index_add(0, batch.chunk_of_target, token)
    spread = token.new_zeros(count).index_copy(0, torch.from_numpy(asked).to(token.device), boundary)
    return StudentLogprobs(token, chunk, spread, top)
