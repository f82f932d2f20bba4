"""What a worker of `ctd prepare` does to one part of a corpus. Light to import: it brings no torch into the worker."""

import pickle
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import pyarrow as pa
import ray

from ctd_core.config.shards import Prepare
from ctd_core.config.text import Corpus
from ctd_core.errors import CtdError, DocumentError, UsageError
from ctd_core.shards.building import build_rows
from ctd_core.shards.files import Folder, shard_bytes, write_shard
from ctd_core.shards.manifest import Counts
from ctd_core.text.corpora import CorpusSlice, read_slice
from ctd_core.text.corpora.slices import held_out_documents, training_documents
from ctd_core.text.documents import Document
from ctd_core.text.prepared_tokenizer import Side
from pipelines.stages.prepare_progress import Handle, Within, noting


@dataclass(frozen=True)
class Job:
    """One part of one set, for any worker: a row of the stream holds one, pickled.

    held_out_fraction: how much of what the corpus holds out; None for the rest.
    split_fraction: how much of what was cut to keep, see align.selection.
    """

    corpus: Corpus
    held_out_fraction: float | None
    split_fraction: float
    location: str
    part: CorpusSlice

    @property
    def key(self) -> str:
        """The part's name among those of all sets."""
        return f"{self.location}/{self.part.number}"


@lru_cache(maxsize=1)
def shared_sides(sides: ray.ObjectRef[Any]) -> tuple[Side, Side]:
    """Student and teacher side as the driver made them, fetched once a process for each teacher."""
    student, teacher = ray.get(sides)
    return student, teacher


def align_part(job: Job, sides: ray.ObjectRef[Any], options: Prepare, tally: Handle) -> tuple[pa.RecordBatch, Counts]:
    """Read a part, encode it twice, align and cut it: the content of its shard but for the teacher's numbers."""
    note, text_bytes = noting(tally, job.key), 0

    def noted(document: Document | DocumentError) -> Document | DocumentError:
        nonlocal text_bytes
        if isinstance(document, Document):
            text_bytes += len(document.text)  # characters, which are close enough to show
            note(Within(text_bytes))
        return document

    documents = read_slice(job.corpus, job.part)
    chosen = (
        training_documents(job.corpus, documents)
        if job.held_out_fraction is None
        else held_out_documents(job.corpus, job.held_out_fraction, documents)
    )
    return build_rows(
        *shared_sides(sides),
        map(noted, chosen),
        options.student_window_tokens,
        options.teacher_window_tokens,
        job.split_fraction,
    )


def write_part(job: Job, rows: pa.RecordBatch, counts: Counts) -> dict[str, Any]:
    """Write a part's shard; a row for the progress bar."""
    write_shard(Folder(job.location), job.part.number, shard_bytes(rows), counts)
    return {"part": job.key, "text_bytes": counts.text_bytes, "teacher_tokens": counts.teacher_tokens}


def encode(row: dict[str, Any], sides: ray.ObjectRef[Any], options: Prepare, tally: Handle) -> dict[str, Any]:
    """A part aligned, as a row for the teacher."""

    def work() -> dict[str, Any]:
        job: Job = pickle.loads(row["job"])
        rows, counts = align_part(job, sides, options, tally)
        tally.note.remote(job.key, Within(counts.text_bytes, 0, counts.teacher_tokens))
        return {"job": row["job"], "content": shard_bytes(rows).to_pybytes(), "counts": counts.model_dump_json()}

    return outcome(row, work)


def encode_and_write(row: dict[str, Any], sides: ray.ObjectRef[Any], options: Prepare, tally: Handle) -> dict[str, Any]:
    """A part aligned and written in one task, where no teacher is asked."""

    def work() -> dict[str, Any]:
        job: Job = pickle.loads(row["job"])
        return write_part(job, *align_part(job, sides, options, tally))

    return outcome(row, work)


def outcome(row: dict[str, Any], work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """The row that `work` makes of `row`, or its error of ours in one: Ray Data would pass on its traceback alone.

    A row with an error passes as it is.
    """
    if row.get("error"):
        return row
    try:
        return work() | {"error": "", "is_usage": False}
    except CtdError as error:
        return {"error": str(error), "is_usage": isinstance(error, UsageError)}


def raise_error_of(row: dict[str, Any]) -> None:
    """Raise the error that `outcome` put into a row, if there is one."""
    if row["error"]:
        raise (UsageError if row["is_usage"] else CtdError)(row["error"])
