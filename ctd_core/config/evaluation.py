"""Options of evaluation: what a student is measured on."""

import re
from typing import Annotated

from pydantic import Field, model_validator

from ctd_core.config.base import Options, resource
from ctd_core.config.text import AnyCorpus, AnyRecords, HeldOut


class Tasks(Options):
    """Tasks of lm-evaluation-harness, which teacher and student, before and after training, are asked."""

    names: list[str] = Field(default=[], description="the harness's names of tasks or groups, such as arc_easy")
    include_path: str | None = Field(default=None, description="a directory with tasks of your own; their code is run")
    limit: int | None = Field(default=None, gt=0, description="questions of each task; all without it")
    num_fewshot: int | None = Field(default=None, ge=0, description="examples before a question; else as the task says")
    chat_template: bool = Field(default=False, description="ask through the models' chat templates")
    batch_size: int = resource(8, gt=0, description="questions in a forward pass")
    cpus: float = resource(1, gt=0, description="CPUs for each model")
    gpus: float = resource(0, ge=0, description="GPUs for each model")


class Problems(Options):
    """Problems with a number as their answer, such as GSM8K's: every model writes after each, greedily.

    An answer in the data is the number alone, or a solution that ends in `#### 24`.
    """

    corpus: AnyRecords = Field(description="records with `prompt` (the question) and `response` (the answer)")
    limit: int | None = Field(default=None, gt=0, description="the first so many; all without it")
    max_new_tokens: int = Field(default=256, gt=0, description="of each answer")
    batch_size: int = resource(16, gt=0, description="problems that are answered at once")

    @model_validator(mode="after")
    def _has_questions(self) -> "Problems":
        if self.corpus.prompt is None:
            raise ValueError("corpus has to name its fields for questions and answers: prompt and response")
        other = ("held_out_fraction", "sample_fraction", "as_text", "deduplicate")
        if given := [
            name for name in other if getattr(self.corpus, name) != type(self.corpus).model_fields[name].default
        ]:
            raise ValueError(f"{' and '.join(given)} is not for problems")
        return self


class WrittenTexts(Options):
    """Texts that the trained student writes after prompts, which its teacher scores."""

    texts: int = Field(default=128, gt=0, description="how many")
    max_new_tokens: int = Field(default=128, gt=0, description="of each; a longer one is cut before its last word")
    temperature: float = Field(default=1.0, gt=0, description="below 1: likelier tokens more often")
    prompts: str | None = Field(
        default=None,
        description="JSON lines, each with a `prompt` or `messages`; by default those of train.on_policy, or "
        "beginnings of the corpus",
    )


class Evaluate(Options):
    """What the student is measured on: sets by name. `gap_closed` is read on the one named in `gap_set`."""

    sets: dict[str, Annotated[AnyCorpus | HeldOut, Field(discriminator="kind")]] = Field(
        default={}, description="by name: a corpus, or the held-out documents of the run's own"
    )
    batch_tokens: int = Field(default=4096, gt=0, description="padded student tokens in a forward pass")
    gap_set: str | None = Field(default=None, description="the set by which searches and `gap_closed` go")

    tasks: Tasks = Field(default=Tasks(), description="tasks with answers")
    problems: dict[str, Problems] = Field(
        default={}, description="by name: problems with numbers as answers; asked on the cpus and gpus of tasks"
    )
    own_texts: WrittenTexts | None = Field(default=None, description="the distance to the teacher on own texts")

    @model_validator(mode="after")
    def _sets_have_names(self) -> "Evaluate":
        for name in [*self.sets, *self.problems]:
            if not re.fullmatch(r"[\w.-]+", name):
                raise ValueError(f"{name!r} cannot be a name: names are letters, digits, _ - and .")
            if name in self.sets and re.match(r"train(-|$)", name):
                raise ValueError(f"{name!r} cannot name a set: what begins so is trained on")
        if twice := set(self.tasks.names) & set(self.problems):
            raise ValueError(f"{min(twice)!r} names a task and problems: give the problems another name")
        if self.gap_set is not None and self.gap_set not in self.sets:
            raise ValueError(f"gap_set is {self.gap_set!r}, but the sets are {sorted(self.sets)}")
        return self


class Sample(Options):
    """What teacher and student write at the end of a run, greedily: an answer, where a model has a chat template."""

    prompts: list[str] = Field(
        default=[], description="a user's messages to a model with a chat template, texts to continue for another"
    )
    max_new_tokens: int = Field(default=40, gt=0, description="tokens after each prompt")
