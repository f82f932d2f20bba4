"""Options of training."""

import re
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import Field, field_validator, model_validator

from ctd_core.config.base import Fraction, Options, resource
from ctd_core.config.objectives import AnyObjective, PrefixKl

DEFAULT_EPS = 1e-8


class Stage(Options):
    """The next steps of a training with settings of their own; what is left out is as in the rest of it."""

    steps: int = Field(gt=0, description="optimizer steps")
    freeze: list[str] | None = Field(default=None, description="as train.freeze")
    learning_rate: float | None = Field(
        default=None, gt=0, description="the highest, after warm-up; that of embeddings and head too"
    )
    embedding_learning_rate: float | None = Field(
        default=None, gt=0, description="for embeddings and head, where it differs"
    )
    warmup_steps: int | None = Field(default=None, ge=0, description="a twelfth of the stage's steps by default")
    min_lr_ratio: float | None = Field(default=None, ge=0, le=1, description="the decay ends at this fraction")

    @field_validator("freeze")
    @classmethod
    def _patterns(cls, patterns: list[str] | None) -> list[str] | None:
        return patterns if patterns is None else _regular(patterns)


class OnPolicy(Options):
    """The student learns from texts of its own: in each round it writes some, and its teacher scores them once."""

    rounds: int = Field(gt=0, description="of as many steps each, or one less")
    begin: int = Field(default=0, ge=0, description="the first steps learn the corpus alone")
    texts: int = Field(default=64, gt=0, description="how many the student writes in a round")
    fraction: float = Field(
        default=1.0, gt=0, le=1, description="the share of its own texts in what is learned; the rest is the corpus's"
    )
    max_new_tokens: int = Field(default=128, gt=0, description="of each text; a longer one is cut before its last word")
    temperature: float = Field(default=1.0, gt=0, description="below 1: likelier tokens more often")
    top_p: float = Field(default=1.0, gt=0, le=1, description="draw from the likeliest tokens that have this share")
    batch: int = Field(default=32, gt=0, description="how many are written at once, which are then one shard")
    prompts: str | None = Field(
        default=None, description="JSON lines, each with a `prompt` or `messages`; beginnings of the corpus without it"
    )
    staleness: Literal[0, 1] = Field(
        default=0,
        description="1: a round's texts are by the student as it was before the last round; on Ray they are written "
        "and scored while that round is learned",
    )
    generation_actors: int = resource(default=1, gt=0, description="copies of the student that write, on Ray")
    generation_gpus: float = resource(default=0, ge=0, description="GPUs for each of them")
    generation_resources: dict[str, Annotated[float, Field(gt=0)]] = resource(
        default={}, description="what else of a cluster's own resources each of them needs"
    )


class Train(Options):
    """One training run on stored targets."""

    steps: int = Field(gt=0, description="optimizer steps")
    seed: int = Field(default=0, ge=0, description="of the order of rows and of new weights")
    objectives: list[AnyObjective] = Field(
        default=[PrefixKl(kind="prefix_kl")], min_length=1, description="what is minimised: a weighted sum"
    )
    batch_tokens: int = Field(default=4096, gt=0, description="padded student tokens in a micro-batch")
    gradient_accumulation: int = Field(
        default=1, gt=0, description="micro-batches a step, over all workers; as many again for each of extra_teachers"
    )
    num_workers: int = resource(default=0, ge=0, description="Ray Train workers; 0 trains in this process")
    min_workers: int | None = resource(
        default=None, ge=1, description="go on with as few as this where machines are lost, until others join"
    )
    use_gpu: bool = resource(
        default=False, description="a GPU for each worker; unless autocast is off, another training than without"
    )
    worker_resources: dict[str, Annotated[float, Field(gt=0)]] = resource(
        default={},
        description="what else of a cluster's own resources, such as {train: 1}, which certain machines have",
    )
    strategy: Literal["ddp", "fsdp"] = resource(
        default="ddp", description="ddp: every worker has a replica of the student; fsdp: a shard of it"
    )
    activation_checkpointing: bool = resource(
        default=False, description="compute each layer again in the backward pass, which takes time and saves memory"
    )
    learning_rate: float = Field(2e-4, gt=0, description="the highest, after warm-up")
    embedding_learning_rate: float | None = Field(
        default=None, gt=0, description="for embeddings and head, where it differs"
    )
    projection_learning_rate: float = Field(
        default=1e-3,
        gt=0,
        description="for projections that an objective trains along: dskd's, hidden_states' of unlike widths",
    )
    weighting: Literal["fixed", "gradient_magnitude"] = Field(
        default="fixed",
        description="fixed: each by its weight; gradient_magnitude: so that all pull equally at the last layer",
    )
    warmup_steps: int | None = Field(default=None, ge=0, description="a twelfth of the steps by default")
    min_lr_ratio: float = Field(default=0.0, ge=0, le=1, description="linear decay ends at this fraction of the peak")
    betas: tuple[Fraction, Fraction] = Field(default=(0.9, 0.95), description="of AdamW")
    eps: float = Field(
        default=DEFAULT_EPS,
        gt=0,
        description="of AdamW: parameters with smaller gradients move by less. 1e-5 keeps embeddings of tokens that a "
        "short training's text does not hold where they are",
    )
    weight_decay: float = Field(default=0.0, ge=0, description="of AdamW")
    max_grad_norm: float | None = Field(
        default=1.0, gt=0, description="the largest norm of a step's gradient; none leaves it as it is"
    )
    freeze: list[str] = Field(
        default=[], description="regular expressions; parameters with a match in their name stay fixed"
    )
    stages: list[Stage] = Field(
        default=[],
        description="the first of the steps with other settings, such as [{steps: 64, freeze: [layers], learning_rate: "
        "1e-3}]: each stage has an optimizer and a schedule of its own, and all have one order of rows",
    )
    on_policy: OnPolicy | None = Field(default=None, description="learn from the student's own texts")
    autocast: Literal["auto", "fastest", "off"] = Field(
        default="auto",
        description="auto: bfloat16 on GPUs that have it; fastest: also on CPUs with AMX or AVX512-BF16. All workers "
        "calculate in one type",
    )
    evaluate_every: int | None = resource(
        default=None, gt=0, description="measure evaluate.sets every so many steps, and after the last one"
    )
    checkpoint_every: int | None = resource(
        default=None, gt=0, description="a tenth of the steps by default; the last step always makes a checkpoint"
    )
    max_failures: int = resource(default=3, ge=0, description="restarts of the workers before the run fails")

    def result_values(self) -> dict[str, Any]:
        """Without what is not used: options that are new change no name of an older training."""
        values = super().result_values()
        if self.on_policy is not None:
            values["on_policy"] = self.on_policy.result_values()
        if self.eps == DEFAULT_EPS:
            del values["eps"]
        return {name: value for name, value in values.items() if name not in ("stages", "on_policy") or value}

    @property
    def checkpoint_steps(self) -> int:
        """The steps from one checkpoint to the next."""
        return self.checkpoint_every or -(-self.steps // 10)

    @property
    def warmup(self) -> int:
        """The steps in which the learning rate rises."""
        return self.steps // 12 if self.warmup_steps is None else self.warmup_steps

    @property
    def phases(self) -> list["Phase"]:
        """The stages and the rest of the training."""
        found, begin = [], 0
        for number, stage in enumerate(self.stages):
            given = {name: value for name, value in stage if value is not None}
            if stage.learning_rate is not None:  # embeddings do not keep that of `train`
                given["embedding_learning_rate"] = stage.embedding_learning_rate
            options = self.model_copy(update=given | {"warmup_steps": stage.warmup_steps, "stages": []})
            found.append(Phase(begin, f"train.stages.{number}", options))
            begin += stage.steps
        rest = self.model_copy(update={"steps": self.steps - begin, "stages": []})
        return [*found, Phase(begin, "train", rest)]

    @property
    def online_objectives(self) -> list[str]:
        """The kinds of those objectives that ask the teacher at every step."""
        return [objective.kind for objective in self.objectives if "teacher" in objective.needs]

    @field_validator("autocast", mode="before")
    @classmethod
    def _yaml_word(cls, value: object) -> object:
        """YAML 1.1 reads the word `off` as false."""
        return {False: "off", True: "auto"}.get(value, value) if isinstance(value, bool) else value

    @field_validator("freeze")
    @classmethod
    def _patterns(cls, patterns: list[str]) -> list[str]:
        return _regular(patterns)

    @model_validator(mode="after")
    def _stages_leave_steps(self) -> "Train":
        if self.stages and (total := sum(stage.steps for stage in self.stages)) >= self.steps:
            raise ValueError(f"the stages have {total} steps, and steps, which counts theirs too, is {self.steps}")
        if self.on_policy is not None and self.on_policy.begin + self.on_policy.rounds > self.steps:
            raise ValueError(f"on_policy has {self.on_policy.rounds} rounds, for which {self.steps} steps are too few")
        if self.stages and self.strategy == "fsdp":
            raise ValueError("stages are not supported with strategy: fsdp; use ddp")
        return self

    @model_validator(mode="after")
    def _own_texts_are_there(self) -> "Train":
        rounds = self.on_policy
        is_asked = any(objective.kind == "policy_gradient" for objective in self.objectives)
        if is_asked and (rounds is None or rounds.begin or rounds.fraction < 1):
            raise ValueError(
                "policy_gradient learns from the student's own texts alone: give on_policy, with fraction 1 and no "
                "begin; a student that has learned the corpus before is student.model"
            )
        return self

    @model_validator(mode="after")
    def _workers_share_a_step(self) -> "Train":
        if self.min_workers is not None and self.min_workers > self.num_workers:
            raise ValueError(f"min_workers is {self.min_workers}, and num_workers, the most, {self.num_workers}")
        most = max(self.num_workers, 1)
        for workers in range(self.min_workers or most, most + 1):
            if self.gradient_accumulation % workers:
                raise ValueError(
                    f"gradient_accumulation is {self.gradient_accumulation}, and a step may have {workers} workers: "
                    "each takes the same number of micro-batches a step, so the first must be a multiple of the second"
                )
        return self

    @model_validator(mode="after")
    def _shares_are_possible(self) -> "Train":
        if self.strategy == "fsdp" and not self.num_workers:
            raise ValueError("strategy: fsdp shards the student over num_workers, which is 0: set it to 2 or more")
        if self.strategy == "fsdp" and self.weighting == "gradient_magnitude":
            raise ValueError(
                "weighting: gradient_magnitude is not supported with strategy: fsdp, which shards layers; use ddp or "
                "weighting: fixed"
            )
        return self

    @model_validator(mode="after")
    def _no_weight_is_ignored(self) -> "Train":
        weighted = [objective.kind for objective in self.objectives if objective.weight != 1]
        if self.weighting == "gradient_magnitude" and (weighted or len(self.objectives) < 2):
            raise ValueError(
                "weighting: gradient_magnitude finds the weights of several objectives itself"
                + (f", so the weight of {weighted[0]} would be ignored: leave it out" if weighted else ": name several")
            )
        return self


class Phase(NamedTuple):
    """A stage of a training, or what is left of it.

    begin: the step before which it begins. field: where its options are in a run. options: what it trains with.
    """

    begin: int
    field: str
    options: Train


def _regular(patterns: list[str]) -> list[str]:
    for pattern in patterns:
        try:
            re.compile(pattern)
        except re.error as error:
            raise ValueError(f"{pattern!r} is no regular expression ({error})") from error
    return patterns
