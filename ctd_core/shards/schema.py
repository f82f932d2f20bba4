"""The columns of a shard, and rows turned into them."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ctd_core.align.documents import AlignedText

SCHEMA_VERSION = 16

STUDENT_IDS, TEACHER_IDS = "student_ids", "teacher_ids"
STUDENT_CHUNK_ENDS, TEACHER_CHUNK_ENDS = "student_chunk_ends", "teacher_chunk_ends"
CHUNK_KINDS, CHUNK_BYTES = "chunk_kinds", "chunk_bytes"
TEACHER_CHUNK_LOGPROBS, TEACHER_BOUNDARY_LOGPROBS = "teacher_chunk_logprobs", "teacher_boundary_logprobs"
TEACHER_TOP_COUNTS = "teacher_top_counts"
TEACHER_TOP_IDS, TEACHER_TOP_LOGPROBS = "teacher_top_ids", "teacher_top_logprobs"
PREFIX_COUNTS, PREFIX_IDS, PREFIX_LOGPROBS = "prefix_counts", "prefix_ids", "prefix_logprobs"
DOCUMENT = "document"

ALIGNMENT_FIELDS = [
    pa.field(DOCUMENT, pa.string()),
    pa.field(STUDENT_IDS, pa.list_(pa.int32())),
    pa.field(TEACHER_IDS, pa.list_(pa.int32())),
    pa.field(STUDENT_CHUNK_ENDS, pa.list_(pa.int32())),
    pa.field(TEACHER_CHUNK_ENDS, pa.list_(pa.int32())),
    pa.field(CHUNK_KINDS, pa.list_(pa.uint8())),
    pa.field(CHUNK_BYTES, pa.list_(pa.int32())),
]
TARGET_FIELDS = [
    pa.field(TEACHER_CHUNK_LOGPROBS, pa.list_(pa.float32())),
    pa.field(TEACHER_BOUNDARY_LOGPROBS, pa.list_(pa.float32())),
]
# For each finest chunk how many tokens are stored, 0 where it is not scored and ONE_TO_ONE; then all of them: student
# ids, and log-probabilities with a relative error of at most 0.4% in the probability of any that is above e⁻¹⁶.
TOP_FIELDS = [
    pa.field(TEACHER_TOP_COUNTS, pa.list_(pa.uint8())),
    pa.field(TEACHER_TOP_IDS, pa.list_(pa.int32())),
    pa.field(TEACHER_TOP_LOGPROBS, pa.list_(pa.float16())),
]
# For each student token how many tokens are stored in its place, 0 where the teacher does not tell; then all of them,
# as in TOP_FIELDS, but that the logarithm of a token that was drawn is stored without its minus.
PREFIX_FIELDS = [
    pa.field(PREFIX_COUNTS, pa.list_(pa.uint8())),
    pa.field(PREFIX_IDS, pa.list_(pa.int32())),
    pa.field(PREFIX_LOGPROBS, pa.list_(pa.float16())),
]
NARROW_PREFIX_FIELDS = [  # of a student with at most 65,536 tokens
    pa.field(field.name, pa.list_(pa.uint16())) if field.name == PREFIX_IDS else field for field in PREFIX_FIELDS
]
ALIGNMENT_SCHEMA = pa.schema(ALIGNMENT_FIELDS)


def rows_batch(rows: Sequence[AlignedText]) -> pa.RecordBatch:
    """The rows as one record batch of ALIGNMENT_SCHEMA."""
    columns = [pa.array([row.document_id for row in rows], pa.string())]
    for field in ALIGNMENT_FIELDS[1:]:
        columns.append(list_array([getattr(row, field.name) for row in rows], field.type))
    return pa.RecordBatch.from_arrays(columns, schema=ALIGNMENT_SCHEMA)


def with_columns(
    rows: pa.RecordBatch, fields: Sequence[pa.Field], columns: Sequence[Sequence[npt.NDArray[Any]]]
) -> pa.RecordBatch:
    """`rows` with list columns more, such as TARGET_FIELDS, and for each an array a row."""
    added = [list_array(lists, field.type) for field, lists in zip(fields, columns, strict=True)]
    return pa.RecordBatch.from_arrays([*rows.columns, *added], schema=pa.schema([*rows.schema, *fields]))


def list_array(lists: Sequence[npt.NDArray[Any]], kind: pa.ListType) -> pa.ListArray:
    """Arrays of any length as one Arrow list array."""
    offsets = np.cumsum([0, *(len(values) for values in lists)])
    values = np.concatenate(lists) if lists else np.zeros(0)
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), pa.array(values, kind.value_type))


def list_parts(column: pa.ListArray) -> tuple[npt.NDArray[np.int64], npt.NDArray[Any]]:
    """Offsets [rows + 1] into, and values of, a list column, without a copy of the values."""
    return column.offsets.to_numpy().astype(np.int64), column.values.to_numpy(zero_copy_only=True)
