"""The models that can be asked tasks: those of a run, and those that a command names."""

from dataclasses import dataclass
from typing import Protocol

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from ctd_core.config.base import fingerprint
from ctd_core.config.models import Average, Dtype, Teacher
from ctd_core.models.ensemble import load_ensemble
from ctd_core.models.export import stop_at_ends
from ctd_core.models.fingerprints import loaded_fingerprint
from ctd_core.models.loading import CPU, load_model
from ctd_core.models.tokenizers import build_teacher_tokenizer
from ctd_core.text.prepared_tokenizer import PreparedTokenizer
from ctd_core.text.tokenizers import load_tokenizer
from pipelines.artifacts.checkpoints import name_of
from pipelines.artifacts.report import AFTER, BEFORE, TEACHER
from pipelines.artifacts.run_plan import RunPlan
from pipelines.stages.student import load_student
from pipelines.stages.tokenizer import student_tokenizer


class AskedModel(Protocol):
    """A model that can be asked. name: what results call it."""

    @property
    def name(self) -> str: ...

    def stamp(self) -> str:
        """What its figures belong to."""
        ...

    def load(self, device: torch.device = CPU) -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
        """It with its tokenizer, on `device`."""
        ...


@dataclass(frozen=True)
class NamedModel:
    """A directory or a hub id."""

    name: str
    location: str
    revision: str | None = None
    dtype: Dtype = "float32"
    trust_remote_code: bool = False
    weights: str | None = None  # the fingerprint of its files, where it is known
    teacher: Teacher | None = None  # the options of a run, where it is its teacher

    def stamp(self) -> str:
        """Of its files, and the tokens that are named for it."""
        named = [] if self.teacher is None else [self.teacher.begin_token, self.teacher.end_token]
        weights = self.weights or loaded_fingerprint(self.location)
        return fingerprint(weights, self.dtype, *(named if any(named) else []))

    def load(self, device: torch.device = CPU) -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
        """It with its tokenizer, on `device`."""
        model = load_model(self.location, self.revision, self.dtype, self.trust_remote_code, device)
        return model, load_tokenizer(self.location, self.revision) if self.teacher is None else written_by(self.teacher)


@dataclass(frozen=True)
class NamedEnsemble:
    """Models in directories or of hub ids, together."""

    name: str
    locations: tuple[str, ...]
    average: Average

    def stamp(self) -> str:
        """Of all their files."""
        return fingerprint([loaded_fingerprint(location) for location in self.locations], self.average)

    def load(self, device: torch.device = CPU) -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
        """It with its tokenizer, on `device`."""
        model, tokenizer = load_ensemble(self.locations, self.average)
        return model.to(device), tokenizer


@dataclass(frozen=True)
class RunStudent:
    """The student of a run: as a checkpoint has it, or before training."""

    name: str
    plan: RunPlan
    checkpoint: str | None
    prepared: PreparedTokenizer | None = None  # its tokenizer, where that is known

    def stamp(self) -> str:
        """Of the training and the step, or of the student before."""
        plan, checkpoint = self.plan, self.checkpoint
        return plan.init.name if checkpoint is None else f"{plan.training.name}/{name_of(checkpoint)}"

    def load(self, device: torch.device = CPU) -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
        """It with its tokenizer, on `device`."""
        prepared = self.prepared or student_tokenizer(self.plan)
        model = load_student(self.plan, prepared, self.checkpoint).model
        stop_at_ends(model, prepared.exported)  # as it is exported
        return model.to(device), prepared.exported


def written_by(teacher: Teacher) -> PreTrainedTokenizerFast:
    """A teacher's tokenizer, which writes the tokens that are named to begin and to end a text."""
    if teacher.begin_token is None and teacher.end_token is None:
        return load_tokenizer(teacher.model, teacher.revision)
    return build_teacher_tokenizer(teacher).exported


def teacher_of(plan: RunPlan) -> NamedModel:
    """The main teacher of a run."""
    teacher, weights = plan.config.teacher, plan.training_sets[None].teacher_weights
    return NamedModel(
        TEACHER, teacher.model, teacher.revision, teacher.dtype, teacher.trust_remote_code, weights, teacher
    )


def student_before(plan: RunPlan) -> RunStudent:
    """The student of a run before training."""
    return RunStudent(BEFORE, plan, None)


def student_after(plan: RunPlan, checkpoint: str) -> RunStudent:
    """The student of a run at a checkpoint."""
    return RunStudent(AFTER, plan, checkpoint)
