"""Search spaces: what can be drawn from one, and what is refused."""

import math
import random
from collections import Counter
from itertools import islice

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ctd_core.config.search_space import parse_space, settings
from ctd_core.errors import UsageError

CHUNKS = {
    "choice": [
        {"kind": "finest"},
        {"kind": "debiased", "gamma": {"uniform": [0, 0.5]}},
        {"kind": "groups", "size": {"integer": [2, 4]}},
    ]
}


def drawn(space, count, everything=False):
    made = settings(parse_space(space, "space"), everything, random.Random(0))
    return list(islice(made, count))


@given(st.integers(0, 2**32))
def test_random_draws_lie_within_their_ranges_and_hold_what_belongs_to_the_chosen_option(seed):
    space = {"rate": {"log_uniform": [1e-4, 1e-2]}, "chunks": CHUNKS, "same": {"kind": "alm"}}
    (setting,) = settings(parse_space(space, "space"), False, random.Random(seed))
    assert 1e-4 <= setting["rate"] <= 1e-2
    assert setting["same"] == {"kind": "alm"}
    allowed = {"finest": {"kind"}, "debiased": {"kind", "gamma"}, "groups": {"kind", "size"}}
    assert set(setting["chunks"]) == allowed[setting["chunks"]["kind"]]
    assert 0 <= setting["chunks"].get("gamma", 0) <= 0.5
    assert setting["chunks"].get("size", 2) in (2, 3, 4)


@pytest.mark.parametrize("bounds", [[10240, 10260], [0.12341, 0.12349]])
def test_a_narrow_range_is_kept_to(bounds):
    state = random.Random(0)
    for kind in ("uniform", "log_uniform"):
        made = {next(settings(parse_space({kind: bounds}, "x"), False, state)) for _ in range(50)}
        assert len(made) > 30
        assert bounds[0] <= min(made) <= max(made) <= bounds[1]


def test_a_log_uniform_draw_is_uniform_in_its_logarithm():
    state = random.Random(1)
    made = [next(settings(parse_space({"log_uniform": [1e-4, 1.0]}, "x"), False, state)) for _ in range(4000)]
    shares = Counter(math.floor(math.log10(setting)) for setting in made if setting < 1)
    assert set(shares) == {-4, -3, -2, -1}
    assert all(900 < shares[decade] < 1100 for decade in shares)


def test_a_grid_search_tries_every_combination_once_also_under_conditions():
    space = {"chunks": {"choice": CHUNKS["choice"][::2]}, "tau": {"choice": [1, math.inf]}}
    made = drawn(space, 100, everything=True)
    expected = [{"kind": "finest"}, *({"kind": "groups", "size": size} for size in (2, 3, 4))]
    assert made == [{"chunks": chunks, "tau": tau} for chunks in expected for tau in (1, math.inf)]


def test_grids_are_walked_where_all_else_is_random():
    made = drawn({"a": {"grid": [1, 2]}, "b": {"grid": [3, 4]}, "c": {"uniform": [0, 1]}}, 100)
    assert [(setting["a"], setting["b"]) for setting in made] == [(1, 3), (1, 4), (2, 3), (2, 4)]
    assert len({setting["c"] for setting in made}) == 4


@pytest.mark.parametrize(
    ("space", "message"),
    [
        ({"choice": []}, r"x: choice takes a list of values \(it is \[\]\)"),
        ({"uniform": [1, 0]}, r"uniform takes two numbers, the smaller first \(it is \[1, 0\]\)"),
        ({"log_uniform": [0, 1]}, "log_uniform takes two positive numbers"),
        ({"integer": [0.5, 1]}, "integer takes two integers"),
        ({"uniform": [0, math.inf]}, "uniform takes two numbers"),
        ({"integer": [False, True]}, "integer takes two integers"),
        ({"a": [{"uniform": 3}]}, r"x\.a\.0: uniform"),
        ({"loguniform": [1e-4, 1e-3]}, "no distribution loguniform. Did you mean log_uniform"),
    ],
)
def test_a_distribution_that_is_none_is_refused(space, message):
    with pytest.raises(UsageError, match=message):
        parse_space(space, "x")


def test_a_grid_that_only_some_draws_meet_is_refused():
    space = {"x": {"choice": [0, {"grid": [1, 2, 3]}]}, "y": {"grid": ["a", "b"]}}
    with pytest.raises(UsageError, match="a grid within a choice"):
        drawn(space, 1)
    assert len(drawn(space, 100, everything=True)) == 8


def test_a_grid_search_over_a_range_is_refused():
    with pytest.raises(UsageError, match=r"chunks\[1\]\.gamma: a grid search cannot try every number"):
        drawn({"chunks": CHUNKS}, 100, everything=True)
