"""The teacher's last hidden states at chunk ends (arXiv 2503.20083, the hidden-state term)."""

import torch
from torch import Tensor, nn

from ctd_core.config import objectives as config
from ctd_core.models.online_teacher import OnlineTeacher, TeacherOutputs
from ctd_core.objectives.interface import Plan, StudentOutputs
from ctd_core.objectives.paired_positions import chunk_end_pairs, row_of_token
from ctd_core.shards.batches import Batch

LEAST = 1e-6  # the least mean square that a channel is divided by


class HiddenStates(nn.Module):
    """Mean over channels of (student − teacher)² / mean square of the teacher's channel, at the ends of scored chunks.

    The mean squares are over the chunk ends of the same row, so that nothing depends on how a step is split. Mean over
    the step's scored chunks. Where the two hidden sizes differ, a linear map that is trained along takes the student's
    states to the teacher's size.
    """

    def __init__(self, options: config.HiddenStates, online: OnlineTeacher) -> None:
        super().__init__()
        self.needs = options.needs
        student_size, teacher_size = online.student_hidden_size, online.hidden_size
        self.projection = (
            nn.Identity() if student_size == teacher_size else nn.Linear(student_size, teacher_size, bias=False)
        )

    def forward(self, batch: Batch) -> Plan:
        """The plan for a batch."""
        pairs = chunk_end_pairs(batch)

        def loss_sum(student: StudentOutputs, teacher: TeacherOutputs) -> Tensor:
            student_hidden = self.projection(student.hidden[pairs.student]).float()
            teacher_hidden = teacher.hidden[pairs.teacher].float()
            row = row_of_token(batch)[pairs.student]
            ends = torch.bincount(row, minlength=len(batch.rows)).clamp(min=1)
            squares = teacher_hidden.new_zeros(len(batch.rows), teacher_hidden.shape[1]).index_add(
                0, row, teacher_hidden.square()
            )
            scale = (squares / ends[:, None]).clamp(min=LEAST)
            # DDP waits for a gradient of every parameter, and nothing else here depends on an output matrix of its own.
            distance: Tensor = ((student_hidden - teacher_hidden).square() / scale[row]).mean(1)
            return distance.sum() + student.token.sum() * 0

        return Plan(len(pairs.student), loss_sum, self.needs)
