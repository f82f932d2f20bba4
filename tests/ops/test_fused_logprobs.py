"""Fused log-probabilities against the plain computation."""

import pytest
import torch

from ctd_core.ops import fused_logprobs
from ctd_core.ops.fused_logprobs import Head, token_and_boundary_logprobs


def plain(hidden, head, token_rows, token_ids, begins_pretoken, boundary_rows):
    logits = hidden @ head.weight.T + (0 if head.bias is None else head.bias)
    logits = logits * head.scale
    if head.cap is not None:
        logits = head.cap * torch.tanh(logits / head.cap)
    every = logits.log_softmax(1)
    return every[token_rows, token_ids], every[boundary_rows][:, begins_pretoken].logsumexp(1)


def inputs(rows=11, width=5, vocabulary=13, dtype=torch.float64, bias=True, scale=1.0, cap=None):
    random = torch.Generator().manual_seed(0)
    draw = lambda *shape: torch.randn(*shape, generator=random, dtype=dtype).requires_grad_()  # noqa: E731
    token_rows = torch.tensor([*(row for row in range(rows) if row != 3), 5, 0, 5])  # any number a row, any order
    token_ids = torch.randint(0, vocabulary, (len(token_rows),), generator=random)
    begins_pretoken = torch.arange(vocabulary) % 3 == 0
    head = Head(draw(vocabulary, width), draw(vocabulary) if bias else None, scale, cap)
    return draw(rows, width), head, token_rows, token_ids, begins_pretoken, torch.tensor([0, 3, 4, rows - 1])


HEADS = [{}, {"bias": False}, {"scale": 0.25}, {"cap": 2.0}, {"scale": 3.0, "cap": 5.0}]


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("keep_bytes", [0, 500, 10**9])
def test_values_and_gradients_are_those_of_the_plain_computation(head, keep_bytes, monkeypatch):
    monkeypatch.setattr(fused_logprobs, "BLOCK_BYTES", {"cpu": 4 * 13 * 4})  # four rows a block
    monkeypatch.setattr(fused_logprobs, "BLOCK_ROWS", 1)
    arguments = inputs(**head)
    leaves = [leaf for leaf in (arguments[0], arguments[1].weight, arguments[1].bias) if leaf is not None]
    results = token_and_boundary_logprobs(*arguments, keep_bytes=keep_bytes)
    expected = plain(*arguments)
    weights = [torch.linspace(-1, 2, len(tensor), dtype=tensor.dtype) for tensor in expected]
    for result, reference in zip(results, expected, strict=True):
        torch.testing.assert_close(result, reference)
    grads = [
        torch.autograd.grad(sum((tensor * w).sum() for tensor, w in zip(side, weights, strict=True)), leaves)
        for side in (results, expected)
    ]
    for result, reference in zip(*grads, strict=True):
        torch.testing.assert_close(result, reference)


@pytest.mark.parametrize("head", HEADS)
def test_the_backward_is_the_derivative_of_the_forward(head, monkeypatch):
    monkeypatch.setattr(fused_logprobs, "BLOCK_BYTES", {"cpu": 4 * 13 * 4})
    monkeypatch.setattr(fused_logprobs, "BLOCK_ROWS", 1)
    hidden, head, *rest = inputs(**head)
    leaves = (hidden, head.weight) if head.bias is None else (hidden, head.weight, head.bias)

    def function(hidden, weight, bias=None):
        return token_and_boundary_logprobs(hidden, Head(weight, bias, head.scale, head.cap), *rest)

    assert torch.autograd.gradcheck(function, leaves)


def test_a_boundary_beyond_the_range_of_float32_is_not_minus_infinity():
    hidden, weight = torch.ones(1, 1), torch.tensor([[0.0], [-300.0], [-301.0]]).requires_grad_()
    mask = torch.tensor([False, True, True])
    arguments = (hidden, Head(weight), torch.tensor([0]), torch.tensor([0]), mask, torch.tensor([0]))
    _, boundary = token_and_boundary_logprobs(*arguments)
    torch.testing.assert_close(boundary, plain(*arguments)[1])
    assert boundary.item() == pytest.approx(-299.6867, abs=1e-3)
    (grad,) = torch.autograd.grad(boundary.sum(), weight)
    (expected,) = torch.autograd.grad(plain(*arguments)[1].sum(), weight)
    torch.testing.assert_close(grad, expected)


@pytest.mark.parametrize("token", [-2, 13])
def test_a_token_outside_the_vocabulary_is_an_error_with_both_numbers(token):
    hidden, head, token_rows, token_ids, *rest = inputs()
    token_ids[0] = token
    with pytest.raises(ValueError, match=f"{token}.*13 entries"):
        token_and_boundary_logprobs(hidden, head, token_rows, token_ids, *rest)


@pytest.mark.parametrize("head", HEADS)
def test_every_distribution_is_seen_once(head, monkeypatch):
    monkeypatch.setattr(fused_logprobs, "BLOCK_BYTES", {"cpu": 4 * 13 * 4})
    monkeypatch.setattr(fused_logprobs, "BLOCK_ROWS", 1)
    hidden, head, *rest = inputs(**head)
    seen = []

    def watch(rows, exponentials, mass):
        seen.append((rows, exponentials / mass[:, None]))

    with torch.no_grad():
        token_and_boundary_logprobs(hidden, head, *rest, watch=watch)
    assert [row for rows, _ in seen for row in range(rows.start, rows.stop)] == list(range(len(hidden)))
    for row, distribution in enumerate(torch.cat([part for _, part in seen])):
        every = plain(hidden, head, torch.full((13,), row), torch.arange(13), torch.ones(13).bool(), torch.arange(0))[0]
        torch.testing.assert_close(distribution, every.exp())


def test_gradients_in_bfloat16_are_summed_over_blocks_in_float32(monkeypatch):
    monkeypatch.setattr(fused_logprobs, "BLOCK_BYTES", {"cpu": 1})
    hidden, head, tokens, ids, mask, edges = inputs(rows=512, dtype=torch.bfloat16)
    wide = hidden.detach().double(), head.weight.detach().double().requires_grad_()
    bias = head.bias.detach().double().requires_grad_()
    expected = plain(wide[0], Head(wide[1], bias), tokens, ids, mask, edges)
    expected = torch.autograd.grad(sum(tensor.sum() for tensor in expected), (wide[1], bias))
    errors = []
    for rows in (512, 4):
        monkeypatch.setattr(fused_logprobs, "BLOCK_ROWS", rows)
        results = token_and_boundary_logprobs(hidden, head, tokens, ids, mask, edges)
        grads = torch.autograd.grad(sum(tensor.sum() for tensor in results), (head.weight, head.bias))
        errors.append([float((a - b).norm() / b.norm()) for a, b in zip(grads, expected, strict=True)])
    assert max(errors[1]) < 1.5 * max(errors[0])  # 6 to 9 times where each sum was rounded


@pytest.mark.parametrize("keep_bytes", [0, 10**9])
def test_under_autocast_sums_stay_in_float32(keep_bytes):
    random = torch.Generator().manual_seed(0)
    hidden = torch.randn(600, 16, generator=random).requires_grad_()
    weight = torch.randn(50, 16, generator=random).requires_grad_()
    tokens = torch.arange(600), torch.randint(0, 50, (600,), generator=random)
    arguments = (*tokens, torch.arange(50) != 3, torch.arange(600))
    rounded = hidden.detach().bfloat16().requires_grad_(), weight.detach().bfloat16().requires_grad_()
    logits = torch.nn.functional.linear(*rounded).float()
    expected = plain(torch.eye(600) @ logits, Head(torch.eye(50)), *arguments)
    with torch.autocast("cpu", torch.bfloat16):
        results = token_and_boundary_logprobs(hidden, Head(weight), *arguments, keep_bytes=keep_bytes)
    for result, reference in zip(results, expected, strict=True):
        torch.testing.assert_close(result, reference, rtol=1e-5, atol=1e-6)
    grads = torch.autograd.grad(sum(tensor.sum() for tensor in results), (hidden, weight))
    expected_grads = torch.autograd.grad(sum(tensor.sum() for tensor in expected), rounded)
    for result, reference in zip(grads, expected_grads, strict=True):
        torch.testing.assert_close(result, reference.float(), rtol=0.05, atol=0.05)
