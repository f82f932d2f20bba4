"""What a worker of `ctd prepare` does to one slice of a corpus. Light to import: it brings no torch into the worker."""

import pickle
from collections.abc import Callable, Iterator
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
from ctd_core.text.prepared_tokenizer import PreparedTokenizer
from pipelines.cluster.tally import Handle, reporting
from pipelines.stages.prepare_progress import SliceProgress

Tokenizers = tuple[PreparedTokenizer, PreparedTokenizer]  # student before teacher


@dataclass(frozen=True)
class SliceTask:
    """One slice of one set, which becomes one shard: a row of the stream holds one, pickled.

    held_out_fraction: see DatasetPlan. fragmented_fraction: how many of the windows to keep, see
    align.window_selection. duplicates: the positions in the slice of documents to leave out.
    """

    corpus: Corpus
    held_out_fraction: float | None
    fragmented_fraction: float
    location: str
    slice: CorpusSlice
    duplicates: frozenset[int] = frozenset()

    @property
    def key(self) -> str:
        """The slice's name among those of all sets."""
        return f"{self.location}/{self.slice.number}"

    def expected_size(self, slice_size: int) -> float:
        """About how many characters of the slice are of the set, before it is read; `slice_size` where nobody knows."""
        size = sum(len(document.text) for document in self.slice.documents) or slice_size
        if self.held_out_fraction is None:
            return size * self.corpus.sample_fraction * (1 - self.corpus.held_out_fraction)
        return size * self.corpus.held_out_fraction * self.held_out_fraction

    def documents(self) -> Iterator[tuple[int, Document | DocumentError]]:
        """The documents of the slice that are of the set, each with its position in the slice."""
        for position, document in enumerate(read_slice(self.corpus, self.slice)):
            if self.held_out_fraction is None:
                chosen = list(training_documents(self.corpus, [document]))
            else:
                chosen = list(held_out_documents(self.corpus, self.held_out_fraction, [document]))
            if chosen and position not in self.duplicates:
                yield position, document


@lru_cache(maxsize=1)
def shared_tokenizers(tokenizers: ray.ObjectRef[Any]) -> Tokenizers:
    """Both tokenizers as the driver made them, fetched once a process for each teacher."""
    student, teacher = ray.get(tokenizers)
    return student, teacher


def align_slice(
    task: SliceTask,
    tokenizers: Tokenizers,
    options: Prepare,
    report: Callable[[SliceProgress], None] = lambda progress: None,
) -> tuple[pa.RecordBatch, Counts]:
    """Read a slice, encode it twice, align and cut it: the content of its shard but for the targets."""
    text_bytes = 0

    def reported(document: Document | DocumentError) -> Document | DocumentError:
        nonlocal text_bytes
        if isinstance(document, Document):
            text_bytes += len(document.text)  # characters, which are close enough to show
            report(SliceProgress(text_bytes))
        return document

    rows, counts = build_rows(
        *tokenizers,
        (reported(document) for _, document in task.documents()),
        options.student_window_tokens,
        options.teacher_window_tokens,
        task.fragmented_fraction,
    )
    return rows, counts.model_copy(update={"duplicate_documents": len(task.duplicates)})


def write_slice(task: SliceTask, rows: pa.RecordBatch, counts: Counts) -> dict[str, Any]:
    """Write a slice's shard; a row for the progress bar."""
    write_shard(Folder(task.location), task.slice.number, shard_bytes(rows), counts)
    return {"slice": task.key, "text_bytes": counts.text_bytes, "teacher_tokens": counts.teacher_tokens}


def encode(row: dict[str, Any], tokenizers: ray.ObjectRef[Any], options: Prepare, tally: Handle) -> dict[str, Any]:
    """A slice aligned, as a row for the teacher."""

    def work() -> dict[str, Any]:
        task: SliceTask = pickle.loads(row["task"])
        rows, counts = align_slice(task, shared_tokenizers(tokenizers), options, reporting(tally, task.key))
        tally.record.remote(task.key, SliceProgress(counts.text_bytes, 0, counts.teacher_tokens))
        return {"task": row["task"], "content": shard_bytes(rows).to_pybytes(), "counts": counts.model_dump_json()}

    return outcome(row, work)


def encode_and_write(
    row: dict[str, Any], tokenizers: ray.ObjectRef[Any], options: Prepare, tally: Handle
) -> dict[str, Any]:
    """A slice aligned and written in one task, where no teacher is asked."""

    def work() -> dict[str, Any]:
        task: SliceTask = pickle.loads(row["task"])
        aligned = align_slice(task, shared_tokenizers(tokenizers), options, reporting(tally, task.key))
        return write_slice(task, *aligned)

    return outcome(row, work)


def outcome(row: dict[str, Any], work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """The row that `work` makes of `row`, or its CtdError in one: Ray Data would pass on the traceback alone.

    A row with an error passes unchanged.
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
