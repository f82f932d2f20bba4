"""The student's chunk log-likelihoods on an evaluation set, beside the stored ones of its teacher."""

from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist

from ctd_core.errors import CtdError
from ctd_core.evaluation.metrics import Likelihoods
from ctd_core.models.logprob_model import LogprobModel
from ctd_core.objectives.interface import chunk_sums
from ctd_core.shards.batches import collate
from ctd_core.shards.row_order import ordered_batches
from ctd_core.shards.rows import RowSource

T = TypeVar("T")


@torch.no_grad()
def measure_likelihoods(
    student: LogprobModel,
    shards: RowSource,
    batch_tokens: int,
    on_batch: Callable[[float], None] = lambda share: None,
) -> Likelihoods:
    """The likelihoods of the chunks in `shards`; raises CtdError where they hold no targets to compare with.

    `on_batch` is called after each batch with the fraction of all batches that is done.

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
        text = ~batch.chunks.marker
        sums = [part[text].sum() for part in (
            batch.chunks.num_bytes, batch.chunks.num_student_tokens, batch.chunks.num_teacher_tokens
        )]  # fmt: skip
        text &= batch.chunks.scored
        found[number] = (
            chunk.double().cpu().numpy()[text],
            batch.chunks.teacher_logprobs[text].astype(np.float64),
            batch.chunks.num_bytes[text],
            np.array(sums),
        )
        on_batch(min(first + world, len(batches)) / len(batches))
    in_order = [measured for _, measured in sorted(_of_all_workers(found).items())]
    total = sum(int(sizes.sum()) for _, _, sizes, _ in in_order)
    if not total:
        raise CtdError(f"{shards.name}: no text in these shards has context before it. Take longer documents.")
    student_logprobs, teacher_logprobs = (np.concatenate(part) for part in list(zip(*in_order, strict=True))[:2])
    text_bytes, student_tokens, teacher_tokens = np.sum([sums for *_, sums in in_order], axis=0).tolist()
    return Likelihoods(
        student_logprobs=student_logprobs,
        teacher_logprobs=teacher_logprobs,
        text_bytes=total,
        student_tokens_per_byte=student_tokens / text_bytes,
        teacher_tokens_per_byte=teacher_tokens / text_bytes,
    )


def _of_all_workers(found: dict[int, T]) -> dict[int, T]:
    if not dist.is_initialized():
        return found
    every: list[dict[int, T]] = [{}] * dist.get_world_size()
    dist.all_gather_object(every, found)
    return {number: values for each in every for number, values in each.items()}
