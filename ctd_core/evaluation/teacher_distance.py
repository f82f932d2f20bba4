"""How well a student models a text, and how far it is from its teacher there."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist

from ctd_core.errors import CtdError
from ctd_core.models.logprob_model import LogprobModel
from ctd_core.objectives.interface import chunk_sums
from ctd_core.shards.batches import collate, ordered_batches
from ctd_core.shards.reading import ShardSet

T = TypeVar("T")


@dataclass(frozen=True)
class Agreement:
    """Figures over all finest chunks of text that have context on both sides; the same bytes for both models.

    bits_per_byte: −Σ chunk log-likelihood / (bytes · ln 2), for each side.
    teacher_distance_bits_per_byte: Σ |student − teacher chunk log-likelihood| / (bytes · ln 2).
    correlation: Pearson's, of the chunk log-likelihoods of both sides.
    """

    text_bytes: int
    chunks: int
    student_bits_per_byte: float
    teacher_bits_per_byte: float
    teacher_distance_bits_per_byte: float
    correlation: float
    student_tokens_per_byte: float
    teacher_tokens_per_byte: float


def gap_closed(before: Agreement, after: Agreement) -> float:
    """The share of the distance to the teacher that training took away; 0 where there was none."""
    start = before.teacher_distance_bits_per_byte
    return 1 - after.teacher_distance_bits_per_byte / start if start else 0.0


@torch.no_grad()
def measure_agreement(
    student: LogprobModel,
    shards: ShardSet,
    batch_tokens: int,
    on_batch: Callable[[float], None] = lambda share: None,
) -> Agreement:
    """The agreement of `student` with the targets in `shards`; raises CtdError where there are none to compare.

    `on_batch` is called after each batch with the share of all batches that is done.

    Where a process group is initialised, its members share the batches, and each has to call this.
    """
    if not shards.has_targets:
        raise CtdError(f"{shards.name}: these shards have no targets to measure against. Prepare with targets: true.")
    lengths = shards.student_lengths()
    device = student.mask.device
    batches = list(ordered_batches(lengths, np.argsort(lengths, kind="stable"), batch_tokens))
    rank, world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    found: dict[int, tuple[npt.NDArray[Any], ...]] = {}
    for first in range(0, len(batches), world):
        number = min(first + rank, len(batches) - 1)  # as many forward passes on each: fsdp has to have it so
        batch = collate(shards, batches[number])
        moved = batch.to(device)
        none = moved.positions[:0]
        token, _, _ = student(moved.input_ids, moved.positions, moved.target_rows, moved.target_ids, none)
        chunk = chunk_sums(moved, token)
        text = batch.chunks.scored & ~batch.chunks.marker
        found[number] = (
            chunk.double().cpu().numpy()[text],
            batch.chunks.teacher_logprobs[text].astype(np.float64),
            batch.chunks.num_bytes[text],
        )
        on_batch(min(first + world, len(batches)) / len(batches))
    in_order = [one for _, one in sorted(_of_all_workers(found).items())]
    total = sum(int(sizes.sum()) for _, _, sizes in in_order)
    if not total:
        raise CtdError(f"{shards.name}: no text in these shards has context before it. Take longer documents.")
    student_logprob, teacher_logprob = (np.concatenate(one) for one in list(zip(*in_order, strict=True))[:2])
    bits = 1 / (total * math.log(2))
    counts = shards.manifest.counts
    return Agreement(
        text_bytes=total,
        chunks=len(student_logprob),
        student_bits_per_byte=-float(student_logprob.sum()) * bits,
        teacher_bits_per_byte=-float(teacher_logprob.sum()) * bits,
        teacher_distance_bits_per_byte=float(np.abs(student_logprob - teacher_logprob).sum()) * bits,
        correlation=float(np.corrcoef(student_logprob, teacher_logprob)[0, 1]),
        student_tokens_per_byte=counts.student_tokens / counts.text_bytes,
        teacher_tokens_per_byte=counts.teacher_tokens / counts.text_bytes,
    )


def _of_all_workers(found: dict[int, T]) -> dict[int, T]:
    if not dist.is_initialized():
        return found
    every: list[dict[int, T]] = [{}] * dist.get_world_size()
    dist.all_gather_object(every, found)
    return {number: one for each in every for number, one in each.items()}
