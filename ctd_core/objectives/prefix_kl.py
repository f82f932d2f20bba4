"""Kullback–Leibler divergence of every next token by which the student spells the teacher's next token."""

from torch import Tensor

from ctd_core.config.objectives import PrefixKl
from ctd_core.models.online_teacher import OnlineTeacher, TeacherOutputs
from ctd_core.objectives.interface import Objective, Plan, StudentOutputs
from ctd_core.objectives.stored_tokens import stored_divergence
from ctd_core.shards.batches import Batch


def prefix_kl(options: PrefixKl, online: OnlineTeacher | None) -> Objective:
    """The divergence from the teacher's distribution in the student's own tokens, see ops.prefix_marginals.

    Mean over the step's positions at which tokens are stored. In the bucket beside them are, on the teacher's side, its
    tokens that end there, its special tokens, and where none are drawn those whose spelling goes on less likely. Where
    some are, gradients are those of the whole distribution in expectation, and the divergence is too large by what the
    teacher alone decides. So it is forward at a temperature of 1; elsewhere drawn tokens are left out.
    """

    def plan(batch: Batch) -> Plan:
        def loss_sum(student: StudentOutputs, teacher: TeacherOutputs) -> Tensor:
            return stored_divergence(options.direction, batch.prefixes, student.prefixes, options.temperature)

        return Plan(batch.prefixes.groups, loss_sum, options.needs)

    return plan
