"""A file for `ctd tune`: a run, and what is searched in it."""

from typing import Annotated, Any, Literal

from pydantic import Field

from ctd_core.config.base import RESOURCE, Options, resource

EVALUATIONS = 8  # in a trial's training, unless the run sets evaluate_every


class Asha(Options):
    """Asynchronous successive halving (arXiv 1810.05934): at each rung, the best 1 / reduction_factor go on."""

    kind: Literal["asha"]
    grace_steps: int | None = Field(default=None, gt=0, description="the first rung; an eighth of the steps by default")
    reduction_factor: float = Field(default=3.0, gt=1)


class NoScheduler(Options):
    """Every trial trains to its end."""

    kind: Literal["none"]


class Search(Options):
    """A file for `ctd tune`: a run, and what is searched in it."""

    recipe: str = Field(json_schema_extra=RESOURCE, description="a packaged run's name, or a run's YAML file")
    changes: dict[str, Any] = Field(default={}, description="other values for the run, by dotted path")
    space: dict[str, Any] = Field(min_length=1, description="values and distributions by dotted path below train")
    metric: str | None = Field(
        default=None, description="such as general_teacher_distance_bits_per_byte, which is the default on the gap_set"
    )
    mode: Literal["min", "max"] = "min"
    searcher: Literal["random", "grid", "optuna"] = "random"
    trials: int | None = Field(default=None, ge=1, description="how many; 16 by default, and all of a grid search")
    scheduler: Annotated[Asha | NoScheduler, Field(discriminator="kind")] = Asha(kind="asha")
    seed: int = 0
    cpus_per_trial: int = resource(default=1, ge=1, description="for a trial in one process: train.num_workers is 0")
    concurrent: int | None = resource(default=None, ge=1, description="trials at once; as many as fit by default")
    max_failures: int = resource(
        default=2, ge=0, description="restarts of a trial, from its checkpoint, before it failed"
    )
    trackers: list[Literal["mlflow", "wandb"]] = resource(
        default=[], description="report every trial to MLflow (MLFLOW_TRACKING_URI) or Weights & Biases (WANDB_API_KEY)"
    )
