"""What a GPU calculates against the same on the CPU. Skipped where there is none; Ray is not needed."""

import numpy as np
import pytest
import torch

from ctd_core.align.spelling_trie import spelling_trie
from ctd_core.align.vocabulary import exact_map
from ctd_core.config.objectives import PUBLISHED_ALM, Alm, Kd, OneToOneKl, PrefixKl, Sft
from ctd_core.config.training import Train
from ctd_core.evaluation.likelihoods import measure_likelihoods
from ctd_core.models.language_model import HuggingFaceModel
from ctd_core.models.online_teacher import OnlineTeacher
from ctd_core.models.prefix_positions import prefix_top
from ctd_core.models.scorer import TransformersScorer
from ctd_core.models.scoring import Stored, TopTokens, score_rows
from ctd_core.objectives.registry import make_objective
from ctd_core.ops.fused_logprobs import Head, token_and_boundary_logprobs
from ctd_core.ops.prefix_marginals import PrefixMarginals
from ctd_core.shards.batches import collate
from ctd_core.shards.building import build_rows
from ctd_core.shards.rows import MemoryRows
from ctd_core.text.documents import plain_document
from ctd_core.training.loop import Hooks, train
from ctd_core.training.step import WeightedObjective, accumulate_gradients
from ctd_core.training.workers import Worker
from tests.support.models import llama, logprobs_of
from tests.support.shard_sets import prepared, texts

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
CPU, GPU = torch.device("cpu"), torch.device("cuda")
STUDENT, TEACHER = "byte-level BPE, 300", "byte-level BPE, 600"
OBJECTIVES = [
    Alm(kind="alm"),
    PUBLISHED_ALM,
    OneToOneKl(kind="one_to_one_kl"),
    PrefixKl(kind="prefix_kl"),
    Sft(kind="sft"),
]


@pytest.fixture(autouse=True)
def full_precision():
    torch.backends.cuda.matmul.allow_tf32 = False


@pytest.mark.parametrize("keep_bytes", [0, 256 * 2**20])
@pytest.mark.parametrize("cap", [None, 20.0])
def test_fused_log_probabilities_and_their_gradients(cap, keep_bytes):
    results = []
    for device in (CPU, GPU):
        random = torch.Generator().manual_seed(0)
        hidden = torch.randn(700, 64, generator=random).to(device).requires_grad_()
        weight = torch.randn(5000, 64, generator=random).mul(0.3).to(device).requires_grad_()
        ids = torch.randint(0, 5000, (700,), generator=random).to(device)
        rows, mask = torch.arange(700, device=device), torch.arange(5000, device=device) % 3 == 0
        token, boundary = token_and_boundary_logprobs(
            hidden, Head(weight, cap=cap), rows, ids, mask, torch.arange(0, 700, 2, device=device), keep_bytes
        )
        (token.sum() + boundary.square().sum()).backward()
        results.append([token, boundary, hidden.grad, weight.grad])
    for cpu, gpu in zip(*results, strict=True):
        torch.testing.assert_close(gpu.cpu(), cpu, rtol=1e-4, atol=1e-4)


def test_prefix_marginals():
    random = np.random.default_rng(0)
    trie = spelling_trie([random.integers(0, 20, random.integers(0, 5)).tolist() for _ in range(2000)])
    probabilities, masses = torch.randn(50, 2000).mul(3).softmax(1), torch.ones(50)
    rows = torch.arange(50).repeat_interleave(20)
    nodes = torch.from_numpy(random.integers(1, len(trie.first), 1000))
    nodes[::20] = 0
    asked = probabilities, masses, rows, nodes, torch.rand(1000)
    told = [PrefixMarginals(trie, 8, 4, 2000, device)(*(value.to(device) for value in asked)) for device in (CPU, GPU)]
    torch.testing.assert_close(
        told[1].logprobs.cpu().sort().values, told[0].logprobs.sort().values, rtol=1e-4, atol=1e-4
    )
    assert (told[1].tokens.cpu() == told[0].tokens).float().mean() > 0.99  # equal ones may come in another order


def scored(device):
    student, teacher = prepared(STUDENT), prepared(TEACHER)
    documents = [plain_document(str(n), text) for n, text in enumerate(texts(24))]
    rows, counts = build_rows(student, teacher, documents, 96, 96)
    model = logprobs_of(llama(600, seed=1), teacher.encoder.token_bytes.begins_pretoken).to(device)
    top = TopTokens(5, exact_map(student.encoder.token_bytes, teacher.encoder.token_bytes))
    stored = Stored(top, prefix_top(8, 4, student, teacher))
    return MemoryRows("rows", [score_rows(TransformersScorer(model), rows, 512, stored)], counts)


def test_scoring():
    cpu, gpu = scored(CPU).batches[0], scored(GPU).batches[0]
    assert cpu.schema == gpu.schema
    for name in ("teacher_chunk_logprobs", "teacher_boundary_logprobs"):
        for first, second in zip(cpu.column(name).to_pylist(), gpu.column(name).to_pylist(), strict=True):
            np.testing.assert_allclose(first, second, atol=1e-3)


@pytest.mark.parametrize("options", OBJECTIVES, ids=lambda objective: objective.kind)
@pytest.mark.parametrize("autocast", [None, torch.bfloat16])
def test_a_step(options, autocast):
    rows, student = scored(CPU), prepared(STUDENT)
    batch = collate(rows, np.arange(12))
    results = []
    for device in (CPU, GPU):
        model = logprobs_of(llama(300), student.encoder.token_bytes.begins_pretoken).to(device)
        objective = WeightedObjective(1.0, make_objective(options, None))
        metrics = accumulate_gradients(
            model, [batch.to(device)], [objective], autocast=autocast if device == GPU else None
        )
        results.append((metrics.loss, torch.cat([p.grad.flatten().cpu() for p in model.parameters()])))
    (cpu, cpu_gradient), (gpu, gpu_gradient) = results
    assert gpu == pytest.approx(cpu, rel=1e-4 if autocast is None else 0.05)
    assert torch.nn.functional.cosine_similarity(cpu_gradient, gpu_gradient, 0) > (0.9999 if autocast is None else 0.98)


def test_an_online_teacher_on_the_gpu():
    teacher = prepared(TEACHER)
    documents = [plain_document(str(n), text) for n, text in enumerate(texts(8))]
    rows, counts = build_rows(teacher, teacher, documents, 96, 96)
    batch = collate(MemoryRows("rows", [rows], counts), np.arange(6))
    losses = []
    for device in (CPU, GPU):
        online = OnlineTeacher(32, HuggingFaceModel(llama(600, seed=1).to(device)), teacher, teacher, None)
        model = logprobs_of(llama(600), teacher.encoder.token_bytes.begins_pretoken).to(device)
        objective = WeightedObjective(1.0, make_objective(Kd(kind="kd"), online))
        losses.append(accumulate_gradients(model, [batch.to(device)], [objective], online).loss)
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)


def test_training_brings_the_student_closer():
    rows, student = scored(GPU), prepared(STUDENT)
    model = logprobs_of(llama(300), student.encoder.token_bytes.begins_pretoken)
    options = Train(steps=20, batch_tokens=256, learning_rate=1e-3, objectives=[PrefixKl(kind="prefix_kl")])
    losses = []
    hooks = Hooks(lambda metrics: losses.append(metrics["loss"]), lambda metrics, write: None, lambda model: {})
    train(options, model, rows, hooks, worker=Worker(device=GPU))
    assert losses[-1] < losses[0]
    likelihoods = measure_likelihoods(model, rows, 512)
    assert np.isfinite(likelihoods.student_logprobs).all()
