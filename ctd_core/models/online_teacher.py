"""A teacher that is loaded beside the student, for objectives that stored targets do not serve."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from ctd_core.models.adapters import without_adapters
from ctd_core.models.language_model import HuggingFaceModel, LanguageModel
from ctd_core.ops.fused_logprobs import Head
from ctd_core.shards.batches import Batch
from ctd_core.text.prepared_tokenizer import PreparedTokenizer


@dataclass(frozen=True)
class TeacherOutputs:
    """An online teacher's outputs for a batch, without gradients.

    hidden: [M, H], its own last hidden states. head, embeddings: as the student's.
    """

    hidden: Tensor
    head: Head
    embeddings: Tensor


@dataclass(frozen=True)
class OnlineTeacher:
    """A teacher loaded beside the student, and both tokenizers.

    vocabulary_maps: a directory in which maps between vocabularies are cached, None for nowhere.
    activate: makes `model` the teacher for as long as its context is open, where it is another model otherwise.
    """

    student_hidden_size: int
    model: LanguageModel
    student: PreparedTokenizer
    teacher: PreparedTokenizer
    vocabulary_maps: Path | None
    activate: Callable[[], AbstractContextManager[None]] = nullcontext

    @property
    def hidden_size(self) -> int:
        """The width of the teacher's hidden states."""
        return self.model.hidden_size

    @property
    def device(self) -> torch.device:
        """Where the teacher is."""
        return self.model.embeddings.device

    @torch.no_grad()
    def outputs(self, batch: Batch) -> TeacherOutputs:
        """The hidden states of the batch's teacher tokens."""
        tokens = batch.teacher
        # In its own dtype, as stored targets are.
        with torch.autocast(tokens.input_ids.device.type, enabled=False), self.activate():
            hidden = self.model.hidden_states(tokens.input_ids, {}).flatten(0, 1)[tokens.positions]
            return TeacherOutputs(hidden, self.model.head, self.model.embeddings)


@contextmanager
def as_own_teacher(student: HuggingFaceModel, embeddings: nn.Module, output: nn.Module) -> Iterator[None]:
    """Make a student with adapters its own teacher: without them, under the embeddings that it had as the teacher.

    One copy of the weights serves both.

    Args:
        student: changed for as long as the context is open.
        embeddings: the teacher's input embeddings.
        output: the teacher's output matrix.
    """
    model = student.module
    student_ends = model.get_input_embeddings(), model.get_output_embeddings()
    model.set_input_embeddings(embeddings)
    model.set_output_embeddings(output)
    try:
        with without_adapters(model):
            yield
    finally:
        model.set_input_embeddings(student_ends[0])
        model.set_output_embeddings(student_ends[1])
