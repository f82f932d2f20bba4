"""A teacher's next-token distribution as distributions over the student's tokens.

Where a text goes on with student tokens u, of which the teacher's next token is spelled, the next student token is s
with probability M(u·s) / M(u), M the teacher's probability of all its tokens whose spelling in student tokens begins
so. Exact next-token probabilities under a smaller vocabulary: arXiv 2512.14954.

Of each distribution few tokens are kept. The most probable alone tell of the others only what these have together, and
a student that learns no more gives it to any of them. So some of the others are drawn by their probabilities, and stand
for all: gradients are then, in expectation, those of the whole distribution (arXiv 2503.16870). But a student's
probability of all that is not stored is then not only that of tokens of the teacher which end there, and where these
have their share, it would learn to give them none: nothing is drawn there.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ctd_core.align.spelling_trie import SpellingTrie

LEAST_MASS = 1e-9  # of prefixes that the teacher takes for less probable nothing is kept
LEAST_SHARE = 1e-4  # less probable tokens are not kept: they are part of the rest
MOST_ENDING = 0.05  # of what drawn tokens stand for: where more ends, none are drawn


@dataclass(frozen=True)
class Marginals:
    """Distributions over next student tokens at P positions, without what is left out.

    counts: [P] int64, how many tokens of each are kept. tokens: [E] int64. logprobs: [E] float64. drawn: [E] bool, the
    tokens that were drawn, whose probability is that of all for which they stand.
    """

    counts: Tensor
    tokens: Tensor
    logprobs: Tensor
    drawn: Tensor


class _Found(NamedTuple):
    """Tokens to keep [E]: at which position, which of the student's, with what probability, and whether drawn."""

    position: Tensor
    token: Tensor
    share: Tensor
    drawn: Tensor


class PrefixMarginals:
    """The trie of a pair of vocabularies on a device.

    Args:
        trie: the teacher's vocabulary in student tokens.
        k: how many next tokens are kept at most.
        drawn: how many of the k are drawn from those that are not the k − drawn most probable.
        width: the teacher's output matrix has this many rows; tokens beyond have no probability.
        device: where probabilities will be.
    """

    def __init__(self, trie: SpellingTrie, k: int, drawn: int, width: int, device: torch.device) -> None:
        self._k, self._best, self._drawn = k, k - drawn, drawn
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
    def __call__(self, exponentials: Tensor, masses: Tensor, rows: Tensor, nodes: Tensor, chances: Tensor) -> Marginals:
        """The distributions at P positions.

        Args:
            exponentials: [B, width], the teacher's probabilities of its next token times `masses`.
            masses: [B], their sums.
            rows: [P] int64, ascending, the row of `exponentials` of each position.
            nodes: [P] int64, the node of the trie that the student has come to at each; 0 once a row at most.
            chances: [P], in [0, 1), by which tokens are drawn.

        Returns:
            The most probable next student tokens of each that have at least LEAST_SHARE, the most probable first, and
            those drawn in place of the last of them (see `_draws`); none where the prefix has less than LEAST_MASS.
        """
        asked = exponentials, masses, rows, nodes, chances
        found = self._at_root(*asked), self._below(*asked)
        every = _Found(*(torch.cat(values) for values in zip(*found, strict=True)))
        kept = (every.share >= LEAST_SHARE).nonzero()[:, 0]
        kept = kept[every.position[kept].argsort(stable=True)]
        counts = torch.bincount(every.position[kept], minlength=len(rows))
        return Marginals(counts, every.token[kept], every.share[kept].clamp(max=1.0).log(), every.drawn[kept])

    def _at_root(self, exponentials: Tensor, masses: Tensor, rows: Tensor, nodes: Tensor, chances: Tensor) -> _Found:
        """First tokens of spellings."""
        positions = (nodes == 0).nonzero()[:, 0]
        # of every row, as nearly all are asked for: a copy of the others takes longer
        sums = exponentials.new_zeros(len(exponentials), self._first_tokens + 1)
        sums.index_add_(1, self._first_of, exponentials)
        sums = sums[:, :-1]
        best, chosen = sums.topk(min(self._k, self._first_tokens), 1)
        is_drawn = torch.zeros_like(best, dtype=torch.bool)
        row = rows[positions]
        if self._drawn and self._first_tokens > self._k:
            ending = masses - sums.sum(1)
            cumulative = sums.scatter_(1, chosen[:, : self._best], 0.0).cumsum(1)
            others = cumulative[:, -1]
            chance = torch.zeros_like(masses).index_copy_(0, row, chances[positions].to(masses.dtype))
            drawn, stands_for = self._draw(cumulative, torch.zeros_like(masses), others, chance)
            stands_for *= sums.gather(1, drawn) > 0  # a sum made in parallel may rise at a token chosen already
            is_drawn[:, self._best :] = self._draws(others / masses, ending / masses)[:, None]
            best[:, self._best :] = torch.where(is_drawn[:, self._best :], stands_for, best[:, self._best :])
            chosen[:, self._best :] = torch.where(is_drawn[:, self._best :], drawn, chosen[:, self._best :])
        shares = best[row] / masses[row, None]
        positions = positions.repeat_interleave(shares.shape[1])
        tokens = self._tokens[chosen[row]].flatten()
        return _Found(positions, tokens, shares.double().flatten(), is_drawn[row].flatten())

    def _draws(self, others: Tensor, ending: Tensor) -> Tensor:
        """[N], whether tokens are drawn: from `others`, [N], the share of all but the most probable, where tokens of
        the teacher that end there have the share `ending`, [N]. Each drawn one stands for at least LEAST_SHARE.
        """
        return (others >= self._drawn * LEAST_SHARE) & (ending <= MOST_ENDING * others)

    def _draw(self, cumulative: Tensor, begin: Tensor, end: Tensor, chances: Tensor) -> tuple[Tensor, Tensor]:
        """A systematic sample: places at equal distances.

        Args:
            cumulative: [C] or [N, C], ascending sums.
            begin: [N], the sum before what is drawn from.
            end: [N], the sum with it.
            chances: [N], in [0, 1), where the first place lies within its part.

        Returns:
            [N, drawn] where in `cumulative` they are, and what each stands for: 0 for all but the first of the same.
        """
        fractions = (chances[:, None] + torch.arange(self._drawn, device=chances.device)) / self._drawn
        total = (end - begin)[:, None]
        found = torch.searchsorted(cumulative, begin[:, None] + fractions * total, right=True)
        found = torch.minimum(found, torch.searchsorted(cumulative, end[:, None].contiguous()))  # a sum may be rounded
        times = (found[:, :, None] == found[:, None, :]).sum(2)
        times[:, 1:] *= found[:, 1:] != found[:, :-1]
        return found, total / self._drawn * times

    def _below(self, exponentials: Tensor, masses: Tensor, rows: Tensor, nodes: Tensor, chances: Tensor) -> _Found:
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
        owner, edge, share = owner[order], edge[order], share[order]
        rank = torch.arange(len(owner), device=owner.device) - torch.searchsorted(owner, owner)
        zero = torch.zeros(len(node), dtype=share.dtype, device=share.device)
        others = zero.index_add(0, owner, share * (rank >= self._best))
        ending = 1.0 - zero.index_add(0, owner, share)
        draws = self._draws(others, ending) & (torch.bincount(owner, minlength=len(node)) > self._k)
        best = rank < torch.where(draws, self._best, self._k)[owner]
        found = [(owner[best], edge[best], share[best], torch.zeros_like(owner[best], dtype=torch.bool))]
        if self._drawn and draws.any():
            drawn_from = draws[owner] & ~best
            others, edge, share = owner[drawn_from], edge[drawn_from], share[drawn_from]
            owner = torch.bincount(others).nonzero()[:, 0]
            cumulative = share.cumsum(0)
            end = cumulative[torch.searchsorted(others, owner, right=True) - 1]
            begin = torch.nn.functional.pad(end[:-1], (1, 0))
            drawn, stands_for = self._draw(cumulative, begin, end, chances[positions[owner]].to(end.dtype))
            owner = owner.repeat_interleave(self._drawn)
            found.append((owner, edge[drawn].flatten(), stands_for.flatten(), torch.ones_like(owner, dtype=torch.bool)))
        owner, edge, share, is_drawn = (torch.cat(values) for values in zip(*found, strict=True))
        return _Found(positions[owner], self._tokens[edge], share, is_drawn)


def _ranges(first: Tensor, last: Tensor) -> tuple[Tensor, Tensor]:
    """The numbers from `first` [N] to `last` [N] one range behind the other, and which range each is of."""
    lengths = last - first
    owner = torch.arange(len(first), device=first.device).repeat_interleave(lengths)
    within = torch.arange(len(owner), device=first.device) - (lengths.cumsum(0) - lengths)[owner]
    return owner, first[owner] + within
