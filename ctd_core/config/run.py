"""A run's YAML file: every option once, with its only default."""

from typing import Annotated

from pydantic import Field, model_validator

from ctd_core.config.base import Options
from ctd_core.config.evaluation import Evaluate, Sample
from ctd_core.config.models import Student, Teacher
from ctd_core.config.objectives import extra_teacher_of
from ctd_core.config.secrets import fields_with_secrets
from ctd_core.config.shards import Prepare
from ctd_core.config.text import AnyCorpus, HeldOut, TrainedTokenizer
from ctd_core.config.training import Train


class RunConfig(Options):
    """A whole run: what goes in, how it is prepared, trained and measured. Everything lands in `output`/`name`."""

    name: str = Field(pattern=r"^[\w-][\w.-]*$", description="the run; its directory in `output`")
    output: str = Field(default="runs", description="a directory, or s3://bucket/folder, that all machines share")
    student: Student = Field(description="the model that learns")
    teacher: Teacher = Field(description="the model that it learns from")
    more_teachers: dict[Annotated[str, Field(pattern=r"^[\w.-]+$")], Teacher] = Field(
        default={}, description="by name; alm learns from one that it names, on shards of their own"
    )
    corpus: AnyCorpus = Field(description="the text to train on")
    prepare: Prepare = Field(default=Prepare(), description="how text becomes shards")
    train: Train = Field(description="how the student learns from them")
    evaluate: Evaluate = Field(default=Evaluate(), description="what it is measured on")
    sample: Sample = Field(default=Sample(), description="texts that both models continue at the end")

    @model_validator(mode="after")
    def _consistent(self) -> "RunConfig":
        held_out = [name for name, chosen in self.evaluate.sets.items() if isinstance(chosen, HeldOut)]
        if held_out and not self.corpus.held_out_fraction:
            raise ValueError(f"evaluate.sets.{held_out[0]} is held out of a corpus whose held_out_fraction is 0")
        if self.student.model is not None and (self.student.head != "as_teacher" or self.student.vocab_multiple != 1):
            raise ValueError("student.head and student.vocab_multiple are for a student made from its teacher")
        if self.student.model is not None and isinstance(self.student.tokenizer, TrainedTokenizer):
            raise ValueError(
                "student.model has embeddings for a tokenizer of its own, not for one that is trained here: name it in "
                "student.tokenizer: {kind: pretrained, name: …}, or leave student.model out"
            )
        if not self.prepare.targets and self.evaluate.sets:
            raise ValueError("evaluate.sets are measured against the teacher, which needs prepare.targets: true")
        if self.train.batch_tokens < self.prepare.student_window_tokens:
            raise ValueError(
                f"train.batch_tokens is {self.train.batch_tokens}, less than one window of "
                f"prepare.student_window_tokens, {self.prepare.student_window_tokens}"
            )
        for objective in self.train.objectives:
            if "targets" in objective.needs and not self.prepare.targets:
                raise ValueError(f"train.objectives holds {objective.kind}, which needs prepare.targets: true")
            if "top_k" in objective.needs and not self.prepare.top_k:
                raise ValueError(
                    f"train.objectives holds {objective.kind}, which needs prepare.top_k above 0, such as 16"
                )
        named = [extra_teacher_of(objective) for objective in self.train.objectives]
        if unknown := [one for one in named if one is not None and one not in self.more_teachers]:
            raise ValueError(f"train.objectives: {unknown[0]!r} is none of more_teachers, {sorted(self.more_teachers)}")
        if idle := [one for one in (None, *self.more_teachers) if one not in named]:
            who = "teacher" if idle[0] is None else f"more_teachers.{idle[0]}"
            raise ValueError(
                f"no objective learns from {who}: alm learns from the one that it names, others from teacher"
            )
        if secrets := list(fields_with_secrets(self.model_dump(mode="json"))):
            raise ValueError(
                f"{', '.join(secrets)}: a URI with a key in it would be shown in messages and stored with the run: "
                "leave the key out, and set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or what your store reads"
            )
        if self.train.strategy == "fsdp" and self.student.is_its_own_teacher and self.train.online_objectives:
            raise ValueError(
                f"{self.train.online_objectives[0]} asks the student without its adapters at every step, which "
                "train.strategy: fsdp does not support; use ddp"
            )
        if self.prepare.top_k and not self.prepare.targets:
            raise ValueError("prepare.top_k is part of the targets, which prepare.targets: false leaves out")
        return self
