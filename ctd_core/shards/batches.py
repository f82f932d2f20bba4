"""Batches for training: what each holds, and how rows become one."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from torch import Tensor

from ctd_core.align.documents import BEFORE_WHITESPACE, MARKER, ONE_TO_ONE, SCORED
from ctd_core.shards import schema
from ctd_core.shards.row_order import Rows
from ctd_core.shards.rows import RowSource


@dataclass(frozen=True)
class Chunks:
    """The C finest chunks of a batch, row after row; all arrays are [C].

    scored: meant for training. marker: special tokens rather than text. before_whitespace: the next begins with white
    space. breaks: a merged chunk has to end here. num_bytes, num_student_tokens, num_teacher_tokens: its length.
    one_to_one: scored text that is one token of both sides, of the same bytes.
    teacher_logprobs, teacher_boundary_logprobs: the targets, zeros where the shards have none.
    """

    scored: npt.NDArray[np.bool_]
    marker: npt.NDArray[np.bool_]
    one_to_one: npt.NDArray[np.bool_]
    before_whitespace: npt.NDArray[np.bool_]
    breaks: npt.NDArray[np.bool_]
    num_bytes: npt.NDArray[np.int64]
    num_student_tokens: npt.NDArray[np.int64]
    num_teacher_tokens: npt.NDArray[np.int64]
    teacher_logprobs: npt.NDArray[np.float32]
    teacher_boundary_logprobs: npt.NDArray[np.float32]


@dataclass(frozen=True)
class Top:
    """E stored tokens, the most probable next ones by the teacher at `groups` positions of a batch, and drawn ones.

    ids: [E] int64, tokens of the student. teacher_logprobs: [E] float32. rows: [E] int64, the index among the batch's
    N tokens of the one before. group: [E] int64, which of the positions each belongs to. drawn: [E] bool, which stand
    for all tokens but the most probable of their position, and have the probability of all for which they stand.
    """

    ids: Tensor
    teacher_logprobs: Tensor
    rows: Tensor
    group: Tensor
    drawn: Tensor
    groups: int

    def to(self, device: torch.device) -> "Top":
        """The same with its tensors on `device`."""
        names = ("ids", "teacher_logprobs", "rows", "group", "drawn")
        return replace(self, **{name: getattr(self, name).to(device, non_blocking=True) for name in names})


@dataclass(frozen=True)
class TeacherTokens:
    """The teacher's side of a batch, for objectives that ask it online: B rows padded to T tokens, M not padding.

    input_ids: [B, T] int64. positions: [M] int64, where the tokens lie in the flattened [B * T].
    target_ids: [R] int64, the tokens of scored chunks. target_rows: [R] int64, the index among the M of the one before.
    chunk_rows: [C] int64, the index among the M of each chunk's last token.
    """

    input_ids: Tensor
    positions: Tensor
    target_rows: Tensor
    target_ids: Tensor
    chunk_rows: Tensor

    def to(self, device: torch.device) -> "TeacherTokens":
        """The same on `device`."""
        names = ("input_ids", "positions", "target_rows", "target_ids", "chunk_rows")
        return replace(self, **{name: getattr(self, name).to(device, non_blocking=True) for name in names})


@dataclass(frozen=True)
class Batch:
    """B rows padded to S student tokens, of which N are not padding.

    input_ids: [B, S] int64. positions: [N] int64, where the tokens lie in the flattened [B * S].
    target_ids: [Q] int64, the tokens of scored chunks. target_rows: [Q] int64, ascending: the index among the N of
    the token before each. chunk_of_target: [Q] int64, its finest chunk.
    chunk_rows: [C] int64, the index among the N of each chunk's last token.
    top: the teacher's most probable tokens at one-to-one chunks, prefixes: those within the teacher's next token; none
    where the shards have none. teacher: its side of the same rows.
    rows: [B] int64, the rows' numbers in the set of shards. source: which of several teachers it is of, None for the
    main one.
    """

    input_ids: Tensor
    positions: Tensor
    target_rows: Tensor
    target_ids: Tensor
    chunk_of_target: Tensor
    chunk_rows: Tensor
    chunks: Chunks
    top: Top
    prefixes: Top
    teacher: TeacherTokens
    rows: Rows
    source: str | None = None
    extra_inputs: Mapping[str, Tensor] = field(default_factory=dict)

    def to(self, device: torch.device) -> "Batch":
        """The same batch with its tensors on `device`."""
        names = ("input_ids", "positions", "target_rows", "target_ids", "chunk_of_target", "chunk_rows")
        moved: dict[str, Any] = {name: getattr(self, name).to(device, non_blocking=True) for name in names}
        moved["extra_inputs"] = {
            name: tensor.to(device, non_blocking=True) for name, tensor in self.extra_inputs.items()
        }
        moved |= {name: getattr(self, name).to(device) for name in ("top", "prefixes", "teacher")}
        return replace(self, **moved)


def collate(shards: RowSource, rows: Rows) -> Batch:
    """Some rows as one batch. Padding ids are 0: under causal attention nothing reads them."""
    chunks = _chunks(shards, rows)
    student = _side(shards.read(schema.STUDENT_IDS, rows), chunks.scored, chunks.num_student_tokens)
    teacher = _side(shards.read(schema.TEACHER_IDS, rows), chunks.scored, chunks.num_teacher_tokens)
    return Batch(
        input_ids=torch.from_numpy(student.input_ids),
        positions=torch.from_numpy(student.positions),
        target_rows=torch.from_numpy(student.targets - 1),
        target_ids=torch.from_numpy(student.flat_ids[student.targets]),
        chunk_of_target=torch.from_numpy(student.chunk_of_target),
        chunk_rows=torch.from_numpy(student.chunk_rows),
        chunks=chunks,
        top=_top(shards, rows, schema.TOP_FIELDS, student.chunk_rows - chunks.num_student_tokens),
        prefixes=_top(shards, rows, schema.PREFIX_FIELDS, np.arange(len(student.flat_ids)) - 1),
        teacher=TeacherTokens(
            input_ids=torch.from_numpy(teacher.input_ids),
            positions=torch.from_numpy(teacher.positions),
            target_rows=torch.from_numpy(teacher.targets - 1),
            target_ids=torch.from_numpy(teacher.flat_ids[teacher.targets]),
            chunk_rows=torch.from_numpy(teacher.chunk_rows),
        ),
        rows=rows,
    )


@dataclass(frozen=True)
class _Side:
    """One side's tokens. flat_ids [N]; targets [Q], the indices among the N of the tokens of scored chunks."""

    input_ids: Rows
    positions: Rows
    flat_ids: Rows
    targets: Rows
    chunk_of_target: Rows
    chunk_rows: Rows


def _side(
    ids: list[npt.NDArray[np.int32]], scored: npt.NDArray[np.bool_], chunk_tokens: npt.NDArray[np.int64]
) -> _Side:
    lengths = np.array([len(row_ids) for row_ids in ids])
    inside = np.arange(lengths.max()) < lengths[:, None]
    input_ids = np.zeros(inside.shape, dtype=np.int64)
    flat_ids = np.concatenate(ids).astype(np.int64)
    input_ids[inside] = flat_ids
    chunk_of_token = np.repeat(np.arange(len(chunk_tokens)), chunk_tokens)
    targets = np.flatnonzero(scored[chunk_of_token])  # a scored token is never the first of its row
    return _Side(
        input_ids=input_ids,
        positions=np.flatnonzero(inside),
        flat_ids=flat_ids,
        targets=targets,
        chunk_of_target=chunk_of_token[targets],
        chunk_rows=np.maximum(np.cumsum(chunk_tokens) - 1, 0),
    )


def _top(shards: RowSource, rows: Rows, fields: list[pa.Field], rows_before: Rows) -> Top:
    """`rows_before`: for each finest chunk (TOP_FIELDS) or token (PREFIX_FIELDS) the index of the token before it."""
    if not (shards.has_top if fields is schema.TOP_FIELDS else shards.has_prefixes):
        none = torch.zeros(0, dtype=torch.int64)
        return Top(none, none.float(), none, none, none.bool(), 0)
    counts, ids, logprobs = (np.concatenate(shards.read(field.name, rows)) for field in fields)
    filled = np.flatnonzero(counts)
    group = np.repeat(np.arange(len(filled)), counts[filled])
    return Top(
        ids=torch.from_numpy(ids.astype(np.int64)),
        teacher_logprobs=torch.from_numpy(-np.abs(logprobs.astype(np.float32))),
        rows=torch.from_numpy(rows_before[filled][group]),
        group=torch.from_numpy(group),
        drawn=torch.from_numpy(logprobs > 0),
        groups=len(filled),
    )


def _chunks(shards: RowSource, rows: Rows) -> Chunks:
    ends = shards.read(schema.STUDENT_CHUNK_ENDS, rows)
    student_tokens, teacher_tokens = (
        np.concatenate([np.diff(row_ends, prepend=0) for row_ends in side]).astype(np.int64)
        for side in (ends, shards.read(schema.TEACHER_CHUNK_ENDS, rows))
    )
    counts = np.array([len(row_ends) for row_ends in ends])
    kinds = np.concatenate(shards.read(schema.CHUNK_KINDS, rows))
    scored, marker = kinds & SCORED > 0, kinds & MARKER > 0
    breaks = np.ones(len(kinds), dtype=np.bool_)
    breaks[:-1] = (scored[1:] != scored[:-1]) | (marker[1:] != marker[:-1])
    breaks[np.cumsum(counts)[counts > 0] - 1] = True
    if shards.has_targets:
        targets = [np.concatenate(shards.read(field.name, rows)) for field in schema.TARGET_FIELDS]
    else:
        targets = [np.zeros(len(kinds), dtype=np.float32)] * 2
    return Chunks(
        scored=scored,
        marker=marker,
        one_to_one=scored & (kinds & ONE_TO_ONE > 0),
        before_whitespace=kinds & BEFORE_WHITESPACE > 0,
        breaks=breaks,
        num_bytes=np.concatenate(shards.read(schema.CHUNK_BYTES, rows)).astype(np.int64),
        num_student_tokens=student_tokens,
        num_teacher_tokens=teacher_tokens,
        teacher_logprobs=targets[0],
        teacher_boundary_logprobs=targets[1],
    )
