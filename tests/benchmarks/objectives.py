"""Ratios of the objectives: SmolLM2-135M-Instruct learning from itself, under Mistral's first tokenizer and its own."""

import tempfile
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import partial

import torch
from rich.table import Table
from torch import Tensor

from ctd_core.align.vocabulary import nearest_map
from ctd_core.config.align import Finest
from ctd_core.config.models import Adapters
from ctd_core.config.objectives import (
    PUBLISHED_ALM,
    Alm,
    AnyObjective,
    Dskd,
    Gold,
    HiddenStates,
    Kd,
    MinEd,
    OneToOneKl,
    PKl,
    PrefixKl,
    Sft,
    Uld,
)
from ctd_core.config.shards import Prepare
from ctd_core.config.training import Train
from ctd_core.models.adapters import add_adapters
from ctd_core.models.building import stored_targets
from ctd_core.models.byte_students import with_byte_expansion
from ctd_core.models.language_model import HuggingFaceModel
from ctd_core.models.loading import load_model
from ctd_core.models.logprob_model import LogprobModel
from ctd_core.models.online_teacher import OnlineTeacher, as_own_teacher
from ctd_core.models.scorer import TransformersScorer
from ctd_core.models.scoring import Stored, score_rows
from ctd_core.models.transfer import transfer_model
from ctd_core.objectives.p_kl import projection_matrix
from ctd_core.objectives.registry import make_objective
from ctd_core.shards.batches import Batch, collate
from ctd_core.shards.building import build_rows
from ctd_core.shards.row_order import micro_batches
from ctd_core.text.documents import plain_document
from ctd_core.text.prepared_tokenizer import PreparedTokenizer, prepare_tokenizer
from ctd_core.text.tokenizers import load_tokenizer
from ctd_core.training.optimizer import make_optimizer
from ctd_core.training.step import WeightedObjective, accumulate_gradients
from tests.benchmarks.measuring import AUTOCAST, DEVICE, Work, compare, seconds
from tests.benchmarks.models import scoring_ratio, update, written
from tests.benchmarks.source import standard_library_source
from tests.support.models import logprobs_of

BATCH_TOKENS, TOP_K, PREFIX_K, MORE_K = 512, 16, 8, 64
LIMIT = {"divergence": "tv", "temperature": float("inf"), "chunks": Finest(), "boundary": False}
CROSSING: dict[str, list[AnyObjective]] = {
    "alm, TV limit on finest chunks": [Alm(kind="alm", **LIMIT)],
    "alm as published": [PUBLISHED_ALM],
    f"prefix_kl, k = {PREFIX_K}": [PrefixKl(kind="prefix_kl")],
    f"alm + one_to_one_kl, k = {TOP_K}": [
        Alm(kind="alm", exclude_one_to_one=True, **LIMIT),
        OneToOneKl(kind="one_to_one_kl"),
    ],
    "hidden_states": [HiddenStates(kind="hidden_states")],
    "min_ed": [MinEd(kind="min_ed")],
    "p_kl": [PKl(kind="p_kl")],
    "uld": [Uld(kind="uld")],
    "gold": [Gold(kind="gold")],
    "dskd": [Dskd(kind="dskd")],
}
AIMS = dict(zip(CROSSING, ("≤ 1.10", "≤ 1.10", "≤ 1.10", "≤ 1.20"), strict=False))  # of the first four


@dataclass(frozen=True)
class Pair:
    """A student, its teacher in a copy of its own, and a batch with targets."""

    student: LogprobModel
    online: OnlineTeacher
    batch: Batch


def add_rows(table: Table, teacher: str, tokenizers: str) -> None:
    """Figures (g) to (i)."""
    crossing = make_pair(teacher, f"{tokenizers}/mistral-v1")
    for label, objectives in CROSSING.items():
        _add_ratio(table, "g", f"{label} : sft", compare_to_sft(crossing, objectives), AIMS.get(label, ""))
    for kept in (PREFIX_K, MORE_K):
        label = f"teacher scoring, with {kept} tokens stored for prefix_kl : bare forward pass, time"
        table.add_row("e", label, f"{prefix_scoring_ratio(crossing.online, kept):.2f}", "≤ 1.25")
    pair = crossing.online.student, crossing.online.teacher
    making = seconds(lambda: transfer_model(load_model(teacher), *pair))
    table.add_row("", "making the student from its teacher, seconds", f"{making:.1f}", "")
    same = make_pair(teacher, teacher)
    _add_ratio(table, "g", "kd : sft, one tokenizer", compare_to_sft(same, [Kd(kind="kd")]), "")
    both = [Alm(kind="alm", **LIMIT), Sft(kind="sft")]
    steps = [make_step(crossing, both, balance) for balance in (True, False)]
    _add_ratio(table, "g", "alm + sft by gradient magnitude : fixed", compare(*steps, repeats=2), "")
    _add_ratio(table, "g", "a student of bytes with byte_expansion : without", expansion_ratio(teacher), "≤ 1.05")
    held = one_copy_share(teacher, crossing)
    table.add_row("h", "one copy with adapters : two copies, weights and optimizer state", f"{held[0]:.2f}", "≤ 0.6")
    table.add_row("", "the same, with adapters in both", f"{held[1]:.2f}", "")
    names = ("mistral-v1", "qwen")
    prepared = [prepare_tokenizer(load_tokenizer(f"{tokenizers}/{name}"), name, None, None) for name in names]
    token_bytes = [tokenizer.encoder.token_bytes for tokenizer in prepared]
    min_ed, projected = (
        seconds(lambda: nearest_map(*token_bytes), 1),
        seconds(lambda: projection_matrix(*prepared), 1),
    )
    label = "for a student of Mistral's 32,000 entries and a teacher of Qwen's 151,000"
    table.add_row("i", f"map of min_ed {label}, seconds", f"{min_ed:.1f}", "")
    table.add_row("", "projection of p_kl for the same, seconds", f"{projected:.1f}", "≤ 120 together")


def _add_ratio(table: Table, letter: str, label: str, ratio, aim: str) -> None:
    table.add_row(letter, f"step of {label}, time", f"{ratio.time:.2f}", aim)
    table.add_row("", "the same, peak memory", f"{ratio.memory:.2f}", "")


def make_pair(teacher: str, tokenizer: str) -> Pair:
    """The model in `teacher` and a student of it under `tokenizer`."""
    tokenizers = [prepare_tokenizer(load_tokenizer(name), name, None, None) for name in (tokenizer, teacher)]
    model = load_model(teacher).to(DEVICE)
    scorer = logprobs_of(model, tokenizers[1].encoder.token_bytes.begins_pretoken)
    student = load_model(teacher) if tokenizer == teacher else transfer_model(load_model(teacher), *tokenizers)
    stored = stored_targets(Prepare(top_k=TOP_K, prefix_k=PREFIX_K, prefix_drawn=PREFIX_K // 2), *tokenizers)
    batch = one_batch(tokenizers[0], tokenizers[1], scorer, stored).to(DEVICE)
    hidden_size = student.config.get_text_config().hidden_size
    begins_pretoken = tokenizers[0].encoder.token_bytes.begins_pretoken
    return Pair(
        logprobs_of(student, begins_pretoken).to(DEVICE),
        OnlineTeacher(hidden_size, HuggingFaceModel(model), *tokenizers, None),
        batch,
    )


def one_batch(student: PreparedTokenizer, teacher: PreparedTokenizer, scorer: LogprobModel, stored: Stored) -> Batch:
    """A micro-batch of BATCH_TOKENS with the targets of `scorer`."""
    documents = [plain_document(str(n), text) for n, text in enumerate(standard_library_source()[:8])]
    rows, counts = build_rows(student, teacher, documents, 256, 256)
    scored = score_rows(TransformersScorer(scorer), rows.slice(0, 8), 1024, stored)
    with tempfile.TemporaryDirectory() as location:
        shards = written(location, scored, counts)
        return collate(shards, next(micro_batches(shards.student_lengths(), BATCH_TOKENS, 0)))


def make_step(pair: Pair, options: list[AnyObjective], balance: bool = False) -> Work:
    """A training step of `options`; the learning rate is so small that the student stays what it is."""
    student = pair.student
    objectives = [WeightedObjective(1.0, make_objective(objective, pair.online)) for objective in options]
    online = pair.online if any("teacher" in objective.needs for objective in options) else None
    student.projections = torch.nn.ModuleList(
        plan.plan for plan in objectives if isinstance(plan.plan, torch.nn.Module)
    ).to(DEVICE)
    optimizer = make_optimizer(student, Train(steps=1, learning_rate=1e-9, projection_learning_rate=1e-9))

    def step() -> None:
        accumulate_gradients(student, [pair.batch], objectives, online, AUTOCAST, balance=balance)
        update(student, optimizer)

    return step


def compare_to_sft(pair: Pair, options: list[AnyObjective]):
    """A step of `options` against one of sft."""
    baseline = make_step(pair, [Sft(kind="sft")])
    return compare(make_step(pair, options), baseline, repeats=4)


def prefix_scoring_ratio(online: OnlineTeacher, kept: int) -> float:
    """Scoring with `kept` of the student's likely tokens at each position, against bare forward passes."""
    documents = [plain_document(str(n), text) for n, text in enumerate(standard_library_source()[:40])]
    rows, _ = build_rows(online.student, online.teacher, documents, 256, 256)
    model = logprobs_of(online.model.module, online.teacher.encoder.token_bytes.begins_pretoken).to(DEVICE)
    options = Prepare(prefix_k=kept, prefix_drawn=kept // 2)
    return scoring_ratio(model, rows.slice(0, 16), stored_targets(options, online.student, online.teacher))


def expansion_ratio(teacher: str):
    """A step of sft of a student of bytes that reads its teacher's tokens too, against one that does not."""
    plain = make_pair(teacher, "bytes")
    online = plain.online
    expanded = with_byte_expansion(plain.student.model, online.model.module, online.student, online.teacher, 16)
    begins_pretoken = online.student.encoder.token_bytes.begins_pretoken
    both = replace(plain, student=logprobs_of(expanded.to(DEVICE), begins_pretoken)), plain
    return compare(*(make_step(pair, [Sft(kind="sft")]) for pair in both), repeats=4)


def one_copy_share(teacher: str, pair: Pair) -> tuple[float, float]:
    """Bytes of weights and optimizer state of a student that is its own teacher, against two copies, after a step.

    First against a student that is trained whole beside its teacher, then against one with the same adapters.
    """
    tokenizers = pair.online.student, pair.online.teacher
    ends = pair.online.model.module.get_input_embeddings(), pair.online.model.module.get_output_embeddings()
    adapted = transfer_model(load_model(teacher), *tokenizers).to(DEVICE)
    add_adapters(adapted, Adapters(), seed=0)
    own = OnlineTeacher(
        pair.online.student_hidden_size,
        HuggingFaceModel(adapted),
        *tokenizers,
        None,
        partial(as_own_teacher, HuggingFaceModel(adapted), *ends),
    )
    held = []
    for student, online in ((adapted, own), (pair.student.model, pair.online), (adapted, pair.online)):
        model = logprobs_of(student, tokenizers[0].encoder.token_bytes.begins_pretoken)
        optimizer = make_optimizer(model, Train(steps=1, learning_rate=1e-9))
        objective = WeightedObjective(1.0, make_objective(HiddenStates(kind="hidden_states"), online))
        accumulate_gradients(model, [pair.batch], [objective], online)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        teachers = [end.weight for end in ends] if online is own else list(pair.online.model.module.parameters())
        states = [value for state in optimizer.state.values() for value in state.values()]
        held.append(tensor_bytes([*student.parameters(), *teachers, *states]))
    return held[0] / held[1], held[0] / held[2]


def tensor_bytes(tensors: Iterable[Tensor]) -> int:
    """The bytes of these tensors, shared ones once."""
    return sum({tensor.data_ptr(): tensor.nbytes for tensor in tensors}.values())
