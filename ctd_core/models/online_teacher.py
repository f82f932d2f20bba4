"""A teacher that is loaded beside the student, for objectives that stored targets do not serve."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ctd_core.models.adapters import without_adapters
from ctd_core.models.loading import head_of, last_hidden
from ctd_core.ops.fused_logprobs import Head
from ctd_core.shards.batches import Batch
from ctd_core.text.prepared_tokenizer import Side


@dataclass(frozen=True)
class TeacherOutputs:
    """What an online teacher says of a batch; no gradient flows to it.

    hidden: [M, H], its own last hidden states. head, embeddings: as the student's.
    """

    hidden: Tensor
    head: Head
    embeddings: Tensor


@dataclass(frozen=True)
class OnlineTeacher:
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
class OwnTeacher(OnlineTeacher):
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
