"""How well a student models a text, and how far it is from its teacher there."""

import math
from dataclasses import dataclass

import numpy as np
import torch

from ctd_core.errors import CtdError
from ctd_core.models.student import LogprobModel
from ctd_core.objectives.plan import chunk_sums
from ctd_core.shards.batches import collate, ordered_batches
from ctd_core.shards.reading import ShardSet


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
def measure_agreement(student: LogprobModel, shards: ShardSet, batch_tokens: int) -> Agreement:
    """The agreement of `student` with the targets in `shards`; raises CtdError where there are none to compare."""
    if not shards.has_targets:
        raise CtdError(f"{shards.name}: these shards have no targets to measure against. Prepare with targets: true.")
    lengths = shards.student_lengths()
    device = student.mask.device
    mine, theirs, sizes = [], [], []
    for rows in ordered_batches(lengths, np.argsort(lengths, kind="stable"), batch_tokens):
        batch = collate(shards, rows)
        moved = batch.to(device)
        none = moved.positions[:0]
        token, _, _ = student(moved.input_ids, moved.positions, moved.target_rows, moved.target_ids, none)
        chunk = chunk_sums(moved, token)
        text = batch.chunks.scored & ~batch.chunks.marker
        mine.append(chunk.double().cpu().numpy()[text])
        theirs.append(batch.chunks.teacher_logprobs[text].astype(np.float64))
        sizes.append(batch.chunks.num_bytes[text])
    student_logprob, teacher_logprob = np.concatenate(mine), np.concatenate(theirs)
    total = int(np.concatenate(sizes).sum())
    if not total:
        raise CtdError(f"{shards.name}: no text in these shards has context before it. Take longer documents.")
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
