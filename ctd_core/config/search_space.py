"""Search spaces: values of which some are distributions, and the settings drawn from them.

A distribution is a mapping of one entry that stands where a value would: {choice: [1, 5, .inf]}, {grid: [0, 1]},
{uniform: [0, 0.5]}, {log_uniform: [1e-4, 1e-2]} or {integer: [2, 8]} (both ends included). What is chosen may hold
distributions in turn, drawn only where it is chosen:
{choice: [{kind: finest}, {kind: debiased, gamma: {uniform: [0, 0.5]}}]}.
"""

import difflib
import math
import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ctd_core.errors import UsageError


@dataclass(frozen=True)
class Choice:
    """One of some values. With `every`, all of them are tried equally often."""

    options: tuple[Any, ...]
    every: bool


@dataclass(frozen=True)
class Numbers:
    """A number from `low` to `high`: an integer, uniform, or with a uniform logarithm."""

    low: float
    high: float
    is_integer: bool = False
    logarithmic: bool = False


DISTRIBUTIONS = ("choice", "grid", "uniform", "log_uniform", "integer")
# What is chosen of a distribution that has this name: the index of an option, or a number.
Choose = Callable[[str, Choice | Numbers], float]


def parse_space(value: Any, name: str) -> Any:
    """`value` as YAML has it, with a Choice or Numbers for each distribution; raises UsageError, naming `name`."""
    if isinstance(value, list):
        return [parse_space(inner, f"{name}.{index}") for index, inner in enumerate(value)]
    if not isinstance(value, dict):
        return value
    kind: Any
    given: Any
    kind, given = next(iter(value.items())) if len(value) == 1 else (None, None)
    if kind in ("choice", "grid"):
        if not isinstance(given, list) or not given:
            raise UsageError(f"{name}: {kind} takes a list of values (it is {given!r}).")
        return Choice(
            tuple(parse_space(number, f"{name}[{index}]") for index, number in enumerate(given)), kind == "grid"
        )
    if kind in ("uniform", "log_uniform", "integer"):
        is_integer, logarithmic = kind == "integer", kind == "log_uniform"
        numbers = int if is_integer else (int, float)
        good = isinstance(given, list) and len(given) == 2 and all(isinstance(number, numbers) for number in given)
        good = good and not any(isinstance(number, bool) or not math.isfinite(number) for number in given)
        if not good or not given[0] < given[1] or (logarithmic and given[0] <= 0):
            what = "two integers" if is_integer else "two positive numbers" if logarithmic else "two numbers"
            raise UsageError(f"{name}: {kind} takes {what}, the smaller first (it is {given!r}).")
        return Numbers(given[0], given[1], is_integer, logarithmic)
    if isinstance(given, list) and (near := difflib.get_close_matches(str(kind), DISTRIBUTIONS, n=1, cutoff=0.75)):
        raise UsageError(f"{name}: there is no distribution {kind}. Did you mean {near[0]}?")
    return {key: parse_space(inner, f"{name}.{key}") for key, inner in value.items()}


def draw(space: Any, choose: Choose, name: str = "") -> Any:
    """A setting: `space` with what `choose` says in the place of each distribution."""
    if isinstance(space, Choice):
        index = int(choose(name, space))
        return draw(space.options[index], choose, f"{name}[{index}]")
    if isinstance(space, Numbers):
        return choose(name, space)
    if isinstance(space, list):
        return [draw(inner, choose, f"{name}.{index}") for index, inner in enumerate(space)]
    if isinstance(space, Mapping):
        return {key: draw(inner, choose, f"{name}.{key}" if name else str(key)) for key, inner in space.items()}
    return space


def settings(space: Any, everything: bool, random_state: random.Random) -> Iterator[Any]:
    """Settings drawn from a search space.

    Args:
        space: as parse_space gives it.
        everything: whether choices and integers are grids too.
        random_state: draws what is no grid.

    Yields:
        One setting for each combination of the grids.

    Raises:
        UsageError: `everything` meets a continuous range, or a grid lies within a choice.
    """
    if not everything and _has_grid_in_choice(space):
        raise UsageError("a grid within a choice is walked by searcher: grid alone. Write choice in its place.")
    taken: list[tuple[int, int]] = []  # for each grid met on the way, in order: which option, of how many
    while True:
        met = 0

        def choose(name: str, spec: Choice | Numbers) -> float:
            nonlocal met
            if isinstance(spec, Numbers) and not spec.is_integer and everything:
                raise UsageError(f"{name}: a grid search cannot try every number of a range. Write grid: [...] there.")
            if not (everything or (isinstance(spec, Choice) and spec.every)):
                return _draw_at_random(spec, random_state)
            if met == len(taken):
                taken.append((0, len(spec.options) if isinstance(spec, Choice) else int(spec.high - spec.low) + 1))
            met += 1
            return taken[met - 1][0] + (spec.low if isinstance(spec, Numbers) else 0)

        yield draw(space, choose)
        while taken and taken[-1][0] + 1 == taken[-1][1]:
            taken.pop()
        if not taken:
            return
        taken[-1] = (taken[-1][0] + 1, taken[-1][1])


def _has_grid_in_choice(space: Any, chosen: bool = False) -> bool:
    if isinstance(space, Choice):
        inside = chosen or not space.every
        return (chosen and space.every) or any(_has_grid_in_choice(option, inside) for option in space.options)
    within = space.values() if isinstance(space, Mapping) else space if isinstance(space, list) else ()
    return any(_has_grid_in_choice(inner, chosen) for inner in within)


def _draw_at_random(spec: Choice | Numbers, random_state: random.Random) -> float:
    """An index of an option, or a number, of which three digits are kept where the range allows."""
    if isinstance(spec, Choice):
        return random_state.randrange(len(spec.options))
    if spec.is_integer:
        return random_state.randint(int(spec.low), int(spec.high))
    if spec.logarithmic:
        drawn = math.exp(random_state.uniform(math.log(spec.low), math.log(spec.high)))
    else:
        drawn = random_state.uniform(spec.low, spec.high)
    legible = float(f"{drawn:.3g}")
    return (
        legible if abs(legible - drawn) < 1e-2 * (spec.high - spec.low) and spec.low <= legible <= spec.high else drawn
    )
