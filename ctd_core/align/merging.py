"""Rules that join finest chunks into merged chunks.

Every rule answers with the ends of the merged chunks: [M] int64, the index after each one's last finest chunk. The
last end is always the number of finest chunks, C: nothing is thrown away.
"""

import math

import numpy as np
import numpy.typing as npt

Ends = npt.NDArray[np.int64]


def merge_none(num_chunks: int) -> Ends:
    """Every finest chunk by itself."""
    return np.arange(1, num_chunks + 1, dtype=np.int64)


def merge_groups(num_chunks: int, size: int) -> Ends:
    """Groups of `size` finest chunks; the last may be smaller. Raises ValueError for a size below 1."""
    if size < 1:
        raise ValueError(f"a group holds at least 1 chunk, not {size}")
    return np.minimum(np.arange(size, num_chunks + size, size, dtype=np.int64), num_chunks)


def merge_at_whitespace(next_begins_with_whitespace: npt.NDArray[np.bool_]) -> Ends:
    """Closed where the next finest chunk begins with white space; argument [C]."""
    return _close(next_begins_with_whitespace)


def merge_debiased(teacher_boundary_logprobs: npt.NDArray[np.float32], gamma: float) -> Ends:
    """Closed only where the teacher gives a pretoken boundary a probability above `gamma`; argument [C].

    Outcome chunk debiasing, arXiv 2503.20083, section 3.2; the paper uses gamma = 0.1. Raises ValueError for a gamma
    outside [0, 1).
    """
    if not 0 <= gamma < 1:
        raise ValueError(f"gamma is a probability below 1, not {gamma}")
    return _close(teacher_boundary_logprobs > (math.log(gamma) if gamma else -math.inf))


def _close(where: npt.NDArray[np.bool_]) -> Ends:
    closed = where.copy()
    closed[-1:] = True
    return np.flatnonzero(closed) + 1
