"""One worker's part of a training: in the command's own process, or one of Ray Train's."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ctd_core.errors import Recurring
from ctd_core.evaluation.metrics import METRICS, figure_name
from ctd_core.models.logprob_model import LogprobModel
from ctd_core.shards.manifest import check_student
from ctd_core.shards.reading import ShardSet
from ctd_core.training.loop import Hooks, Metrics, Stopped, train
from ctd_core.training.step import FailedElsewhere
from ctd_core.training.workers import Worker
from pipelines.artifacts.checkpoints import keeping, starting_checkpoint, steps_done
from pipelines.artifacts.failure import note_failure
from pipelines.artifacts.metrics_log import METRICS_FILE, MetricsLog
from pipelines.artifacts.run_paths import Places
from pipelines.display.progress import Reporter
from pipelines.stages.measure import measure_sets
from pipelines.stages.student import online_teacher, student_to_train, student_tokenizer

SHARE_SECONDS = 30.0  # between copies of the metrics to a store


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
        places.files.bring(places.train / METRICS_FILE, anew=True)
        log = MetricsLog(places.train / METRICS_FILE, steps_done(start))

    def on_step(metrics: Metrics) -> None:
        nonlocal shared
        if log is not None:
            is_measured = any(figure_name(name, metric) in metrics for name in measured for metric in METRICS)
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

    live = online_teacher(places, side, student, worker.device) if options.online_objectives else None
    try:
        hooks = Hooks(on_step, on_checkpoint, evaluate, stops_after)
        train(options, student, sources.pop(None), hooks, start, worker, live, more_shards=sources)
    finally:
        if log is not None:
            log.close()
    if log is not None:
        shared_metrics(places)


def shared_metrics(places: Places) -> None:
    """Put what was measured so far into the store, where there is one."""
    if places.files.store is not None:
        for file in (places.train / METRICS_FILE, *places.train.glob("events.*")):
            places.files.share(file)


def ray_worker(loop_config: dict[str, Any]) -> None:
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
