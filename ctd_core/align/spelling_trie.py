"""One vocabulary as a trie over the tokens of another: which tokens of the one begin with given tokens of the other."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

Ids = npt.NDArray[np.int64]


@dataclass(frozen=True)
class SpellingTrie:
    """The spellings of a vocabulary; a node stands for the tokens that lead to it, node 0 for none.

    Nodes are numbered by depth, so the children of each follow one another; the edge to node n + 1 is edge n.

    order: [U], the spelled ids, sorted by their spellings. first, last: [N], node n stands for the ids of
    `order[first[n]:last[n]]`, whose spellings begin with its tokens. tokens, parents: [N − 1], the token and the
    upper node of each edge. edges: [N + 1], the edges to the children of node n are `edges[n]` to `edges[n + 1]`.
    """

    order: Ids
    first: Ids
    last: Ids
    tokens: Ids
    parents: Ids
    edges: Ids

    @cached_property
    def _width(self) -> int:
        return int(self.tokens.max(initial=0)) + 1

    @cached_property
    def _keys(self) -> Ids:
        """[N − 1], ascending: an edge's upper node and token as one number."""
        return self.parents * self._width + self.tokens

    def children(self, nodes: Ids, tokens: Ids) -> Ids:
        """[P], the node to which each token leads from each node, −1 where there is none and where a node is −1."""
        keys = nodes * self._width + tokens
        found = np.searchsorted(self._keys, keys)
        known = (nodes >= 0) & (tokens < self._width) & (found < len(self._keys))
        known[known] = self._keys[found[known]] == keys[known]
        return np.where(known, found + 1, -1)


def spelling_trie(spellings: Sequence[Sequence[int]]) -> SpellingTrie:
    """The trie of `spellings`: for each id of a vocabulary the tokens that spell it, none for an id that has none."""
    ids = sorted((number for number, spelling in enumerate(spellings) if spelling), key=lambda n: tuple(spellings[n]))
    lengths = np.array([len(spellings[number]) for number in ids], dtype=np.int64)
    flat = np.array([token for number in ids for token in spellings[number]], dtype=np.int64)
    starts = np.cumsum(lengths) - lengths
    node_of = np.zeros(len(ids), dtype=np.int64)  # of each id's spelling, as deep as the loop has come
    first, last, tokens, parents = [np.zeros(1, np.int64)], [np.array([len(ids)])], [], []
    count = 1
    for depth in range(int(lengths.max(initial=0))):
        inside = np.flatnonzero(lengths > depth)
        token, parent = flat[starts[inside] + depth], node_of[inside]
        begins = np.ones(len(inside), dtype=np.bool_)
        begins[1:] = (token[1:] != token[:-1]) | (parent[1:] != parent[:-1])
        ends = np.append(np.flatnonzero(begins)[1:], len(inside)) - 1
        first.append(inside[begins])
        last.append(inside[ends] + 1)
        tokens.append(token[begins])
        parents.append(parent[begins])
        node_of[inside] = count + np.cumsum(begins) - 1
        count += int(begins.sum())
    all_parents = np.concatenate([*parents, np.zeros(0, np.int64)])
    return SpellingTrie(
        order=np.array(ids, dtype=np.int64),
        first=np.concatenate(first),
        last=np.concatenate(last),
        tokens=np.concatenate([*tokens, np.zeros(0, np.int64)]),
        parents=all_parents,
        edges=np.searchsorted(all_parents, np.arange(count + 1)),
    )
