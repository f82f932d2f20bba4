"""`ctd train`: the student learns from stored targets, in this process or on Ray Train workers."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

import torch

from ctd_core.errors import UsageError
from ctd_core.models.model_config import num_embeddings
from ctd_core.shards.manifest import check_teacher
from ctd_core.shards.reading import ShardSet
from ctd_core.storage.locations import open_to_read
from ctd_core.training.loop import Metrics, Stopped
from ctd_core.training.workers import Worker
from pipelines.artifacts.background import repeating
from pipelines.artifacts.checkpoints import latest_checkpoint, steps_done
from pipelines.artifacts.failure import delete_failure, raise_failure
from pipelines.artifacts.locks import stage_lock
from pipelines.artifacts.metrics_file import METRICS_FILE, parse_metrics, read_metrics, step_words
from pipelines.artifacts.run_plan import RunPlan
from pipelines.artifacts.training_options import others_of, write_options
from pipelines.cluster.connection import actor_on_driver, connect, reraised_errors
from pipelines.display.progress import Reporter, progress
from pipelines.stages.stopping import Switch, hears_signals, run_stoppable, stop_signals
from pipelines.stages.student import ensure_student
from pipelines.stages.train_worker import OwnTextsBefore, ray_worker, run_worker

logger = logging.getLogger(__name__)
MANY_EPOCHS = 10

if TYPE_CHECKING:
    from ray.train import UserCallback

TRIAL_WORKER_CPUS = 0.9  # the rest of a CPU is left for the trial that waits for its workers
RESIZE_SECONDS = 60.0  # between looks for further machines; to take them in costs the steps since a checkpoint


def train_student(
    plan: RunPlan,
    after_checkpoint: Callable[[Metrics], None] = lambda metrics: None,
    on_ray: Callable[[], "UserCallback"] | None = None,
    own_texts: OwnTextsBefore = lambda step, student, stops: None,
) -> None:
    """Train to the last step, from the latest checkpoint where there is one; nothing where that is done.

    `after_checkpoint` is called with what the step of each checkpoint measured, and `own_texts` before each step, where
    the training is in this process; where it is on Ray's workers, Ray calls what `on_ray` makes.
    """
    with stage_lock(plan.files, plan.training.name):
        _train_student(plan, after_checkpoint, on_ray, own_texts)


def _train_student(
    plan: RunPlan,
    after_checkpoint: Callable[[Metrics], None],
    on_ray: Callable[[], "UserCallback"] | None,
    own_texts: OwnTextsBefore,
) -> None:
    options = plan.config.train
    if options.use_gpu and not options.num_workers and not torch.cuda.is_available():
        raise UsageError("train.use_gpu is true, and torch sees no GPU here. Set it to false.")
    if options.on_policy is not None and plan.part is None:
        raise UsageError("train.on_policy: a search has no rounds. Train with `ctd train`, `ctd run` or `ctd compare`.")
    measured = [plan.datasets[name] for name in plan.config.evaluate.sets] if options.evaluate_every else []
    for dataset in (*plan.training_sets.values(), *measured):
        shards = ShardSet(dataset.location, verify=True, cache=plan.shard_cache)
        teacher = dataset.teacher
        rows = num_embeddings(teacher.model, teacher.revision, teacher.trust_remote_code)
        check_teacher(shards.manifest, shards.name, dataset.teacher_weights, rows)
    ensure_student(plan)
    _tell_epochs(plan)
    start = latest_checkpoint(plan.checkpoints)
    done = steps_done(start)
    if done >= plan.last_step:
        plan.files.fetch(plan.training / METRICS_FILE)
        logger.info(f"train: all {plan.last_step} steps are done already, in {plan.checkpoints}")
        return
    write_options(plan)
    if done:
        logger.info(f"train: going on from step {done}, in {plan.checkpoints}")
    if online := options.online_objectives:
        is_own = plan.config.student.is_its_own_teacher
        how = "which is the student without its adapters" if is_own else "so it is loaded beside the student"
        logger.info(f"train: {', '.join(online)} asks the teacher at every step, {how}")
    with progress("train", options.steps) as reporter:
        if options.num_workers:
            with _watched(plan, reporter), reraised_errors():
                _train_on_ray(plan, [] if on_ray is None else [on_ray()])
        else:
            device = torch.device("cuda" if options.use_gpu else "cpu")
            delete_failure(plan.checkpoints)
            with stop_signals() as is_asked:
                try:
                    worker = Worker(device=device)
                    run_worker(plan, after_checkpoint, worker, reporter, lambda step: is_asked(), own_texts)
                except Stopped as stopped:
                    if is_asked() or stopped.done < plan.last_step:  # and not only at the end of a part
                        raise
    _warn_of_idle_objectives(plan)
    if plan.last_step == options.steps:
        logger.info(f"train: checkpoint and metrics are in {plan.checkpoints}")


def tell_other_trainings(plan: RunPlan) -> None:
    """Report, where this training is to begin, which others of the run there are: they may have been meant."""
    if latest_checkpoint(plan.checkpoints) is None:
        for other in others_of(plan):
            logger.info(f"train: this training begins from the start; beside it stays {other}")


def _tell_epochs(plan: RunPlan) -> None:
    """Report how often the corpus is learned: more steps than it has text for come back to the same text."""
    options = plan.config.train
    shards = ShardSet(plan.training_sets[None].location, verify=False, cache=plan.shard_cache)
    learned = options.steps * options.gradient_accumulation * options.batch_tokens
    epochs = learned / max(shards.manifest.counts.student_tokens, 1)
    many = f": more than {MANY_EPOCHS}, take more text or fewer steps" if epochs > MANY_EPOCHS else ""
    logger.info(f"train: {options.steps} steps learn the corpus {epochs:.2g} times at most{many}")


def _warn_of_idle_objectives(plan: RunPlan) -> None:
    """Report each objective that found nothing to compare in any step."""
    lines = _metrics_so_far(plan)
    for number, objective in enumerate(plan.config.train.objectives):
        if lines and not any(line.get(f"count_{number}_{objective.kind}", 1.0) for line in lines):
            logger.info(
                f"train: objectives.{number}, {objective.kind}, found nothing to compare: nothing was learned from it"
            )


def _train_on_ray(plan: RunPlan, callbacks: list["UserCallback"]) -> None:
    import ray.train
    from ray.train.torch import TorchTrainer

    v2: Any = ray.train  # its classes here are those of Train V2, and mypy sees those of V1
    options = plan.config.train
    most, least = options.num_workers, options.min_workers or options.num_workers
    connect(least, least if options.use_gpu else 0, "train.num_workers and train.use_gpu", options.worker_resources)
    switch = actor_on_driver(Switch) if hears_signals() else None
    resources = {"GPU": 1.0} if options.use_gpu else {"CPU": TRIAL_WORKER_CPUS if callbacks else 1.0}
    trainer = TorchTrainer(
        ray_worker,
        # With what the plan have computed: no worker reads the corpus again.
        train_loop_config={"plan": plan, "switch": switch},
        scaling_config=v2.ScalingConfig(
            num_workers=most if least == most else (least, most),
            use_gpu=options.use_gpu,
            resources_per_worker=resources | options.worker_resources,
            elastic_resize_monitor_interval_s=RESIZE_SECONDS,
        ),
        run_config=v2.RunConfig(
            name=plan.training.name,
            storage_path=plan.files.store or str(plan.files.directory),
            callbacks=callbacks,
            failure_config=v2.FailureConfig(max_failures=options.max_failures),
        ),
    )
    delete_failure(plan.checkpoints)
    was_asked = False
    if switch is None:
        trainer.fit()
    else:
        was_asked = run_stoppable(trainer.fit, switch)
    raise_failure(plan.checkpoints)
    done = steps_done(latest_checkpoint(plan.checkpoints))
    if done < plan.last_step or (was_asked and done < options.steps):
        raise Stopped(done)


@contextmanager
def _watched(plan: RunPlan, reporter: Reporter) -> Iterator[None]:
    """Report the last line of the metrics for as long as workers write them; in a store, every half a minute."""

    def report() -> None:
        if lines := _metrics_so_far(plan):
            reporter.update(int(lines[-1]["step"]), step_words(lines[-1]))

    with repeating(1.0 if plan.files.store is None else 10.0, report):
        yield


def _metrics_so_far(plan: RunPlan) -> list[Metrics]:
    if plan.files.store is None:
        return read_metrics(plan.training / METRICS_FILE)
    with suppress(OSError), open_to_read(plan.files.within(plan.training / METRICS_FILE)) as stream:
        return parse_metrics(stream.read().decode(), METRICS_FILE)
    return []
