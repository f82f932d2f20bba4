"""Positions at which student and teacher predict the same thing, and objectives that compare their logits there."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ctd_core.config.objectives import Online
from ctd_core.models.online_teacher import TeacherOutputs
from ctd_core.objectives.interface import Objective, Plan, StudentOutputs
from ctd_core.ops.fused_logprobs import Head, logits_of
from ctd_core.shards.batches import Batch, TeacherTokens

BLOCK_BYTES = 64 * 2**20

# From student logits [K, V] and teacher logits [K, U] to a loss for each of the K pairs.
LogitLoss = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class PositionPairs:
    """P pairs: `student` [P] and `teacher` [P] are rows of the two sides' hidden states."""

    student: Tensor
    teacher: Tensor


def one_to_one_pairs(batch: Batch) -> PositionPairs:
    """The position before each chunk that is one token of both sides."""
    chosen = torch.from_numpy(np.flatnonzero(batch.chunks.one_to_one)).to(batch.chunk_rows.device)
    return PositionPairs(batch.chunk_rows[chosen] - 1, batch.teacher.chunk_rows[chosen] - 1)


def same_token_pairs(batch: Batch) -> PositionPairs:
    """The position before each token of scored chunks that is the same on both sides: with one tokenizer, of all.

    The ends of texts and turns are among them.
    """
    chunks = batch.chunks
    chosen = np.flatnonzero(chunks.scored & (chunks.num_student_tokens == chunks.num_teacher_tokens))
    counts = chunks.num_student_tokens[chosen]
    chunk = np.repeat(chosen, counts)
    left = np.repeat(np.cumsum(counts), counts) - 1 - np.arange(len(chunk))  # of the chunk's tokens after each
    device = batch.chunk_rows.device
    at, after = torch.from_numpy(chunk).to(device), torch.from_numpy(left).to(device)
    student, teacher = (side.chunk_rows[at] - after for side in (batch, batch.teacher))
    same = _ids_at(batch, student) == _ids_at(batch.teacher, teacher)
    return PositionPairs(student[same] - 1, teacher[same] - 1)


def _ids_at(side: Batch | TeacherTokens, tokens: Tensor) -> Tensor:
    return side.input_ids.flatten()[side.positions[tokens]]


def chunk_end_pairs(batch: Batch) -> PositionPairs:
    """The last token of every scored chunk."""
    chosen = torch.from_numpy(np.flatnonzero(batch.chunks.scored)).to(batch.chunk_rows.device)
    return PositionPairs(batch.chunk_rows[chosen], batch.teacher.chunk_rows[chosen])


def last_token_pairs(batch: Batch) -> PositionPairs:
    """The position before the last token of every scored chunk."""
    ends = chunk_end_pairs(batch)
    return PositionPairs(ends.student - 1, ends.teacher - 1)


def same_index_pairs(batch: Batch) -> PositionPairs:
    """The positions before the n-th scored token of either side, n = 1, 2 … as long as both rows have one."""
    student, teacher = (_by_row_and_index(side.target_rows, row_of_token(side)) for side in (batch, batch.teacher))
    _, student_indices, teacher_indices = np.intersect1d(student, teacher, assume_unique=True, return_indices=True)
    device = batch.target_rows.device
    chosen = (torch.from_numpy(indices).to(device) for indices in (student_indices, teacher_indices))
    return PositionPairs(batch.target_rows[next(chosen)], batch.teacher.target_rows[next(chosen)])


def row_of_token(side: Batch | TeacherTokens) -> Tensor:
    """[N], the row of the batch that each of a side's tokens lies in."""
    return side.positions // side.input_ids.shape[1]


def kl_divergence(student_logprobs: Tensor, teacher_logprobs: Tensor) -> Tensor:
    """[K], KL(teacher ‖ student) of natural log-probabilities [K, V]."""
    divergence: Tensor = (teacher_logprobs.exp() * (teacher_logprobs - student_logprobs)).sum(1)
    return divergence


def _by_row_and_index(target_rows: Tensor, row_of_token: Tensor) -> np.ndarray:
    """For each target a number that stands for its row of the batch and its position among that row's targets."""
    rows = row_of_token[target_rows].cpu().numpy()
    starts = np.searchsorted(rows, rows)
    return rows * 2**32 + np.arange(len(rows)) - starts


def logit_objective(find_pairs: Callable[[Batch], PositionPairs], loss: LogitLoss) -> Objective:
    """An objective that compares logits with an online teacher's: the mean of `loss` over the pairs.

    Logits exist for a block of positions at a time, and are computed again for the gradients.
    """

    def plan(batch: Batch) -> Plan:
        pairs = find_pairs(batch)

        def loss_sum(student: StudentOutputs, teacher: TeacherOutputs) -> Tensor:
            return sum_over_blocks(pairs, student, teacher, loss)

        return Plan(len(pairs.student), loss_sum, Online.needs)

    return plan


def sum_over_blocks(
    pairs: PositionPairs, student: StudentOutputs, teacher: TeacherOutputs, loss: Callable[..., Tensor], *extras: Tensor
) -> Tensor:
    """Σ over P pairs of `loss(student logits, teacher logits, *extras)`, each extra [P] cut like the pairs."""
    hidden = student.hidden[pairs.student], teacher.hidden[pairs.teacher]
    total = sum_over_logits((student.head, teacher.head), hidden, loss, *extras)
    return total + student.hidden.float().sum() * 0  # a batch without pairs has a gradient too, of zeros


def sum_over_logits(
    heads: tuple[Head, ...], hidden: tuple[Tensor, ...], loss: Callable[..., Tensor], *extras: Tensor
) -> Tensor:
    """Σ over P rows of `loss(*logits, *extras)`, the logits of each of `hidden` [P, H] by its head of `heads`.

    Logits exist for a block of rows at a time, and are computed again for the gradients.
    """

    def block_sum(*block: Tensor) -> Tensor:
        logits = [logits_of(hidden_block, head) for hidden_block, head in zip(block, heads, strict=False)]
        return loss(*logits, *block[len(heads) :]).sum()

    size = max(16, BLOCK_BYTES // (4 * sum(head.weight.shape[0] for head in heads)))
    blocks = [torch.split(tensor, size) for tensor in (*hidden, *extras)]
    sums = [checkpoint(block_sum, *block, use_reentrant=False) for block in zip(*blocks, strict=True)]
    return torch.stack(sums).sum()
