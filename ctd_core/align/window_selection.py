"""Which windows to learn from, where a corpus holds more than there is time for."""

from collections.abc import Sequence

import numpy as np

from ctd_core.align.documents import MARKER, AlignedText


def most_fragmented(windows: Sequence[AlignedText], fraction: float) -> list[AlignedText]:
    """Those of `windows` that hold at most `fraction` of the student's tokens, one at least, in their order.

    They are the ones in which the largest share of text chunks has several student tokens. There the student has to
    learn to say in its own pieces what the teacher says in one; where a chunk is one token that both know, it knows it
    from the start.
    """
    if fraction == 1:
        return list(windows)
    tokens = np.array([len(window.student_ids) for window in windows], dtype=np.int64)
    order = np.argsort([-_split_share(window) for window in windows], kind="stable")
    kept = order[: max(1, np.searchsorted(np.cumsum(tokens[order]), fraction * tokens.sum(), side="right"))]
    return [windows[number] for number in np.sort(kept)]


def _split_share(window: AlignedText) -> float:
    text = window.chunk_kinds & MARKER == 0
    several = np.diff(window.student_chunk_ends, prepend=0) > 1
    return float(np.count_nonzero(several & text)) / max(int(np.count_nonzero(text)), 1)
