"""Distributions over student tokens against sums over the teacher's whole vocabulary."""

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from ctd_core.align.spelling_trie import spelling_trie
from ctd_core.objectives.stored_tokens import stored_divergence
from ctd_core.ops.prefix_marginals import LEAST_SHARE, MOST_ENDING, PrefixMarginals
from ctd_core.shards.batches import Top

SIZE = 30
SPELLINGS = st.lists(st.lists(st.integers(0, 4), max_size=4), min_size=SIZE, max_size=SIZE)


def reference(probabilities, spellings, prefix):
    """The share of each next token after `prefix`, by the definition."""
    agreeing = {n: s for n, s in enumerate(spellings) if tuple(s[: len(prefix)]) == prefix}
    mass = sum(probabilities[n] for n in agreeing)
    shares = {}
    for n, s in agreeing.items():
        if len(s) > len(prefix):
            shares[s[len(prefix)]] = shares.get(s[len(prefix)], 0.0) + probabilities[n] / mass
    return shares


def all_prefixes(spellings):
    return sorted(
        {tuple(s[:length]) for s in spellings for length in range(len(s) + 1)} | {()}, key=lambda p: (len(p), p)
    )


@given(spellings=SPELLINGS, k=st.integers(1, 6), seed=st.integers(0, 100))
def test_shares_are_those_of_the_definition(spellings, k, seed):
    torch.manual_seed(seed)
    trie, exponentials = spelling_trie(spellings), torch.randn(3, SIZE).exp()
    masses = exponentials.sum(1)
    prefixes = all_prefixes(spellings)  # in the order of the trie's nodes
    rows = torch.arange(3).repeat_interleave(len(prefixes))
    nodes = torch.arange(len(prefixes)).repeat(3)
    told = PrefixMarginals(trie, k, 0, SIZE, masses.device)(exponentials, masses, rows, nodes, torch.rand(len(rows)))
    assert not told.drawn.any()
    expected_rows = (exponentials.double() / masses[:, None]).tolist()
    at = 0
    for position, (row, prefix) in enumerate((row, prefix) for row in range(3) for prefix in prefixes):
        count = int(told.counts[position])
        tokens, shares = told.tokens[at : at + count].tolist(), told.logprobs[at : at + count].exp().tolist()
        at += count
        expected = reference(expected_rows[row], spellings, prefix)
        best = sorted((share for share in expected.values() if share >= LEAST_SHARE * (1 + 1e-3)), reverse=True)[:k]
        np.testing.assert_allclose(shares[: len(best)], best, rtol=1e-4)
        np.testing.assert_allclose(shares, [expected[token] for token in tokens], rtol=1e-4)
        assert len(set(tokens)) == len(tokens) <= k
    assert at == len(told.tokens)


@given(spellings=SPELLINGS)
def test_what_the_tokens_of_a_prefix_have_together_is_conserved(spellings):
    """The shares after a prefix and that of the tokens that end there add up to 1; all others end at the root."""
    torch.manual_seed(0)
    probabilities = (torch.randn(1, SIZE) * 0.3).softmax(1)
    prefixes = all_prefixes(spellings)
    nodes = torch.arange(len(prefixes))
    marginals = PrefixMarginals(spelling_trie(spellings), SIZE, 0, SIZE, probabilities.device)
    told = marginals(probabilities, torch.ones(1), torch.zeros_like(nodes), nodes, torch.zeros(len(nodes)))
    sums = torch.zeros(len(prefixes), dtype=torch.float64)
    sums.index_add_(0, nodes.repeat_interleave(told.counts), told.logprobs.exp())
    for prefix, total in zip(prefixes, sums.tolist(), strict=True):
        ending = sum(float(probabilities[0, n]) for n, s in enumerate(spellings) if tuple(s) == prefix)
        agreeing = sum(float(probabilities[0, n]) for n, s in enumerate(spellings) if tuple(s[: len(prefix)]) == prefix)
        assert total + ending / agreeing == pytest.approx(1, abs=1e-5)


CHANCES = 200
NONE_ENDS = [[n % 5, n % 4] for n in range(SIZE)]  # but at the second token
DRAWING = given(spellings=SPELLINGS, best=st.integers(0, 3), drawn=st.integers(1, 4), seed=st.integers(0, 100))


def told_by_chances(spellings, best, drawn, seed):
    """A distribution and, at each prefix under CHANCES chances, what is told of it."""
    torch.manual_seed(seed)
    probabilities = (torch.randn(SIZE) * 0.5).softmax(0)
    prefixes = all_prefixes(spellings)
    marginals = PrefixMarginals(spelling_trie(spellings), best + drawn, drawn, SIZE, probabilities.device)
    told = marginals(
        probabilities.repeat(CHANCES, 1),
        torch.ones(CHANCES),
        torch.arange(CHANCES).repeat_interleave(len(prefixes)),
        torch.arange(len(prefixes)).repeat(CHANCES),
        ((torch.arange(CHANCES) + 0.5) / CHANCES).repeat_interleave(len(prefixes)),
    )
    expected = [reference(probabilities.tolist(), spellings, prefix) for prefix in prefixes]
    whole = torch.tensor([[shares.get(token, 0.0) for token in range(5)] for shares in expected], dtype=torch.float64)
    return told, torch.arange(CHANCES * len(prefixes)).repeat_interleave(told.counts), whole


@DRAWING
@example(spellings=NONE_ENDS, best=1, drawn=2, seed=0)
def test_drawn_tokens_have_in_expectation_the_probabilities_of_all(spellings, best, drawn, seed):
    """The mean over all chances; and by each chance the likeliest as they are, with one sum of all."""
    told, position, whole = told_by_chances(spellings, best, drawn, seed)
    assert int(told.counts.max()) <= best + drawn
    shares = torch.zeros(CHANCES * len(whole), 5, dtype=torch.float64)
    shares[position, told.tokens] = told.logprobs.exp()
    assert int((shares > 0).sum()) == len(told.tokens)  # none is told twice
    draws = torch.zeros(len(shares)).index_add(0, position, told.drawn.float()).view(CHANCES, -1).any(0)
    if spellings == NONE_ENDS:
        assert draws[0] == (best + drawn < 5)
    for by_chance, of_all, is_expectation in zip(shares.view(CHANCES, -1, 5).unbind(1), whole, draws, strict=True):
        likeliest = of_all.topk(best if is_expectation else min(best + drawn, 5))
        torch.testing.assert_close(
            by_chance[:, likeliest.indices], likeliest.values.expand(CHANCES, -1), rtol=0, atol=1e-5
        )
        if is_expectation:
            torch.testing.assert_close(by_chance.mean(0), of_all, rtol=0, atol=1 / CHANCES)
            torch.testing.assert_close(by_chance.sum(1), of_all.sum().expand(CHANCES), rtol=0, atol=1e-5)


@DRAWING
@example(spellings=NONE_ENDS, best=1, drawn=2, seed=0)
@example(spellings=[[0, n % 5] for n in range(15)] + [[0]] * 15, best=1, drawn=2, seed=0)
def test_the_best_student_is_the_teacher_whatever_is_drawn(spellings, best, drawn, seed):
    """Where it gives all continuations, and what ends, the teacher's probabilities, its expected gradient is none."""
    told, position, whole = told_by_chances(spellings, best, drawn, seed)
    ending = (1 - whole.sum(1, keepdim=True)).clamp(min=0)
    logits = torch.cat([whole, ending], 1).clamp(min=1e-12).log().requires_grad_()
    logprobs = logits.log_softmax(1)[position % len(whole), told.tokens]
    groups = CHANCES * len(whole)
    loss = stored_divergence(
        "forward", Top(told.tokens, told.logprobs, position, position, told.drawn, groups), logprobs
    )
    (gradient,) = torch.autograd.grad(loss / CHANCES, logits)
    allowed = MOST_ENDING * whole.sum(1, keepdim=True).clamp(max=1) + 1 / CHANCES
    assert (gradient.abs() <= allowed).all()


def test_tokens_beyond_the_output_matrix_have_no_probability():
    spellings = [[n % 3, n % 2] for n in range(SIZE)]
    probabilities = torch.rand(2, SIZE - 5).softmax(1)
    padded = torch.nn.functional.pad(probabilities, (0, 5))
    rows, nodes = torch.tensor([0, 0, 1, 1]), torch.tensor([0, 1, 0, 2])
    asked = torch.ones(2), rows, nodes, torch.tensor([0.1, 0.2, 0.6, 0.9])
    told = [
        PrefixMarginals(spelling_trie(spellings), 3, 1, values.shape[1], values.device)(values, *asked)
        for values in (probabilities, padded)
    ]
    assert torch.equal(told[0].tokens, told[1].tokens)
    torch.testing.assert_close(told[0].logprobs, told[1].logprobs)
