"""What a round's texts are like, and how far from its teacher the student is on them."""

import math
from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from ctd_core.align.documents import MARKER, SCORED
from ctd_core.evaluation.likelihoods import measure_likelihoods
from ctd_core.evaluation.metrics import metrics_of
from ctd_core.generation.own_texts import figures_of
from ctd_core.models.logprob_model import LogprobModel
from ctd_core.shards.reading import ShardSet
from ctd_core.shards.rows import MemoryRows
from ctd_core.shards.schema import CHUNK_KINDS
from ctd_core.text.corpora.records import Record

MEASURED_SHARE = 1 / 8  # of a round's rows: on these the distance to the teacher is measured
MEASURED_ROWS = 8  # at least


def figures_of_round(
    records: Sequence[Record], shards: ShardSet, student: LogprobModel | None, share: float, batch_tokens: int
) -> dict[str, float]:
    """The figures of what a student wrote.

    Args:
        records: what it wrote.
        shards: the same, scored.
        student: who wrote it; None leaves its distance to the teacher out.
        share: the distance is measured on this share of the rows, or on MEASURED_ROWS.
        batch_tokens: padded student tokens in a forward pass.

    Returns:
        Each figure by name.
    """
    counts, measured = shards.manifest.counts, {}
    if student is not None and (first := _first_rows(shards, share)) is not None:
        measured = metrics_of(measure_likelihoods(student, first, batch_tokens))
    learned = {"learned": counts.documents - counts.dropped_documents, "dropped": counts.dropped_documents}
    aligned = {"share_scored": counts.scored_bytes / max(counts.text_bytes, 1)}
    return figures_of(records) | learned | aligned | measured


def _first_rows(shards: ShardSet, share: float) -> MemoryRows | None:
    """The first of the rows from which text is learned, by their share or MEASURED_ROWS; None where there are none."""
    rows = np.arange(len(shards))
    kinds = shards.read(CHUNK_KINDS, rows)
    learned = [row for row in rows if np.any(kinds[row] & (SCORED | MARKER) == SCORED)]
    taken = learned[: max(MEASURED_ROWS, math.ceil(share * len(learned)))]
    if not taken:
        return None
    table = pa.Table.from_batches(shards.batches).take(taken)
    return MemoryRows(shards.name, table.combine_chunks().to_batches(), shards.manifest.counts)
