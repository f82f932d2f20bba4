"""One step: gradients of the objectives over all micro-batches of all workers."""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from ctd_core.errors import CtdError
from ctd_core.models.logprob_model import LogprobModel
from ctd_core.models.online_teacher import OnlineTeacher, TeacherOutputs
from ctd_core.objectives.interface import (
    Absent,
    Objective,
    Plan,
    StudentOutputs,
    at_chunks,
    boundary_chunks,
    chunk_sums,
    declared,
)
from ctd_core.shards.batches import Batch

NOTHING = Plan(0.0, lambda student, teacher: student.token.sum() * 0, frozenset())  # for batches of another teacher
LEAST_NORM = 1e-12  # gradient norms below this count as zero


@dataclass(frozen=True)
class WeightedObjective:
    """One term of the loss. source: it is for the batches of this teacher, see Batch."""

    weight: float
    plan: Objective
    source: str | None = None


class FailedElsewhere(CtdError):
    """Another worker has failed, and raises the reason."""


class LossNotFinite(CtdError):
    """The loss was infinite or not a number on these rows of the shards of `source`, see Batch."""

    def __init__(self, loss: float, rows: list[int], source: str | None) -> None:
        super().__init__(f"the loss is {loss} on rows {rows} of the shards")
        self.rows, self.source = rows, source


@dataclass(frozen=True)
class StepMetrics:
    """Sums and means over a step, all workers together.

    losses: each objective's sum divided by its count; counts: what it was divided by; weights: what each was weighted
    by. chunks: scored finest chunks.
    tokens: tokens that are not padding. mean_chunk_bytes and the mean log-likelihoods are over scored finest chunks.
    """

    loss: float
    losses: list[float]
    counts: list[float]
    weights: list[float]
    chunks: int
    tokens: int
    padding_share: float
    mean_chunk_bytes: float
    mean_chunk_tokens: float
    mean_student_chunk_logprob: float
    mean_teacher_chunk_logprob: float


def accumulate_gradients(
    student: LogprobModel | DistributedDataParallel,
    batches: Sequence[Batch],
    objectives: Sequence[WeightedObjective],
    online: OnlineTeacher | None = None,
    autocast: torch.dtype | None = None,
    balance: bool = False,
) -> StepMetrics:
    """Add to the parameters the gradient of Σ_k weight_k · sum_k / count_k, over `batches` of every worker.

    `online` is asked once a batch of the main teacher, where it is given. With `balance` the weights are not the
    objectives' own: they are in inverse proportion to the norms of sum_k / count_k's gradients at the last layer and
    add up to 1 (GradMag, arXiv 2503.20083); an objective without a gradient has none. This takes a forward pass more,
    of the online teacher too, and for each objective a backward pass to the last layer.

    Counts are added up over all workers and micro-batches first, so the gradient does not depend on how the step was
    split. Every worker has to call this with the same number of batches. Raises LossNotFinite where the loss is not.
    """
    device = batches[0].input_ids.device
    wide = torch.float64  # for what is added up over workers
    plans = [
        [objective.plan(batch) if objective.source == batch.source else NOTHING for objective in objectives]
        for batch in batches
    ]
    counts = torch.tensor([[plan.count for plan in row] for row in plans], dtype=wide, device=device).sum(0)
    world = _sum_over_workers(counts)
    weights = [objective.weight for objective in objectives]
    if balance:
        weights = _balanced(student, batches, plans, counts, online, autocast)
    scales = [weight / max(float(count), 1.0) for weight, count in zip(weights, counts, strict=True)]
    sums = torch.zeros(len(objectives) + 7, dtype=wide, device=device)
    failure: LossNotFinite | None = None
    for number, (batch, planned) in enumerate(zip(batches, plans, strict=True)):
        last = number == len(batches) - 1
        with nullcontext() if last or not isinstance(student, DistributedDataParallel) else student.no_sync():
            with _autocast(device, autocast):
                terms, measured = _forward(student, batch, planned, online)
                total = torch.stack([term * scale for term, scale in zip(terms, scales, strict=True)]).sum()
            if not torch.isfinite(total) and failure is None:
                failure = LossNotFinite(total.item(), batch.rows.tolist(), batch.source)
            (total * world).backward()  # type: ignore[no-untyped-call]  # DDP takes the mean over workers; the loss is a sum
        sums += torch.cat([torch.stack([term.detach().to(wide) for term in terms]), measured.to(device)])
    _sum_over_workers(sums)
    _raise_everywhere(failure, device)
    losses = [float(total) / max(float(count), 1.0) for total, count in zip(sums, counts, strict=False)]
    chunks, tokens, padded, num_bytes, chunk_tokens, student_logprob, teacher_logprob = sums[len(objectives) :].tolist()
    return StepMetrics(
        loss=sum(weight * loss for weight, loss in zip(weights, losses, strict=True)),
        losses=losses,
        counts=counts.tolist(),
        weights=weights,
        chunks=int(chunks),
        tokens=int(tokens),
        padding_share=1 - tokens / padded,
        mean_chunk_bytes=num_bytes / max(chunks, 1),
        mean_chunk_tokens=chunk_tokens / max(chunks, 1),
        mean_student_chunk_logprob=student_logprob / max(chunks, 1),
        mean_teacher_chunk_logprob=teacher_logprob / max(chunks, 1),
    )


def _balanced(
    student: LogprobModel | DistributedDataParallel,
    batches: Sequence[Batch],
    plans: Sequence[Sequence[Plan]],
    counts: Tensor,
    online: OnlineTeacher | None,
    autocast: torch.dtype | None,
) -> list[float]:
    """The objectives' weights by the norms of their gradients at the last layer, over all micro-batches and workers."""
    model = _without_ddp(student)
    last = [parameter for parameter in model.language_model.layers[-1].parameters() if parameter.requires_grad]
    sums = [[torch.zeros_like(parameter) for parameter in last] for _ in counts]
    failure: LossNotFinite | None = None
    for batch, planned in zip(batches, plans, strict=True):
        with _autocast(counts.device, autocast):
            terms, _ = _forward(model, batch, planned, online)
        for term, total in zip(terms, sums, strict=True):
            if not torch.isfinite(term) and failure is None:
                failure = LossNotFinite(term.item(), batch.rows.tolist(), batch.source)
            gradients = torch.autograd.grad(term, last, retain_graph=True, allow_unused=True)
            for gradient_sum, gradient in zip(total, gradients, strict=True):
                if gradient is not None:  # an expert that no token went to
                    gradient_sum += gradient
    _raise_everywhere(failure, counts.device)
    inverse = []
    for total, count in zip(sums, counts, strict=True):
        for gradient_sum in total:
            _sum_over_workers(gradient_sum)
        norm = float(torch.stack([gradient_sum.double().norm() for gradient_sum in total]).norm()) / max(
            float(count), 1.0
        )
        inverse.append(1 / norm if norm > LEAST_NORM else 0.0)
    return [share / (sum(inverse) or 1.0) for share in inverse]


def _forward(
    student: LogprobModel | DistributedDataParallel,
    batch: Batch,
    plans: Sequence[Plan],
    online: OnlineTeacher | None,
) -> tuple[list[Tensor], Tensor]:
    """Each objective's sum over the batch, and sums for the metrics."""
    asked = boundary_chunks(plans)
    boundary_rows = batch.chunk_rows[torch.from_numpy(asked).to(batch.chunk_rows.device)]
    rows, ids = batch.target_rows, batch.target_ids
    needs = frozenset[str]().union(*(plan.needs for plan in plans))
    stored = [(batch.top, "top_k" in needs), (batch.prefixes, "prefixes" in needs)]
    asked_top = [top for top, is_asked in stored if is_asked]
    rows, ids = torch.cat([rows, *(top.rows for top in asked_top)]), torch.cat([ids, *(top.ids for top in asked_top)])
    absent = cast("TeacherOutputs", Absent("teacher"))
    teacher = online.outputs(batch) if online is not None and batch.source is None else absent
    logprobs, boundary, hidden = student(batch.input_ids, batch.positions, rows, ids, boundary_rows, batch.extra_inputs)
    sizes = [len(batch.target_ids), *(len(top.ids) if is_asked else 0 for top, is_asked in stored)]
    token, top, prefixes = logprobs.split(sizes)
    language_model = _without_ddp(student).language_model
    outputs = StudentOutputs(
        token=token,
        chunk=chunk_sums(batch, token),
        boundary=at_chunks(batch, asked, boundary),
        top=top,
        prefixes=prefixes,
        hidden=hidden,
        head=language_model.head,
        embeddings=language_model.embeddings,
    )
    terms = [
        plan.loss_sum(declared(outputs, plan.needs), teacher if "teacher" in plan.needs else absent) for plan in plans
    ]
    chunks, scored = batch.chunks, batch.chunks.scored
    measured = [
        scored.sum(),
        len(batch.positions),
        batch.input_ids.numel(),
        chunks.num_bytes[scored].sum(),
        chunks.num_student_tokens[scored].sum(),
        float(token.detach().double().sum()),  # every target token lies in a scored chunk
        chunks.teacher_logprobs[scored].sum(dtype=np.float64),
    ]
    return terms, torch.tensor([float(value) for value in measured], dtype=torch.float64)


def _without_ddp(student: LogprobModel | DistributedDataParallel) -> LogprobModel:
    return student.module if isinstance(student, DistributedDataParallel) else student


def _autocast(device: torch.device, dtype: torch.dtype | None) -> AbstractContextManager[None]:
    return nullcontext() if dtype is None else torch.autocast(device.type, dtype)


def _sum_over_workers(values: Tensor) -> int:
    """Add `values` up over all workers, in place; the number of workers."""
    if not dist.is_initialized():
        return 1
    dist.all_reduce(values)
    return dist.get_world_size()


def _raise_everywhere(failure: CtdError | None, device: torch.device) -> None:
    """Raise on every worker where one has failed, so that none waits for another."""
    failed = torch.tensor(float(failure is not None), device=device)
    _sum_over_workers(failed)
    if failure is not None:
        raise failure
    if failed:
        raise FailedElsewhere("the loss is not finite on another worker")
