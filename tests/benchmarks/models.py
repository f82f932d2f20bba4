"""Ratios of the model stages, on SmolLM2-135M-Instruct with its own 49,152 entries."""

import itertools
import tempfile
from contextlib import nullcontext

import torch
from rich.table import Table
from transformers import PreTrainedModel
from transformers.utils import logging

from ctd_core.config.align import Finest
from ctd_core.config.objectives import PUBLISHED_ALM, Alm, AnyObjective
from ctd_core.config.training import Train
from ctd_core.models.ensemble import Ensemble
from ctd_core.models.loading import load_model
from ctd_core.models.logprob_model import LogprobModel
from ctd_core.models.scorer import TransformersScorer
from ctd_core.models.scoring import Stored, score_rows
from ctd_core.objectives.registry import make_objective
from ctd_core.ops.fused_logprobs import Head, token_and_boundary_logprobs
from ctd_core.shards.batches import Batch, collate
from ctd_core.shards.building import build_rows
from ctd_core.shards.files import Folder, shard_bytes, write_manifest, write_shard
from ctd_core.shards.manifest import Origin, build_manifest
from ctd_core.shards.reading import ShardSet
from ctd_core.shards.row_order import micro_batches
from ctd_core.text.documents import plain_document
from ctd_core.text.prepared_tokenizer import prepare_tokenizer
from ctd_core.text.tokenizers import load_tokenizer
from ctd_core.training.optimizer import clip, make_optimizer
from ctd_core.training.step import WeightedObjective, accumulate_gradients
from tests.benchmarks.measuring import AUTOCAST, DEVICE, compare, seconds
from tests.benchmarks.source import standard_library_source
from tests.support.models import logprobs_of

BATCH_TOKENS, HIDDEN = 1024, 576


def add_rows(table: Table, teacher: str) -> None:
    """Figures (c), (e) and (f) on the model in `teacher`, and (d) on random numbers."""
    logging.disable_progress_bar()
    for vocabulary in (8192, 50_000, 150_000):
        for boundary in (False, True):
            ratio = logprobs(vocabulary, boundary)
            label = f"fused : full log-probabilities, V = {vocabulary:,}{', with boundary terms' if boundary else ''}"
            table.add_row("d", f"{label}, time", f"{ratio.time:.2f}", "")
            table.add_row("", f"{label}, peak memory", f"{ratio.memory:.2f}", "")
    tokenizer = prepare_tokenizer(load_tokenizer(teacher), teacher, None, None)
    model = logprobs_of(load_model(teacher), tokenizer.encoder.token_bytes.begins_pretoken).to(DEVICE)
    documents = [plain_document(str(n), text) for n, text in enumerate(standard_library_source()[:40])]
    generating = ensemble_ratio(model.language_model.module)
    table.add_row("g", "generating with an ensemble of two : with each alone, time", f"{generating:.2f}", "≤ 1.05")
    table.add_row("g", "a forward and backward pass of a new shape : of one seen before, time",
                  f"{shapes_ratio(model.language_model.module):.2f}", "≤ 1.10")  # fmt: skip
    rows, counts = build_rows(tokenizer, tokenizer, documents, 256, 256)
    rows = rows.slice(0, 4 * 8)
    scoring = scoring_ratio(model, rows)
    table.add_row("e", "teacher scoring : bare forward pass, time", f"{scoring:.2f}", "≤ 1.15")
    scored = score_rows(TransformersScorer(model), rows, BATCH_TOKENS)
    with tempfile.TemporaryDirectory() as location:
        shards = written(location, scored, counts)
        for label, objective in (
            ("finest chunks, no boundary terms", Alm(kind="alm", chunks=Finest(), boundary=False)),
            ("debiased chunks, with boundary terms", PUBLISHED_ALM),
        ):
            ratio, reading = training_ratio(model, shards, objective)
            table.add_row("c", f"training step : plain fine-tuning step, {label}, time", f"{ratio.time:.2f}", "≤ 1.10")
            table.add_row("", "the same, peak memory", f"{ratio.memory:.2f}", "≤ 1.00")
        table.add_row("f", "reading a batch : training step, time", f"{reading:.6f}", "≤ 0.02")


def ensemble_ratio(model: PreTrainedModel) -> float:
    """Writing with two members against the sum of writing with each."""
    ids = torch.arange(1000, 1008, device=DEVICE).repeat(4, 8)
    options = {"max_new_tokens": 32, "min_new_tokens": 32, "do_sample": False, "pad_token_id": 0}
    both, one = Ensemble([model, model]), model

    def alone() -> None:
        for _ in range(2):
            one.generate(ids, attention_mask=torch.ones_like(ids), **options)

    return compare(lambda: both.generate(ids, attention_mask=torch.ones_like(ids), **options), alone).time


def shapes_ratio(model: PreTrainedModel) -> float:
    """Batches of lengths that come once against batches of one length, of as many tokens on average."""
    lengths = itertools.cycle([*range(97, 128, 2), *range(129, 160, 2)])

    def step(length: int) -> None:
        model(input_ids=torch.arange(length, device=DEVICE).expand(8, -1), use_cache=False).logits.mean().backward()
        model.zero_grad()

    return compare(lambda: [step(next(lengths)) for _ in range(4)], lambda: [step(128) for _ in range(4)]).time


def written(location: str, rows, counts) -> ShardSet:
    """`rows` as a set of one shard."""
    folder = Folder(location)
    origin = Origin(student_tokenizer="", teacher_tokenizer="", teacher_model=None, config={})
    entry = write_shard(folder, 0, shard_bytes(rows), counts.model_copy(update={"rows": rows.num_rows}))
    write_manifest(folder, build_manifest(origin, [entry]))
    return ShardSet(location, verify=True)


def logprobs(vocabulary: int, boundary: bool):
    """Forward and backward of the fused log-probabilities against full logits, log_softmax and gather."""
    random = torch.Generator().manual_seed(0)
    hidden = torch.randn(BATCH_TOKENS, HIDDEN, generator=random).to(DEVICE).requires_grad_()
    weight = (torch.randn(vocabulary, HIDDEN, generator=random) * 0.05).to(DEVICE).requires_grad_()
    targets = torch.randint(0, vocabulary, (BATCH_TOKENS,), generator=random).to(DEVICE)
    mask = torch.arange(vocabulary, device=DEVICE) % 2 == 0
    rows = torch.arange(0, BATCH_TOKENS if boundary else 0, 2, device=DEVICE)
    every_row = torch.arange(BATCH_TOKENS, device=DEVICE)

    def fused() -> None:
        hidden.grad = weight.grad = None
        token, bounds = token_and_boundary_logprobs(hidden, Head(weight), every_row, targets, mask, rows)
        (token.sum() + bounds.sum()).backward()

    def full() -> None:
        hidden.grad = weight.grad = None
        every = (hidden @ weight.T).log_softmax(1)
        token = every.gather(1, targets[:, None])
        bounds = every[rows].masked_fill(~mask, -torch.inf).logsumexp(1) if boundary else token[:0]
        (token.sum() + bounds.sum()).backward()

    return compare(fused, full, repeats=2)


def scoring_ratio(model: LogprobModel, rows, stored: Stored | None = None) -> float:
    """Scoring all rows against forward passes of the model over the same batches, logits included."""
    ids = [torch.tensor(ids) for ids in rows.column("teacher_ids").to_pylist()]
    ids.sort(key=len)
    width = BATCH_TOKENS // max(map(len, ids))
    batches = [ids[start : start + width] for start in range(0, len(ids), width)]
    padded = [torch.nn.utils.rnn.pad_sequence(batch, batch_first=True).to(DEVICE) for batch in batches]

    @torch.no_grad()
    def forward() -> None:
        for batch in padded:
            model.model(input_ids=batch, use_cache=False)

    def scoring() -> None:
        score_rows(TransformersScorer(model), rows, BATCH_TOKENS, stored or Stored())

    return compare(scoring, forward, repeats=2).time


def update(model: LogprobModel, optimizer: torch.optim.Optimizer) -> None:
    """What follows the gradients in a step."""
    clip(model, 1.0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def training_ratio(model: LogprobModel, shards: ShardSet, objective: AnyObjective):
    """A step of ours against one with transformers' own loss, same model, batch and optimizer; reading : our step."""
    options = Train(steps=1, batch_tokens=BATCH_TOKENS, learning_rate=1e-7)
    model.train()
    optimizer = make_optimizer(model, options)
    rows = next(micro_batches(shards.student_lengths(), BATCH_TOKENS, 0))
    read = collate(shards, rows).to(DEVICE)
    labels = torch.full_like(read.input_ids.flatten(), -100)
    labels[read.positions] = read.input_ids.flatten()[read.positions]
    labels = labels.view_as(read.input_ids)

    weighted = WeightedObjective(1.0, make_objective(objective, None))

    def ours() -> Batch:
        batch = collate(shards, rows)
        accumulate_gradients(model, [batch.to(DEVICE)], [weighted], autocast=AUTOCAST)
        update(model, optimizer)
        return batch

    def plain() -> None:
        with torch.autocast(DEVICE.type, AUTOCAST) if AUTOCAST else nullcontext():
            loss = model.model(input_ids=read.input_ids, labels=labels, use_cache=False).loss
        loss.backward()
        update(model, optimizer)

    ratio = compare(ours, plain, repeats=3)
    reading = seconds(lambda: collate(shards, rows), repeats=5) / seconds(ours, repeats=1)
    model.eval()
    return ratio, reading
