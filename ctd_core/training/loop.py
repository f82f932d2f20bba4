"""The training loop. It knows nothing of where metrics go and where checkpoints lie: callers hand that in."""

import dataclasses
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch

from ctd_core.config.objectives import extra_teacher_of
from ctd_core.config.training import Train
from ctd_core.errors import Interrupted
from ctd_core.models.logprob_model import LogprobModel
from ctd_core.models.online_teacher import OnlineTeacher
from ctd_core.objectives.registry import make_objective
from ctd_core.shards.batches import Batch
from ctd_core.shards.rows import RowSource
from ctd_core.training.checkpoint import load_checkpoint, read_steps_done, save_checkpoint
from ctd_core.training.checks import check_targets, loss_not_finite, norm_not_finite, nothing_compared
from ctd_core.training.learner import Learner
from ctd_core.training.optimizer import clip
from ctd_core.training.step import LossNotFinite, StepMetrics, WeightedObjective, accumulate_gradients
from ctd_core.training.streams import Shares, next_batches, row_streams
from ctd_core.training.workers import ALONE, Worker

EMPTY_STEPS = 20  # a training that has compared nothing for so long ends
Metrics = dict[str, float]  # of a step, by name


class NewRows(NamedTuple):
    """What is learned from now on: rows of the main teacher, and where they are a mixture's, the sources' shares."""

    rows: RowSource
    shares: Mapping[str, float] | None = None


@dataclasses.dataclass(frozen=True)
class Hooks:
    """What the loop calls, on every worker in the same order; what a worker then does is the caller's business.

    on_step: with the metrics of a step, `step` counted from 1 among them.
    evaluate: every `evaluate_every` steps and after the last; its figures join the step's metrics.
    on_checkpoint: with the metrics and a function that writes the checkpoint into an empty directory or a URI, the same
        for all workers, each of which has to call it.
    stops_after: whether to write a checkpoint after this step, counted from 1, and end, as where the process is asked
        to; all workers have to give the same answer.
    rows_before: with a step, counted from 0, and the student before it: what is learned from then on, None for what is
        learned already; the student has to stay as it is. Stopped, raised here, ends the training with a checkpoint.
    """

    on_step: Callable[[Metrics], None]
    on_checkpoint: Callable[[Metrics, Callable[[str | Path], None]], None]
    evaluate: Callable[[LogprobModel], Metrics]
    stops_after: Callable[[int], bool] = lambda step: False
    rows_before: Callable[[int, LogprobModel], NewRows | None] = lambda step, student: None


class Stopped(Interrupted):
    """A training that ended before its last step because it was asked to, after the step `done`."""

    def __init__(self, done: int) -> None:
        self.done = done
        super().__init__(f"stopped after step {done}. Run the same command again: it goes on from there.")


def train(
    options: Train,
    student: LogprobModel,
    shards: RowSource,
    hooks: Hooks,
    start: str | Path | None = None,
    worker: Worker = ALONE,
    online: OnlineTeacher | None = None,
    extra_shards: Mapping[str | None, RowSource] | None = None,
    shares: Shares | None = None,
) -> None:
    """Train `student` in place.

    Args:
        options: the training's options.
        student: the student, unsharded on every worker.
        shards: rows of the main teacher.
        hooks: what is called with metrics and checkpoints.
        start: the checkpoint to go on from, None for the start.
        worker: which of the process group's members this process is. Each takes its part of the micro-batches of the
            one stream that (seed, shards) define.
        online: the teacher on the worker's device; it has to be given where an objective needs it.
        extra_shards: rows of further teachers, by name: a step takes as many micro-batches of each, for the objectives
            that name it.
        shares: by teacher, and by the label of each source of a mixture, its share of the bytes that are learned;
            without them the sources count as one corpus.

    Raises:
        CtdError: with the step and the rows, where the loss is not finite; where no objective finds anything to
            compare; where an objective needs what the shards do not hold.
        Stopped: a hook asked for it.
    """
    # The main teacher's come last: DDP adds up gradients after the last batch, and waits for every parameter's.
    sources: dict[str | None, RowSource] = dict((extra_shards or {}).items())
    sources[None] = shards
    check_targets(options, sources)
    objectives = _ready(options, student, online, worker.device)
    done = read_steps_done(start) if start is not None else 0
    learner = Learner(student, options, worker.device, done)
    if start is not None:
        load_checkpoint(start, student, learner.optimizer)
    of_sources = dict(shares or {})
    streams = row_streams(options, sources, of_sources, done)
    compared, saved = 0.0, done
    metrics: Metrics = {}

    def save(steps_done: int) -> None:
        write = partial(save_checkpoint, student=student, optimizer=learner.optimizer, steps_done=steps_done)
        hooks.on_checkpoint(metrics, write)

    for step in range(done, options.steps):
        try:
            new = hooks.rows_before(step, student)
        except Stopped:
            if saved < step:
                save(step)
            raise Stopped(step) from None
        if new is not None:
            sources[None], of_sources[None] = new.rows, new.shares
            check_targets(options, sources)
            streams = row_streams(options, sources, of_sources, step)
        batches = next_batches(options, streams, sources, worker)
        rate = learner.begin_step(step)
        measured, norm = _learn(step, options, learner, batches, sources, objectives, online)
        compared += sum(measured.counts)
        is_late = step + 1 == done + EMPTY_STEPS or (not done and step + 1 == options.steps)
        if not compared and is_late:
            raise nothing_compared(options, step + 1 - done)
        metrics = {"step": step + 1, "workers": worker.world_size, "learning_rate": rate}
        metrics["matrix_bits"] = 32 if learner.autocast is None else 16  # machines differ, also in one training
        metrics |= _step_metrics(options, measured) | {"gradient_norm": norm}
        if options.evaluate_every is not None and (_due(step, options.evaluate_every) or step + 1 == options.steps):
            metrics |= hooks.evaluate(student)
        hooks.on_step(metrics)
        is_asked = hooks.stops_after(step + 1)
        if is_asked or _due(step, options.checkpoint_steps) or step + 1 == options.steps:
            save(step + 1)
            saved = step + 1
        if is_asked and step + 1 < options.steps:
            raise Stopped(step + 1)


def _learn(
    step: int,
    options: Train,
    learner: Learner,
    batches: list[Batch],
    sources: Mapping[str | None, RowSource],
    objectives: list[WeightedObjective],
    online: OnlineTeacher | None,
) -> tuple[StepMetrics, float]:
    """One step of the optimizer: what it measured, and the gradient's norm before it was clipped."""
    balance = options.weighting == "gradient_magnitude"
    try:
        measured = accumulate_gradients(learner.wrapped, batches, objectives, online, learner.autocast, balance=balance)
    except LossNotFinite as error:
        raise loss_not_finite(step, error, sources[error.source]) from error
    norm = clip(learner.wrapped, options.max_grad_norm)
    if not torch.isfinite(norm):
        raise norm_not_finite(step, float(norm), batches, sources)
    learner.optimizer.step()
    return measured, float(norm)


def _ready(
    options: Train, student: LogprobModel, online: OnlineTeacher | None, device: torch.device
) -> list[WeightedObjective]:
    """The objectives, and `student` made ready for them: their projections, no dropout."""
    if options.strategy == "ddp":
        student.to(device)  # an online teacher may be the student itself, and objectives ask where it is
    torch.manual_seed(options.seed)
    objectives = [
        WeightedObjective(chosen.weight, make_objective(chosen, online), extra_teacher_of(chosen))
        for chosen in options.objectives
    ]
    modules = [objective.plan for objective in objectives if isinstance(objective.plan, torch.nn.Module)]
    student.projections = torch.nn.ModuleList(modules).to(dtype=student.language_model.embeddings.dtype)
    student.model.eval()  # no dropout: outputs must not depend on how a step was split
    return objectives


def _step_metrics(options: Train, measured: StepMetrics) -> Metrics:
    """What a step measured by name, each objective's loss, weight and count by its number and kind."""
    metrics = {key: value for key, value in dataclasses.asdict(measured).items() if isinstance(value, int | float)}
    for name, values in (("loss", measured.losses), ("weight", measured.weights), ("count", measured.counts)):
        metrics |= {f"{name}_{n}_{chosen.kind}": values[n] for n, chosen in enumerate(options.objectives)}
    return metrics


def _due(step: int, every: int | None) -> bool:
    return every is not None and (step + 1) % every == 0
