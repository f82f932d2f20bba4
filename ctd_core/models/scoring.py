"""The teacher's side of approximate likelihood matching: two numbers for each finest chunk."""

import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ctd_core.align.documents import ONE_TO_ONE, SCORED
from ctd_core.errors import CtdError
from ctd_core.models.prefix_positions import (
    NO_POSITIONS,
    SAME,
    PrefixPositions,
    PrefixTop,
    end_in,
    prefix_positions,
)
from ctd_core.models.scorer import Asked, Scorer, Scores, ScoringRequest
from ctd_core.shards import schema
from ctd_core.shards.row_order import ordered_batches

Lists = list[npt.NDArray[Any]]
LEAST_STORED = 2.0**-24  # in float16, whose sign tells drawn tokens from others
ALIGNED = (
    schema.STUDENT_IDS,
    schema.TEACHER_IDS,
    schema.STUDENT_CHUNK_ENDS,
    schema.TEACHER_CHUNK_ENDS,
    schema.CHUNK_KINDS,
)


@dataclass(frozen=True)
class TopTokens:
    """Ask for the teacher's `k` most probable tokens. student_ids: [U], a token's id with the student, −1 for none."""

    k: int
    student_ids: npt.NDArray[np.int32]


@dataclass(frozen=True)
class Stored:
    """What of the teacher's distribution is stored beside the two numbers a chunk, None for what is not.

    top: its most probable tokens where a chunk is one token of both sides. prefix: likely tokens of the student at each
    of the student's tokens that lies within the teacher's next one.
    """

    top: TopTokens | None = None
    prefix: PrefixTop | None = None


NOTHING = Stored()


def score_rows(
    teacher: Scorer,
    rows: pa.RecordBatch,
    batch_tokens: int,
    stored: Stored = NOTHING,
    on_batch: Callable[[int, int], None] = lambda tokens, of_tokens: None,
) -> pa.RecordBatch:
    """Add the teacher's targets to rows.

    A chunk's log-likelihood is the sum over its teacher tokens of log p(token | all before it); 0 where the chunk has
    no token or no context. The boundary is 0 after a begin marker of no tokens.

    Args:
        teacher: answers with log-probabilities.
        rows: rows of shards without targets.
        batch_tokens: padded teacher tokens in a request.
        stored: which of the teacher's distributions are stored, where some are.
        on_batch: called after each batch with how many of the rows' tokens are scored, and of how many.

    Returns:
        `rows` with TARGET_FIELDS, and TOP_FIELDS and PREFIX_FIELDS where `stored` says so.

    Raises:
        CtdError: a number is not finite, or a token is none of the teacher's.
    """
    columns = {name: _lists(rows, name) for name in rows.schema.names[1:]}
    ids, ends = columns[schema.TEACHER_IDS], columns[schema.TEACHER_CHUNK_ENDS]
    both = SCORED | ONE_TO_ONE
    one_to_one = [np.flatnonzero(kinds & both == both) for kinds in columns[schema.CHUNK_KINDS]]
    prefixes = [_prefixes(stored.prefix, columns, row) for row in range(rows.num_rows)]
    ends_of_turns = _ends_of_turns(stored.prefix, columns, rows.column(schema.DOCUMENT).to_pylist())
    lengths = np.array([len(row) for row in ids], dtype=np.int64)
    largest = max((int(row.max(initial=-1)) for row in ids), default=-1)
    if largest >= teacher.vocab_size:
        raise CtdError(
            f"token ids reach {largest}, and the teacher's embedding has {teacher.vocab_size} entries. Take the "
            "tokenizer that belongs to the model."
        )
    asked = Asked(stored.top.k if stored.top else 0)
    if asked.top_k > teacher.vocab_size:
        raise CtdError(f"prepare.top_k is {asked.top_k}, and the teacher has {teacher.vocab_size} tokens. Take fewer.")
    if stored.prefix:
        asked = Asked(asked.top_k, stored.prefix.k, stored.prefix.drawn, stored.prefix.trie)
    order = np.argsort(lengths, kind="stable")
    targets: dict[int, Lists] = {}
    tokens = 0
    for batch in ordered_batches(lengths, order, batch_tokens) if len(order) else []:
        requests = [_request(ids[row], ends[row], one_to_one[row], prefixes[row]) for row in batch]
        for row, scores in zip(batch.tolist(), teacher.score(requests, asked), strict=True):
            targets[row] = _targets(scores, ends[row])
            if stored.top:
                targets[row] += _top(scores, len(ends[row]), one_to_one[row], stored.top)
            if stored.prefix:
                targets[row] += _likely(
                    scores, len(columns[schema.STUDENT_IDS][row]), prefixes[row], ends_of_turns[row]
                )
        tokens += int(lengths[batch].sum())
        on_batch(tokens, int(lengths.sum()))
    if not all(np.isfinite(numbers).all() for row in targets.values() for numbers in row[:2]):
        raise CtdError("the teacher's log-probabilities are not finite. Set teacher.dtype to bfloat16 or float32.")
    fields = [
        *schema.TARGET_FIELDS,
        *(schema.TOP_FIELDS if stored.top else []),
        *(_prefix_fields(stored.prefix) if stored.prefix else []),
    ]
    added = [[targets[row][number] for row in range(len(ids))] for number in range(len(fields))]
    return schema.with_columns(rows, fields, added)


def _prefix_fields(prefix: PrefixTop) -> list[pa.Field]:
    return schema.NARROW_PREFIX_FIELDS if len(prefix.student_bytes) <= 2**16 else schema.PREFIX_FIELDS


def _lists(rows: pa.RecordBatch, column: str) -> Lists:
    offsets, values = schema.list_parts(rows.column(column))
    return [values[offsets[n] : offsets[n + 1]] for n in range(rows.num_rows)]


def _prefixes(prefix: PrefixTop | None, columns: dict[str, Lists], row: int) -> PrefixPositions:
    return NO_POSITIONS if prefix is None else prefix_positions(prefix, *(columns[name][row] for name in ALIGNED))


def _ends_of_turns(prefix: PrefixTop | None, columns: dict[str, Lists], documents: list[str]) -> list[tuple[int, int]]:
    """For each row what `end_in` tells of all rows of its document."""
    if prefix is None:
        return [SAME] * len(documents)
    rows: dict[str, list[int]] = {}
    for row, document in enumerate(documents):
        rows.setdefault(document, []).append(row)
    ends = {
        document: end_in(prefix, ([columns[name][row] for name in ALIGNED] for row in of_document))
        for document, of_document in rows.items()
    }
    return [ends[document] for document in documents]


def _request(
    ids: npt.NDArray[np.int32],
    ends: npt.NDArray[np.int32],
    one_to_one: npt.NDArray[np.int64],
    prefixes: PrefixPositions,
) -> ScoringRequest:
    """A boundary at the last token of every chunk; top tokens before the one token of each one-to-one chunk."""
    return ScoringRequest(
        token_ids=ids,
        boundary_positions=np.unique(ends[ends > 0].astype(np.int64)) - 1,
        top_positions=ends[one_to_one].astype(np.int64) - 2,
        prefix_positions=prefixes.teacher - 1,
        prefix_nodes=prefixes.nodes,
        # of the row's text alone, so that the same tokens are drawn in any batch
        prefix_chances=np.random.default_rng(zlib.crc32(ids.tobytes())).random(len(prefixes.nodes)),
    )


def _targets(scores: Scores, ends: npt.NDArray[np.int32]) -> Lists:
    """A row of TARGET_FIELDS."""
    sums = np.concatenate([[0.0], np.cumsum(scores.token_logprobs)])
    chunks = np.diff(sums[ends], prepend=0.0)
    at_boundary = np.unique(ends[ends > 0])
    boundaries = np.zeros(len(ends))
    boundaries[ends > 0] = scores.boundary_logprobs[np.searchsorted(at_boundary, ends[ends > 0])]
    return [chunks.astype(np.float32), boundaries.astype(np.float32)]


def _top(scores: Scores, num_chunks: int, one_to_one: npt.NDArray[np.int64], top: TopTokens) -> Lists:
    """A row of TOP_FIELDS."""
    padded = np.append(top.student_ids, np.int32(-1))  # rows that pad the teacher's vocabulary are no tokens
    student_ids = padded[np.minimum(scores.top_ids, len(top.student_ids))].astype(np.int32)
    shared = student_ids >= 0
    counts = np.zeros(num_chunks, dtype=np.uint8)
    counts[one_to_one] = shared.sum(1)
    return [counts, student_ids[shared], scores.top_logprobs[shared].astype(np.float16)]


def _likely(scores: Scores, num_tokens: int, prefixes: PrefixPositions, end: tuple[int, int]) -> Lists:
    """A row of PREFIX_FIELDS; end: see `end_in`."""
    counts = np.zeros(num_tokens, dtype=np.uint8)
    counts[prefixes.student] = scores.prefix_counts
    ids = prefixes.student_tokens(scores.prefix_ids, scores.prefix_counts, end)
    logprobs = np.where(scores.prefix_drawn, np.maximum(-scores.prefix_logprobs, LEAST_STORED), scores.prefix_logprobs)
    return [counts, ids.astype(np.int32), logprobs.astype(np.float16)]
