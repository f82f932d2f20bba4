"""`ctd prepare`: from a corpus to shards, on Ray Data. One slice of the corpus is one task and one shard."""

import json
import logging
import pickle
from collections.abc import Mapping
from contextlib import suppress
from itertools import compress
from typing import Any, NamedTuple

import ray

from ctd_core.config.shards import Prepare
from ctd_core.config.text import Corpus, HeldOut, Mixture
from ctd_core.errors import CtdError
from ctd_core.models.tokenizers import build_teacher_tokenizer
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
    compare_vocabularies,
    tokenizer_fingerprint,
)
from ctd_core.text.corpora import CorpusSlice, corpus_files, plan_slices
from ctd_core.text.corpora.content import content_fingerprint
from pipelines.artifacts.locks import stage_lock
from pipelines.artifacts.run_plan import DatasetPlan, RunPlan, changed_meanwhile
from pipelines.cluster.connection import actor_on_driver, connect, reraised_errors
from pipelines.cluster.tally import Tally
from pipelines.display.progress import progress
from pipelines.stages.prepare_duplicates import without_duplicates
from pipelines.stages.prepare_progress import SliceProgress, watched
from pipelines.stages.prepare_scoring import ScoringActor
from pipelines.stages.prepare_tasks import SliceTask, Tokenizers, encode, encode_and_write, raise_error_of
from pipelines.stages.tokenizer import ensure_tokenizer, student_tokenizer

logger = logging.getLogger(__name__)


class _Read(NamedTuple):
    """What a set is read from, as it was when that began."""

    files: list[str]
    slices: list[CorpusSlice]


def prepare(plan: RunPlan) -> dict[str, Manifest]:
    """Make every set of shards of the run that is not there yet; the manifests by name of set."""
    try:
        return _prepare(plan)
    except KeyboardInterrupt:
        logger.info("prepare: stopped; finished shards are kept. Run the same command again: it makes the others.")
        raise


def _prepare(plan: RunPlan) -> dict[str, Manifest]:
    with stage_lock(plan.files, "prepare"):
        ensure_tokenizer(plan)
        datasets = list(plan.datasets.values())
        unfinished = [dataset for dataset in datasets if not is_finished(Folder(dataset.location), plan.shard_cache)]
        for dataset in datasets:
            if dataset not in unfinished:
                logger.info("prepare: %s is there already, in %s", dataset.name, dataset.location)
                check_dropped(read_manifest(Folder(dataset.location)).counts, plan.config.prepare.max_dropped_fraction)
        for teacher in dict.fromkeys(dataset.teacher for dataset in unfinished):
            of_teacher = [dataset for dataset in unfinished if dataset.teacher == teacher]
            tokenizers = student_tokenizer(plan), build_teacher_tokenizer(teacher)
            read = {
                dataset.name: _Read(
                    corpus_files(dataset.corpus), plan_slices(dataset.corpus, plan.config.prepare.slice_bytes)
                )
                for dataset in of_teacher
            }
            tasks = [task for dataset in of_teacher for task in _open_tasks(plan, dataset, read[dataset.name].slices)]
            if tasks:
                title = "prepare: " + ", ".join(dataset.name for dataset in of_teacher)
                _make_shards(title, tasks, of_teacher[0], tokenizers, plan.config.prepare)
                _check_corpora(plan, of_teacher, tasks, read)
            for dataset in of_teacher:
                finish_set(plan, dataset, read[dataset.name].slices, tokenizers)
        return {dataset.name: read_manifest(Folder(dataset.location)) for dataset in datasets}


def _open_tasks(plan: RunPlan, dataset: DatasetPlan, slices: list[CorpusSlice]) -> list[SliceTask]:
    """The slices of a set whose shards are not there yet, or damaged."""
    options = plan.config.prepare
    finished = verify_shards(Folder(dataset.location), plan.shard_cache)
    if finished:
        logger.info("prepare: %s: %d of %d shards are there already", dataset.name, len(finished), len(slices))
    fragmented = 1.0 if dataset.name in plan.config.evaluate.sets else options.fragmented_fraction
    tasks = [
        SliceTask(dataset.corpus, dataset.held_out_fraction, fragmented, dataset.location, corpus_slice)
        for corpus_slice in slices
    ]
    is_open = [shard_file(task.slice.number) not in finished for task in tasks]
    if dataset.corpus.deduplicate and any(is_open):
        tasks = without_duplicates(dataset.name, tasks)
    return list(compress(tasks, is_open))


def _make_shards(
    title: str, tasks: list[SliceTask], dataset: DatasetPlan, tokenizers: Tokenizers, options: Prepare
) -> None:
    """Run the tasks on Ray Data: encode and align on CPUs, score where the teacher of `dataset` is, write."""
    actors = options.scoring_actors if options.targets else 1
    gpus = actors * options.scoring_gpus if options.targets else 0
    others = options.scoring_resources if options.targets else None
    connect(1 if gpus else actors, gpus, "prepare.scoring_actors and prepare.scoring_gpus", others)
    items = [{"task": pickle.dumps(task)} for task in tasks]
    stream: Any = ray.data.from_items(items, override_num_blocks=len(tasks))
    tally = actor_on_driver(Tally)
    shared = {"tokenizers": ray.put(tokenizers), "options": options, "tally": tally}
    if options.targets:
        stream = stream.map(encode, fn_kwargs=shared)
        resources = {"num_gpus": options.scoring_gpus} if options.scoring_gpus else {"num_cpus": 1}
        stream = stream.map(
            ScoringActor,
            fn_constructor_kwargs={"teacher": dataset.teacher, "weights": dataset.teacher_weights, **shared},
            compute=ray.data.ActorPoolStrategy(size=options.scoring_actors),
            resources=options.scoring_resources,
            **resources,
        )
    else:
        stream = stream.map(encode_and_write, fn_kwargs=shared)
    sizes = {task.key: task.expected_size(options.slice_bytes) for task in tasks}
    with reraised_errors(), progress(title, len(tasks)) as reporter, watched(tally, reporter, sizes) as finish:
        for row in stream.iter_rows():
            raise_error_of(row)
            scored = row["teacher_tokens"] if options.targets else 0
            finish(row["slice"], SliceProgress(row["text_bytes"], scored, scored))


def _check_corpora(
    plan: RunPlan, datasets: list[DatasetPlan], tasks: list[SliceTask], read: Mapping[str, _Read]
) -> None:
    """Raises CtdError where a corpus is another than when the command began; `tasks`' shards of it are moved aside.

    A file that has come since is none of those `read`, and no change.
    """
    changed = []
    for content in dict.fromkeys(dataset.content for dataset in datasets):  # sets may share a corpus
        names = {dataset.location: dataset.name for dataset in datasets if dataset.content == content}
        name = next(iter(names.values()))
        with suppress(FileNotFoundError):
            if content_fingerprint(*read[name]) == content:
                continue
        for task in tasks:
            if task.location in names:
                _set_aside(task)
        measured = plan.config.evaluate.sets.get(name)
        changed.append("corpus" if measured is None or isinstance(measured, HeldOut) else f"evaluate.sets.{name}")
    if changed:
        raise changed_meanwhile(f"{', '.join(dict.fromkeys(changed))}: it")


def _set_aside(task: SliceTask) -> None:
    folder, file = Folder(task.location), shard_file(task.slice.number)
    for name in (f"{file}.json", file):
        if folder.exists(name):
            folder.set_aside(name)


def finish_set(plan: RunPlan, dataset: DatasetPlan, slices: list[CorpusSlice], tokenizers: Tokenizers) -> None:
    """Check what was dropped and write the manifest.

    Args:
        plan: the run.
        dataset: the set, all of whose shards are there.
        slices: those that the shards were made of.
        tokenizers: student's and teacher's.

    Raises:
        CtdError: too much was dropped, or the set holds no text.
    """
    config, folder = plan.config, Folder(dataset.location)
    shards = finished_shards(folder)
    student_tokenizer, teacher_tokenizer = map(tokenizer_fingerprint, tokenizers)
    origin = Origin(
        student_tokenizer=student_tokenizer,
        teacher_tokenizer=teacher_tokenizer,
        teacher_model=dataset.teacher_weights if config.prepare.targets else None,
        config=json.loads(config.model_dump_json(include={"student", "corpus", "prepare"}))
        | {"teacher": json.loads(dataset.teacher.model_dump_json())},
    )
    entries = [shards[shard_file(corpus_slice.number)] for corpus_slice in slices]
    manifest = build_manifest(
        origin, entries, _shards_of_sources(dataset.corpus, slices), compare_vocabularies(*tokenizers)
    )
    counts = manifest.counts
    check_dropped(counts, config.prepare.max_dropped_fraction)
    _report_documents(dataset.name, counts)
    if not counts.scored_chunks:
        raise CtdError(
            f"the set {dataset.name} holds no text to learn from or measure ({counts.documents} documents, "
            f"{counts.empty_documents} of them empty). Take more documents, or a larger held_out_fraction."
        )
    write_manifest(folder, manifest)


def _shards_of_sources(corpus: Corpus, slices: list[CorpusSlice]) -> dict[str, int]:
    if not isinstance(corpus, Mixture):
        return {}
    return {label: sum(item.part == number for item in slices) for number, label in enumerate(corpus.labels)}


def _report_documents(name: str, counts: Counts) -> None:
    """Report which documents were dropped or left out, which hold what may have been meant as special tokens, and
    whether machines of two kinds have scored them.
    """
    if counts.duplicate_documents:
        logger.info("prepare: %s: %d documents left out, the same as earlier ones", name, counts.duplicate_documents)
    for reason, dropped in counts.dropped.items():
        logger.warning(
            "prepare: %s: %d documents dropped: %s, such as %s", name, dropped.documents, reason, dropped.example
        )
    if counts.with_special_tokens:
        logger.warning(
            "prepare: %s: %d of %d documents hold names of special tokens, such as %s: they are learned as plain text. "
            "If a chat template was applied to them, give the messages without it.",
            name, counts.with_special_tokens, counts.documents, counts.special_token_example,
        )  # fmt: skip
    if len(counts.scored_as) > 1:
        logger.warning(
            "prepare: %s: the teacher calculated in several types, on unlike machines: %s. Give teacher.dtype one of "
            "them where that matters.",
            name, ", ".join(f"{dtype} for {rows} rows" for dtype, rows in counts.scored_as.items()),
        )  # fmt: skip
