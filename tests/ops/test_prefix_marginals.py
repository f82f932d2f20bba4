"""Distributions over student tokens against sums over the teacher's whole vocabulary."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ctd_core.align.spelling_trie import spelling_trie
from ctd_core.ops.prefix_marginals import LEAST_SHARE, PrefixMarginals

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


@given(spellings=SPELLINGS, best=st.integers(0, 3), drawn=st.integers(1, 4), seed=st.integers(0, 100))
def test_drawn_tokens_have_in_expectation_the_probabilities_of_all(spellings, best, drawn, seed):
    """The mean over all chances; and by each chance the likeliest as they are, with one sum of all."""
    torch.manual_seed(seed)
    probabilities, chances = (torch.randn(SIZE) * 0.5).softmax(0), 200
    prefixes = all_prefixes(spellings)
    marginals = PrefixMarginals(spelling_trie(spellings), best + drawn, drawn, SIZE, probabilities.device)
    told = marginals(
        probabilities.repeat(chances, 1),
        torch.ones(chances),
        torch.arange(chances).repeat_interleave(len(prefixes)),
        torch.arange(len(prefixes)).repeat(chances),
        ((torch.arange(chances) + 0.5) / chances).repeat_interleave(len(prefixes)),
    )
    assert int(told.counts.max()) <= best + drawn
    shares = torch.zeros(chances * len(prefixes), 5, dtype=torch.float64)
    shares[torch.arange(len(shares)).repeat_interleave(told.counts), told.tokens] = told.logprobs.exp()
    assert int((shares > 0).sum()) == len(told.tokens)  # none is told twice
    for prefix, by_chance in zip(prefixes, shares.view(chances, len(prefixes), 5).unbind(1), strict=True):
        expected = reference(probabilities.tolist(), spellings, prefix)
        whole = torch.tensor([expected.get(token, 0.0) for token in range(5)], dtype=torch.float64)
        torch.testing.assert_close(by_chance.mean(0), whole, rtol=0, atol=1 / chances)
        torch.testing.assert_close(by_chance.sum(1), whole.sum().expand(chances), rtol=0, atol=1e-5)
        likeliest = sorted(expected, key=expected.get, reverse=True)[:best]
        torch.testing.assert_close(by_chance[:, likeliest], whole[likeliest].expand(chances, -1), rtol=0, atol=1e-5)


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
