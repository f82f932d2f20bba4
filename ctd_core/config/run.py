"""A run's YAML file: every option exists once, with its only default."""

from collections.abc import Iterator
from typing import Annotated

from pydantic import Field, model_validator

from ctd_core.config.base import Options
from ctd_core.config.evaluation import Evaluate, Sample
from ctd_core.config.models import Student, Teacher
from ctd_core.config.objectives import PrefixKl, extra_teacher_of
from ctd_core.config.secrets import NO_KEYS, fields_with_secrets
from ctd_core.config.shards import PREFIX_K, Prepare
from ctd_core.config.text import AnyCorpus, HeldOut, Mixture, TrainedTokenizer
from ctd_core.config.training import Train

DECIDED_BY_OBJECTIVES = ("prefix_k", "prefix_drawn")  # fields of prepare, where they are not given


class RunConfig(Options):
    """A run: its models and corpus, how it is prepared, trained and measured. It writes below `output`/`name`."""

    name: str = Field(pattern=r"^[\w-][\w.-]*$", description="the run; its directory in `output`")
    output: str = Field(default="runs", description="a directory, or s3://bucket/folder, that all machines share")
    student: Student = Field(description="the model that learns")
    teacher: Teacher = Field(description="the model that it learns from")
    extra_teachers: dict[Annotated[str, Field(pattern=r"^[\w.-]+$")], Teacher] = Field(
        default={}, description="by name; alm learns from one that it names, on shards of their own"
    )
    corpus: AnyCorpus = Field(description="the text to train on")
    prepare: Prepare = Field(default=Prepare(), description="how text becomes shards")
    train: Train = Field(description="how the student learns from them")
    evaluate: Evaluate = Field(default=Evaluate(), description="what it is measured on")
    sample: Sample = Field(default=Sample(), description="texts that both models continue at the end")

    @model_validator(mode="after")
    def _options_fit_together(self) -> "RunConfig":
        # past pydantic, whose options are frozen; what was not given does not count as given
        values, given = dict(self.prepare), self.prepare.model_fields_set
        self.__dict__["prepare"] = Prepare.model_construct(_fields_set=given, **values | _stored_tokens(self))
        checks = (_evaluation, _student, _windows, _objectives, _own_texts, _teachers, _secrets)
        if wrong := [message for check in checks for message in check(self)]:
            raise ValueError(".\n".join(wrong))
        return self

    @property
    def origin(self) -> Teacher:
        """The model that the student is made from."""
        of = self.student
        if of.model is None:
            return self.teacher
        return Teacher(model=of.model, revision=of.revision, trust_remote_code=of.trust_remote_code)

    @property
    def prompts_of_own_texts(self) -> dict[str, str | None]:
        """Files of prompts after which the student writes, by the option that asks; None: beginnings of the corpus."""
        rounds, measured = self.train.on_policy, self.evaluate.own_texts
        found = {} if rounds is None else {"train.on_policy": rounds.prompts}
        if measured is not None:
            found["evaluate.own_texts"] = measured.prompts or found.get("train.on_policy")
        return found


def _stored_tokens(run: RunConfig) -> dict[str, int]:
    """The fields of `prepare` that DECIDED_BY_OBJECTIVES names."""
    asking = [objective for objective in run.train.objectives if isinstance(objective, PrefixKl)]
    stored, drawn = run.prepare.prefix_k, run.prepare.prefix_drawn
    if stored is None:
        stored = PREFIX_K if asking else 0
    if drawn is None:
        drawn = stored // 2 if all(objective.takes_drawn for objective in asking) else 0
    return {"prefix_k": stored, "prefix_drawn": drawn}


def drawn_left_out(run: RunConfig) -> Iterator[str]:
    """In words, which objectives leave out a part of the tokens that are stored for them."""
    stored, drawn = run.prepare.prefix_k or 0, run.prepare.prefix_drawn or 0
    for number, objective in enumerate(run.train.objectives):
        if drawn and isinstance(objective, PrefixKl) and not objective.takes_drawn:
            yield (
                f"train.objectives.{number}: prefix_kl in reverse, or with a temperature, learns from "
                f"{stored - drawn} of {stored} tokens stored at a position, as the others are drawn. "
                "prepare.prefix_drawn: 0 stores the likeliest in their place"
            )


def _evaluation(run: RunConfig) -> Iterator[str]:
    held_out = [name for name, corpus in run.evaluate.sets.items() if isinstance(corpus, HeldOut)]
    if held_out and not run.corpus.held_out_fraction:
        yield f"evaluate.sets.{held_out[0]} is held out of a corpus whose held_out_fraction is 0"
    labels = run.corpus.labels if isinstance(run.corpus, Mixture) else []
    for name, measured in run.evaluate.sets.items():
        if isinstance(measured, HeldOut) and measured.source is not None and measured.source not in labels:
            yield f"evaluate.sets.{name}.source is {measured.source!r}, and the corpus's sources are {labels}"
        if not isinstance(measured, HeldOut) and measured.held_out_fraction:
            yield (
                f"evaluate.sets.{name}.held_out_fraction: what is measured is all of a set's corpus. Documents that "
                "training leaves out are {kind: held_out}, by the corpus's own held_out_fraction"
            )
    if run.evaluate.sets and not run.prepare.targets:
        yield "evaluate.sets are measured against the teacher, which needs prepare.targets: true"


def _student(run: RunConfig) -> Iterator[str]:
    student = run.student
    made = student.head is not None or student.pad_to_multiple_of != 1 or student.byte_expansion is not None
    if student.model is not None and made:
        yield (
            "student.head, student.pad_to_multiple_of and student.byte_expansion are for a student made from its "
            "teacher: leave them or student.model out"
        )
    if student.byte_expansion is not None and isinstance(student.tokenizer, TrainedTokenizer):
        yield "student.byte_expansion is for a tokenizer of single bytes, such as student.tokenizer: {kind: bytes}"
    if student.byte_expansion is not None and student.head == "as_teacher":
        yield "student.byte_expansion gives the student an output matrix of its own: leave student.head out"
    if student.model is not None and isinstance(student.tokenizer, TrainedTokenizer):
        yield (
            "student.model has embeddings for a tokenizer of its own, not for one that is trained here: name it in "
            "student.tokenizer: {kind: pretrained, name: …}, or leave student.model out"
        )
    if student.model is not None and student.chat == "keep":
        yield (
            "student.chat: keep adds special tokens, and student.model has embeddings for its own alone: take adopt, "
            "or leave student.model out"
        )
    if student.model is None and (student.revision is not None or student.trust_remote_code):
        yield "student.revision and student.trust_remote_code are of student.model, and none is named"
    online = run.train.online_objectives
    if run.train.strategy == "fsdp" and student.is_its_own_teacher and online:
        yield (
            f"{online[0]} asks the student without its adapters at every step, which train.strategy: fsdp does not "
            "support; use ddp"
        )


def _windows(run: RunConfig) -> Iterator[str]:
    if run.train.batch_tokens < run.prepare.student_window_tokens:
        yield (
            f"train.batch_tokens is {run.train.batch_tokens}, less than one window of prepare.student_window_tokens, "
            f"{run.prepare.student_window_tokens}: raise it, or lower that"
        )


def _objectives(run: RunConfig) -> Iterator[str]:
    for objective in run.train.objectives:
        if "targets" in objective.needs and not run.prepare.targets:
            yield f"train.objectives holds {objective.kind}, which needs prepare.targets: true"
        if "top_k" in objective.needs and not run.prepare.top_k:
            yield f"train.objectives holds {objective.kind}, which needs prepare.top_k above 0, such as 16"
        if "prefixes" in objective.needs and not run.prepare.prefix_k:
            yield f"train.objectives holds {objective.kind}, which needs prepare.prefix_k above 0, such as 8"
    if (run.prepare.prefix_drawn or 0) > (run.prepare.prefix_k or 0):
        yield (
            f"prepare.prefix_drawn is {run.prepare.prefix_drawn}, more than prepare.prefix_k, {run.prepare.prefix_k}, "
            "which counts them too"
        )
    for name in ("top_k", "prefix_k"):
        if getattr(run.prepare, name) and not run.prepare.targets:
            yield f"prepare.{name} is part of the targets, which prepare.targets: false leaves out"


def _own_texts(run: RunConfig) -> Iterator[str]:
    rounds = run.train.on_policy
    if rounds is not None and rounds.fraction < 1 and isinstance(run.corpus, Mixture):
        yield "train.on_policy.fraction: beside a mixture of corpora, only 1 is supported"


def _teachers(run: RunConfig) -> Iterator[str]:
    named = [extra_teacher_of(objective) for objective in run.train.objectives]
    for name in dict.fromkeys(named):
        if name is not None and name not in run.extra_teachers:
            yield f"train.objectives: {name!r} is none of extra_teachers, {sorted(run.extra_teachers)}"
    for name in (None, *run.extra_teachers):
        if name not in named:
            who = "teacher" if name is None else f"extra_teachers.{name}"
            yield f"no objective learns from {who}: alm learns from the one that it names, others from teacher"


def _secrets(run: RunConfig) -> Iterator[str]:
    if fields := list(fields_with_secrets(run.model_dump(mode="json"))):
        yield f"{', '.join(fields)}: {NO_KEYS}"
