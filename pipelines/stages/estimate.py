"""What `--dry-run --estimate` expects of a run: a sample of its corpus goes through the real stages in this process."""

import logging
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from ctd_core.config.run import RunConfig
from ctd_core.config.text import Corpus, HeldOut, TrainedTokenizer
from ctd_core.errors import CtdError, DocumentError
from ctd_core.models.building import build_scorer, stored_targets
from ctd_core.models.scoring import score_rows
from ctd_core.models.tokenizers import build_student_tokenizer, build_teacher_tokenizer, with_chat
from ctd_core.shards.building import build_rows
from ctd_core.shards.files import shard_bytes
from ctd_core.shards.manifest import Counts
from ctd_core.shards.rows import MemoryRows
from ctd_core.text.corpora import CorpusSlice, plan_slices, read_slice
from ctd_core.text.corpora.slices import training_documents
from ctd_core.text.documents import Document, is_unicode
from ctd_core.text.prepared_tokenizer import PreparedTokenizer, prepare_tokenizer
from ctd_core.text.tokenizers import train_tokenizer
from pipelines.artifacts.checkpoints import CHECKPOINTS_KEPT
from pipelines.display.tables import TextTable
from pipelines.stages.training_cost import STATE_COPIES, STEPS, TrainingCost, measure_steps

logger = logging.getLogger(__name__)
SAMPLE_BYTES = 40_000
MADE_IN_A_RUN = 4  # times that `ctd run` makes the student: to train, twice to evaluate, to export


@dataclass(frozen=True)
class Estimate:
    """What to expect, by name, in words."""

    expected: dict[str, str]

    def as_table(self) -> TextTable:
        """The estimate, a row for each quantity."""
        rows = [[name, words] for name, words in self.expected.items()]
        return TextTable(["", ""], rows, "to expect, from a sample measured here", text_columns=2)


def estimate(config: RunConfig, trained_tokenizer: Path | None, stages: tuple[str, ...]) -> Estimate:
    """What a run will take and make. Nothing is written.

    Args:
        config: the run's options.
        trained_tokenizer: the directory of the student's tokenizer where it is trained already.
        stages: of prepare and train.

    Returns:
        The estimate.

    Raises:
        CtdError: the first documents make no row.
    """
    options = config.prepare
    if (options.scoring_gpus or config.train.use_gpu) and not torch.cuda.is_available():
        return Estimate({"nothing": "the run asks for GPUs, and this machine has none to measure with"})
    logger.info("estimate: a sample of the corpus goes through every stage")
    texts, total_bytes = _sample(config)
    student, teacher = _student_tokenizer(config, trained_tokenizer, texts), build_teacher_tokenizer(config.teacher)
    seconds: dict[str, float] = {}
    with _timed("encode", seconds):
        windows = (options.student_window_tokens, options.teacher_window_tokens)
        rows, counts = build_rows(student, teacher, texts, *windows, options.fragmented_fraction)
    if not counts.rows:
        raise CtdError(f"the corpus: the first {counts.documents} documents make no row to estimate from.")
    expected: dict[str, str] = {}
    total = 0.0
    scale = total_bytes / max(sum(len(document.text.encode()) for document in texts), 1)
    if options.targets:
        logger.info("estimate: the teacher scores %d rows", counts.rows)
        scorer = build_scorer(config.teacher, teacher, torch.device("cuda" if options.scoring_gpus else "cpu"))
        with _timed("score", seconds):
            rows = score_rows(scorer, rows, options.scoring_batch_tokens, stored_targets(options, student, teacher))
        del scorer
    shards_bytes = shard_bytes(rows).size * scale
    if "prepare" in stages:
        expected |= _data(counts, scale, shards_bytes, total_bytes)
        encoding = seconds["encode on one CPU"] * scale
        expected["encoding"] = f"{_span(encoding)} of one CPU; {os.cpu_count()} are here"
        total += encoding / (os.cpu_count() or 1)
        if "score" in seconds:
            actors = options.scoring_actors if options.scoring_gpus else 1  # without GPUs they share the CPUs
            expected["scoring"] = _span(seconds["score"] * scale / actors) + _each(actors, "scoring actors")
            total += seconds["score"] * scale / actors
    if "train" in stages:
        logger.info("estimate: the student learns for %d steps", STEPS)
        measured = measure_steps(config, MemoryRows("the sample", [rows], counts), student, teacher)
        words, training_seconds = _training(config, counts.student_tokens * scale, measured, total_bytes)
        expected |= words | {"disk": _disk(measured, shards_bytes)}
        total += training_seconds
    expected["in all"] = f"{_span(total)}, and what Ray needs to start: some ten seconds a stage"
    return Estimate(expected)


def _sample(config: RunConfig) -> tuple[list[Document], float]:
    """Some documents from the first slice of each source with any, and the bytes of all that it will be trained on."""
    sampled: list[Document] = []
    total = 0.0
    for part in config.corpus.parts:
        slices = plan_slices(part, config.prepare.slice_bytes)

        def texts(item: CorpusSlice, part: Corpus = part) -> list[Document]:
            found = training_documents(config.corpus, read_slice(part, item))
            return [text for text in found if not isinstance(text, DocumentError) and is_unicode(text.text)]

        first = next((found for item in slices if (found := texts(item))), [])
        first_bytes, last_bytes = (_bytes_of(documents) for documents in (first, texts(slices[-1])))
        sampled += first[:: max(1, first_bytes * len(config.corpus.parts) // SAMPLE_BYTES)]
        total += first_bytes * (len(slices) - 1) + last_bytes
    return sampled, total


def _bytes_of(documents: list[Document]) -> int:
    return sum(len(document.text.encode(errors="surrogatepass")) for document in documents)


def _evaluated_bytes(config: RunConfig, trained_bytes: float) -> float:
    """The bytes of all evaluation sets."""
    total = 0.0
    for measured in config.evaluate.sets.values():
        if isinstance(measured, HeldOut):
            held_out = config.corpus.held_out_fraction
            total += (
                trained_bytes / config.corpus.sample_fraction / (1 - held_out) * held_out * measured.sample_fraction
            )
        else:
            total += _corpus_bytes(measured, config.prepare.slice_bytes)
    return total


def _corpus_bytes(corpus: Corpus, slice_bytes: int) -> float:
    slices = plan_slices(corpus, slice_bytes)
    first, last = (
        _bytes_of([document for document in read_slice(corpus, corpus_slice) if isinstance(document, Document)])
        for corpus_slice in (slices[0], slices[-1])
    )
    return first * (len(slices) - 1) + last


def _student_tokenizer(config: RunConfig, trained_tokenizer: Path | None, texts: list[Document]) -> PreparedTokenizer:
    options = config.student
    to_train = trained_tokenizer is None or not trained_tokenizer.exists()
    if isinstance(options.tokenizer, TrainedTokenizer) and to_train:
        trained = train_tokenizer((document.text for document in texts), options.tokenizer.vocab_size)
        tokenizer = with_chat(trained, options, config.teacher)
        return prepare_tokenizer(tokenizer, "a tokenizer of the sample", options.begin_token, options.end_token)
    return build_student_tokenizer(options, config.teacher, trained_tokenizer)


def _data(counts: Counts, scale: float, shards_bytes: float, total_bytes: float) -> dict[str, str]:
    return {
        "text": f"{_size(total_bytes)}, {counts.documents * scale:,.0f} documents",
        "dropped": f"{counts.dropped_documents} of {counts.documents} documents of the sample",
        "rows": f"{counts.rows * scale:,.0f}, {counts.text_bytes / max(counts.chunks, 1):.2f} bytes a chunk",
        "tokens": f"student {counts.student_tokens * scale:,.0f}, teacher {counts.teacher_tokens * scale:,.0f}",
        "shards": _size(shards_bytes),
    }


def _training(
    config: RunConfig, student_tokens: float, measured: TrainingCost, total_bytes: float
) -> tuple[dict[str, str], float]:
    """What to expect of training and evaluating, in words, and the seconds of both."""
    options = config.train
    workers = max(options.num_workers, 1)
    step = measured.step_seconds / workers
    seen = options.steps * options.gradient_accumulation * options.batch_tokens
    checkpoints = -(-options.steps // options.checkpoint_steps)
    total = MADE_IN_A_RUN * measured.make_seconds + options.steps * step + checkpoints * measured.save_seconds
    expected = {
        "training": f"{options.steps} steps of {step:.2g} s, {_span(options.steps * step)}" + _each(workers, "workers"),
        "checkpoints": f"{checkpoints}, {_span(checkpoints * measured.save_seconds)} on this disk",
        "making the student": f"{_span(measured.make_seconds)}, {MADE_IN_A_RUN} times in a run",
        "epochs": f"{seen / max(student_tokens, 1):.2g} at most",
        "memory": f"{_size(measured.peak_bytes)} a worker",
    }
    if measured.measured_bytes_per_second:
        once = _evaluated_bytes(config, total_bytes) / measured.measured_bytes_per_second
        during = 0 if options.evaluate_every is None else -(-options.steps // options.evaluate_every)
        expected["evaluating"] = f"{2 + during} times, {_span((2 + during) * once)} in all"
        total += (2 + during) * once
    return expected, total


def _disk(measured: TrainingCost, shards_bytes: float) -> str:
    checkpoint = STATE_COPIES * measured.parameter_bytes
    disk = (CHECKPOINTS_KEPT + 1) * checkpoint + 2 * measured.parameter_bytes + shards_bytes
    return f"{_size(disk)}, with checkpoints of {_size(checkpoint)}"


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
    return f"{seconds:.0f} seconds" if seconds >= 10 else f"{seconds:.2g} seconds"


def _size(size_bytes: float) -> str:
    for size, unit in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if size_bytes >= size:
            return f"{size_bytes / size:.3g} {unit}"
    return f"{size_bytes:.0f} bytes"
