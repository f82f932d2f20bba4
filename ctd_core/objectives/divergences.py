"""Divergences between two probabilities of the same chunk: it comes, or it does not (arXiv 2503.20083, equation 5).

Every function takes natural log-probabilities, float32 or wider and at most 0, of one shape, student before teacher,
and returns the divergence of each pair in that shape: at least 0, and 0 where the two are equal. Gradients flow to
the student alone.
"""

import math
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

EPSILON = 1e-6  # keeps log(1 - p) finite; the reference implementation's value
FLOOR = -1e30  # in place of minus infinity, which times 0 is not a number

DivergenceKind = Literal["kl", "reverse_kl", "tv"]


def binarised_divergence(
    kind: DivergenceKind, student_logprobs: Tensor, teacher_logprobs: Tensor, temperature: float
) -> Tensor:
    """f(p_T^(1/τ) ‖ p_S^(1/τ)) + f(1 − p_T^(1/τ) ‖ 1 − p_S^(1/τ)) for each chunk; τ is `temperature`.

    For an infinite temperature, the limit of τ times that (half of it for `tv`), which is:
    kl: (log p_T − log p_S) + log p_T · log(log p_S / log p_T); reverse_kl: the same with the sides swapped;
    tv: |log p_T − log p_S|. Raises ValueError for a temperature that is not above 0.
    """
    if not temperature > 0:
        raise ValueError(f"a temperature is above 0, not {temperature}")
    limit = math.isinf(temperature)
    scale = 1.0 if limit else temperature
    student = _bounded(student_logprobs / scale)
    teacher = _bounded(teacher_logprobs.detach() / scale)
    return (LIMITS if limit else FINITE)[kind](student, teacher)


def log1mexp(x: Tensor) -> Tensor:
    """log(1 − eˣ) for x < 0, exact at both ends; its gradient is finite for x ≤ −EPSILON."""
    near_zero = x > -math.log(2)
    close = torch.log(-torch.expm1(torch.where(near_zero, x, -1.0)))
    far = torch.log1p(-torch.exp(torch.where(near_zero, -1.0, x)))
    return torch.where(near_zero, close, far)


def _bounded(logprobs: Tensor) -> Tensor:
    """Shifted below 0 by EPSILON; minus infinity becomes a very large number."""
    return torch.clamp(logprobs, min=FLOOR, max=0.0) - EPSILON


def _kl(student: Tensor, teacher: Tensor) -> Tensor:
    probability = teacher.exp()
    return probability * (teacher - student) + -torch.expm1(teacher) * (log1mexp(teacher) - log1mexp(student))


def _reverse_kl(student: Tensor, teacher: Tensor) -> Tensor:
    return student.exp() * (student - teacher) + -torch.expm1(student) * (log1mexp(student) - log1mexp(teacher))


def _tv(student: Tensor, teacher: Tensor) -> Tensor:
    return 2 * (teacher.exp() - student.exp()).abs()


def _kl_limit(student: Tensor, teacher: Tensor) -> Tensor:
    return (teacher - student) + teacher * (torch.log(-student) - torch.log(-teacher))


def _reverse_kl_limit(student: Tensor, teacher: Tensor) -> Tensor:
    return (student - teacher) + student * (torch.log(-teacher) - torch.log(-student))


def _tv_limit(student: Tensor, teacher: Tensor) -> Tensor:
    return (teacher - student).abs()


Divergence = Callable[[Tensor, Tensor], Tensor]
FINITE: dict[DivergenceKind, Divergence] = {"kl": _kl, "reverse_kl": _reverse_kl, "tv": _tv}
LIMITS: dict[DivergenceKind, Divergence] = {"kl": _kl_limit, "reverse_kl": _reverse_kl_limit, "tv": _tv_limit}
