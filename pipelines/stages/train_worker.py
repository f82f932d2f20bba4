"""One worker's part of a training: in the command's own process, or one of Ray Train's."""

import logging
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from ctd_core.errors import CtdError, Recurring
from ctd_core.evaluation.metrics import METRICS, metric_key
from ctd_core.models.logprob_model import LogprobModel
from ctd_core.shards.joined_rows import JoinedRows
from ctd_core.shards.manifest import check_student
from ctd_core.shards.reading import ShardSet
from ctd_core.shards.rows import RowSource
from ctd_core.training.loop import Hooks, Metrics, NewRows, Stopped, train
from ctd_core.training.step import FailedElsewhere
from ctd_core.training.workers import Worker
from pipelines.artifacts.checkpoints import checkpoint_writer, starting_checkpoint, steps_done
from pipelines.artifacts.failure import write_failure
from pipelines.artifacts.metrics_file import METRICS_FILE
from pipelines.artifacts.metrics_log import MetricsLog
from pipelines.artifacts.run_plan import DatasetPlan, RunPlan
from pipelines.display.progress import Reporter
from pipelines.stages.measure import measure_sets
from pipelines.stages.student import online_teacher, student_to_train
from pipelines.stages.tokenizer import student_tokenizer

logger = logging.getLogger(__name__)
CORPUS, OWN = "corpus", "own texts"  # labels of rows
SHARE_SECONDS = 30.0  # between copies of the metrics to a store
# Before a step, with the student as it is then, and whether the training is asked to stop: what of its own texts is
# learned from then on; None for what is learned already.
OwnTextsBefore = Callable[[int, LogprobModel, Callable[[], bool]], DatasetPlan | None]


class Recorder:
    """Writes the metrics of a training, on its first worker, and copies them to the store where there is one."""

    def __init__(self, plan: RunPlan, done: int, reporter: Reporter | None) -> None:
        self._plan, self._reporter, self._shared = plan, reporter, time.monotonic()
        plan.training.mkdir(parents=True, exist_ok=True)
        plan.files.fetch(plan.training / METRICS_FILE, overwrite=True)
        self._log = MetricsLog(plan.training / METRICS_FILE, done)
        sets = plan.config.evaluate.sets
        self._measured_names = {metric_key(name, metric) for name in sets for metric in METRICS}

    def add(self, metrics: Metrics) -> None:
        """Record a step."""
        is_measured = not self._measured_names.isdisjoint(metrics)
        words = self._log.add(metrics, self._plan.evaluation if is_measured else None)
        if self._reporter is not None:
            self._reporter.update(int(metrics["step"]), words)
            if is_measured:
                headlines = ", ".join(
                    f"{name} {metric.title} {metrics[metric_key(name, metric)]:.{metric.digits}f}"
                    for name in self._plan.config.evaluate.sets
                    for metric in METRICS
                    if metric.is_headline
                )
                logger.info("train: step %d: %s", metrics["step"], headlines)
        if time.monotonic() - self._shared > SHARE_SECONDS:  # who watches from another machine reads the store
            try:
                self.share()
            except CtdError as error:  # the next one may come through
                logger.warning("train: the store does not take metrics: %s", error)

    def pause(self) -> AbstractContextManager[None]:
        """What is done inside is no part of a step's time."""
        return self._log.pause()

    def share(self) -> None:
        """Copy what was recorded to the store, where there is one."""
        self._shared = time.monotonic()
        if self._plan.files.store is not None:
            training = self._plan.training
            for file in (training / METRICS_FILE, *training.glob("events.*")):
                self._plan.files.upload(file)

    def close(self) -> None:
        """Write what TensorBoard has not seen yet."""
        self._log.close()


def run_worker(
    plan: RunPlan,
    after_checkpoint: Callable[[Metrics], None],
    worker: Worker,
    reporter: Reporter | None = None,
    stops_after: Callable[[int], bool] = lambda step: False,
    own_texts: OwnTextsBefore = lambda step, student, stops: None,
) -> None:
    """One worker's part of the training, from the latest checkpoint, also one that another number of workers wrote.

    It ends after the step that `stops_after` says, with Stopped.
    """
    start = starting_checkpoint(plan.checkpoints, worker)
    keeps = None if plan.part is None else plan.part.keeps
    write_checkpoint = checkpoint_writer(plan.checkpoints, worker, after_checkpoint, keeps)
    sources: dict[str | None, RowSource] = {}
    tokenizer = student_tokenizer(plan)
    student = student_to_train(plan, tokenizer)
    for name, dataset in plan.training_sets.items():
        shards = ShardSet(dataset.location, verify=False, cache=plan.shard_cache)
        check_student(shards.manifest, shards.name, tokenizer, len(student.mask))
        sources[name] = shards
    corpus = sources.pop(None)
    rows = NewRows(corpus, plan.shares)
    if plan.part is not None and plan.part.own_texts is not None:
        rows = _with_own_texts(plan, plan.part.own_texts, corpus)
    recorder = Recorder(plan, steps_done(start), reporter) if worker.rank == 0 else None

    def on_step(metrics: Metrics) -> None:
        if recorder is not None:
            recorder.add(metrics)

    def pause() -> AbstractContextManager[None]:
        return nullcontext() if recorder is None else recorder.pause()

    def evaluate(model: LogprobModel) -> Metrics:
        with pause():
            return measure_sets(plan, model)

    def on_checkpoint(metrics: Metrics, write: Callable[[str | Path], None]) -> None:
        with pause():
            if recorder is not None:
                recorder.share()
            write_checkpoint(metrics, write)

    def rows_before(step: int, student: LogprobModel) -> NewRows | None:
        with pause():
            dataset = own_texts(step, student, lambda: stops_after(step))
            return None if dataset is None else _with_own_texts(plan, dataset, corpus)

    def ends_after(step: int) -> bool:
        return step == plan.last_step or stops_after(step)

    online = online_teacher(plan, tokenizer, student, worker.device)
    try:
        hooks = Hooks(on_step, on_checkpoint, evaluate, ends_after, rows_before)
        train(
            plan.config.train, student, rows.rows, hooks, start, worker, online,
            extra_shards=sources, shares=dict.fromkeys(sources, plan.shares) | {None: rows.shares},
        )  # fmt: skip
    finally:
        if recorder is not None:
            recorder.close()
    if recorder is not None:
        recorder.share()


def _with_own_texts(plan: RunPlan, dataset: DatasetPlan, corpus: RowSource) -> NewRows:
    """The rows of the student's own texts, with the corpus's where some of what is learned is to be theirs."""
    assert plan.config.train.on_policy is not None
    own = ShardSet(dataset.location, verify=True, cache=plan.shard_cache)
    fraction = plan.config.train.on_policy.fraction
    if fraction == 1:
        return NewRows(own)
    return NewRows(JoinedRows({CORPUS: corpus, OWN: own}), {CORPUS: 1 - fraction, OWN: fraction})


def ray_worker(loop_config: dict[str, Any]) -> None:
    """What each of Ray Train's workers runs."""
    import ray.train
    import ray.train.torch

    plan: RunPlan = loop_config["plan"]
    context = ray.train.get_context()
    worker = Worker(context.get_world_rank(), context.get_world_size(), ray.train.torch.get_device())

    def stops_after(step: int) -> bool:
        switch = loop_config["switch"]
        return switch is not None and bool(ray.get(switch.stops_after.remote(step)))

    try:
        # Checkpoints are ours, complete or not there; Ray's own copy could be cut short by a kill. Every worker waits.
        run_worker(plan, ray.train.report, worker, stops_after=stops_after)
    except Stopped:
        pass  # the command, which asked for it, raises it
    except (Recurring, FailedElsewhere) as error:  # on all workers at once: Ray would try it again and again
        if isinstance(error, Recurring):
            write_failure(plan.checkpoints, error)
