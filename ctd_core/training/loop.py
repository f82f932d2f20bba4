"""The training loop. It knows nothing of where metrics go and where checkpoints lie: callers hand that in."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np
import torch

from ctd_core.config.objectives import extra_teacher_of
from ctd_core.config.training import Train
from ctd_core.errors import CtdError, Interrupted, Recurring
from ctd_core.models.logprob_model import LogprobModel
from ctd_core.models.online_teacher import OnlineTeacher
from ctd_core.objectives.registry import make_objective
from ctd_core.shards.batches import Batch, MixedRows, Rows, collate, micro_batches, mixed_micro_batches
from ctd_core.shards.rows import RowSource
from ctd_core.training.checkpoint import load_checkpoint, read_steps_done, save_checkpoint
from ctd_core.training.optimizer import clip, freeze, make_optimizer, rate_fraction, set_rate
from ctd_core.training.step import LossNotFinite, StepMetrics, WeightedObjective, accumulate_gradients
from ctd_core.training.workers import ALONE, Worker, distribute, replicated

EMPTY_STEPS = 20  # a training that has compared nothing for so long ends
Metrics = dict[str, float]  # of a step, by name


@dataclasses.dataclass(frozen=True)
class Hooks:
    """What the loop calls, on every worker in the same order; what a worker then does is the caller's business.

    on_step: with the metrics of a step, `step` counted from 1 among them.
    evaluate: every `evaluate_every` steps and after the last; its figures join the step's metrics.
    on_checkpoint: with the metrics and a function that writes the checkpoint into an empty directory or a URI, the same
        for all workers, each of which has to call it.
    stops_after: whether to write a checkpoint after this step, counted from 1, and end, as where the process is asked
        to; all workers have to give the same answer.
    """

    on_step: Callable[[Metrics], None]
    on_checkpoint: Callable[[Metrics, Callable[[str | Path], None]], None]
    evaluate: Callable[[LogprobModel], Metrics]
    stops_after: Callable[[int], bool] = lambda step: False


class Stopped(Interrupted):
    """A training that ended before its last step because it was asked to, after the step `done`."""

    def __init__(self, done: int) -> None:
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
    shares: Mapping[str, float] | None = None,
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
        shares: by the label of each source of a mixture its share of the bytes that are learned; without them the
            sources count as one corpus.

    Raises:
        CtdError: with the step and the rows, where the loss is not finite; where no objective finds anything to
            compare; where an objective needs what the shards do not hold.
        Stopped: `hooks.stops_after` asked for it.
    """
    # The main teacher's come last: DDP adds up gradients after the last batch, and waits for every parameter's.
    sources: dict[str | None, RowSource] = dict((extra_shards or {}).items())
    sources[None] = shards
    _check_targets(options, sources)
    objectives = _ready(options, student, online, worker.device)
    autocast = torch.bfloat16 if options.autocast == "auto" and _gains_from_bfloat16(worker.device) else None
    learned = {name for name, parameter in student.named_parameters() if parameter.requires_grad}
    done = read_steps_done(start) if start is not None else 0
    phases = options.phases  # of the last checkpoint, and those that follow
    while len(phases) > 1 and done > phases[1][0]:
        phases.pop(0)
    begin, phase = phases.pop(0)
    _learn(student, learned, phase)
    distribute(student, options, worker.device, autocast)
    wrapped, optimizer = replicated(student, options), make_optimizer(student, phase)
    if start is not None:
        load_checkpoint(start, student, optimizer)
    streams = _streams(options, sources, shares, done)
    compared = 0.0
    for step in range(done, options.steps):
        if phases and step == phases[0][0]:
            begin, phase = phases.pop(0)
            _learn(student, learned, phase)
            del wrapped  # with its hooks
            wrapped, optimizer = replicated(student, options), make_optimizer(student, phase)
        batches = _next_batches(options, streams, sources, worker)
        optimizer.zero_grad(set_to_none=True)
        fraction = rate_fraction(step - begin, phase)
        set_rate(optimizer, fraction)
        try:
            measured = accumulate_gradients(
                wrapped, batches, objectives, online, autocast, balance=options.weighting == "gradient_magnitude"
            )
        except LossNotFinite as error:
            raise _loss_not_finite(step, error, sources[error.source]) from error
        compared += sum(measured.counts)
        is_late = step + 1 == done + EMPTY_STEPS or (not done and step + 1 == options.steps)
        if not compared and is_late:
            raise Recurring(_nothing_compared(options, step + 1 - done))
        norm = clip(wrapped, options.max_grad_norm)
        if not torch.isfinite(norm):
            raise _norm_not_finite(step, float(norm), batches, sources)
        optimizer.step()
        metrics: Metrics = {"step": step + 1, "workers": worker.world_size}
        metrics["learning_rate"] = phase.learning_rate * fraction
        metrics |= _step_metrics(options, measured) | {"gradient_norm": float(norm)}
        if options.evaluate_every is not None and (_due(step, options.evaluate_every) or step + 1 == options.steps):
            metrics |= hooks.evaluate(student)
        hooks.on_step(metrics)
        is_asked = hooks.stops_after(step + 1)
        if is_asked or _due(step, options.checkpoint_steps) or step + 1 == options.steps:
            hooks.on_checkpoint(
                metrics, partial(save_checkpoint, student=student, optimizer=optimizer, steps_done=step + 1)
            )
        if is_asked and step + 1 < options.steps:
            raise Stopped(step + 1)


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


def _learn(student: LogprobModel, learned: set[str], phase: Train) -> None:
    """Let the parameters that are `learned` at all learn, but for those that the phase freezes."""
    for name, parameter in student.named_parameters():
        parameter.requires_grad_(name in learned)
        parameter.grad = None  # of what is frozen now, it would count in the gradient's norm
    freeze(student.model, phase.freeze)


def _streams(
    options: Train, sources: Mapping[str | None, RowSource], shares: Mapping[str, float] | None, done: int
) -> dict[str | None, Iterator[Rows]]:
    """The row numbers of each teacher's micro-batches, from step `done` on."""
    return {
        name: islice(_stream(options, shards, shares), done * options.gradient_accumulation, None)
        for name, shards in sources.items()
    }


def _stream(options: Train, shards: RowSource, shares: Mapping[str, float] | None) -> Iterator[Rows]:
    """The row numbers of one teacher's micro-batches."""
    lengths = shards.student_lengths()
    if not shares:
        return micro_batches(lengths, options.batch_tokens, options.seed)
    mixed, start = [], 0
    for label, counts in shards.counts_by_source.items():
        if not counts.rows:
            raise CtdError(
                f"{shards.name}: the source {label} holds no rows to learn from. Take it out of the mixture."
            )
        numbers = np.arange(start, start + counts.rows)
        mixed.append(MixedRows(numbers, counts.text_bytes / counts.student_tokens, shares[label]))
        start += counts.rows
    return mixed_micro_batches(lengths, mixed, options.batch_tokens, options.seed)


def _next_batches(
    options: Train,
    streams: Mapping[str | None, Iterator[Rows]],
    sources: Mapping[str | None, RowSource],
    worker: Worker,
) -> list[Batch]:
    """The worker's batches of one step."""
    return [
        dataclasses.replace(collate(sources[name], rows), source=name).to(worker.device)
        for name, stream in streams.items()
        for rows in list(islice(stream, options.gradient_accumulation))[worker.rank :: worker.world_size]
    ]


def _loss_not_finite(step: int, error: LossNotFinite, shards: RowSource) -> Recurring:
    """The error of a loss that is not finite, with the documents whose rows it is of."""
    documents = sorted(set(shards.documents(np.array(error.rows))))
    return Recurring(
        f"step {step + 1}: {error} ({shards.name}), from documents {', '.join(documents[:8])}. Lower "
        "train.learning_rate or take these documents out; the last checkpoint is as it was."
    )


def _norm_not_finite(
    step: int, norm: float, batches: list[Batch], sources: Mapping[str | None, RowSource]
) -> Recurring:
    rows = "; ".join(f"{batch.rows.tolist()} of {sources[batch.source].name}" for batch in batches)
    return Recurring(
        f"step {step + 1}: the gradient's norm is {norm}, on rows {rows} or those of another worker. Lower "
        "train.learning_rate; the last checkpoint is as it was."
    )


def _nothing_compared(options: Train, steps: int) -> str:
    kinds = ", ".join(objective.kind for objective in options.objectives)
    return (
        f"in {steps} steps there was nothing that {kinds} could compare: nothing was learned. Look at the shards with "
        "`ctd chunks --shards …`, and take an objective such as alm, or a tokenizer that shares tokens with the "
        "teacher's."
    )


def _check_targets(options: Train, sources: Mapping[str | None, RowSource]) -> None:
    """Raises CtdError where an objective asks for what the shards of its teacher do not hold."""
    for objective in options.objectives:
        name = extra_teacher_of(objective)
        if name not in sources:
            raise CtdError(
                f"{objective.kind} asks for the targets of the teacher {name!r}, and no shards of it are given."
            )
        shards = sources[name]
        if "targets" in objective.needs and not shards.has_targets:
            raise CtdError(
                f"{shards.name}: {objective.kind} needs targets, and these shards have none. Prepare with targets: "
                "true."
            )
        if "top_k" in objective.needs and not shards.has_top:
            raise CtdError(
                f"{shards.name}: {objective.kind} needs shards with top tokens. Prepare with top_k, such as 16."
            )
        if "prefixes" in objective.needs and not shards.has_prefixes:
            raise CtdError(
                f"{shards.name}: {objective.kind} needs shards with likely tokens of the student. Prepare with "
                "prefix_k, such as 8."
            )


def _step_metrics(options: Train, measured: StepMetrics) -> Metrics:
    """What a step measured by name, each objective's loss, weight and count by its number and kind."""
    metrics = {key: value for key, value in dataclasses.asdict(measured).items() if isinstance(value, int | float)}
    for name, values in (("loss", measured.losses), ("weight", measured.weights), ("count", measured.counts)):
        metrics |= {f"{name}_{n}_{chosen.kind}": values[n] for n, chosen in enumerate(options.objectives)}
    return metrics


def _due(step: int, every: int | None) -> bool:
    return every is not None and (step + 1) % every == 0


def _gains_from_bfloat16(device: torch.device) -> bool:
    return device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
