"""`ctd tune`: many trainings on the same shards, on Ray Tune, under a scheduler; the best as a file for `ctd train`."""

import logging
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray
from ray import tune

from ctd_core.config.training import Train
from ctd_core.errors import CtdError, Interrupted, UsageError
from ctd_core.storage.locations import names_in
from pipelines.artifacts.failure import delete_failure
from pipelines.artifacts.run_plan import RunPlan, variant
from pipelines.cluster.connection import connect, is_local, reraised_errors, stop_local_ray
from pipelines.display.plots import require_matplotlib
from pipelines.display.progress import progress
from pipelines.search.options import Asha, Search
from pipelines.search.record import RECORD, TrialRecord, read_record, same_values
from pipelines.search.results import TrialResult, order, write_results
from pipelines.search.rungs import rungs_of
from pipelines.search.search_plan import SearchPlan, plan_search
from pipelines.search.trackers import tracker
from pipelines.search.trial import trial_training
from pipelines.search.watch import Watch
from pipelines.stages.preflight import check_inputs
from pipelines.stages.prepare import prepare
from pipelines.stages.student import ensure_student

logger = logging.getLogger(__name__)

if TYPE_CHECKING:
    from pipelines.search.optuna_searcher import OptunaSearcher

WAITING_CPUS = 0.01  # of a trial whose workers train


@dataclass(frozen=True)
class Found:
    """The trials of a search, the best first, what they are compared by, and where it is written."""

    trials: list[TrialResult]
    metric: str
    directory: Path


def search(file: Path, overrides: list[str], resume: bool, retry_failed: bool = False) -> Found:
    """Run the search that `file` describes.

    Args:
        file: a YAML file of options of Search.
        overrides: other values for its run, such as train.steps=100.
        resume: whether it goes on with one that was interrupted.
        retry_failed: whether failed trials are tried again.

    Returns:
        What was found.

    Raises:
        UsageError: the search cannot be run.
        Interrupted: before all trials had ended.
        CtdError: no trial came to its end.
    """
    if retry_failed and not resume:
        raise UsageError("--retry-failed belongs to --resume: give both")
    require_matplotlib()
    plan = plan_search(file, overrides)
    base = plan.base
    past = _past_trials(plan, resume)
    trackers = [tracker(kind, base.config.name) for kind in plan.options.trackers]
    _check_capacity(plan.options, base, file)
    check_inputs(base.config)
    prepare(base)
    ensure_student(base)
    if retry_failed:
        past = [_to_try_again(plan, trial) if trial.state == "failed" else trial for trial in past]
    if not resume:
        for values in plan.drawn:  # what an earlier search or training failed with is tried again
            delete_failure(variant(base, values, f"{file}: a trial").checkpoints)
    with reraised_errors(), progress(f"tune: {file.stem}", plan.num_trials) as reporter:
        watch = Watch(plan.metric, plan.options.mode, reporter, base, plan.directory, past)
        try:
            _run(plan, watch, trackers)
        finally:
            if watch.trials:
                base.files.upload(plan.directory / RECORD)
    options = [f"--set={override}" for override in overrides]
    return _conclude(plan, watch.trials, file, shlex.join(["ctd", "tune", "--config", str(file), *options, "--resume"]))


def _past_trials(plan: SearchPlan, resume: bool) -> list[TrialRecord]:
    """The trials of an earlier try; raises UsageError where `resume` does not fit what is there."""
    plan.base.files.fetch(plan.directory / RECORD, overwrite=True)
    past = read_record(plan.directory).trials
    begun = bool(past) or bool(names_in(plan.location))
    if begun and not resume:
        raise UsageError(f"{plan.location}: this search was begun already. Go on with it: --resume. Or delete it.")
    if resume and not begun:
        raise UsageError(
            f"{plan.location}: there is no search to resume. Leave --resume out, or restore the file as it was."
        )
    return past


def _to_try_again(plan: SearchPlan, trial: TrialRecord) -> TrialRecord:
    delete_failure(variant(plan.base, trial.values, "a trial that failed").checkpoints)
    return trial.model_copy(update={"state": "running"})


def _conclude(plan: SearchPlan, trials: Sequence[TrialRecord], file: Path, again: str) -> Found:
    """Order the trials and write the results; `again` is the command that resumes the search."""
    ended, base, metric = sum(trial.state != "running" for trial in trials), plan.base, plan.metric
    if ended < plan.num_trials:
        raise Interrupted(
            f"the search was interrupted: {ended} of {plan.num_trials} trials have ended. Go on with it: {again}"
        )
    numbered = [TrialResult(number, trial.values, trial.lines, trial.error) for number, trial in enumerate(trials)]
    results = order(numbered, metric, plan.options.mode)
    if any(trial.state == "failed" for trial in trials):
        logger.info(f"tune: to try the trials that failed again: {again} --retry-failed")
    best = results[0]
    if best.error is not None or not best.has_finite(metric):
        raise CtdError(
            f"no trial came to a metric; to search again, delete {plan.location}. One of them: "
            f"{best.error or 'not a finite number'}"
        )
    if best.steps < base.config.train.steps:
        logger.info(
            f"tune: the best trial was stopped after {best.steps} of {base.config.train.steps} steps, since those "
            "that went further failed; ctd train with its best.yaml trains it to the end"
        )
    recipe = variant(base, best.values, f"{file}: the best trial").config
    plan.directory.mkdir(parents=True, exist_ok=True)
    write_results(file.stem, results, metric, recipe, plan.directory)
    for result in plan.directory.iterdir():
        if result.is_file():
            base.files.upload(result)
    return Found(results, metric, plan.directory)


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


def optuna_searcher(
    options: Search, space: dict[str, Any], metric: str, past: Sequence[TrialRecord] = ()
) -> "OptunaSearcher":
    """Optuna's sampler over `space`, which begins with `past` trials; raises UsageError where it is not installed."""
    try:
        from pipelines.search.optuna_searcher import OptunaSearcher
    except ImportError as error:
        raise UsageError("searcher: optuna needs the package optuna: pip install 'ctd-ray[optuna]'.") from error
    return OptunaSearcher(space, metric, options.mode, options.seed, past)


def _run(plan: SearchPlan, watch: Watch, trackers: Sequence[tune.Callback]) -> None:
    """Run the trials that have not ended, in a new experiment of Ray Tune's: nothing of its own state is read."""
    options, base = plan.options, plan.base
    train = base.config.train
    ended = [trial for trial in watch.trials if trial.state != "running"]
    if options.searcher == "optuna":
        searcher = optuna_searcher(options, plan.space, plan.metric, watch.trials)
        watch.searcher = searcher
        left = plan.num_trials - len(ended)
        searched: dict[str, Any] = {"search_alg": searcher, "num_samples": left}
    else:
        todo = [values for values in plan.drawn if not any(same_values(values, trial.values) for trial in ended)]
        left = len(todo)
        searched = {"config": {"values": tune.grid_search(todo)}}
    if left <= 0:
        return
    scheduler = options.scheduler
    tune.run(
        tune.with_resources(
            tune.with_parameters(trial_training, base=base, metric=plan.metric, cpus=options.cpus_per_trial),
            {"CPU": WAITING_CPUS} if train.num_workers else {"CPU": options.cpus_per_trial, "GPU": int(train.use_gpu)},
        ),
        name=plan.directory.name,
        storage_path=base.files.store or str(base.files.directory),
        metric=plan.metric,
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
