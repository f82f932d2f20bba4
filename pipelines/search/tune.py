"""`ctd tune`: many trainings on the same shards, on Ray Tune, under a scheduler; the best as a file for `ctd train`."""

import json
import logging
import os
import random
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray
from ray import tune

from ctd_core.config.base import fingerprint
from ctd_core.config.search_space import parse_space, settings
from ctd_core.config.training import Train
from ctd_core.config.yaml_files import read_options, with_overrides, with_values
from ctd_core.errors import CtdError, UsageError
from ctd_core.evaluation.metrics import METRICS, TEACHER_DISTANCE, metric_key
from ctd_core.storage.locations import names_in
from pipelines.artifacts.failure import delete_failure
from pipelines.artifacts.run_plan import RunPlan, plan_run, variant, with_training
from pipelines.cluster.connection import connect, is_local, reraised_errors, stop_local_ray
from pipelines.display.plots import require_matplotlib
from pipelines.display.progress import progress
from pipelines.recipes import read_run
from pipelines.search.options import EVALUATIONS, Asha, Search
from pipelines.search.record import RECORD, TrialRecord, read_record, same_values
from pipelines.search.results import TrialResult, order, write_results
from pipelines.search.rungs import rungs_of
from pipelines.search.trackers import tracker
from pipelines.search.trial import trial_training
from pipelines.search.watch import Watch
from pipelines.stages.preflight import check_inputs
from pipelines.stages.prepare import prepare
from pipelines.stages.student import ensure_student

logger = logging.getLogger(__name__)

if TYPE_CHECKING:
    from pipelines.search.optuna_searcher import OptunaSearcher

os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")  # Tune's other output has no silent mode
os.environ.setdefault("TUNE_PRINT_ALL_TRIAL_ERRORS", "0")  # the table of trials has them
os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")  # a training writes what they would
DEFAULT_TRIALS = 16
WAITING_CPUS = 0.01  # of a trial whose workers train
DRAWS_A_TRIAL = 100  # tries for settings that no other trial has


@dataclass(frozen=True)
class Found:
    """The trials of a search, the best first, what they are compared by, and where it is written."""

    trials: list[TrialResult]
    metric: str
    directory: Path


def search(file: Path, overrides: list[str], resume: bool, retry_failed: bool = False) -> Found:
    """Run the search that `file` describes.

    Raises UsageError for a search that cannot be run, CtdError where it was interrupted or no trial came to its end.
    """
    if retry_failed and not resume:
        raise UsageError("--retry-failed belongs to --resume: give both")
    require_matplotlib()
    options = read_options(file, Search)
    run = with_values(read_run(options.recipe, str(file), []), options.changes, f"{file}: changes")
    base = _with_evaluations(plan_run(with_overrides(run, overrides)), file)
    metric = _metric(options, base, file)
    space = {path: parse_space(value, f"{file}: space.{path}") for path, value in options.space.items()}
    searched = options.result_values()
    decides = fingerprint(searched, base.training.name, base.evaluation)
    directory = base.files.directory / f"search-{file.stem}-{decides}"
    location = base.files.within(directory)
    base.files.fetch(directory / RECORD, overwrite=True)
    past = read_record(directory).trials
    begun = bool(past) or bool(names_in(location))
    drawn = _draw(options, space, base, file)  # for optuna a check alone: it chooses while it searches
    if begun and not resume:
        raise UsageError(f"{location}: this search was begun already. Go on with it: --resume. Or delete it.")
    if resume and not begun:
        raise UsageError(
            f"{location}: there is no search to resume. Leave --resume out, or restore the file as it was."
        )
    trackers = [tracker(kind, base.config.name) for kind in options.trackers]
    _check_capacity(options, base, file)
    check_inputs(base.config)
    prepare(base)
    ensure_student(base)
    wanted = (options.trials or DEFAULT_TRIALS) if options.searcher == "optuna" else len(drawn)
    if retry_failed:
        for trial in past:
            if trial.state == "failed":
                delete_failure(variant(base, trial.values, f"{file}: a trial that failed").checkpoints)
        past = [trial.model_copy(update={"state": "running"}) if trial.state == "failed" else trial for trial in past]
    if not resume:
        for values in drawn:  # what an earlier search or training failed with is tried again
            delete_failure(variant(base, values, f"{file}: a trial").checkpoints)
    with reraised_errors(), progress(f"tune: {file.stem}", wanted) as reporter:
        watch = Watch(metric, options.mode, reporter, base, directory, past)
        try:
            _run(options, base, metric, space, drawn, directory, watch, trackers)
        finally:
            if watch.trials:
                base.files.upload(directory / RECORD)
    again = shlex.join(
        ["ctd", "tune", "--config", str(file), *(f"--set={override}" for override in overrides), "--resume"]
    )
    trials = watch.trials
    ended = sum(trial.state != "running" for trial in trials)
    if ended < wanted:
        raise CtdError(f"the search was interrupted: {ended} of {wanted} trials have ended. Go on with it: {again}")
    results = order(
        [TrialResult(number, trial.values, trial.lines, trial.error) for number, trial in enumerate(trials)],
        metric,
        options.mode,
    )
    if any(trial.state == "failed" for trial in trials):
        logger.info(f"tune: to try the trials that failed again: {again} --retry-failed")
    if results[0].error is not None or not results[0].has_finite(metric):
        raise CtdError(
            f"no trial came to a figure; to search again, delete {location}. One of them: "
            f"{results[0].error or 'not a finite one'}"
        )
    if results[0].steps < base.config.train.steps:
        logger.info(
            f"tune: the best trial was stopped after {results[0].steps} of {base.config.train.steps} steps, since "
            "those that went further failed; ctd train with its best.yaml trains it to the end"
        )
    best = variant(base, results[0].values, f"{file}: the best trial").config
    directory.mkdir(parents=True, exist_ok=True)
    write_results(file.stem, results, metric, best, directory)
    for result in directory.iterdir():
        if result.is_file():
            base.files.upload(result)
    return Found(results, metric, directory)


def _with_evaluations(base: RunPlan, file: Path) -> RunPlan:
    """`base`, evaluated often enough to stop a trial early, each time with a checkpoint to go on from."""
    if not base.config.evaluate.sets:
        raise UsageError(f"{file}: the run has no evaluate.sets, so there is nothing to search by.")
    train = base.config.train
    every = train.evaluate_every or max(1, train.steps // EVALUATIONS)
    return with_training(base, train.model_copy(update={"evaluate_every": every, "checkpoint_every": every}))


def _check_capacity(options: Search, base: RunPlan, file: Path) -> None:
    """Get hold of Ray; raises UsageError where trials of several workers would wait for each other for ever."""
    train = base.config.train
    workers = train.num_workers
    if not workers:  # such trials wait for free CPUs, and not for each other
        connect(options.cpus_per_trial, float(train.use_gpu), "cpus_per_trial and train.use_gpu")
        return
    stop_local_ray()  # what stopped trials leave behind is found through the dashboard, which a new Ray has
    fields = "train.num_workers and train.use_gpu"
    connect(workers, float(workers * train.use_gpu), fields, train.worker_resources, dashboard=True)
    unit, there = _capacity(train)
    wanted = (options.concurrent or 1) * workers
    if is_local() and wanted > there:
        raise UsageError(
            f"{file}: {options.concurrent} trials at once of {workers} {unit}s each are {wanted}, and this machine has "
            f"{there:g}. Lower concurrent, or set RAY_ADDRESS to a cluster."
        )
    if not is_local() and options.concurrent is None:
        logger.info(
            f"tune: {_at_once(options, train)} trials at once, which the cluster has capacity for now; `concurrent` "
            "sets another number"
        )


def _at_once(options: Search, train: Train) -> int | None:
    """How many trials may run at once: of several workers each, as many as the cluster has capacity for."""
    if options.concurrent is not None or not train.num_workers:
        return options.concurrent
    _, there = _capacity(train)
    return max(1, int(there // train.num_workers))


def _capacity(train: Train) -> tuple[str, float]:
    """What a worker takes one of, and how many of these the cluster has now."""
    unit = "GPU" if train.use_gpu else "CPU"
    return unit, ray.cluster_resources().get(unit, 0.0)


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


def _draw(options: Search, space: dict[str, Any], base: RunPlan, file: Path) -> list[dict[str, Any]]:
    """The settings of every trial, each of another training; all of them are runs that could be started."""
    state, everything = random.Random(options.seed), options.searcher == "grid"
    wanted = options.trials or (None if everything else DEFAULT_TRIALS)
    found: dict[Path, dict[str, Any]] = {}
    for _ in range(1 if everything else DRAWS_A_TRIAL * (wanted or 1)):
        for values in settings(space, everything, state):
            plan = variant(base, values, f"{file}: {json.dumps(values)}")
            _check_alike(base.config.train, plan.config.train, file)
            found.setdefault(plan.training, values)
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


def optuna_searcher(
    options: Search, space: dict[str, Any], metric: str, past: Sequence[TrialRecord] = ()
) -> "OptunaSearcher":
    """Optuna's sampler over `space`, which begins with `past` trials; raises UsageError where it is not installed."""
    try:
        from pipelines.search.optuna_searcher import OptunaSearcher
    except ImportError as error:
        raise UsageError("searcher: optuna needs the package optuna: pip install 'ctd-ray[optuna]'.") from error
    return OptunaSearcher(space, metric, options.mode, options.seed, past)


def _run(
    options: Search,
    base: RunPlan,
    metric: str,
    space: dict[str, Any],
    drawn: list[dict[str, Any]],
    directory: Path,
    watch: Watch,
    trackers: Sequence[tune.Callback],
) -> None:
    """Run the trials that have not ended, in a new experiment of Ray Tune's: nothing of its own state is read."""
    train = base.config.train
    ended = [trial for trial in watch.trials if trial.state != "running"]
    if options.searcher == "optuna":
        searcher = optuna_searcher(options, space, metric, watch.trials)
        watch.searcher = searcher
        left = (options.trials or DEFAULT_TRIALS) - len(ended)
        searched: dict[str, Any] = {"search_alg": searcher, "num_samples": left}
    else:
        todo = [values for values in drawn if not any(same_values(values, trial.values) for trial in ended)]
        left = len(todo)
        searched = {"config": {"values": tune.grid_search(todo)}}
    if left <= 0:
        return
    scheduler = options.scheduler
    tune.run(
        tune.with_resources(
            tune.with_parameters(trial_training, base=base, metric=metric, cpus=options.cpus_per_trial),
            {"CPU": WAITING_CPUS} if train.num_workers else {"CPU": options.cpus_per_trial, "GPU": int(train.use_gpu)},
        ),
        name=directory.name,
        storage_path=base.files.store or str(base.files.directory),
        metric=metric,
        mode=options.mode,
        scheduler=rungs_of(scheduler, train.steps, ended) if isinstance(scheduler, Asha) else None,
        max_concurrent_trials=_at_once(options, train),
        max_failures=options.max_failures,
        raise_on_failed_trial=False,
        verbose=0,
        callbacks=[watch, *trackers],
        trial_dirname_creator=lambda trial: trial.trial_id,
        **searched,
    )
