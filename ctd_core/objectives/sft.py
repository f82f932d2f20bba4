"""Supervised fine-tuning: next-token cross-entropy on the corpus."""

from torch import Tensor

from ctd_core.config.objectives import Sft
from ctd_core.models.online_teacher import OnlineTeacher, TeacherOutputs
from ctd_core.objectives.interface import Objective, Plan, StudentOutputs
from ctd_core.shards.batches import Batch


def sft(options: Sft, online: OnlineTeacher | None) -> Objective:
    """−log p of every target token of the student. Mean over the step's target tokens."""

    def plan(batch: Batch) -> Plan:
        def loss_sum(student: StudentOutputs, teacher: TeacherOutputs) -> Tensor:
            return -student.token.sum()

        return Plan(len(batch.target_ids), loss_sum, options.needs)

    return plan
