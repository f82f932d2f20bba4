"""The objectives by kind. Each has a plan, made before the forward pass, and a sum, made after it.

The plan says at which chunks the boundary's log-probability is needed and what the sum will be divided by; that
denominator is known from the shards alone, so it can be added up over all workers before any gradient exists.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ctd_core.align.merging import merge
from ctd_core.config import Alm, AnyObjective, Sft
from ctd_core.objectives.divergences import binarised_divergence
from ctd_core.shards.batches import NO_TARGET, Batch


@dataclass(frozen=True)
class StudentLogprobs:
    """What the student says of a batch.

    token: [N], log-probability of each target. chunk: [C], sums over each finest chunk's tokens.
    boundary: [C], log-probability that a pretoken boundary follows, 0 at chunks where no objective asked.
    """

    token: Tensor
    chunk: Tensor
    boundary: Tensor


@dataclass(frozen=True)
class Plan:
    """One objective for one batch.

    count: what its sum is divided by once it has been added up over the step: for alm the scored merged chunks, for
    sft the target tokens.
    merged: [K], for each scored finest chunk its merged chunk, 0 to M - 1. finest: [K], those finest chunks.
    last: [M], the last finest chunk of each merged one.
    teacher: [M], the merged chunks' teacher log-likelihoods. Empty where the objective has no chunks.
    """

    count: int
    finest: npt.NDArray[np.int64]
    merged: npt.NDArray[np.int64]
    last: npt.NDArray[np.int64]
    teacher: npt.NDArray[np.float32]
    needs_boundary: bool


def plan(objective: AnyObjective, batch: Batch) -> Plan:
    """What `objective` needs for `batch`."""
    return PLANS[objective.kind](objective, batch)


def loss_sum(objective: AnyObjective, planned: Plan, student: StudentLogprobs) -> Tensor:
    """The objective's sum over the batch, a scalar in float32 or wider, to be divided by the step's total count."""
    return SUMS[objective.kind](objective, planned, student)


def boundary_chunks(plans: Sequence[Plan]) -> npt.NDArray[np.int64]:
    """The finest chunks [K] at which some plan needs the boundary, ascending."""
    needed = [planned.last for planned in plans if planned.needs_boundary]
    return np.unique(np.concatenate(needed)) if needed else np.zeros(0, dtype=np.int64)


def student_logprobs(batch: Batch, asked: npt.NDArray[np.int64], token: Tensor, boundary: Tensor) -> StudentLogprobs:
    """Sums over finest chunks of `token` [N]; `boundary` [K] put at the chunks `asked` [K]."""
    count = len(batch.chunk_rows)
    chunk = token.new_zeros(count).index_add(0, batch.chunk_of_target, token)
    spread = token.new_zeros(count).index_copy(0, torch.from_numpy(asked).to(token.device), boundary)
    return StudentLogprobs(token, chunk, spread)


def _plan_alm(objective: Alm, batch: Batch) -> Plan:
    chunks = batch.chunks
    everything = merge(objective.chunks, chunks.before_whitespace, chunks.teacher_boundary_logprobs, chunks.breaks)
    finest = np.flatnonzero(chunks.scored)
    kept, merged = np.unique(everything.index[finest], return_inverse=True)
    last = everything.last[kept]
    teacher = np.bincount(merged, weights=chunks.teacher_logprobs[finest], minlength=len(kept))
    boundary = chunks.teacher_boundary_logprobs[last] if objective.boundary else 0.0
    return Plan(len(kept), finest, merged, last, (teacher + boundary).astype(np.float32), objective.boundary)


def _sum_alm(objective: Alm, planned: Plan, student: StudentLogprobs) -> Tensor:
    """Approximate likelihood matching, arXiv 2503.20083, equation 5, summed over merged chunks."""
    device = student.token.device
    finest, merged, last = (torch.from_numpy(one).to(device) for one in (planned.finest, planned.merged, planned.last))
    mine = student.chunk.new_zeros(planned.count).index_add(0, merged, student.chunk[finest])
    if objective.boundary:
        mine = mine + student.boundary[last]
    theirs = torch.from_numpy(planned.teacher).to(device, mine.dtype)
    return binarised_divergence(objective.divergence, mine, theirs, objective.temperature).sum()


def _plan_sft(objective: Sft, batch: Batch) -> Plan:
    none = np.zeros(0, dtype=np.int64)
    count = int((batch.target_ids != NO_TARGET).sum())
    return Plan(count, none, none, none, none.astype(np.float32), needs_boundary=False)


def _sum_sft(objective: Sft, planned: Plan, student: StudentLogprobs) -> Tensor:
    """Next-token cross-entropy, summed over target tokens."""
    return -student.token.sum()


PLANS: dict[str, Callable[..., Plan]] = {"alm": _plan_alm, "sft": _plan_sft}
SUMS: dict[str, Callable[..., Tensor]] = {"alm": _sum_alm, "sft": _sum_sft}
