"""Kullback–Leibler divergence where the next chunk is one token of both sides, over the teacher's stored top tokens."""

from torch import Tensor

from ctd_core.config.objectives import OneToOneKl
from ctd_core.models.online_teacher import OnlineTeacher, TeacherOutputs
from ctd_core.objectives.interface import Objective, Plan, StudentOutputs
from ctd_core.objectives.stored_tokens import stored_divergence
from ctd_core.shards.batches import Batch


def one_to_one_kl(options: OneToOneKl, online: OnlineTeacher | None) -> Objective:
    """KL(teacher ‖ student), or with the sides swapped, over the stored tokens and one bucket for all others.

    The stored tokens are those of the teacher's top k whose bytes are a token of the student too. Mean over the step's
    one-to-one chunks that have a stored token; those of whose top tokens the student has none teach nothing.
    Strict one-to-one positions with a top-16 reverse KL: arXiv 2610.08448.
    """

    def plan(batch: Batch) -> Plan:
        def loss_sum(student: StudentOutputs, teacher: TeacherOutputs) -> Tensor:
            return stored_divergence(options.direction, batch.top, student.top)

        return Plan(batch.top.groups, loss_sum, options.needs)

    return plan
