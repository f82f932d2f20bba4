"""`ctd prepare`: from a corpus to shards, on Ray Data. One part of the corpus is one task and one shard."""

import json
import os
import pickle
import time
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import ray
import torch
from pyarrow import ipc
from transformers import PreTrainedTokenizerFast

from ctd_core.config.models import Teacher
from ctd_core.config.shards import Prepare
from ctd_core.config.text import TrainedTokenizer
from ctd_core.errors import CtdError, DocumentError
from ctd_core.models.building import build_teacher, build_teacher_tokenizer, top_tokens
from ctd_core.models.scoring import score_rows
from ctd_core.shards.files import (
    Folder,
    finished_shards,
    is_finished,
    read_manifest,
    shard_file,
    verify_shards,
    write_manifest,
)
from ctd_core.shards.manifest import (
    Counts,
    Manifest,
    Origin,
    build_manifest,
    check_dropped,
    tokenizer_fingerprint,
)
from ctd_core.storage.atomic import atomic_directory
from ctd_core.text.corpora import read_slice
from ctd_core.text.corpora.slices import training_documents
from ctd_core.text.documents import is_unicode
from ctd_core.text.prepared_tokenizer import Side
from ctd_core.text.tokenizers import save_tokenizer, train_tokenizer
from pipelines.artifacts.background import repeating
from pipelines.artifacts.locks import one_at_a_time
from pipelines.artifacts.run_paths import TRAIN_SET, DatasetPlan, Places
from pipelines.cluster.connection import beside_command, connect, own_errors
from pipelines.display.progress import progress, say
from pipelines.stages.prepare_progress import Handle, Tally, Within, noting, watched
from pipelines.stages.prepare_tasks import (
    Job,
    encode,
    encode_and_write,
    outcome,
    raise_error_of,
    shared_sides,
    write_part,
)
from pipelines.stages.student import student_tokenizer


def prepare(places: Places) -> dict[str, Manifest]:
    """Make every set of shards of the run that is not there yet; the manifests by name of set."""
    with one_at_a_time(places.files, "prepare"):
        return _prepare(places)


def _prepare(places: Places) -> dict[str, Manifest]:
    ensure_tokenizer(places)
    datasets = places.datasets
    open_sets = [one for one in datasets.values() if not is_finished(Folder(one.location), places.cache)]
    for one in datasets.values():
        if one not in open_sets:
            say(f"prepare: {one.name} is there already, in {one.location}")
    for teacher in (places.config.teacher, *places.config.more_teachers.values()):
        if todo := [one for one in open_sets if one.teacher is teacher]:
            sides = student_tokenizer(places), build_teacher_tokenizer(teacher)
            _make_shards(places, teacher, sides, todo)
            for one in todo:
                _close(places, one, sides)
    return {name: read_manifest(Folder(one.location)) for name, one in datasets.items()}


def ensure_tokenizer(places: Places) -> None:
    """Train the student's tokenizer where it is to be trained and is not there yet."""
    options = places.config.student.tokenizer
    if not isinstance(options, TrainedTokenizer) or places.tokenizer is None:
        return
    places.files.bring(places.tokenizer)
    if places.tokenizer.exists():
        places.files.share(places.tokenizer, anew=False)  # where an earlier try was cut short
        return
    say(f"prepare: training a tokenizer of {options.vocab_size} entries")
    tokenizer = _train_tokenizer(places, options)
    with atomic_directory(places.tokenizer) as temporary:
        save_tokenizer(tokenizer, temporary)
    places.files.share(places.tokenizer)


def _tokenizer_texts(places: Places, max_text_bytes: int) -> Iterator[str]:
    """The corpus without its held-out documents, the sample and the rest alike."""
    corpus = places.config.corpus.model_copy(update={"sample_fraction": 1.0})
    total = 0
    for part in places.datasets[TRAIN_SET].parts:
        for one in training_documents(corpus, read_slice(corpus, part)):
            if isinstance(one, DocumentError) or not is_unicode(one.text):
                continue  # counted and dropped when it is encoded
            total += len(one.text.encode())
            if total > max_text_bytes:
                return
            yield one.text


def _train_tokenizer(places: Places, options: TrainedTokenizer) -> PreTrainedTokenizerFast:
    """A new tokenizer, with a report of what it has read and for how long it has learned."""
    read, since = 0, time.monotonic()

    def texts() -> Iterator[str]:
        nonlocal read
        for text in _tokenizer_texts(places, options.max_text_bytes):
            yield text
            read += len(text.encode())

    def show() -> None:
        reporter.update(read, f"bytes read, {time.monotonic() - since:.0f} s")

    with progress("prepare: tokenizer", options.max_text_bytes) as reporter, repeating(2.0, show):
        return train_tokenizer(texts(), options.vocab_size)


class Score:
    """The teacher, held by an actor: adds its two numbers a chunk to a part's rows and writes their shard."""

    def __init__(self, teacher: Teacher, options: Prepare, sides: ray.ObjectRef[Any], tally: Handle) -> None:
        self._options, self._tally = options, tally
        device = torch.device("cuda" if options.scoring_gpus else "cpu")
        if device.type == "cpu":
            torch.set_num_threads(max(1, (os.cpu_count() or 1) // options.scoring_actors))
        mine, theirs = shared_sides(sides)
        self._failure: CtdError | None = None
        try:
            self._teacher = build_teacher(teacher, theirs, device)
        except CtdError as error:
            self._failure = error  # told with the first row
        self._top = top_tokens(options, mine, theirs)

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        return outcome(row, lambda: self._score(row))

    def _score(self, row: dict[str, Any]) -> dict[str, Any]:
        if self._failure is not None:
            raise self._failure
        with ipc.open_file(pa.py_buffer(row["content"])) as reader:
            rows = reader.get_batch(0)
        job, counts = pickle.loads(row["job"]), Counts.model_validate_json(row["counts"])
        note = noting(self._tally, job.key)

        def on_batch(tokens: int, of_tokens: int) -> None:
            note(Within(counts.text_bytes, tokens, of_tokens))

        scored = score_rows(self._teacher, rows, self._options.scoring_batch_tokens, self._top, on_batch)
        return write_part(job, scored, counts)


def _make_shards(places: Places, teacher: Teacher, sides: tuple[Side, Side], datasets: list[DatasetPlan]) -> None:
    jobs = []
    for one in datasets:
        finished = verify_shards(Folder(one.location), places.cache)
        if finished:
            say(f"prepare: {one.name}: {len(finished)} of {len(one.parts)} shards are there already")
        todo = [part for part in one.parts if shard_file(part.number) not in finished]
        split = places.config.prepare.split_fraction if one.name not in places.config.evaluate.sets else 1.0
        jobs += [Job(one.corpus, one.held_out_fraction, split, one.location, part) for part in todo]
    if not jobs:
        return
    options = places.config.prepare
    actors = options.scoring_actors if options.targets else 1
    gpus = actors * options.scoring_gpus if options.targets else 0
    others = options.scoring_resources if options.targets else None
    connect(1 if gpus else actors, gpus, "prepare.scoring_actors and prepare.scoring_gpus", others)
    items = [{"job": pickle.dumps(job)} for job in jobs]
    stream: Any = ray.data.from_items(items, override_num_blocks=len(jobs))
    tally = beside_command(Tally)
    alike = {"sides": ray.put(sides), "options": options, "tally": tally}
    if options.targets:
        stream = stream.map(encode, fn_kwargs=alike)
        resources = {"num_gpus": options.scoring_gpus} if options.scoring_gpus else {"num_cpus": 1}
        stream = stream.map(
            Score,
            fn_constructor_kwargs={"teacher": teacher, **alike},
            compute=ray.data.ActorPoolStrategy(size=options.scoring_actors),
            resources=options.scoring_resources,
            **resources,
        )
    else:
        stream = stream.map(encode_and_write, fn_kwargs=alike)
    title = "prepare: " + ", ".join(dataset.name for dataset in datasets)
    with own_errors(), progress(title, len(jobs)) as reporter, watched(tally, reporter, len(jobs)) as finish:
        for row in stream.iter_rows():
            raise_error_of(row)
            scored = row["teacher_tokens"] if options.targets else 0
            finish(row["part"], Within(row["text_bytes"], scored, scored))


def _report_documents(name: str, counts: Counts) -> None:
    """Report which documents were dropped, and which hold what may have been meant as special tokens."""
    for reason, dropped in counts.dropped.items():
        say(f"prepare: {name}: {dropped.documents} documents dropped: {reason}, such as {dropped.example}")
    if counts.with_special_tokens:
        say(
            f"prepare: {name}: {counts.with_special_tokens} of {counts.documents} documents hold names of special "
            f"tokens, such as {counts.special_token_example}: they are learned as plain text. If a chat template was "
            "applied to them, give the messages without it."
        )


def _close(places: Places, dataset: DatasetPlan, sides: tuple[Side, Side]) -> None:
    """Check what was dropped and write the manifest."""
    folder = Folder(dataset.location)
    shards = finished_shards(folder)
    config = places.config
    student_tokenizer, teacher_tokenizer = map(tokenizer_fingerprint, sides)
    origin = Origin(
        student_tokenizer=student_tokenizer,
        teacher_tokenizer=teacher_tokenizer,
        teacher_model=places.teacher_weights(dataset.teacher) if config.prepare.targets else None,
        config=json.loads(config.model_dump_json(include={"student", "corpus", "prepare"}))
        | {"teacher": json.loads(dataset.teacher.model_dump_json())},
    )
    manifest = build_manifest(origin, [shards[shard_file(part.number)] for part in dataset.parts])
    counts = manifest.counts
    check_dropped(counts, config.prepare.max_dropped_fraction)
    _report_documents(dataset.name, counts)
    if not counts.scored_chunks:
        raise CtdError(
            f"the set {dataset.name} holds no text to learn from or measure ({counts.documents} documents, "
            f"{counts.empty_documents} of them empty). Take more documents, or a larger held_out_fraction."
        )
    write_manifest(folder, manifest)
