"""`ctd train`: the student learns from stored targets, in this process or on Ray Train workers."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

import torch

from ctd_core.errors import UsageError
from ctd_core.models.loading import num_embeddings
from ctd_core.shards.manifest import check_teacher
from ctd_core.shards.reading import ShardSet
from ctd_core.storage.locations import open_to_read
from ctd_core.training.loop import Metrics, Stopped
from ctd_core.training.workers import Worker
from pipelines.artifacts.background import repeating
from pipelines.artifacts.checkpoints import latest_checkpoint, steps_done
from pipelines.artifacts.failure import forget_failure, raise_failure
from pipelines.artifacts.locks import one_at_a_time
from pipelines.artifacts.metrics_log import METRICS_FILE, parse_metrics, read_metrics, step_words
from pipelines.artifacts.run_paths import Places
from pipelines.cluster.connection import beside_command, connect, own_errors
from pipelines.display.progress import Reporter, progress, say
from pipelines.stages.stopping import Switch, hears_signals, run_stoppable, stop_signals
from pipelines.stages.student import ensure_student
from pipelines.stages.train_worker import ray_worker, run_worker

if TYPE_CHECKING:
    from ray.train import UserCallback

TRIAL_WORKER_CPUS = 0.9  # what is left of a CPU is room for the trial that waits for its workers
RESIZE_SECONDS = 60.0  # between looks for further machines; to take them in costs the steps since a checkpoint


def train_student(
    places: Places,
    after_checkpoint: Callable[[Metrics], None] = lambda metrics: None,
    on_ray: Callable[[], "UserCallback"] | None = None,
) -> None:
    """Train to the last step, from the latest checkpoint where there is one; nothing where that is done.

    `after_checkpoint` is called with what the step of each checkpoint measured, where the training is in this process;
    where it is on Ray's workers, what `on_ray` makes is told.
    """
    with one_at_a_time(places.files, places.train.name):
        _train_student(places, after_checkpoint, on_ray)


def _train_student(
    places: Places,
    after_checkpoint: Callable[[Metrics], None],
    on_ray: Callable[[], "UserCallback"] | None,
) -> None:
    options = places.config.train
    if options.use_gpu and not options.num_workers and not torch.cuda.is_available():
        raise UsageError("train.use_gpu is true, and torch sees no GPU here. Set it to false.")
    measured = [places.datasets[name] for name in places.config.evaluate.sets] if options.evaluate_every else []
    for one in (*places.training_sets.values(), *measured):
        shards = ShardSet(one.location, verify=True, cache=places.cache)
        teacher = one.teacher
        rows = num_embeddings(teacher.model, teacher.revision, teacher.trust_remote_code)
        check_teacher(shards.manifest, shards.name, places.teacher_weights(teacher), rows)
    ensure_student(places)
    start = latest_checkpoint(places.checkpoints)
    done = steps_done(start)
    if done >= options.steps:
        places.files.bring(places.train / METRICS_FILE)
        say(f"train: all {options.steps} steps are done already, in {places.checkpoints}")
        return
    if done:
        say(f"train: going on from step {done}, in {places.checkpoints}")
    if live := options.online_objectives:
        is_own = places.config.student.is_its_own_teacher
        how = "which is the student without its adapters" if is_own else "so it is loaded beside the student"
        say(f"train: {', '.join(live)} asks the teacher at every step, {how}")
    with progress("train", options.steps) as reporter:
        if options.num_workers:
            with _watched(places, reporter), own_errors():
                _train_on_ray(places, [] if on_ray is None else [on_ray()])
        else:
            device = torch.device("cuda" if options.use_gpu else "cpu")
            forget_failure(places)
            with stop_signals() as is_asked:
                run_worker(places, after_checkpoint, Worker(device=device), reporter, lambda step: is_asked())
    _warn_of_idle_objectives(places)


def _warn_of_idle_objectives(places: Places) -> None:
    """Report each objective that found nothing to compare in any step."""
    lines = _lines_so_far(places)
    for number, objective in enumerate(places.config.train.objectives):
        if lines and not any(line.get(f"count_{number}_{objective.kind}", 1.0) for line in lines):
            say(f"train: objectives.{number}, {objective.kind}, found nothing to compare: it taught nothing")


def _train_on_ray(places: Places, callbacks: list["UserCallback"]) -> None:
    import ray.train
    from ray.train.torch import TorchTrainer

    v2: Any = ray.train  # its classes here are those of Train V2, and mypy sees those of V1
    options = places.config.train
    most, least = options.num_workers, options.min_workers or options.num_workers
    connect(least, least if options.use_gpu else 0, "train.num_workers and train.use_gpu", options.worker_resources)
    switch = beside_command(Switch) if hears_signals() else None
    resources = {"GPU": 1.0} if options.use_gpu else {"CPU": TRIAL_WORKER_CPUS if callbacks else 1.0}
    trainer = TorchTrainer(
        ray_worker,
        # With what the places have computed: no worker reads the corpus again.
        train_loop_config={"places": places, "switch": switch},
        scaling_config=v2.ScalingConfig(
            num_workers=most if least == most else (least, most),
            use_gpu=options.use_gpu,
            resources_per_worker=resources | options.worker_resources,
            elastic_resize_monitor_interval_s=RESIZE_SECONDS,
        ),
        run_config=v2.RunConfig(
            name=places.train.name,
            storage_path=places.files.store or str(places.directory),
            callbacks=callbacks,
            failure_config=v2.FailureConfig(max_failures=options.max_failures),
        ),
    )
    forget_failure(places)
    if switch is None:
        trainer.fit()
    else:
        run_stoppable(trainer.fit, switch)
    raise_failure(places)
    if (done := steps_done(latest_checkpoint(places.checkpoints))) < options.steps:
        raise Stopped(done)


@contextmanager
def _watched(places: Places, reporter: Reporter) -> Iterator[None]:
    """Report the last line of the metrics for as long as workers write them; in a store, every half a minute."""

    def report() -> None:
        if lines := _lines_so_far(places):
            reporter.update(int(lines[-1]["step"]), step_words(lines[-1]))

    with repeating(1.0 if places.files.store is None else 10.0, report):
        yield


def _lines_so_far(places: Places) -> list[Metrics]:
    if places.files.store is None:
        return read_metrics(places.train / METRICS_FILE)
    with suppress(OSError), open_to_read(places.files.within(places.train / METRICS_FILE)) as stream:
        return parse_metrics(stream.read().decode(), METRICS_FILE)
    return []
