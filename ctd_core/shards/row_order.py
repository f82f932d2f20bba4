"""In which order a training's rows come, and which of them make a micro-batch."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

POOL_ROWS = 1024  # rows sorted by length together

Rows = npt.NDArray[np.int64]


def micro_batches(lengths: npt.NDArray[np.int64], batch_tokens: int, seed: int) -> Iterator[Rows]:
    """Row numbers of one micro-batch after another, epoch after epoch, without end.

    A pure function of its arguments. Each epoch shuffles all rows, sorts them by length within pools, fills
    micro-batches of at most `batch_tokens` padded tokens (a longer row comes alone), and shuffles those of a pool.
    """
    epoch = 0
    while True:
        yield from epoch_micro_batches(lengths, batch_tokens, np.random.default_rng([seed, epoch]))
        epoch += 1


def epoch_micro_batches(
    lengths: npt.NDArray[np.int64], batch_tokens: int, random: np.random.Generator
) -> Iterator[Rows]:
    """One epoch of `micro_batches`: every row once."""
    order = random.permutation(len(lengths))
    for start in range(0, len(order), POOL_ROWS):
        pool = order[start : start + POOL_ROWS]
        filled = ordered_batches(lengths, pool[np.argsort(lengths[pool], kind="stable")], batch_tokens)
        yield from (filled[n] for n in random.permutation(len(filled)))


@dataclass(frozen=True)
class MixedRows:
    """The rows of one source of a mixture. numbers: [R] int64. bytes_per_token: of text that is learned, for a
    student token, on average. share: of the bytes that are learned.
    """

    numbers: Rows
    bytes_per_token: float
    share: float


def mixed_micro_batches(
    lengths: npt.NDArray[np.int64], sources: Sequence[MixedRows], batch_tokens: int, seed: int
) -> Iterator[Rows]:
    """As `micro_batches`, with as much of each source as its share asks, each in epochs of its own.

    Micro-batches hold rows of several sources. From the first one on, the bytes of each source are as close to its
    share as the sizes of rows allow.
    """
    random = np.random.default_rng([seed])
    streams = [_endless(source.numbers, seed, number) for number, source in enumerate(sources)]
    shares = np.array([source.share for source in sources])
    source_of_row = np.zeros(len(lengths), dtype=np.int64)
    row_bytes = np.zeros(len(lengths))
    for number, source in enumerate(sources):
        source_of_row[source.numbers] = number
        row_bytes[source.numbers] = lengths[source.numbers] * source.bytes_per_token
    drawn, given = np.zeros(len(sources)), np.zeros(len(sources))
    while True:
        rows = []
        for _ in range(POOL_ROWS):
            behind = int(np.argmin(drawn / shares))
            rows.append(next(streams[behind]))
            drawn[behind] += row_bytes[rows[-1]]
        pool = np.array(rows)
        filled = ordered_batches(lengths, pool[np.argsort(lengths[pool], kind="stable")], batch_tokens)
        held = [np.bincount(source_of_row[batch], row_bytes[batch], len(sources)) for batch in filled]
        waiting = random.permutation(len(filled))
        sums = np.array(held)[waiting]
        while len(waiting):
            after = given + sums
            off = np.abs(after - after.sum(1, keepdims=True) * shares).max(1)
            chosen = int(np.argmin(off))
            given = after[chosen]
            yield filled[waiting[chosen]]
            waiting, sums = np.delete(waiting, chosen), np.delete(sums, chosen, axis=0)


def _endless(numbers: Rows, seed: int, source: int) -> Iterator[int]:
    """The rows of a source, epoch after epoch, each in an order of its own."""
    epoch = 0
    while True:
        yield from np.random.default_rng([seed, epoch, source]).permutation(numbers).tolist()
        epoch += 1


def ordered_batches(lengths: npt.NDArray[np.int64], rows: Rows, batch_tokens: int) -> list[Rows]:
    """`rows`, in ascending order of length, cut into batches of at most `batch_tokens` padded tokens."""
    batches, begin = [], 0
    for n, row in enumerate(rows):
        if n > begin and (n - begin + 1) * lengths[row] > batch_tokens:
            batches.append(rows[begin:n])
            begin = n
    batches.append(rows[begin:])
    return batches
