"""The trie against a search through all spellings."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from ctd_core.align.spelling_trie import spelling_trie

SPELLINGS = st.lists(st.lists(st.integers(0, 3), max_size=5), max_size=40)


def walk(trie, tokens):
    node = 0
    for token in tokens:
        node = int(trie.children(np.array([node]), np.array([token]))[0])
    return node


@given(spellings=SPELLINGS)
def test_a_node_stands_for_the_ids_whose_spellings_begin_with_its_tokens(spellings):
    trie = spelling_trie(spellings)
    prefixes = {tuple(spelling[:length]) for spelling in spellings for length in range(len(spelling) + 1)} | {()}
    nodes = {prefix: walk(trie, prefix) for prefix in prefixes}
    assert sorted(nodes.values()) == list(range(len(trie.first)))
    for prefix, node in nodes.items():
        ids = trie.order[trie.first[node] : trie.last[node]]
        assert sorted(ids) == [number for number, s in enumerate(spellings) if s and tuple(s[: len(prefix)]) == prefix]
        edges = range(trie.edges[node], trie.edges[node + 1])
        assert {(int(trie.tokens[edge]), edge + 1) for edge in edges} == {
            (longer[-1], nodes[longer]) for longer in prefixes if longer and longer[:-1] == prefix
        }


@given(spellings=SPELLINGS, tokens=st.lists(st.integers(0, 5), max_size=6))
def test_tokens_that_begin_no_spelling_lead_nowhere(spellings, tokens):
    inside = any(spelling[: len(tokens)] == tokens for spelling in spellings) or not tokens
    assert (walk(spelling_trie(spellings), tokens) >= 0) == inside
