"""Search spaces: values of which some are distributions, and the settings drawn from them.

A distribution is a mapping of one entry that stands where a value would: {choice: [1, 5, .inf]}, {grid: [0, 1]},
{uniform: [0, 0.5]}, {log_uniform: [1e-4, 1e-2]} or {integer: [2, 8]} (both ends included). What is chosen may hold
distributions in turn, drawn only where it is chosen:
{choice: [{kind: finest}, {kind: debiased, gamma: {uniform: [0, 0.5]}}]}.
"""

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
    """A number from `low` to `high`: a whole one, or one whose logarithm is uniform, or a uniform one."""

    low: float
    high: float
    whole: bool = False
    logarithmic: bool = False


# What is chosen of a distribution that has this name: the index of an option, or a number.
Choose = Callable[[str, Choice | Numbers], float]


def parse_space(value: Any, name: str) -> Any:
    """`value` as YAML has it, with a Choice or Numbers for each distribution; raises UsageError, naming `name`."""
    if isinstance(value, list):
        return [parse_space(one, f"{name}.{index}") for index, one in enumerate(value)]
    if not isinstance(value, dict):
        return value
    kind: Any
    given: Any
    kind, given = next(iter(value.items())) if len(value) == 1 else (None, None)
    if kind in ("choice", "grid"):
        if not isinstance(given, list) or not given:
            raise UsageError(f"{name}: {kind} takes a list of values (it is {given!r}).")
        return Choice(tuple(parse_space(one, f"{name}[{index}]") for index, one in enumerate(given)), kind == "grid")
    if kind in ("uniform", "log_uniform", "integer"):
        whole, logarithmic = kind == "integer", kind == "log_uniform"
        numbers = int if whole else (int, float)
        good = isinstance(given, list) and len(given) == 2 and all(isinstance(one, numbers) for one in given)
        good = good and not any(isinstance(one, bool) or not math.isfinite(one) for one in given)
        if not good or not given[0] < given[1] or (logarithmic and given[0] <= 0):
            what = "two whole numbers" if whole else "two positive numbers" if logarithmic else "two numbers"
            raise UsageError(f"{name}: {kind} takes {what}, the smaller first (it is {given!r}).")
        return Numbers(given[0], given[1], whole, logarithmic)
    return {key: parse_space(one, f"{name}.{key}") for key, one in value.items()}


def draw(space: Any, choose: Choose, name: str = "") -> Any:
    """A setting: `space` with what `choose` says in the place of each distribution."""
    if isinstance(space, Choice):
        index = int(choose(name, space))
        return draw(space.options[index], choose, f"{name}[{index}]")
    if isinstance(space, Numbers):
        return choose(name, space)
    if isinstance(space, list):
        return [draw(one, choose, f"{name}.{index}") for index, one in enumerate(space)]
    if isinstance(space, Mapping):
        return {key: draw(one, choose, f"{name}.{key}" if name else str(key)) for key, one in space.items()}
    return space


def settings(space: Any, everything: bool, random_state: random.Random) -> Iterator[Any]:
    """One setting for each combination of the grids, all else drawn at random; with `everything`, choices and whole
    numbers are grids too. Raises UsageError where `everything` meets a continuous range, and where a grid lies within a
    choice, so that some draws alone would meet it.
    """
    if not everything and _has_grid_in_choice(space):
        raise UsageError("a grid within a choice is walked by searcher: grid alone. Write choice in its place.")
    taken: list[tuple[int, int]] = []  # for each grid met on the way, in order: which option, of how many
    while True:
        met = 0

        def choose(name: str, one: Choice | Numbers) -> float:
            nonlocal met
            if isinstance(one, Numbers) and not one.whole and everything:
                raise UsageError(f"{name}: a grid search cannot try every number of a range. Write grid: [...] there.")
            if not (everything or (isinstance(one, Choice) and one.every)):
                return _draw_at_random(one, random_state)
            if met == len(taken):
                taken.append((0, len(one.options) if isinstance(one, Choice) else int(one.high - one.low) + 1))
            met += 1
            return taken[met - 1][0] + (one.low if isinstance(one, Numbers) else 0)

        yield draw(space, choose)
        while taken and taken[-1][0] + 1 == taken[-1][1]:
            taken.pop()
        if not taken:
            return
        taken[-1] = (taken[-1][0] + 1, taken[-1][1])


def _has_grid_in_choice(space: Any, chosen: bool = False) -> bool:
    if isinstance(space, Choice):
        inside = chosen or not space.every
        return (chosen and space.every) or any(_has_grid_in_choice(one, inside) for one in space.options)
    within = space.values() if isinstance(space, Mapping) else space if isinstance(space, list) else ()
    return any(_has_grid_in_choice(one, chosen) for one in within)


def _draw_at_random(one: Choice | Numbers, random_state: random.Random) -> float:
    """An index of an option, or a number, of which three digits are kept where the range allows."""
    if isinstance(one, Choice):
        return random_state.randrange(len(one.options))
    if one.whole:
        return random_state.randint(int(one.low), int(one.high))
    if one.logarithmic:
        drawn = math.exp(random_state.uniform(math.log(one.low), math.log(one.high)))
    else:
        drawn = random_state.uniform(one.low, one.high)
    legible = float(f"{drawn:.3g}")
    return legible if abs(legible - drawn) < 1e-2 * (one.high - one.low) and one.low <= legible <= one.high else drawn
