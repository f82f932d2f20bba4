"""The policy gradient of a student's own texts, with its teacher's log-likelihoods as reward."""

import torch
from torch import Tensor

from ctd_core.config.objectives import PolicyGradient
from ctd_core.models.online_teacher import OnlineTeacher, TeacherOutputs
from ctd_core.objectives.interface import Objective, Plan, StudentOutputs
from ctd_core.shards.batches import Batch


def policy_gradient(options: PolicyGradient, online: OnlineTeacher | None) -> Objective:
    """Minus each token's log-probability times what its chunk is credited with.

    A chunk's advantage is the teacher's log-likelihood of it minus the student's, at most `max_advantage` either way
    (arXiv 2606.09456); no gradient flows through it. With `credit: whole` the expectation over texts that the student
    writes is the gradient of its reverse divergence from the teacher, chunk by chunk. Mean over the step's tokens.
    """

    def plan(batch: Batch) -> Plan:
        chunks = batch.chunks

        def loss_sum(student: StudentOutputs, teacher: TeacherOutputs) -> Tensor:
            device, dtype = student.token.device, student.token.dtype
            chunk = student.chunk.detach()
            likelihoods = torch.from_numpy(chunks.teacher_logprobs).to(device, dtype)
            advantages = (likelihoods - chunk).clamp(-options.max_advantage, options.max_advantage)
            advantages = torch.where(torch.from_numpy(chunks.scored).to(device), advantages, 0.0)
            of = batch.chunk_of_target
            shares = torch.ones_like(student.token)
            if options.credit != "whole":
                shares = 1 / torch.from_numpy(chunks.num_student_tokens).to(device, dtype)[of]
            if options.credit == "proportional":
                shares = torch.where(chunk[of] < 0, student.token.detach() / chunk[of], shares)
            return -(advantages[of] * shares * student.token).sum()

        return Plan(float(chunks.num_student_tokens[chunks.scored].sum()), loss_sum, options.needs)

    return plan
