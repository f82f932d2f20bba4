"""Divergences of next-token distributions of which few tokens are stored, and one bucket for all others.

Merging the rest into a bucket bounds the full divergence from below (data processing).
"""

from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from ctd_core.shards.batches import Top

LEAST = 1e-6  # the least probability that all other tokens together are taken to have


def stored_divergence(
    direction: Literal["forward", "reverse"], stored: Top, student_logprobs: Tensor, temperature: float = 1.0
) -> Tensor:
    """Σ over the positions of `stored` of KL(teacher ‖ student), or of the other with `reverse`; a scalar.

    student_logprobs: [E], natural logarithms. temperature: of the distributions over stored tokens and bucket; the
    divergence is multiplied by its square. Drawn tokens count in the forward divergence at a temperature of 1 alone,
    whose gradient they make in expectation.
    """
    if direction == "reverse" or temperature != 1.0:
        likeliest = ~stored.drawn
        student_logprobs = student_logprobs[likeliest]
        teacher_logprobs, group = stored.teacher_logprobs[likeliest], stored.group[likeliest]
        stored = replace(stored, teacher_logprobs=teacher_logprobs, group=group)
    teacher_logprobs = stored.teacher_logprobs.to(student_logprobs.dtype)
    sides = [
        (logprobs, _log_rest(logprobs, stored.group, stored.groups))
        for logprobs in (student_logprobs, teacher_logprobs)
    ]
    if temperature != 1.0:
        sides = [_softened(*side, stored, temperature) for side in sides]
    student, teacher = sides
    terms = [_terms(direction, *pair).sum() for pair in zip(student, teacher, strict=True)]
    return temperature**2 * torch.stack(terms).sum()


def _terms(direction: str, student_logprobs: Tensor, teacher_logprobs: Tensor) -> Tensor:
    return (
        teacher_logprobs.exp() * (teacher_logprobs - student_logprobs)
        if direction == "forward"
        else student_logprobs.exp() * (student_logprobs - teacher_logprobs)
    )


def _log_rest(logprobs: Tensor, group: Tensor, groups: int) -> Tensor:
    """[groups], the log-probability of everything that is not stored; it is bounded so that its gradient is finite."""
    stored = logprobs.new_zeros(groups).index_add(0, group, logprobs.exp())
    return torch.log1p(-stored.clamp(max=1 - LEAST))


def _softened(logprobs: Tensor, rest: Tensor, stored: Top, temperature: float) -> tuple[Tensor, Tensor]:
    """Both divided by the temperature and normalised again."""
    logprobs, rest = logprobs / temperature, rest / temperature
    norm = rest.exp().index_add(0, stored.group, logprobs.exp()).log()
    return logprobs - norm[stored.group], rest - norm
