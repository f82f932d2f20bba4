"""Dual-space knowledge distillation with cross-model attention (Zhang et al., arXiv 2406.17328)."""

import math
from dataclasses import replace

import torch
from torch import Tensor, nn

from ctd_core.config import objectives as config
from ctd_core.models.online_teacher import OnlineTeacher, TeacherOutputs
from ctd_core.objectives.interface import Plan, StudentOutputs
from ctd_core.objectives.paired_positions import kl_divergence, row_of_token, sum_over_logits
from ctd_core.shards.batches import Batch


class Dskd(nn.Module):
    """Each side's tokens attend to those of the other, and both output matrices judge the projected hidden states.

    For every student target: the cross-entropy of the teacher's states in the student's space (which trains the
    projections), and, where their most probable token is the target, KL(those ‖ student). For every teacher target:
    KL(teacher ‖ the student's states in the teacher's space). All of it over the step's number of student targets.

    As the published code has it, a token's query or key is the embedding of the token before it beside its own, and
    the teacher's keys, embeddings and states are divided by their standard deviation: here that of a row of the
    batch, so that nothing depends on how a step is split. It is not 0 for a student that is its teacher.
    """

    def __init__(self, options: config.Dskd, online: OnlineTeacher) -> None:
        super().__init__()
        self.needs = options.needs
        student_size, teacher_size = online.student_hidden_size, online.hidden_size
        self.query = nn.Linear(2 * student_size, 2 * teacher_size)
        self.to_teacher = nn.Linear(student_size, teacher_size)
        self.to_student = nn.Linear(teacher_size, student_size)

    def forward(self, batch: Batch) -> Plan:
        """The plan for a batch."""

        def loss_sum(student: StudentOutputs, teacher: TeacherOutputs) -> Tensor:
            in_student, in_teacher = self._cross(batch, student, teacher)
            bias = student.head.bias
            fixed = replace(
                student.head, weight=student.head.weight.detach(), bias=None if bias is None else bias.detach()
            )
            student_hidden, teacher_hidden = (
                student.hidden[batch.target_rows],
                teacher.hidden[batch.teacher.target_rows],
            )
            to_student = sum_over_logits(
                (student.head, fixed), (student_hidden, in_student), _in_student_space, batch.target_ids
            )
            in_teacher = in_teacher.to(teacher_hidden.dtype)
            to_teacher = sum_over_logits((teacher.head, teacher.head), (in_teacher, teacher_hidden), _divergence)
            return to_student + to_teacher

        return Plan(len(batch.target_ids), loss_sum, self.needs)

    def _cross(self, batch: Batch, student: StudentOutputs, teacher: TeacherOutputs) -> tuple[Tensor, Tensor]:
        """[Q, H] the teacher's states at the student's targets, [R, H'] the student's at the teacher's."""
        teacher_tokens = batch.teacher
        student_before = batch.input_ids.flatten()[batch.positions][batch.target_rows]
        before = teacher_tokens.input_ids.flatten()[teacher_tokens.positions][teacher_tokens.target_rows]
        student_embeddings, teacher_embeddings = student.embeddings.detach(), teacher.embeddings.detach()
        queries = self.query(torch.cat([student_embeddings[student_before], student_embeddings[batch.target_ids]], 1))
        student_values = self.to_teacher(student.hidden[batch.target_rows])
        values = _wide(teacher.hidden[teacher_tokens.target_rows])
        keys, keys_before = (_wide(teacher_embeddings[ids]) for ids in (teacher_tokens.target_ids, before))
        student_sizes, sizes = (
            torch.bincount(row_of_token(side)[side.target_rows], minlength=len(batch.rows)).tolist()
            for side in (batch, teacher_tokens)
        )
        student_parts = [torch.split(rows, student_sizes) for rows in (queries, student_values)]
        parts = [torch.split(rows, sizes) for rows in (values, keys, keys_before)]
        in_student, in_teacher = [], []
        for query, student_value, value, key, key_before in zip(*student_parts, *parts, strict=True):
            pair = _normalised(torch.cat([key_before, key], 1))
            scores = query @ pair.T / math.sqrt(pair.shape[1])
            spoken = self.to_student(_normalised(value) + _normalised(key))
            in_student.append(scores.softmax(1) @ spoken)
            in_teacher.append(scores.T.softmax(1) @ student_value)
        return torch.cat(in_student), torch.cat(in_teacher)


def _wide(values: Tensor) -> Tensor:
    return values.to(torch.promote_types(values.dtype, torch.float32))


def _normalised(values: Tensor) -> Tensor:
    return values / values.std().clamp(min=1e-6) if values.numel() > 1 else values


def _in_student_space(student: Tensor, teacher: Tensor, targets: Tensor) -> Tensor:
    entropy = nn.functional.cross_entropy(teacher, targets, reduction="none")
    fixed = teacher.detach()
    return entropy + _divergence(student, fixed) * (fixed.argmax(1) == targets)


def _divergence(student: Tensor, teacher: Tensor) -> Tensor:
    return kl_divergence(student.log_softmax(1), teacher.log_softmax(1))
