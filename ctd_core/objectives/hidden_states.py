"""The teacher's last hidden states at chunk ends (arXiv 2503.20083, the hidden-state term)."""

import torch
from torch import Tensor

from ctd_core.config import HiddenStates
from ctd_core.errors import UsageError
from ctd_core.objectives.plan import LiveTeacher, Objective, Plan, StudentOutputs, TeacherOutputs
from ctd_core.objectives.positions import chunk_end_places
from ctd_core.shards.batches import Batch

LEAST = 1e-6  # the least mean square that a channel is divided by


def hidden_states(options: HiddenStates, live: LiveTeacher) -> Objective:
    """Mean over channels of (student − teacher)² / mean square of the teacher's channel, at the ends of scored chunks.

    The mean squares are over the chunk ends of the same row, so that nothing depends on how a step is split. Mean over
    the step's scored chunks. Raises UsageError where the two hidden sizes differ.
    """
    teacher_hidden_size = live.model.config.get_text_config().hidden_size
    if live.student_hidden_size != teacher_hidden_size:
        raise UsageError(
            f"train.objectives: hidden_states compares channel by channel, and the student has "
            f"{live.student_hidden_size} of them, the teacher {teacher_hidden_size}. Take another objective."
        )

    def plan(batch: Batch) -> Plan:
        places = chunk_end_places(batch)

        def loss_sum(student: StudentOutputs, teacher: TeacherOutputs | None) -> Tensor:
            assert teacher is not None, "a live objective is planned only where there is a teacher"
            mine, theirs = student.hidden[places.student].float(), teacher.hidden[places.teacher].float()
            row = batch.positions[places.student] // batch.input_ids.shape[1]
            ends = torch.bincount(row, minlength=len(batch.rows)).clamp(min=1)
            squares = theirs.new_zeros(len(batch.rows), theirs.shape[1]).index_add(0, row, theirs.square())
            scale = (squares / ends[:, None]).clamp(min=LEAST)
            # DDP waits for a gradient of every parameter, and nothing else here depends on an output matrix of its own.
            return ((mine - theirs).square() / scale[row]).mean(1).sum() + student.token.sum() * 0

        return Plan(len(places.student), loss_sum)

    return plan
