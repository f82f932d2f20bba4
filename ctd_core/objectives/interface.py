"""What an objective is to the training step: a plan made before the forward pass, a sum made after it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import NoReturn, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ctd_core.config.objectives import Need, Needs
from ctd_core.models.online_teacher import TeacherOutputs
from ctd_core.ops.fused_logprobs import Head
from ctd_core.shards.batches import Batch

Indices = npt.NDArray[np.int64]
NO_CHUNKS: Indices = np.zeros(0, dtype=np.int64)


@dataclass(frozen=True)
class StudentOutputs:
    """The student's outputs for a batch.

    token: [Q], log-probability of each target. chunk: [C], sums over each finest chunk's tokens.
    boundary: [C], log-probability that a pretoken boundary follows, 0 at chunks where no plan asked.
    top: [E], log-probability of each of the teacher's stored top tokens. prefixes: [E'], of each of the stored likely
    tokens of the student.
    Those of the three that an objective does not declare among its needs are not there for it: to use them is an error.
    hidden: [N, H], its last hidden states. head: what turns them into logits. embeddings: [V, H], its inputs.
    """

    token: Tensor
    chunk: Tensor
    boundary: Tensor
    top: Tensor
    prefixes: Tensor
    hidden: Tensor
    head: Head
    embeddings: Tensor


class Absent:
    """Stands for an output that an objective did not declare: to use it is an error."""

    def __init__(self, need: Need) -> None:
        self._need = need

    def _refuse(self, *_: object) -> NoReturn:
        raise LookupError(f"an objective uses {self._need} without declaring it in its needs")

    __getattr__ = __getitem__ = __bool__ = __mul__ = __rmul__ = __add__ = __radd__ = _refuse

    @classmethod
    def __torch_function__(cls, *_: object, **options: object) -> NoReturn:
        raise LookupError("an objective uses an output that it does not declare in its needs")


def declared(student: StudentOutputs, needs: Needs) -> StudentOutputs:
    """`student` as an objective of these needs sees it."""
    boundary = student.boundary if "boundary" in needs else cast("Tensor", Absent("boundary"))
    top = student.top if "top_k" in needs else cast("Tensor", Absent("top_k"))
    prefixes = student.prefixes if "prefixes" in needs else cast("Tensor", Absent("prefixes"))
    return replace(student, boundary=boundary, top=top, prefixes=prefixes)


@dataclass(frozen=True)
class Plan:
    """One objective for one batch.

    count: what the sum is divided by, once it has been added up over the step. It is known from the shards alone, so
    it is added up over all workers before any gradient exists; each objective says what it counts.
    loss_sum: the objective's sum over the batch, a scalar in float32 or wider, of the outputs of student and teacher.
    needs: the outputs that `loss_sum` uses. boundary_chunks: the finest chunks after which the boundary is needed.
    """

    count: float
    loss_sum: Callable[[StudentOutputs, TeacherOutputs], Tensor]
    needs: Needs
    boundary_chunks: Indices = field(default_factory=lambda: NO_CHUNKS)


Objective = Callable[[Batch], Plan]  # a torch module where the objective has projections that are trained along


def boundary_chunks(plans: Sequence[Plan]) -> Indices:
    """The finest chunks [K] at which some plan needs the boundary, ascending."""
    return np.unique(np.concatenate([plan.boundary_chunks for plan in plans] or [NO_CHUNKS]))


def chunk_sums(batch: Batch, token: Tensor) -> Tensor:
    """[C], sums over each finest chunk's targets of `token` [Q]."""
    return token.new_zeros(len(batch.chunk_rows)).index_add(0, batch.chunk_of_target, token)


def at_chunks(batch: Batch, asked: Indices, values: Tensor) -> Tensor:
    """[C], `values` [K] at the chunks `asked` [K] and 0 elsewhere."""
    return values.new_zeros(len(batch.chunk_rows)).index_copy(0, torch.from_numpy(asked).to(values.device), values)
