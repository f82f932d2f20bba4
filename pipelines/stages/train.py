"""`ctd train`: the student learns from stored targets, in this process or on Ray Train workers."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ctd_core.errors import Recurring, UsageError
from ctd_core.evaluation.teacher_distance import measure_agreement
from ctd_core.models.loading import num_embeddings
from ctd_core.models.logprob_model import LogprobModel
from ctd_core.shards.manifest import check_student, check_teacher
from ctd_core.shards.reading import ShardSet
from ctd_core.storage.locations import below, delete_file, names_in, open_to_read, write_text
from ctd_core.training.loop import Hooks, Metrics, Stopped, train
from ctd_core.training.step import FailedElsewhere
from ctd_core.training.workers import Worker
from pipelines.artifacts.background import repeating
from pipelines.artifacts.checkpoints import keeping, latest_checkpoint, starting_checkpoint, steps_done
from pipelines.artifacts.locks import one_at_a_time
from pipelines.artifacts.metrics_log import METRICS, MetricsLog, parse_metrics, read_metrics, step_words
from pipelines.artifacts.run_paths import Places
from pipelines.cluster.connection import beside_command, connect, own_errors
from pipelines.display.progress import Reporter, progress, say
from pipelines.stages.stopping import Switch, hears_signals, run_stoppable, stop_signals
from pipelines.stages.student import ensure_student, online_teacher, student_to_train, student_tokenizer

if TYPE_CHECKING:
    from ray.train import UserCallback

TRIAL_WORKER_CPUS = 0.9  # what is left of a CPU is room for the trial that waits for its workers
FAILURE = "failure.txt"  # beside a training's checkpoints
SHARE_SECONDS = 30.0  # between copies of the metrics to a store
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
        places.files.bring(places.train / METRICS)
        say(f"train: all {options.steps} steps are done already, in {places.checkpoints}")
        return
    if done:
        say(f"train: going on from step {done}, in {places.checkpoints}")
    if live := options.live_objectives:
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


def run_worker(
    places: Places,
    after_checkpoint: Callable[[Metrics], None],
    worker: Worker,
    reporter: Reporter | None = None,
    stops_after: Callable[[int], bool] = lambda step: False,
) -> None:
    """One worker's part of the training, from the latest checkpoint, also one that another number of workers wrote.

    It ends after the step that `stops_after` says, with Stopped.
    """
    options = places.config.train
    start = starting_checkpoint(places.checkpoints, worker)
    keep = keeping(places.checkpoints, worker, after_checkpoint)
    sources = {
        name: ShardSet(one.location, verify=False, cache=places.cache) for name, one in places.training_sets.items()
    }
    side = student_tokenizer(places)
    student = student_to_train(places, side)
    for one in sources.values():
        check_student(one.manifest, one.name, side, len(student.mask))
    log, shared, measured = None, time.monotonic(), places.config.evaluate.sets
    if worker.rank == 0:
        places.train.mkdir(parents=True, exist_ok=True)
        places.files.bring(places.train / METRICS, anew=True)
        log = MetricsLog(places.train / METRICS, steps_done(start))

    def on_step(metrics: Metrics) -> None:
        nonlocal shared
        if log is not None:
            is_measured = any(figure in metrics for name in measured for figure in figure_names(name))
            words = log.add(metrics, places.evaluation if is_measured else None)
            if reporter is not None:
                reporter.update(int(metrics["step"]), words)
            if time.monotonic() - shared > SHARE_SECONDS:  # who watches from another machine reads the store
                shared_metrics(places)
                shared = time.monotonic()

    def evaluate(model: LogprobModel) -> Metrics:
        return measure_sets(places, model)

    def on_checkpoint(metrics: Metrics, write: Callable[[str | Path], None]) -> None:
        if log is not None:
            shared_metrics(places)
        keep(metrics, write)

    live = online_teacher(places, side, student, worker.device) if options.live_objectives else None
    try:
        hooks = Hooks(on_step, on_checkpoint, evaluate, stops_after)
        train(options, student, sources.pop(None), hooks, start, worker, live, more_shards=sources)
    finally:
        if log is not None:
            log.close()
    if log is not None:
        shared_metrics(places)


def figure_names(name: str) -> tuple[str, str]:
    """What the metrics call the distance to the teacher and the bits per byte on an evaluation set."""
    return f"{name}_teacher_distance_bits_per_byte", f"{name}_bits_per_byte"


def measure_sets(places: Places, model: LogprobModel) -> Metrics:
    """The distance to the teacher and the bits per byte on every evaluation set."""
    figures: Metrics = {}
    for name in places.config.evaluate.sets:
        shards = ShardSet(places.datasets[name].location, verify=False, cache=places.cache)
        measured = measure_agreement(model, shards, places.config.evaluate.batch_tokens)
        distance, bits = figure_names(name)
        figures |= {distance: measured.teacher_distance_bits_per_byte, bits: measured.student_bits_per_byte}
    return figures


def shared_metrics(places: Places) -> None:
    """Put what was measured so far into the store, where there is one."""
    if places.files.store is not None:
        for file in (places.train / METRICS, *places.train.glob("events.*")):
            places.files.share(file)


# --- On Ray Train ---------------------------------------------------------------------------------------------------


def _train_on_ray(places: Places, callbacks: list["UserCallback"]) -> None:
    import ray.train
    from ray.train.torch import TorchTrainer

    options = places.config.train
    most, least = options.num_workers, options.min_workers or options.num_workers
    connect(least, least if options.use_gpu else 0, "train.num_workers and train.use_gpu", options.worker_resources)
    switch = beside_command(Switch) if hears_signals() else None
    resources = {"GPU": 1.0} if options.use_gpu else {"CPU": TRIAL_WORKER_CPUS if callbacks else 1.0}
    trainer = TorchTrainer(
        _ray_worker,
        # With what the places have computed: no worker reads the corpus again.
        train_loop_config={"places": places, "switch": switch},
        scaling_config=ray.train.ScalingConfig(
            num_workers=most if least == most else (least, most),
            use_gpu=options.use_gpu,
            resources_per_worker=resources | options.worker_resources,
            elastic_resize_monitor_interval_s=RESIZE_SECONDS,
        ),
        run_config=ray.train.RunConfig(
            name=places.train.name,
            storage_path=places.files.store or str(places.directory),
            callbacks=callbacks,
            failure_config=ray.train.FailureConfig(max_failures=options.max_failures),
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


def note_failure(places: Places, error: Recurring) -> None:
    """Keep an error that would come again, beside the checkpoints of its training."""
    write_text(below(places.checkpoints, FAILURE), str(error))


def forget_failure(places: Places) -> None:
    """Let a training be tried again."""
    delete_file(below(places.checkpoints, FAILURE))


def raise_failure(places: Places) -> None:
    """Raise what `note_failure` kept of this training, if anything."""
    if FAILURE in names_in(places.checkpoints):
        with open_to_read(below(places.checkpoints, FAILURE)) as stream:
            raise Recurring(stream.read().decode())


def _ray_worker(loop_config: dict[str, Any]) -> None:
    import ray.train
    import ray.train.torch

    places: Places = loop_config["places"]
    context = ray.train.get_context()
    worker = Worker(context.get_world_rank(), context.get_world_size(), ray.train.torch.get_device())

    def stops_after(step: int) -> bool:
        switch = loop_config["switch"]
        return switch is not None and bool(ray.get(switch.stops_after.remote(step)))

    try:
        # Checkpoints are ours, complete or not there; Ray's own copy could be cut short by a kill. Every worker waits.
        run_worker(places, ray.train.report, worker, stops_after=stops_after)
    except Stopped:
        pass  # told by the command, which asked for it
    except (Recurring, FailedElsewhere) as error:  # on all workers at once: Ray would try it again and again
        if isinstance(error, Recurring):
            note_failure(places, error)


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
        return read_metrics(places.train / METRICS)
    with suppress(OSError), open_to_read(places.files.within(places.train / METRICS)) as stream:
        return parse_metrics(stream.read().decode())
    return []
