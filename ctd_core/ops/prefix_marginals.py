"""A teacher's next-token distribution as distributions over the student's tokens.

Where a text goes on with student tokens u, of which the teacher's next token is spelled, the next student token is s
with probability M(u·s) / M(u), M the teacher's probability of all its tokens whose spelling in student tokens begins
so. Exact next-token probabilities under a smaller vocabulary: arXiv 2512.14954.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from ctd_core.align.spelling_trie import SpellingTrie

LEAST_MASS = 1e-9  # of prefixes that the teacher takes for less probable nothing is kept
LEAST_SHARE = 1e-4  # less probable tokens are not kept: they are part of the rest


@dataclass(frozen=True)
class Marginals:
    """Distributions over next student tokens at P positions, without what is left out.

    counts: [P] int64, how many tokens of each are kept. tokens: [E] int64. logprobs: [E] float64.
    """

    counts: Tensor
    tokens: Tensor
    logprobs: Tensor


class PrefixMarginals:
    """The trie of a pair of vocabularies on a device.

    Args:
        trie: the teacher's vocabulary in student tokens.
        k: how many next tokens are kept at most.
        width: the teacher's output matrix has this many rows; tokens beyond have no probability.
        device: where probabilities will be.
    """

    def __init__(self, trie: SpellingTrie, k: int, width: int, device: torch.device) -> None:
        self.k = k
        tensors = (trie.order, trie.first, trie.last, trie.tokens, trie.edges)
        self._order, self._first, self._last, self._tokens, self._edges = (
            torch.from_numpy(values).to(device) for values in tensors
        )
        self._has_row = self._order < width
        # for each of the teacher's tokens the first token of its spelling, among those of all; one more for no spelling
        self._first_tokens = int(self._edges[1])
        self._first_of = torch.full((width,), self._first_tokens, device=device)
        spans = (self._last - self._first)[1 : self._first_tokens + 1]
        firsts = torch.arange(self._first_tokens, device=device).repeat_interleave(spans)
        self._first_of[self._order[self._has_row]] = firsts[self._has_row]

    @torch.no_grad()
    def __call__(self, exponentials: Tensor, masses: Tensor, rows: Tensor, nodes: Tensor) -> Marginals:
        """The distributions at P positions.

        Args:
            exponentials: [B, width], the teacher's probabilities of its next token times `masses`.
            masses: [B], their sums.
            rows: [P] int64, ascending, the row of `exponentials` of each position.
            nodes: [P] int64, the node of the trie that the student has come to at each.

        Returns:
            The k most probable next student tokens of each that have at least LEAST_SHARE, the most probable first;
            none where the prefix has less than LEAST_MASS.
        """
        found = self._at_root(exponentials, masses, rows, nodes), self._below(exponentials, masses, rows, nodes)
        position, token, share = (torch.cat(values) for values in zip(*found, strict=True))
        kept = share >= LEAST_SHARE
        position, token, share = position[kept], token[kept], share[kept]
        order = position.argsort(stable=True)
        return Marginals(torch.bincount(position, minlength=len(rows)), token[order], share[order].log())

    def _at_root(
        self, exponentials: Tensor, masses: Tensor, rows: Tensor, nodes: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Position, token and share of the most probable first tokens."""
        positions = (nodes == 0).nonzero()[:, 0]
        # of every row, as nearly all are asked for: a copy of the others takes longer
        sums = exponentials.new_zeros(len(exponentials), self._first_tokens + 1)
        sums.index_add_(1, self._first_of, exponentials)
        best = sums[:, :-1].topk(min(self.k, self._first_tokens), 1)
        row = rows[positions]
        shares = best.values[row] / masses[row, None]
        positions = positions.repeat_interleave(shares.shape[1])
        return positions, self._tokens[best.indices[row]].flatten(), shares.double().flatten()

    def _below(
        self, exponentials: Tensor, masses: Tensor, rows: Tensor, nodes: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The same where some tokens are spelled already."""
        positions = (nodes > 0).nonzero()[:, 0]
        row, node = rows[positions], nodes[positions]
        owner, at = _ranges(self._first[node], self._last[node])  # the teacher's tokens that agree with what is spelled
        part = exponentials[row[owner], self._order[at].clamp(max=exponentials.shape[1] - 1)] / masses[row[owner]]
        sums = torch.nn.functional.pad((part.double() * self._has_row[at]).cumsum(0), (1, 0))
        before = (self._last[node] - self._first[node]).cumsum(0) - self._last[node]  # of a place in the order, in sums
        mass = sums[before + self._last[node]] - sums[before + self._first[node]]
        owner, edge = _ranges(self._edges[node], self._edges[node + 1])
        share = sums[before[owner] + self._last[edge + 1]] - sums[before[owner] + self._first[edge + 1]]
        share = torch.where(mass >= LEAST_MASS, 1 / mass, 0.0)[owner] * share
        order = share.argsort(descending=True, stable=True)
        order = order[owner[order].argsort(stable=True)]  # by position, the most probable first
        rank = torch.arange(len(owner), device=owner.device) - torch.searchsorted(owner, owner)
        order = order[rank < self.k]
        return positions[owner[order]], self._tokens[edge[order]], share[order]


def _ranges(first: Tensor, last: Tensor) -> tuple[Tensor, Tensor]:
    """The numbers from `first` [N] to `last` [N] one range behind the other, and which range each is of."""
    lengths = last - first
    owner = torch.arange(len(first), device=first.device).repeat_interleave(lengths)
    within = torch.arange(len(owner), device=first.device) - (lengths.cumsum(0) - lengths)[owner]
    return owner, first[owner] + within
