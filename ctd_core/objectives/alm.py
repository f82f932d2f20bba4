"""Approximate likelihood matching (Minixhofer, Vulić, Ponti, arXiv 2503.20083, equation 5)."""

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ctd_core.align.merging import merge
from ctd_core.config.objectives import Alm
from ctd_core.models.online_teacher import OnlineTeacher, TeacherOutputs
from ctd_core.objectives.divergences import binarised_divergence
from ctd_core.objectives.interface import NO_CHUNKS, Objective, Plan, StudentOutputs
from ctd_core.shards.batches import Batch


def alm(options: Alm, online: OnlineTeacher | None) -> Objective:
    """The binarised divergence between student and teacher of every scored merged chunk.

    Mean over the step's merged chunks (`average: chunk`), or over their bytes or student tokens, each of which then
    carries the divergence of its merged chunk; over bytes, the marker at the end of a text weighs nothing.
    """

    def plan(batch: Batch) -> Plan:
        chunks = batch.chunks
        everything = merge(options.chunks, chunks.before_whitespace, chunks.teacher_boundary_logprobs, chunks.breaks)
        taken = chunks.scored
        if options.exclude_one_to_one:
            alone = np.bincount(everything.index) == 1
            taken = taken & ~(chunks.one_to_one & alone[everything.index])
        finest = np.flatnonzero(taken)
        kept, merged = np.unique(everything.index[finest], return_inverse=True)
        last = everything.last[kept]

        def summed(values: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
            return np.bincount(merged, weights=values[finest], minlength=len(kept)).astype(np.float64)

        teacher = summed(chunks.teacher_logprobs)
        if options.boundary:
            teacher += chunks.teacher_boundary_logprobs[last]
        weights = np.ones(len(kept))
        if options.average != "chunk":
            weights = summed(chunks.num_bytes if options.average == "byte" else chunks.num_student_tokens)

        def loss_sum(student: StudentOutputs, teacher_outputs: TeacherOutputs) -> Tensor:
            device = student.token.device
            at, of, after = (torch.from_numpy(values).to(device) for values in (finest, merged, last))
            student_logprobs = student.chunk.new_zeros(len(kept)).index_add(0, of, student.chunk[at])
            if options.boundary:
                student_logprobs = student_logprobs + student.boundary[after]
            teacher_logprobs = torch.from_numpy(teacher).to(device, student_logprobs.dtype)
            divergences = binarised_divergence(
                options.divergence, student_logprobs, teacher_logprobs, options.temperature
            )
            return (divergences * torch.from_numpy(weights).to(device, student_logprobs.dtype)).sum()

        return Plan(float(weights.sum()), loss_sum, options.needs, last if options.boundary else NO_CHUNKS)

    return plan
