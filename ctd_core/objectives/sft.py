"""Supervised fine-tuning: next-token cross-entropy on the corpus."""

from torch import Tensor

from ctd_core.config.objectives import Sft
from ctd_core.models.online_teacher import TeacherOutputs
from ctd_core.objectives.interface import Plan, StudentOutputs
from ctd_core.shards.batches import Batch


def sft(options: Sft, batch: Batch) -> Plan:
    """−log p of every target token of the student. Mean over the step's target tokens."""

    def loss_sum(student: StudentOutputs, teacher: TeacherOutputs | None) -> Tensor:
        return -student.token.sum()

    return Plan(len(batch.target_ids), loss_sum)
