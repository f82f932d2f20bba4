"""The manifest of a set of shards: its origin, its counts, and the checksums of its files."""

import hashlib
import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import islice
from typing import Any

import numpy as np
from pydantic import Field, ValidationError

from ctd_core.align.documents import MARKER, ONE_TO_ONE, SCORED, AlignedText
from ctd_core.config.base import Record
from ctd_core.errors import CtdError, DocumentError
from ctd_core.shards.schema import SCHEMA_VERSION
from ctd_core.text.prepared_tokenizer import PreparedTokenizer
from ctd_core.text.token_bytes import ids_by_bytes


class Dropped(Record):
    """Documents dropped for one reason, with the first of them as an example."""

    documents: int
    example: str


class Counts(Record):
    """What a shard holds, or several together."""

    documents: int = 0
    empty_documents: int = 0
    dropped: dict[str, Dropped] = Field({}, description="by reason")
    duplicate_documents: int = Field(
        default=0, description="left out by corpus.deduplicate; they are none of documents"
    )
    with_special_tokens: int = Field(0, description="documents whose text holds names of special tokens")
    special_token_example: str = ""
    rows: int = 0
    left_out_rows: int = Field(
        0, description="windows left out, by prepare.fragmented_fraction or since nothing in them is to be learned"
    )
    student_tokens: int = 0
    teacher_tokens: int = 0
    text_bytes: int = 0
    chunks: int = 0
    scored_chunks: int = 0
    scored_bytes: int = 0
    one_to_one_chunks: int = Field(0, description="scored text that is one token of both sides")
    scored_as: dict[str, int] = Field(default={}, description="rows by the type that the teacher calculated in")
    max_student_id: int = -1
    max_teacher_id: int = -1

    @property
    def dropped_documents(self) -> int:
        """Documents dropped for any reason."""
        return sum(dropped.documents for dropped in self.dropped.values())


class ShardEntry(Record):
    """One file. `sha256` is that of its bytes."""

    file: str
    size_bytes: int
    sha256: str
    counts: Counts


class Origin(Record):
    """What decides the content of the shards. `config` is the part of the run that does."""

    student_tokenizer: str
    teacher_tokenizer: str
    teacher_model: str | None
    config: dict[str, Any]


class Vocabularies(Record):
    """How many tokens that stand for text each side has, and how many are the same bytes on both."""

    student: int
    teacher: int
    shared: int


class Manifest(Record):
    """The set: its origin, its shards in order, and their sum."""

    schema_version: int
    origin: Origin
    counts: Counts
    shards: list[ShardEntry]
    sources: dict[str, int] = Field(
        default={}, description="of a mixture: how many shards are of each source, which follow one another"
    )

    vocabularies: Vocabularies | None = None

    @property
    def counts_by_source(self) -> dict[str, Counts]:
        """The counts of each source of a mixture; none of any other corpus."""
        shards = iter(self.shards)
        return {
            label: add_counts([shard.counts for shard in islice(shards, count)])
            for label, count in self.sources.items()
        }


def count_rows(
    documents: int,
    empty: int,
    errors: Sequence[DocumentError],
    rows: Sequence[AlignedText],
    left_out: int,
    with_special_tokens: Sequence[str] = (),
) -> Counts:
    """The counts of the rows made of `documents`, of which `empty` had no text and `errors` tells the dropped ones.

    left_out: the number of windows that are none of `rows`. with_special_tokens: for each document whose
    text holds the name of a special token, which and where.
    """
    by_reason: dict[str, list[str]] = defaultdict(list)
    both = SCORED | ONE_TO_ONE
    for error in errors:
        by_reason[error.reason].append(str(error))
    return Counts(
        documents=documents,
        empty_documents=empty,
        dropped={reason: Dropped(documents=len(all_), example=all_[0]) for reason, all_ in by_reason.items()},
        with_special_tokens=len(with_special_tokens),
        special_token_example=next(iter(with_special_tokens), ""),
        rows=len(rows),
        left_out_rows=left_out,
        student_tokens=sum(len(row.student_ids) for row in rows),
        teacher_tokens=sum(len(row.teacher_ids) for row in rows),
        text_bytes=sum(int(row.chunk_bytes.sum()) for row in rows),
        chunks=sum(int(np.count_nonzero(row.chunk_kinds & MARKER == 0)) for row in rows),
        scored_chunks=sum(int(np.count_nonzero(row.chunk_kinds & SCORED)) for row in rows),
        scored_bytes=sum(int(row.chunk_bytes[row.chunk_kinds & SCORED > 0].sum()) for row in rows),
        one_to_one_chunks=sum(int(np.count_nonzero(row.chunk_kinds & both == both)) for row in rows),
        max_student_id=max((int(row.student_ids.max(initial=-1)) for row in rows), default=-1),
        max_teacher_id=max((int(row.teacher_ids.max(initial=-1)) for row in rows), default=-1),
    )


def add_counts(parts: Sequence[Counts]) -> Counts:
    """The counts of several shards together."""
    dropped: dict[str, Dropped] = {}
    scored_as: dict[str, int] = {}
    for part in parts:
        for dtype, rows in part.scored_as.items():
            scored_as[dtype] = scored_as.get(dtype, 0) + rows
        for reason, of_part in part.dropped.items():
            so_far = dropped.get(reason)
            dropped[reason] = Dropped(
                documents=of_part.documents + (so_far.documents if so_far else 0),
                example=so_far.example if so_far else of_part.example,
            )
    sums = {
        name: sum(getattr(part, name) for part in parts)
        for name in Counts.model_fields
        if name not in {"dropped", "special_token_example", "scored_as", "max_student_id", "max_teacher_id"}
    }
    return Counts(
        **sums,
        special_token_example=next((part.special_token_example for part in parts if part.special_token_example), ""),
        dropped=dropped,
        scored_as=scored_as,
        max_student_id=max((part.max_student_id for part in parts), default=-1),
        max_teacher_id=max((part.max_teacher_id for part in parts), default=-1),
    )


def check_dropped(counts: Counts, max_dropped_fraction: float) -> None:
    """Raises CtdError with every reason and an example where more documents were dropped than is allowed."""
    if counts.dropped_documents <= max_dropped_fraction * counts.documents:
        return
    reasons = [
        f"  {reason}: {dropped.documents}, such as {dropped.example}" for reason, dropped in counts.dropped.items()
    ]
    raise CtdError(
        f"{counts.dropped_documents} of {counts.documents} documents had to be dropped, more than the share of "
        f"{max_dropped_fraction:g} that prepare.max_dropped_fraction allows:\n"
        + "\n".join(reasons)
        + "\nChange the tokenizers or the corpus, or allow more."
    )


def compare_vocabularies(student: PreparedTokenizer, teacher: PreparedTokenizer) -> Vocabularies:
    """What two tokenizers have in common."""
    of_student, of_teacher = (set(ids_by_bytes(side.encoder.token_bytes)) for side in (student, teacher))
    return Vocabularies(student=len(of_student), teacher=len(of_teacher), shared=len(of_student & of_teacher))


def tokenizer_fingerprint(tokenizer: PreparedTokenizer) -> str:
    """SHA-256 over the tokenizer's own description, the ids of its markers and its chat template."""
    description = json.loads(tokenizer.encoder.tokenizer.backend_tokenizer.to_str())
    description.pop("padding", None)
    description.pop("truncation", None)
    template = tokenizer.encoder.tokenizer.chat_template
    plain = json.dumps(
        [description, sorted(tokenizer.markers.items()), *([template] if template else [])], sort_keys=True
    )
    return hashlib.sha256(plain.encode()).hexdigest()


def build_manifest(
    origin: Origin,
    shards: list[ShardEntry],
    sources: Mapping[str, int] | None = None,
    vocabularies: Vocabularies | None = None,
) -> Manifest:
    """The manifest of `shards`, in order; all else, see Manifest."""
    counts = add_counts([shard.counts for shard in shards])
    return Manifest(
        schema_version=SCHEMA_VERSION,
        origin=origin,
        counts=counts,
        shards=shards,
        sources=dict(sources or {}),
        vocabularies=vocabularies,
    )


def parse_manifest(text: str, source: str) -> Manifest:
    """The manifest in `text`; raises CtdError naming `source` where it is none, or one of another version."""
    try:
        manifest = Manifest.model_validate_json(text)
    except ValidationError as error:
        raise CtdError(f"{source}: not a manifest of shards ({error.error_count()} errors). Prepare again.") from error
    if manifest.schema_version != SCHEMA_VERSION:
        raise CtdError(
            f"{source}: shards of schema {manifest.schema_version}, and this version reads {SCHEMA_VERSION}. "
            "Prepare again: `ctd prepare` keeps what it can use and moves the rest aside."
        )
    return manifest


def check_student(manifest: Manifest, source: str, student: PreparedTokenizer, vocab_size: int) -> None:
    """Raises CtdError where the shards were made for another tokenizer, or hold ids that the student lacks."""
    now = tokenizer_fingerprint(student)
    if manifest.origin.student_tokenizer != now:
        raise CtdError(
            f"{source}: these shards were made with a student tokenizer of fingerprint "
            f"{manifest.origin.student_tokenizer[:12]}, and {student.encoder.name} has {now[:12]}. Prepare again with "
            "this tokenizer, or train with the one that the shards were made with."
        )
    if manifest.counts.max_student_id >= vocab_size:
        raise CtdError(
            f"{source}: token ids reach {manifest.counts.max_student_id}, and the student's embedding has "
            f"{vocab_size} entries. Take the tokenizer that belongs to the model, or a model made for this tokenizer."
        )


def check_teacher(manifest: Manifest, source: str, weights: str, num_embeddings: int) -> None:
    """Raises CtdError where the shards were made with a teacher other than the one whose weights have this fingerprint.

    Args:
        manifest: the shards'.
        source: what messages call the shards.
        weights: the fingerprint of the teacher's weights.
        num_embeddings: the rows of the teacher's embedding.
    """
    made_with = manifest.origin.teacher_model
    if made_with is not None and made_with != weights:
        raise CtdError(
            f"{source}: these targets were computed by a teacher of fingerprint {made_with[:12]}, and the run's "
            f"teacher has {weights[:12]}. Prepare again with this teacher, or name the one before."
        )
    if manifest.counts.max_teacher_id >= num_embeddings:
        raise CtdError(
            f"{source}: the teacher's token ids reach {manifest.counts.max_teacher_id}, and its embedding has "
            f"{num_embeddings} entries. Prepare again."
        )
