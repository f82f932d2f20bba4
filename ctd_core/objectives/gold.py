"""General online logit distillation (GOLD, of Hugging Face's TRL), with its "bayesian" merging."""

from functools import cache

import numpy as np
import torch
from torch import Tensor

from ctd_core.align.vocabulary import exact_map
from ctd_core.config.objectives import Gold
from ctd_core.models.online_teacher import OnlineTeacher, TeacherOutputs
from ctd_core.objectives.interface import Indices, Objective, Plan, StudentOutputs
from ctd_core.objectives.paired_positions import last_token_pairs, sum_over_blocks
from ctd_core.objectives.uld import sorted_distance
from ctd_core.ops.fused_logprobs import token_and_boundary_logprobs
from ctd_core.shards.batches import Batch

LEAST = 1e-8  # the least probability under a logarithm


def gold(options: Gold, online: OnlineTeacher) -> Objective:
    """At every scored chunk: a divergence on the tokens that both sides have, a sorted distance on all others.

    A chunk of several tokens has the distribution of its last token, times the probabilities of those before it. On
    the M shared tokens, Σ q·log(q / p) − q + p (p the student, q the teacher): Kullback and Leibler's for measures that
    do not add up to 1, without whose last two terms it would fall below 0. The two parts weigh M / U and 1 − M / U, U
    the teacher's vocabulary. Tokens are shared by their exact bytes. Mean over the step's scored chunks.
    """
    tokens = [len(tokenizer.encoder.token_bytes.by_id) for tokenizer in (online.student, online.teacher)]
    ids = exact_map(online.student.encoder.token_bytes, online.teacher.encoder.token_bytes)

    @cache
    def vocabularies(*widths: int) -> tuple[list[int], list[Tensor], list[Tensor]]:
        """The sizes of both, the tokens that they share, and those that they do not, of models of these widths."""
        sizes = [min(pair) for pair in zip(tokens, widths, strict=True)]  # a tokenizer may have more than its model
        in_both = (ids >= 0) & (ids < sizes[0]) & (np.arange(len(ids)) < sizes[1])
        same = ids[in_both].astype(np.int64), np.flatnonzero(in_both)
        others = (np.setdiff1d(np.arange(size), pair) for pair, size in zip(same, sizes, strict=True))
        shared, rest = ([torch.from_numpy(ids).to(online.device) for ids in which] for which in (same, others))
        return sizes, shared, rest

    def loss(student: Tensor, teacher: Tensor, before_student: Tensor, before_teacher: Tensor) -> Tensor:
        sizes, shared, rest = vocabularies(student.shape[1], teacher.shape[1])
        weight = len(shared[0]) / sizes[1]
        student_measure = (student[:, : sizes[0]].log_softmax(1) + before_student[:, None]).exp()
        teacher_measure = (teacher[:, : sizes[1]].log_softmax(1) + before_teacher[:, None]).exp()
        p, q = student_measure[:, shared[0]], teacher_measure[:, shared[1]]
        logs = [measure.clamp(min=LEAST).log() for measure in (p, q)]
        matched = (q * (logs[1] - logs[0]) - q + p).sum(1)
        return weight * matched + (1 - weight) * sorted_distance(
            student_measure[:, rest[0]], teacher_measure[:, rest[1]]
        )

    def plan(batch: Batch) -> Plan:
        pairs = last_token_pairs(batch)
        scored = batch.chunks.scored
        counts = [counts[scored] for counts in (batch.chunks.num_student_tokens, batch.chunks.num_teacher_tokens)]

        def loss_sum(student: StudentOutputs, teacher: TeacherOutputs) -> Tensor:
            before_student = _before_last(student.token, counts[0])
            before_teacher = _before_last(_teacher_logprobs(batch, teacher), counts[1])
            return sum_over_blocks(pairs, student, teacher, loss, before_student, before_teacher)

        return Plan(len(pairs.student), loss_sum, options.needs)

    return plan


def _before_last(token: Tensor, counts: Indices) -> Tensor:
    """[P], for chunks of `counts` [P] of the tokens [Q], in order: the log-probability of all but each one's last."""
    last = np.cumsum(counts) - 1
    inside = np.setdiff1d(np.arange(len(token)), last)
    chunk = np.repeat(np.arange(len(counts)), counts)[inside]
    at, of = (torch.from_numpy(indices).to(token.device) for indices in (inside, chunk))
    return token.new_zeros(len(counts)).index_add(0, of, token[at])


@torch.no_grad()
def _teacher_logprobs(batch: Batch, teacher: TeacherOutputs) -> Tensor:
    """[R], the teacher's log-probability of each of its tokens in scored chunks."""
    tokens, none = batch.teacher, batch.teacher.target_rows[:0]
    mask = torch.zeros(len(teacher.head.weight), dtype=torch.bool, device=teacher.hidden.device)
    asked = (tokens.target_rows, tokens.target_ids, mask, none)
    token, _ = token_and_boundary_logprobs(teacher.hidden, teacher.head, *asked)
    return token
