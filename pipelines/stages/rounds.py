"""The rounds of an on-policy training, and the pieces of work of each."""

import hashlib
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from ctd_core.config.base import fingerprint
from ctd_core.config.text import OwnTexts
from ctd_core.config.training import OnPolicy
from ctd_core.errors import DocumentError, UsageError
from ctd_core.generation.own_texts import choose_prompts, prompts_of
from ctd_core.generation.prompts import prompt_of, read_prompts
from ctd_core.shards.schema import SCHEMA_VERSION
from ctd_core.storage.locations import below
from ctd_core.text.corpora import CorpusSlice, read_documents
from ctd_core.text.corpora.records import Record, messages_of_prompt
from ctd_core.text.corpora.slices import training_documents
from pipelines.artifacts.run_plan import DatasetPlan, RunPlan, changed_meanwhile, check_corpus_unchanged, with_training
from pipelines.stages.preflight_training import no_prompts
from pipelines.stages.prepare_tasks import SliceTask

SOURCE_DOCUMENTS = 20_000  # from the first of the corpus come the prompts
OWN_TEXTS_VERSION = 3  # of what is written and learned: since 2, all but the last word of what was cut; since 3, texts
#                        end where the student's generation config says, too


@dataclass(frozen=True)
class Round:
    """One round: the steps after `first` up to `last`.

    written_at: the step after which the student writes the texts. folder: where what belongs to it lies.
    """

    number: int
    first: int
    last: int
    written_at: int
    folder: Path


@dataclass(frozen=True)
class WritingTask:
    """Prompts that are answered at once: what is written goes to the file `texts`, and becomes one shard."""

    prompts: list[Record]
    seed: int
    texts: str
    shard: SliceTask


@dataclass(frozen=True)
class OwnTextsPlan:
    """The set of a round's texts, and the work that makes it."""

    dataset: DatasetPlan
    tasks: list[WritingTask]


def rounds_of(plan: RunPlan) -> list[Round]:
    """All rounds of a training, in order."""
    options = plan.config.train.on_policy
    if options is None:
        return []
    steps = plan.config.train.steps - options.begin
    bounds = [options.begin + -(-steps * number // options.rounds) for number in range(options.rounds + 1)]
    return [
        Round(number, first, last, bounds[max(number - options.staleness, 0)], plan.training / f"round-{number:03d}")
        for number, (first, last) in enumerate(pairwise(bounds))
    ]


def plan_own_texts(
    plan: RunPlan, options: OnPolicy, item: Round, prompts: Sequence[Record], fragmented_fraction: float
) -> OwnTextsPlan:
    """What is written and scored in a round: it depends on the run and on the student's step alone.

    Args:
        plan: the run.
        options: its rounds.
        item: the round.
        prompts: of which some are chosen.
        fragmented_fraction: the share of the rows that is kept (see Prepare).

    Returns:
        The set, and a piece of work for each of its shards.
    """
    seed = plan.config.train.seed
    chosen = choose_prompts(prompts, options.texts, seed, item.number)
    fields: dict[str, Any] = {"messages": "messages"} if "messages" in chosen[0] else {
        "prompt": "prompt", "response": "generated", "as_text": True
    }  # fmt: skip
    base = plan.training_sets[None]
    content = hashlib.sha256(json.dumps(chosen).encode()).hexdigest()
    drawn = [options.max_new_tokens, options.temperature, options.top_p, options.batch, fragmented_fraction]
    stamp = f"own-{fingerprint(OWN_TEXTS_VERSION, SCHEMA_VERSION, base.stamp, content, drawn, seed, item.written_at)}"
    folder = plan.files.within(item.folder)
    starts = range(0, len(chosen), options.batch)
    files = [below(folder, f"texts-{stamp}", f"{number:05d}.jsonl") for number in range(len(starts))]
    corpus = OwnTexts(kind="own-texts", paths=files, **fields)
    dataset = replace(
        base, name=f"round-{item.number}", corpus=corpus, content=content, held_out_fraction=None, stamp=stamp,
        location=below(folder, stamp),
    )  # fmt: skip
    drawing = (seed * 1009 + item.number) * 1_000_003
    return OwnTextsPlan(
        dataset,
        [
            WritingTask(
                chosen[start : start + options.batch],
                drawing + start,
                file,
                SliceTask(
                    corpus, None, fragmented_fraction, dataset.location, CorpusSlice(number, file, 0, sys.maxsize)
                ),
            )
            for number, (start, file) in enumerate(zip(starts, files, strict=True))
        ],
    )


def prompts_for(plan: RunPlan, field: str, is_chat: bool) -> Sequence[Record]:
    """All prompts of a run: of a file, or beginnings of its corpus.

    Args:
        plan: the run.
        field: the option that asks for them.
        is_chat: whether the student has a chat template.

    Returns:
        A record each, with `messages` where it has one, or with a `prompt`.

    Raises:
        UsageError: there are no prompts for this student.
        CtdError: they have changed since the run was planned.
    """
    if (file := plan.config.prompts_of_own_texts[field]) is not None:
        found = read_prompts_for(file, is_chat)
        if with_training(plan, plan.config.train).training != plan.training:
            raise changed_meanwhile(f"{field}.prompts: {file}")
        return found
    corpus, found = plan.config.corpus, []
    documents = training_documents(corpus, read_documents(corpus, plan.config.prepare.slice_bytes))
    for number, document in enumerate(documents):
        if number == SOURCE_DOCUMENTS:
            break
        if not isinstance(document, DocumentError):
            found += prompts_of(document, is_chat)
    check_corpus_unchanged(plan, called=f"{field}: the corpus, whose beginnings are the prompts,")
    if not found:
        raise no_prompts(field, is_chat)
    return found


def read_prompts_for(file: str, is_chat: bool) -> list[Record]:
    """Prompts of a file for a student with or without a chat template; raises UsageError where it cannot be asked."""
    found = []
    for number, record in enumerate(read_prompts(Path(file)), 1):
        try:
            found.append(_as_prompt(record, is_chat))
        except UsageError as error:
            raise UsageError(f"{file}: prompt {number}: {error}.") from error
    if not is_chat and any("messages" in record for record in found):
        raise UsageError(f"{file}: messages, and the student has no chat template. Give a `prompt`.")
    return found


def _as_prompt(record: Record, is_chat: bool) -> Record:
    """A record of a file of prompts, without what else it holds."""
    given = prompt_of(record)
    if not isinstance(given, str):
        return {"messages": messages_of_prompt(given)}
    return {"messages": [{"role": "user", "content": given}]} if is_chat else {"prompt": given}
