"""On-policy distillation: in rounds, the student writes, its teacher scores that, and training goes on with it.

A round's texts, shards and figures lie in a folder of their own, so that whoever is stopped goes on within the round:
no text is written, scored or learned twice. The optimizer and the schedule are those of one training.
"""

import hashlib
import json
import logging
import time
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from ctd_core.config.base import fingerprint
from ctd_core.config.text import Mixture, OwnTexts
from ctd_core.config.training import OnPolicy
from ctd_core.errors import DocumentError, UsageError
from ctd_core.evaluation.likelihoods import measure_likelihoods
from ctd_core.evaluation.metrics import metrics_of
from ctd_core.generation.own_texts import Record, choose_prompts, figures_of, prompts_of
from ctd_core.generation.prompts import Answerer
from ctd_core.generation.sampler import Sampling, TransformersSampler
from ctd_core.models.export import beginning_texts
from ctd_core.models.model_config import max_positions
from ctd_core.shards.files import Folder, read_manifest
from ctd_core.shards.reading import ShardSet
from ctd_core.shards.schema import SCHEMA_VERSION
from ctd_core.storage.atomic import write_atomic
from ctd_core.text.corpora import read_documents
from ctd_core.text.corpora.slices import training_documents
from ctd_core.text.documents import BEGIN
from ctd_core.training.loop import Stopped
from pipelines.artifacts.checkpoints import latest_checkpoint, name_of, steps_done
from pipelines.artifacts.locks import stage_lock
from pipelines.artifacts.run_plan import DatasetPlan, RunPlan
from pipelines.stages.generate import Batches, append_batches
from pipelines.stages.prepare import prepare
from pipelines.stages.student import ensure_student, load_student
from pipelines.stages.tokenizer import student_tokenizer
from pipelines.stages.train import train_student

logger = logging.getLogger(__name__)
SOURCE_DOCUMENTS = 20_000  # from the first of the corpus come the prompts


@dataclass(frozen=True)
class Round:
    """One round: the steps after `first` up to `last`. folder: where what belongs to it lies."""

    number: int
    first: int
    last: int
    folder: Path


def rounds_of(plan: RunPlan) -> list[Round]:
    """All rounds of a training, in order."""
    options = plan.config.train.on_policy
    if options is None:
        return []
    steps = plan.config.train.steps - options.begin
    bounds = [options.begin + -(-steps * number // options.rounds) for number in range(options.rounds + 1)]
    return [
        Round(number, first, last, plan.training / f"round-{number:03d}")
        for number, (first, last) in enumerate(pairwise(bounds))
    ]


def train_whole(plan: RunPlan) -> None:
    """Train to the last step, on the corpus alone or in rounds, as the run asks."""
    if plan.config.train.on_policy is None:
        train_student(plan)
    else:
        train_on_policy(plan)


def train_on_policy(plan: RunPlan) -> None:
    """Train to the last step, in rounds; a training that was stopped goes on within its round.

    Args:
        plan: the run, with `train.on_policy`.

    Raises:
        UsageError: the corpus holds no prompts for this student.
        Stopped: it was asked to stop.
    """
    options = plan.config.train.on_policy
    assert options is not None
    if isinstance(plan.config.corpus, Mixture) and options.fraction < 1:
        raise UsageError("train.on_policy.fraction: beside a mixture of corpora, only 1 is supported.")
    with stage_lock(plan.files, f"rounds-{plan.training.name}"):
        ensure_student(plan)
        if options.begin:
            _train_until(plan, options.begin)
        for item in rounds_of(plan):
            if steps_done(latest_checkpoint(plan.checkpoints)) < item.last:
                dataset = _own_texts(plan, options, item)
                _train_until(replace(plan, own_texts=dataset), item.last)


def _train_until(plan: RunPlan, step: int) -> None:
    try:
        train_student(replace(plan, until=step))
    except Stopped as stopped:
        if stopped.done != step:
            raise


def _own_texts(plan: RunPlan, options: OnPolicy, item: Round) -> DatasetPlan:
    """The scored texts of a round, which are written where they are not there yet."""
    texts = item.folder / "texts.jsonl"
    done_file = item.folder / "round.json"
    plan.files.fetch(item.folder)
    is_chat = bool(student_tokenizer(plan).encoder.tokenizer.chat_template)
    begun = time.monotonic()
    if not texts.exists() or not (item.folder / "written.json").exists():
        _write_texts(plan, options, item, texts)
    seconds_writing = time.monotonic() - begun
    dataset = _dataset(plan, item, texts, is_chat)
    own = plan.config.prepare.model_copy(update={"max_dropped_fraction": 0.99})  # counted, and shown below
    begun = time.monotonic()
    prepare(replace(plan, config=plan.config.model_copy(update={"prepare": own}), datasets={dataset.name: dataset}))
    if not done_file.exists():
        figures = _figures(plan, dataset, texts)
        figures |= {"round": item.number, "first_step": item.first, "last_step": item.last}
        figures |= {"seconds_writing": seconds_writing, "seconds_scoring": time.monotonic() - begun}
        write_atomic(done_file, json.dumps(figures, indent=1))
        plan.files.upload(item.folder)
        logger.info(
            "on-policy: round %d: %d texts of %.0f tokens, %.0f%% ended, %d learned; distance to the teacher %.3f",
            item.number, figures["texts"], figures["mean_tokens"], 100 * figures["share_ended"], figures["learned"],
            figures["teacher_distance_bits_per_byte"],
        )  # fmt: skip
    return dataset


def _write_texts(plan: RunPlan, options: OnPolicy, item: Round, texts: Path) -> None:
    checkpoint, tokenizer = latest_checkpoint(plan.checkpoints), student_tokenizer(plan)
    hugging_face = tokenizer.encoder.tokenizer
    is_chat = bool(hugging_face.chat_template)
    prompts = _prompts(plan, is_chat)
    chosen = choose_prompts(prompts, options.texts, plan.config.train.seed, item.number)
    sampling = Sampling(options.max_new_tokens, options.temperature, options.top_p)
    settings = {
        "checkpoint": name_of(checkpoint) if checkpoint else plan.init.name,
        "prompts": hashlib.sha256(json.dumps(chosen).encode()).hexdigest(),
        **vars(sampling),
    }

    def begin() -> Batches:
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        student = load_student(plan, tokenizer, checkpoint)
        sampler = TransformersSampler(student.model.to(device))
        origin = plan.config.student.model or plan.config.teacher.model
        trust = plan.config.student.trust_remote_code or plan.config.teacher.trust_remote_code
        longest = max_positions(origin, plan.config.student.revision or plan.config.teacher.revision, trust)
        begun = beginning_texts(hugging_face, list(tokenizer.markers.get(BEGIN, ())))
        answerer = Answerer(sampler, begun, "the student", sampling, longest)
        encoded = [answerer.encode(record, f"prompt {number}") for number, record in enumerate(chosen)]
        seed = (plan.config.train.seed * 1009 + item.number) * 1_000_003
        return lambda start, stop: answerer.answer(chosen[start:stop], encoded[start:stop], seed + start)

    item.folder.mkdir(parents=True, exist_ok=True)
    append_batches(texts, settings, len(chosen), options.batch, begin)
    write_atomic(item.folder / "written.json", json.dumps(settings))


def _prompts(plan: RunPlan, is_chat: bool) -> list[Record]:
    corpus, found = plan.config.corpus, []
    for number, document in enumerate(
        training_documents(corpus, read_documents(corpus, plan.config.prepare.slice_bytes))
    ):
        if number == SOURCE_DOCUMENTS:
            break
        if not isinstance(document, DocumentError):
            found += prompts_of(document, is_chat)
    if not found:
        what = "conversations, and this student has a chat template" if is_chat else "texts"
        raise UsageError(f"train.on_policy: the corpus holds no prompts: it would have to hold {what}.")
    return found


def _dataset(plan: RunPlan, item: Round, texts: Path, is_chat: bool) -> DatasetPlan:
    base = plan.training_sets[None]
    fields: dict[str, Any] = {"messages": "messages"} if is_chat else {
        "prompt": "prompt", "response": "generated", "as_text": True
    }  # fmt: skip
    corpus = OwnTexts(kind="own-texts", paths=[str(texts)], **fields)
    content = hashlib.sha256(texts.read_bytes()).hexdigest()
    stamp = f"own-{fingerprint(SCHEMA_VERSION, base.stamp, content)}"
    location = plan.files.within(item.folder / stamp)
    return replace(
        base, name=f"round-{item.number}", corpus=corpus, held_out_fraction=None, stamp=stamp, location=location
    )


def _figures(plan: RunPlan, dataset: DatasetPlan, texts: Path) -> dict[str, float]:
    """What the student wrote, and how far from its teacher it is there."""
    records = [json.loads(line) for line in texts.read_text(encoding="utf-8").splitlines()]
    counts = read_manifest(Folder(dataset.location)).counts
    student = load_student(plan, student_tokenizer(plan), latest_checkpoint(plan.checkpoints))
    student = student.to("cuda" if torch.cuda.is_available() else "cpu")
    shards = ShardSet(dataset.location, verify=True, cache=plan.shard_cache)
    measured = metrics_of(measure_likelihoods(student, shards, plan.config.evaluate.batch_tokens))
    learned = {"learned": counts.documents - counts.dropped_documents, "dropped": counts.dropped_documents}
    return figures_of(records) | learned | measured
