"""Kullback–Leibler divergence where the next chunk is one token of both sides, over the teacher's stored top tokens."""

import torch
from torch import Tensor

from ctd_core.config.objectives import OneToOneKl
from ctd_core.models.online_teacher import OnlineTeacher, TeacherOutputs
from ctd_core.objectives.interface import Objective, Plan, StudentOutputs
from ctd_core.shards.batches import Batch

LEAST = 1e-6  # the least probability that all other tokens together are taken to have


def one_to_one_kl(options: OneToOneKl, online: OnlineTeacher | None) -> Objective:
    """KL(teacher ‖ student), or with the sides swapped, over the stored tokens and one bucket for all others.

    The stored tokens are those of the teacher's top k whose bytes are a token of the student too. Merging the rest
    into one bucket bounds the full divergence from below (data processing). Mean over the step's one-to-one chunks
    that have a stored token; those of whose top tokens the student has none teach nothing.
    Strict one-to-one positions with a top-16 reverse KL: arXiv 2610.08448.
    """

    def plan(batch: Batch) -> Plan:
        top = batch.top

        def loss_sum(student: StudentOutputs, teacher: TeacherOutputs) -> Tensor:
            student_logprobs, teacher_logprobs = student.top, top.teacher_logprobs.to(student.top.dtype)
            terms = _terms(options.direction, student_logprobs, teacher_logprobs)
            rest = [_log_rest(measure, top.group, top.groups) for measure in (student_logprobs, teacher_logprobs)]
            return terms.sum() + _terms(options.direction, *rest).sum()

        return Plan(top.groups, loss_sum, options.needs)

    return plan


def _terms(direction: str, student_logprobs: Tensor, teacher_logprobs: Tensor) -> Tensor:
    return (
        teacher_logprobs.exp() * (teacher_logprobs - student_logprobs)
        if direction == "forward"
        else student_logprobs.exp() * (student_logprobs - teacher_logprobs)
    )


def _log_rest(logprobs: Tensor, group: Tensor, groups: int) -> Tensor:
    """[groups], the log-probability of everything that is not stored; it is bounded so that its gradient is finite."""
    stored = logprobs.new_zeros(groups).index_add(0, group, logprobs.exp())
    return torch.log1p(-stored.clamp(max=1 - LEAST))
