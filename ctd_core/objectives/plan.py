"""What an objective is to the training step: a plan made before the forward pass, a sum made after it."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ctd_core.models.adapters import without_adapters
from ctd_core.models.loading import head_of, last_hidden
from ctd_core.models.logprobs import Head
from ctd_core.shards.batches import Batch
from ctd_core.text.segments import Side

Indices = npt.NDArray[np.int64]
NO_CHUNKS: Indices = np.zeros(0, dtype=np.int64)


@dataclass(frozen=True)
class StudentOutputs:
    """What the student says of a batch.

    token: [Q], log-probability of each target. chunk: [C], sums over each finest chunk's tokens.
    boundary: [C], log-probability that a pretoken boundary follows, 0 at chunks where no plan asked.
    top: [E], log-probability of each of the teacher's stored top tokens, empty where no plan asked.
    hidden: [N, H], its last hidden states. head: what turns them into logits. embeddings: [V, H], its inputs.
    """

    token: Tensor
    chunk: Tensor
    boundary: Tensor
    top: Tensor
    hidden: Tensor
    head: Head
    embeddings: Tensor


@dataclass(frozen=True)
class TeacherOutputs:
    """What a live teacher says of a batch; no gradient flows to it.

    hidden: [M, H], its own last hidden states. head, embeddings: as the student's.
    """

    hidden: Tensor
    head: Head
    embeddings: Tensor


@dataclass(frozen=True)
class LiveTeacher:
    """A teacher loaded beside the student, for objectives that stored targets do not serve; and both tokenizers.

    maps: a folder in which maps between vocabularies are kept for the next time, None for nowhere.
    """

    student_hidden_size: int
    model: PreTrainedModel
    student: Side
    teacher: Side
    maps: Path | None

    @property
    def hidden_size(self) -> int:
        """The width of the teacher's hidden states."""
        return int(self.model.config.get_text_config().hidden_size)

    @torch.no_grad()
    def outputs(self, batch: Batch) -> TeacherOutputs:
        """The hidden states of the batch's teacher tokens."""
        tokens = batch.teacher
        # In its own dtype, as stored targets are.
        with torch.autocast(tokens.input_ids.device.type, enabled=False), self.speaking() as model:
            hidden = last_hidden(model, tokens.input_ids).flatten(0, 1)[tokens.positions]
            return TeacherOutputs(hidden, head_of(model), model.get_input_embeddings().weight)

    @contextmanager
    def speaking(self) -> Iterator[PreTrainedModel]:
        """The teacher, for as long as the context is open."""
        yield self.model


@dataclass(frozen=True)
class OwnTeacher(LiveTeacher):
    """A student with adapters as its own teacher, without them and under the embeddings that it had as the teacher.

    One copy of the weights serves both. `model` is the student's.
    """

    embeddings: nn.Module
    output: nn.Module

    @contextmanager
    def speaking(self) -> Iterator[PreTrainedModel]:
        """The student's model, changed into the teacher."""
        model = self.model
        own = model.get_input_embeddings(), model.get_output_embeddings()
        model.set_input_embeddings(self.embeddings)
        model.set_output_embeddings(self.output)
        try:
            with without_adapters(model):
                yield model
        finally:
            model.set_input_embeddings(own[0])
            model.set_output_embeddings(own[1])


@dataclass(frozen=True)
class Plan:
    """One objective for one batch.

    count: what the sum is divided by, once it has been added up over the step. It is known from the shards alone, so
    it is added up over all workers before any gradient exists; each objective says what it counts.
    loss_sum: the objective's sum over the batch, a scalar in float32 or wider; the teacher is there where the
    objective is a live one.
    boundary_chunks: the finest chunks after which the boundary is needed. needs_top: whether `top` is.
    """

    count: float
    loss_sum: Callable[[StudentOutputs, TeacherOutputs | None], Tensor]
    boundary_chunks: Indices = field(default_factory=lambda: NO_CHUNKS)
    needs_top: bool = False


Objective = Callable[[Batch], Plan]  # a torch module where the objective has projections that are trained along


def boundary_chunks(plans: Sequence[Plan]) -> Indices:
    """The finest chunks [K] at which some plan needs the boundary, ascending."""
    return np.unique(np.concatenate([one.boundary_chunks for one in plans] or [NO_CHUNKS]))


def chunk_sums(batch: Batch, token: Tensor) -> Tensor:
    """[C], sums over each finest chunk's targets of `token` [Q]."""
    return token.new_zeros(len(batch.chunk_rows)).index_add(0, batch.chunk_of_target, token)


def at_chunks(batch: Batch, asked: Indices, values: Tensor) -> Tensor:
    """[C], `values` [K] at the chunks `asked` [K] and 0 elsewhere."""
    return values.new_zeros(len(batch.chunk_rows)).index_copy(0, torch.from_numpy(asked).to(values.device), values)
