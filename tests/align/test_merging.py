"""Merged chunks: a slow walk along each row gives the same."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from ctd_core.align.merging import merge
from ctd_core.config.align import AtWhitespace, Debiased, Finest, Groups

CHUNK = st.tuples(st.booleans(), st.floats(-30, 0, width=32))
ROWS = st.lists(st.lists(CHUNK, min_size=1, max_size=12), min_size=1, max_size=5)
RULES = st.one_of(
    st.just(Finest()),
    st.just(AtWhitespace(kind="whitespace")),
    st.floats(0, 0.9).map(lambda gamma: Debiased(kind="debiased", gamma=gamma)),
    st.integers(1, 5).map(lambda size: Groups(kind="groups", size=size)),
)


def walk(rule, rows):
    """Groups of (row, chunk), closed one after another."""
    merged = []
    for row, chunks in enumerate(rows):
        group = []
        for place, (whitespace, boundary) in enumerate(chunks):
            group.append((row, place))
            closes = {
                "finest": True,
                "whitespace": whitespace,
                "debiased": rule.kind == "debiased" and boundary > (math.log(rule.gamma) if rule.gamma else -math.inf),
                "groups": rule.kind == "groups" and len(group) == rule.size,
            }[rule.kind]
            if closes or place == len(chunks) - 1:
                merged.append(group)
                group = []
    return merged


@given(ROWS, RULES)
def test_every_chunk_is_kept_and_groups_close_where_the_rule_or_the_row_says(rows, rule):
    flat = [chunk for row in rows for chunk in row]
    breaks = np.array([place == len(row) - 1 for row in rows for place in range(len(row))])
    whitespace = np.array([first for first, _ in flat])
    boundary = np.array([second for _, second in flat], dtype=np.float32)
    places = [(row, place) for row, chunks in enumerate(rows) for place in range(len(chunks))]
    merged = merge(rule, whitespace, boundary, breaks)
    groups = [[places[n] for n in np.flatnonzero(merged.index == m)] for m in range(len(merged.last))]
    assert groups == walk(rule, rows)
    assert [places[n] for n in merged.last] == [group[-1] for group in groups]


@pytest.mark.parametrize("rule", [lambda: Groups(kind="groups", size=0), lambda: Debiased(kind="debiased", gamma=1.0)])
def test_senseless_settings_of_a_rule_are_errors(rule):
    with pytest.raises(ValidationError):
        rule()
