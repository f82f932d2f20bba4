"""Which rows each step of a training learns from, and their batches on a worker."""

import dataclasses
from collections.abc import Iterator, Mapping
from itertools import islice

import numpy as np

from ctd_core.config.training import Train
from ctd_core.errors import CtdError
from ctd_core.shards.batches import Batch, collate
from ctd_core.shards.row_order import MixedRows, Rows, micro_batches, mixed_micro_batches
from ctd_core.shards.rows import RowSource
from ctd_core.training.workers import Worker

# By the name of a teacher, where its rows are of a mixture: by the label of each source its share.
Shares = Mapping[str | None, Mapping[str, float] | None]


def row_streams(
    options: Train, sources: Mapping[str | None, RowSource], shares: Shares, done: int
) -> dict[str | None, Iterator[Rows]]:
    """The row numbers of each teacher's micro-batches, from step `done` on."""
    return {
        name: islice(_stream(options, shards, shares.get(name)), done * options.gradient_accumulation, None)
        for name, shards in sources.items()
    }


def _stream(options: Train, shards: RowSource, shares: Mapping[str, float] | None) -> Iterator[Rows]:
    """The row numbers of one teacher's micro-batches."""
    lengths = shards.student_lengths()
    if not shares:
        return micro_batches(lengths, options.batch_tokens, options.seed)
    mixed, start = [], 0
    for label, counts in shards.counts_by_source.items():
        if not counts.scored_bytes:
            raise CtdError(
                f"{shards.name}: the source {label} holds no rows to learn from. Take it out of the mixture."
            )
        numbers = np.arange(start, start + counts.rows)
        mixed.append(MixedRows(numbers, counts.scored_bytes / counts.student_tokens, shares[label]))
        start += counts.rows
    return mixed_micro_batches(lengths, mixed, options.batch_tokens, options.seed)


def next_batches(
    options: Train,
    streams: Mapping[str | None, Iterator[Rows]],
    sources: Mapping[str | None, RowSource],
    worker: Worker,
) -> list[Batch]:
    """The worker's batches of one step."""
    return [
        dataclasses.replace(collate(sources[name], rows), source=name).to(worker.device)
        for name, stream in streams.items()
        for rows in list(islice(stream, options.gradient_accumulation))[worker.rank :: worker.world_size]
    ]
