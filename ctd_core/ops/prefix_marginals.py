"""A teacher's next-token distribution as distributions over the student's tokens, in blocks of bounded memory.

Where a text goes on with student tokens u, of which the teacher's next token is spelled, the next student token is s
with probability M(u·s) / M(u), M the teacher's probability of all its tokens whose spelling in student tokens begins
so. Exact next-token probabilities under a smaller vocabulary: arXiv 2512.14954.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from ctd_core.align.spelling_trie import SpellingTrie
from ctd_core.ops.fused_logprobs import BLOCK_BYTES, Head, logits_of

LEAST_MASS = 1e-9  # of prefixes that the teacher takes for less probable nothing is told
LEAST_SHARE = 1e-4  # less probable tokens are not stored: they are part of the rest


@dataclass(frozen=True)
class Marginals:
    """Distributions over next student tokens at P positions, the most probable first, without what is left out.

    counts: [P] int64, how many tokens of each are told. tokens: [E] int64. logprobs: [E] float64.
    """

    counts: Tensor
    tokens: Tensor
    logprobs: Tensor


class PrefixMarginals:
    """The trie of a pair of vocabularies on a device, and how many next tokens are told at most."""

    def __init__(self, trie: SpellingTrie, k: int, device: torch.device) -> None:
        self.k, self._device = k, device
        tensors = (trie.order, trie.first, trie.last, trie.tokens, trie.edges)
        self._order, self._first, self._last, self._tokens, self._edges = (
            torch.from_numpy(values).to(device) for values in tensors
        )

    @torch.no_grad()
    def __call__(self, hidden: Tensor, head: Head, rows: Tensor, nodes: Tensor) -> Marginals:
        """The distributions at P positions.

        Args:
            hidden: [J, H], the teacher's last hidden states before its next tokens.
            head: the teacher's.
            rows: [P] int64, ascending, the row of `hidden` of each position.
            nodes: [P] int64, the node of the trie that the student has come to at each.

        Returns:
            The k most probable next student tokens of each that have at least LEAST_SHARE; none where the prefix has
            less than LEAST_MASS.
        """
        step = max(1, BLOCK_BYTES // (8 * (len(self._order) + 1)))
        parts = []
        for start in range(0, len(hidden), step):
            probabilities = logits_of(hidden[start : start + step], head).softmax(1)
            masses = torch.nn.functional.pad(probabilities[:, self._order].double().cumsum(1), (1, 0))
            edges = torch.tensor([start, start + step], device=rows.device)
            begin, end = torch.searchsorted(rows, edges).tolist()
            parts.append(self._block(masses, rows[begin:end] - start, nodes[begin:end]))
        if not parts:
            none = torch.zeros(0, dtype=torch.int64, device=self._device)
            return Marginals(none, none, none.double())
        return Marginals(*(torch.cat(values) for values in zip(*parts, strict=True)))

    def _block(self, masses: Tensor, rows: Tensor, nodes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Of `masses` [B, U + 1], the sums of probabilities in the trie's order, and their positions."""
        found = self._at_root(masses, rows, nodes), self._below(masses, rows, nodes)
        position, token, share = (torch.cat(values) for values in zip(*found, strict=True))
        told = share >= LEAST_SHARE
        position, token, share = position[told], token[told], share[told]
        order = position.argsort(stable=True)
        counts = torch.bincount(position, minlength=len(rows))
        return counts, token[order], share[order].log()

    def _at_root(self, masses: Tensor, rows: Tensor, nodes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Position, token and share of the most probable first tokens, the most probable first."""
        positions = (nodes == 0).nonzero()[:, 0]
        children = slice(1, 1 + int(self._edges[1]))
        # a row may be asked at several positions, but at the root once
        shares = masses[rows[positions]]
        shares = shares[:, self._last[children]] - shares[:, self._first[children]]
        best = shares.topk(min(self.k, shares.shape[1]), 1)
        tokens = self._tokens[best.indices]
        return positions.repeat_interleave(best.indices.shape[1]), tokens.flatten(), best.values.flatten()

    def _below(self, masses: Tensor, rows: Tensor, nodes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        positions = (nodes > 0).nonzero()[:, 0]
        row, node = rows[positions], nodes[positions]
        mass = masses[row, self._last[node]] - masses[row, self._first[node]]
        probable = mass >= LEAST_MASS
        positions, row, node, mass = positions[probable], row[probable], node[probable], mass[probable]
        counts = self._edges[node + 1] - self._edges[node]
        owner = torch.arange(len(node), device=node.device).repeat_interleave(counts)
        within = torch.arange(len(owner), device=node.device) - (counts.cumsum(0) - counts)[owner]
        edge = self._edges[node][owner] + within
        shares = (masses[row[owner], self._last[edge + 1]] - masses[row[owner], self._first[edge + 1]]) / mass[owner]
        order = shares.argsort(descending=True, stable=True)
        order = order[owner[order].argsort(stable=True)]
        order = order[within < self.k]  # `within` counts up within each owner, and `order` is sorted by owner
        return positions[owner[order]], self._tokens[edge[order]], shares[order]
