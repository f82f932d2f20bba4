"""What a chunking rule makes of a set of shards: the figures to look at before choosing one."""

from dataclasses import dataclass

import numpy as np

from ctd_core.align.merging import merge
from ctd_core.config.align import AnyChunks
from ctd_core.shards.batches import collate
from ctd_core.shards.rows import RowSource

ROWS_AT_ONCE = 512


@dataclass(frozen=True)
class Chunking:
    """Over the merged chunks of scored text.

    chunks_per_1000_bytes: merged chunks to 1,000 bytes of them. student_tokens, teacher_tokens: the mean of a merged
    chunk. single_token_share: the share of merged chunks that are one token of both sides. covered_share: the share
    of all text bytes that lies in them.
    """

    chunks: int
    chunks_per_1000_bytes: float
    student_tokens: float
    teacher_tokens: float
    single_token_share: float
    covered_share: float


def measure_chunking(shards: RowSource, rule: AnyChunks) -> Chunking:
    """The figures of `rule` over all rows of `shards`."""
    total = np.zeros(5)  # merged chunks, bytes, student tokens, teacher tokens, those of one token on both sides
    for start in range(0, len(shards), ROWS_AT_ONCE):
        chunks = collate(shards, np.arange(start, min(start + ROWS_AT_ONCE, len(shards)))).chunks
        merged = merge(rule, chunks.before_whitespace, chunks.teacher_boundary_logprobs, chunks.breaks)
        text = chunks.scored & ~chunks.marker
        sizes = [
            np.bincount(merged.index[text], weights=lengths[text], minlength=len(merged.last))
            for lengths in (chunks.num_bytes, chunks.num_student_tokens, chunks.num_teacher_tokens)
        ]
        single = (sizes[1] == 1) & (sizes[2] == 1)
        total += [np.count_nonzero(sizes[1]), *(size.sum() for size in sizes), np.count_nonzero(single)]
    count, num_bytes, student_tokens, teacher_tokens, single_count = total.tolist()
    return Chunking(
        chunks=int(count),
        chunks_per_1000_bytes=1000 * count / max(num_bytes, 1),
        student_tokens=student_tokens / max(count, 1),
        teacher_tokens=teacher_tokens / max(count, 1),
        single_token_share=single_count / max(count, 1),
        covered_share=num_bytes / max(shards.counts.text_bytes, 1),
    )
