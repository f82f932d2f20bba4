"""What a search is going to try: its trials, what they are compared by, and where it is written."""

import json
import logging
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ctd_core.config.base import fingerprint
from ctd_core.config.run import drawn_left_out
from ctd_core.config.search_space import parse_space, settings
from ctd_core.config.training import Train
from ctd_core.config.yaml_files import read_options, with_overrides, with_values
from ctd_core.errors import UsageError
from ctd_core.evaluation.metrics import METRICS, TEACHER_DISTANCE, metric_key
from pipelines.artifacts.run_plan import RunPlan, plan_run, variant, with_training
from pipelines.recipes import check_made, read_run
from pipelines.search.options import EVALUATIONS, Search

logger = logging.getLogger(__name__)
DEFAULT_TRIALS = 16
DRAWS_A_TRIAL = 100  # tries for settings that no other trial has


@dataclass(frozen=True)
class SearchPlan:
    """A search. base: the run that its trials differ from. space: distributions by dotted path.

    drawn: the settings of every trial; those of optuna, which chooses while it searches, are a check alone.
    directory: where it is written, on this machine.
    """

    options: Search
    base: RunPlan
    metric: str
    space: dict[str, Any]
    drawn: list[dict[str, Any]]
    directory: Path

    @property
    def location(self) -> str:
        """Where it is written."""
        return self.base.files.within(self.directory)

    @property
    def num_trials(self) -> int:
        """How many trials it has."""
        return (self.options.trials or DEFAULT_TRIALS) if self.options.searcher == "optuna" else len(self.drawn)


def plan_search(file: Path, overrides: list[str]) -> SearchPlan:
    """The search that `file` describes.

    Args:
        file: a YAML file of options of Search.
        overrides: other values for its run, such as train.steps=100.

    Returns:
        The plan.

    Raises:
        UsageError: it cannot be run.
    """
    options = read_options(file, Search)
    run = with_values(read_run(options.recipe, str(file), []), options.changes, f"{file}: changes")
    run = with_overrides(run, overrides)
    check_made(options.recipe, run)
    base = _with_evaluations(plan_run(run), file)
    space = {path: parse_space(value, f"{file}: space.{path}") for path, value in options.space.items()}
    decides = fingerprint(
        options.result_values(), base.training.name, base.evaluation, base.config.train.evaluate_every
    )
    directory = base.files.directory / f"search-{file.stem}-{decides}"
    metric = _metric(options, base, file)
    trials = _draw(options, space, base, file)
    for warning in dict.fromkeys(line for plan, _ in trials for line in drawn_left_out(plan.config)):
        logger.warning(warning)
    return SearchPlan(options, base, metric, space, [values for _, values in trials], directory)


def _with_evaluations(base: RunPlan, file: Path) -> RunPlan:
    """`base`, evaluated often enough to stop a trial early, each time with a checkpoint to go on from."""
    if not base.config.evaluate.sets:
        raise UsageError(f"{file}: the run has no evaluate.sets, so there is nothing to search by.")
    train = base.config.train
    every = train.evaluate_every or max(1, train.steps // EVALUATIONS)
    return with_training(base, train.model_copy(update={"evaluate_every": every, "checkpoint_every": every}))


def _metric(options: Search, base: RunPlan, file: Path) -> str:
    evaluate = base.config.evaluate
    measured = [metric_key(name, metric) for name in evaluate.sets for metric in METRICS]
    chosen = options.metric or metric_key(evaluate.gap_set or next(iter(evaluate.sets)), TEACHER_DISTANCE)
    if chosen not in measured:
        raise UsageError(f"{file}: metric: {chosen}: a trial measures {', '.join(measured)}.")
    better = (
        "min"
        if next(candidate for candidate in METRICS if chosen.endswith(f"_{candidate.name}")).lower_is_better
        else "max"
    )
    if options.mode != better:
        raise UsageError(f"{file}: mode: {options.mode}: {chosen} is best at its {better}imum. Set mode: {better}.")
    return chosen


def _draw(options: Search, space: dict[str, Any], base: RunPlan, file: Path) -> list[tuple[RunPlan, dict[str, Any]]]:
    """Every trial and its settings, each of another training; all of them are runs that could be started."""
    state, everything = random.Random(options.seed), options.searcher == "grid"
    wanted = options.trials or (None if everything else DEFAULT_TRIALS)
    found: dict[Path, tuple[RunPlan, dict[str, Any]]] = {}
    for _ in range(1 if everything else DRAWS_A_TRIAL * (wanted or 1)):
        for values in settings(space, everything, state):
            plan = variant(base, values, f"{file}: {json.dumps(values)}")
            _check_alike(base.config.train, plan.config.train, file)
            found.setdefault(plan.training, (plan, values))
            if len(found) == wanted:
                return list(found.values())
    if wanted is not None and len(found) < wanted and options.searcher != "optuna":
        logger.info(f"tune: {wanted} trials were asked for, and the space holds {len(found)}")
    return list(found.values())


def _check_alike(base: Train, trial: Train, file: Path) -> None:
    """Raises UsageError where a trial would be of another length, or ask for other resources, than all others."""
    for field in ("steps", *sorted(Train.resources())):
        if getattr(base, field) != getattr(trial, field):
            raise UsageError(
                f"{file}: space: train.{field}: trials of unlike length or resources cannot be compared. Put it into "
                "changes."
            )
