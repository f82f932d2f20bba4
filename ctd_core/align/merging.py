"""Rules that join finest chunks into merged chunks, for all rows of a batch at once.

A rule answers, for each finest chunk [C], whether a merged chunk may close after it. `breaks` [C] is true where one
has to: after a row's last chunk, and wherever scored text ends. Nothing is thrown away: a group that no rule closes
is closed by the next break.
"""

import math
from dataclasses import dataclass
from typing import assert_never

import numpy as np
import numpy.typing as npt

from ctd_core.config.align import AnyChunks, AtWhitespace, Debiased, Finest, Groups

Flags = npt.NDArray[np.bool_]
Indices = npt.NDArray[np.int64]


@dataclass(frozen=True)
class MergedChunks:
    """index: [C], the merged chunk of each finest one. last: [M], the last finest chunk of each merged one."""

    index: Indices
    last: Indices


def merge(
    rule: AnyChunks, before_whitespace: Flags, teacher_boundary_logprobs: npt.NDArray[np.float32], breaks: Flags
) -> MergedChunks:
    """The merged chunks of a batch under `rule`; all arguments are [C].

    before_whitespace: the next chunk begins with white space. teacher_boundary_logprobs: the teacher's log-probability
    that a pretoken boundary follows. Outcome chunk debiasing is arXiv 2503.20083, section 3.2 (gamma 0.1 there).
    """
    match rule:
        case Finest():
            may_close = np.ones_like(breaks)
        case AtWhitespace():
            may_close = before_whitespace
        case Debiased():
            may_close = teacher_boundary_logprobs > (math.log(rule.gamma) if rule.gamma else -math.inf)
        case Groups():
            may_close = _index_in_run(breaks) % rule.size == rule.size - 1
        case _:
            assert_never(rule)
    closed = may_close | breaks
    return MergedChunks(index=np.cumsum(closed) - closed, last=np.flatnonzero(closed))


def _index_in_run(breaks: Flags) -> Indices:
    """0, 1, 2 … from the chunk after one break to the next break."""
    ends = np.flatnonzero(breaks) + 1
    lengths = np.diff(ends, prepend=0)
    return np.arange(len(breaks)) - np.repeat(ends - lengths, lengths)
