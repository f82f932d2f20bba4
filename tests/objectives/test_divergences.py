"""Divergences against their definition in double precision, and at the ends of their range."""

import math
from decimal import Decimal, localcontext

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ctd_core.objectives.divergences import EPSILON, FINITE, binarised_divergence, log1mexp

TEMPERATURES = [0.5, 1.0, 5.0, 100.0, math.inf]
LOGPROB = st.floats(-40, -0.01)


def definition(kind, student, teacher, temperature):
    """Python floats, straight from the formula; the limit by a very high temperature."""
    p, q = math.exp(teacher / temperature), math.exp(student / temperature)
    not_p, not_q = -math.expm1(teacher / temperature), -math.expm1(student / temperature)
    if kind == "kl":
        return p * (teacher - student) / temperature + not_p * math.log(not_p / not_q)
    if kind == "reverse_kl":
        return definition("kl", teacher, student, temperature)
    return abs(p - q) + abs(not_p - not_q)


@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("kind", FINITE)
@given(student=LOGPROB, teacher=LOGPROB)
def test_a_divergence_is_what_its_definition_says(kind, temperature, student, teacher):
    result = binarised_divergence(
        kind, torch.tensor(student, dtype=torch.float64), torch.tensor(teacher, dtype=torch.float64), temperature
    ).item()
    if math.isinf(temperature):
        expected = definition(kind, student - EPSILON, teacher - EPSILON, 1e6) * 1e6 / (2 if kind == "tv" else 1)
        assert result == pytest.approx(expected, rel=2e-3, abs=2e-4)
    else:
        shift = EPSILON * temperature
        expected = definition(kind, student - shift, teacher - shift, temperature)
        assert result == pytest.approx(expected, rel=1e-7, abs=1e-9)
    assert result >= -1e-12


@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("kind", FINITE)
def test_equal_sides_give_zero_with_zero_gradient(kind, temperature):
    logprobs = torch.tensor([0.0, -1e-7, -1e-3, -0.7, -5.0, -80.0, -1e4])
    student = logprobs.clone().requires_grad_()
    result = binarised_divergence(kind, student, logprobs, temperature)
    (grad,) = torch.autograd.grad(result.sum(), student)
    torch.testing.assert_close(result, torch.zeros_like(result), atol=1e-7, rtol=0)
    torch.testing.assert_close(grad, torch.zeros_like(grad), atol=1e-6, rtol=0)


@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("kind", FINITE)
def test_values_and_gradients_stay_finite_at_the_ends(kind, temperature):
    ends = torch.tensor([0.0, -1e-9, -1e-6, -1.0, -100.0, -1e4, -math.inf])
    student, teacher = torch.cartesian_prod(ends[:-1], ends).T
    student = student.clone().requires_grad_()
    result = binarised_divergence(kind, student, teacher, temperature)
    (grad,) = torch.autograd.grad(result.sum(), student)
    assert torch.isfinite(result).all()
    assert torch.isfinite(grad).all()


def test_log1mexp_is_exact_near_zero_and_far_from_it():
    x = torch.tensor([-1e-6, -1e-3, -0.5, -0.7, -3.0, -50.0], dtype=torch.float64)
    with localcontext() as context:
        context.prec = 60
        exact = [float((1 - Decimal(value).exp()).ln()) for value in x.tolist()]
    expected = torch.tensor(exact, dtype=torch.float64)
    torch.testing.assert_close(log1mexp(x), expected, rtol=1e-12, atol=1e-25)


@pytest.mark.parametrize("temperature", [0.0, -1.0, math.nan])
def test_a_senseless_temperature_is_an_error(temperature):
    with pytest.raises(ValueError, match="temperature"):
        binarised_divergence("kl", torch.zeros(1), torch.zeros(1), temperature)
