"""Options of evaluation: what a student is measured on."""

import re
from typing import Annotated

from pydantic import Field, model_validator

from ctd_core.config.base import Options
from ctd_core.config.text import AnyCorpus, HeldOut


class Evaluate(Options):
    """What the student is measured on: sets by name. `gap_closed` is read on the one named in `gap_set`."""

    sets: dict[str, Annotated[AnyCorpus | HeldOut, Field(discriminator="kind")]] = Field(
        default={}, description="by name: a corpus, or the held-out documents of the run's own"
    )
    batch_tokens: int = Field(default=4096, gt=0, description="padded student tokens in a forward pass")
    gap_set: str | None = Field(default=None, description="the set by which searches and `gap_closed` go")

    @model_validator(mode="after")
    def _sets_have_names(self) -> "Evaluate":
        wrong = [name for name in self.sets if re.match(r"train(-|$)", name) or not re.fullmatch(r"[\w.-]+", name)]
        if wrong:
            raise ValueError(
                f"{wrong[0]!r} cannot name a set: names are letters, digits, _ - and ., and do not begin `train-`"
            )
        if self.gap_set is not None and self.gap_set not in self.sets:
            raise ValueError(f"gap_set is {self.gap_set!r}, but the sets are {sorted(self.sets)}")
        return self


class Sample(Options):
    """What teacher and student write at the end of a run, greedily: an answer, where a model has a chat template."""

    prompts: list[str] = Field(
        default=[], description="a user's messages to a model with a chat template, texts to continue for another"
    )
    max_new_tokens: int = Field(default=40, gt=0, description="tokens after each prompt")
