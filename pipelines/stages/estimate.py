"""What `--dry-run` expects of a run: a small sample of its corpus goes through the real stages in this process."""

import copy
import gc
import os
import resource
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.table import Table

from ctd_core.config.text import TrainedTokenizer
from ctd_core.errors import CtdError, DocumentError
from ctd_core.models.building import build_student, build_teacher, build_teacher_tokenizer, top_tokens, with_adapters
from ctd_core.models.logprob_model import LogprobModel
from ctd_core.models.scoring import score_rows
from ctd_core.shards.building import build_rows
from ctd_core.shards.files import shard_bytes
from ctd_core.shards.manifest import Counts
from ctd_core.shards.rows import MemoryRows, RowSource
from ctd_core.text.corpora import read_slice
from ctd_core.text.corpora.slices import training_documents
from ctd_core.text.documents import Document, is_unicode
from ctd_core.text.prepared_tokenizer import Side, make_side
from ctd_core.text.tokenizers import train_tokenizer
from ctd_core.training.loop import Hooks, train
from ctd_core.training.workers import Worker
from pipelines.artifacts.run_paths import TRAIN_SET, Places
from pipelines.stages.student import online_teacher, student_tokenizer

SAMPLE_BYTES = 100_000
STEPS = 3  # the first one, which is slower than the rest, does not count


@dataclass(frozen=True)
class Estimate:
    """What to expect, by name, in words."""

    expected: dict[str, str]

    def as_table(self) -> Table:
        """The figures for a terminal."""
        table = Table(title="to expect of the training set, from a sample measured here", show_header=False)
        for name, words in self.expected.items():
            table.add_row(name, words)
        return table


def estimate(places: Places, stages: tuple[str, ...]) -> Estimate:
    """What `stages` of a run, of prepare and train, will take and make on its training set. Nothing is written."""
    options = places.config.prepare
    if (options.scoring_gpus or places.config.train.use_gpu) and not torch.cuda.is_available():
        return Estimate({"nothing": "the run asks for GPUs, and this machine has none to measure with"})
    texts, whole_bytes = _sample(places)
    student, teacher = _student_tokenizer(places, texts), build_teacher_tokenizer(places.config.teacher)
    seconds: dict[str, float] = {}
    with _timed("encode", seconds):
        windows = (options.student_window_tokens, options.teacher_window_tokens)
        rows, counts = build_rows(student, teacher, texts, *windows, options.split_fraction)
    if not counts.rows:
        raise CtdError(f"the corpus: the first {counts.documents} documents make no row to estimate from.")
    expected: dict[str, str] = {}
    scale = whole_bytes / max(sum(len(one.text.encode()) for one in texts), 1)
    if options.targets:
        model = build_teacher(places.config.teacher, teacher, torch.device("cuda" if options.scoring_gpus else "cpu"))
        with _timed("score", seconds):
            rows = score_rows(model, rows, options.scoring_batch_tokens, top_tokens(options, student, teacher))
        del model
    if "prepare" in stages:
        expected |= _data(counts, scale, rows_bytes=shard_bytes(rows).size, whole_bytes=whole_bytes)
        expected["encoding"] = f"{_span(seconds['encode on one CPU'] * scale)} of one CPU; {os.cpu_count()} are here"
        if "score" in seconds:
            actors = options.scoring_actors if options.scoring_gpus else 1  # without GPUs they share the CPUs
            expected["scoring"] = _span(seconds["score"] * scale / actors) + _each(actors, "scoring actors")
    if "train" in stages:
        with tempfile.TemporaryDirectory(prefix="ctd-estimate-") as folder:
            aside = copy.copy(places)
            aside.config = places.config.model_copy(update={"output": folder})  # for what it may keep
            measured = _step(aside, MemoryRows("the sample", [rows], counts), student, teacher)
        expected |= _training(places, counts.student_tokens * scale, *measured)
    return Estimate(expected)


def _sample(places: Places) -> tuple[list[Document], float]:
    """Some documents from the first part of the corpus with any, and the bytes of all that it will be trained on."""
    corpus, parts = places.config.corpus, places.datasets[TRAIN_SET].parts

    def texts(number: int) -> list[Document]:
        found = training_documents(corpus, read_slice(corpus, parts[number]))
        return [one for one in found if not isinstance(one, DocumentError) and is_unicode(one.text)]

    first = next((found for number in range(len(parts)) if (found := texts(number))), [])
    first_bytes, last_bytes = (sum(len(one.text.encode()) for one in part) for part in (first, texts(-1)))
    every = max(1, first_bytes // SAMPLE_BYTES)
    return first[::every], first_bytes * (len(parts) - 1) + last_bytes


def _student_tokenizer(places: Places, texts: list[Document]) -> Side:
    options = places.config.student
    to_train = places.tokenizer is not None and not places.tokenizer.exists()
    if isinstance(options.tokenizer, TrainedTokenizer) and to_train:
        tokenizer = train_tokenizer((one.text for one in texts), options.tokenizer.vocab_size)
        return make_side(tokenizer, "a tokenizer of the sample", options.begin_token, options.end_token)
    return student_tokenizer(places)


def _step(places: Places, shards: RowSource, student_side: Side, teacher_side: Side) -> tuple[float, int]:
    """The seconds of a step in one process, and the bytes of memory that it takes with all that a worker holds."""
    options = places.config.train
    device = torch.device("cuda" if options.use_gpu else "cpu")
    _reset_peak(device)
    chosen = places.config.student
    made = build_student(chosen, places.config.teacher, student_side, teacher_side)
    model = with_adapters(chosen, made, options.seed)
    student = LogprobModel(model, student_side.encoder.spelling.begins_pretoken)
    live = online_teacher(places, student_side, student, device) if options.online_objectives else None
    times: list[float] = []
    hooks = Hooks(lambda metrics: times.append(time.monotonic()), lambda metrics, write: None, lambda model: {})
    few = options.model_copy(update={"steps": STEPS, "evaluate_every": None, "checkpoint_every": None})
    more: dict[str | None, RowSource] = dict.fromkeys(places.config.more_teachers, shards)
    train(few, student, shards, hooks, worker=Worker(device=device), live=live, more_shards=more)
    return (times[-1] - times[0]) / (len(times) - 1), _peak_bytes(device)


def _reset_peak(device: torch.device) -> None:
    """Begin to measure the peak of memory anew (that of a process on Linux alone)."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    else:
        with suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")


def _peak_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated()
    try:
        return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) * 1024
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _data(counts: Counts, scale: float, rows_bytes: int, whole_bytes: float) -> dict[str, str]:
    return {
        "text": f"{_size(whole_bytes)}, {counts.documents * scale:,.0f} documents",
        "dropped": f"{counts.dropped_documents} of {counts.documents} documents of the sample",
        "rows": f"{counts.rows * scale:,.0f}, {counts.text_bytes / max(counts.chunks, 1):.2f} bytes a chunk",
        "tokens": f"student {counts.student_tokens * scale:,.0f}, teacher {counts.teacher_tokens * scale:,.0f}",
        "shards": _size(rows_bytes * scale),
    }


def _training(places: Places, student_tokens: float, step_seconds: float, peak_bytes: int) -> dict[str, str]:
    options = places.config.train
    workers = max(options.num_workers, 1)
    step, seen = step_seconds / workers, options.steps * options.micro_batches * options.batch_tokens
    return {
        "training": f"{options.steps} steps of {step:.2g} s, {_span(options.steps * step)}" + _each(workers, "workers"),
        "epochs": f"{seen / max(student_tokens, 1):.2g} at most",
        "memory": f"{_size(peak_bytes)} a worker",
    }


def _each(count: int, what: str) -> str:
    return f", each of {count} {what} a machine like this one" if count > 1 else ""


@contextmanager
def _timed(name: str, seconds: dict[str, float]) -> Iterator[None]:
    start, of_cpus = time.monotonic(), time.process_time()
    yield
    seconds[name] = time.monotonic() - start
    seconds[f"{name} on one CPU"] = time.process_time() - of_cpus


def _span(seconds: float) -> str:
    for size, unit in ((86400, "days"), (3600, "hours"), (60, "minutes")):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.2g} seconds"


def _size(size_bytes: float) -> str:
    for size, unit in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if size_bytes >= size:
            return f"{size_bytes / size:.3g} {unit}"
    return f"{size_bytes:.0f} bytes"
