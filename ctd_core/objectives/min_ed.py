"""Minimum edit distance (FuseLLM, arXiv 2401.10491), as the paper of ALM (arXiv 2503.20083) compares with it."""

from functools import cache

import numpy as np
import torch
from torch import Tensor

from ctd_core.align.vocabulary_cache import cached_nearest_map
from ctd_core.config.objectives import MinEd
from ctd_core.models.online_teacher import OnlineTeacher, TeacherOutputs
from ctd_core.objectives.interface import Objective, Plan, StudentOutputs
from ctd_core.objectives.paired_positions import kl_divergence, one_to_one_pairs, sum_over_blocks, sum_over_logits
from ctd_core.shards.batches import Batch


def min_ed(options: MinEd, online: OnlineTeacher) -> Objective:
    """KL(teacher ‖ student) where a chunk is one token of both sides, cross-entropy at all other scored tokens.

    For the divergence each student token takes the teacher's logit of the token nearest in spelling: of the same bytes,
    else of the least edit distance between bytes; both are softmaxes over the student's tokens of text. Both terms are
    at the temperature of `options`. Mean over the step's one-to-one chunks and the other scored student tokens.
    """
    device = online.device
    token_bytes = online.teacher.encoder.token_bytes, online.student.encoder.token_bytes
    cached = cached_nearest_map(*token_bytes, online.vocabulary_maps)
    nearest = torch.from_numpy(cached).long().to(device)  # [V], the teacher's token for each of the student's

    @cache
    def vocabularies(student_width: int, teacher_width: int) -> tuple[Tensor, Tensor]:
        """For models of these widths, which may be less than their tokenizers': student tokens, and their nearest."""
        found = ((nearest >= 0) & (nearest < teacher_width))[:student_width].nonzero()[:, 0]
        return found, nearest[found]

    def divergence(student: Tensor, teacher: Tensor) -> Tensor:
        tokens, of_teacher = vocabularies(student.shape[1], teacher.shape[1])
        logprobs = [
            (logits / options.temperature).log_softmax(1) for logits in (student[:, tokens], teacher[:, of_teacher])
        ]
        return kl_divergence(*logprobs)

    def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
        return -(logits / options.temperature).log_softmax(1).gather(1, targets[:, None])[:, 0]

    def plan(batch: Batch) -> Plan:
        pairs = one_to_one_pairs(batch)
        ones = torch.from_numpy(np.flatnonzero(batch.chunks.one_to_one)).to(batch.chunk_of_target.device)
        rest = (~torch.isin(batch.chunk_of_target, ones)).nonzero()[:, 0]

        def loss_sum(student: StudentOutputs, teacher: TeacherOutputs) -> Tensor:
            hidden = student.hidden[batch.target_rows[rest]]
            missed = sum_over_logits((student.head,), (hidden,), cross_entropy, batch.target_ids[rest])
            return sum_over_blocks(pairs, student, teacher, divergence) + missed

        return Plan(len(pairs.student) + len(rest), loss_sum, options.needs)

    return plan
