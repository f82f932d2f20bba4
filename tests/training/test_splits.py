"""A step gives the same loss and gradients however its micro-batches are split over workers and accumulation."""

import socket
from dataclasses import asdict, replace
from functools import cache

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.nn.parallel import DistributedDataParallel

from ctd_core.align.vocabulary import exact_map
from ctd_core.config.align import Finest
from ctd_core.config.objectives import (
    PUBLISHED_ALM,
    Alm,
    Dskd,
    Gold,
    HiddenStates,
    MinEd,
    OneToOneKl,
    PKl,
    PrefixKl,
    Sft,
    Uld,
)
from ctd_core.models.language_model import HuggingFaceModel
from ctd_core.models.online_teacher import OnlineTeacher
from ctd_core.models.prefix_positions import prefix_top
from ctd_core.models.scoring import Stored, TopTokens
from ctd_core.objectives.registry import make_objective
from ctd_core.shards.batches import collate
from ctd_core.shards.reading import ShardSet
from ctd_core.shards.row_order import micro_batches
from ctd_core.training.step import WeightedObjective, accumulate_gradients
from tests.support.models import llama, logprobs_of
from tests.support.shard_sets import prepared, texts, write_set

STUDENT, TEACHER = "byte-level BPE, 300", "byte-level BPE, 600"
OBJECTIVES = [
    PUBLISHED_ALM.model_copy(update={"temperature": 2.0}),
    Alm(kind="alm", divergence="tv", temperature=float("inf"), chunks=Finest(), boundary=False, weight=0.5),
    Sft(kind="sft", weight=0.3),
    OneToOneKl(kind="one_to_one_kl"),
    PrefixKl(kind="prefix_kl"),
    Uld(kind="uld"),
    MinEd(kind="min_ed"),
    HiddenStates(kind="hidden_states"),
    PKl(kind="p_kl"),
    Gold(kind="gold"),
    Dskd(kind="dskd"),
]


@cache
def live_teacher():
    model = llama(600, seed=1, dtype=torch.float64)
    return OnlineTeacher(32, HuggingFaceModel(model), prepared(STUDENT), prepared(TEACHER), None)


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def worker(rank, world, port, location, out, balance):
    dist.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=world)
    torch.set_num_threads(1)
    one_step(rank, world, location, out, balance)
    dist.barrier()
    dist.destroy_process_group()  # after DDP's own objects are gone


def one_step(rank, world, location, out, balance):
    shards = ShardSet(location, verify=False)
    student = logprobs_of(llama(300, dtype=torch.float64), prepared(STUDENT).encoder.token_bytes.begins_pretoken)
    stream = micro_batches(shards.student_lengths(), 200, seed=1)
    batches = [collate(shards, next(stream)) for _ in range(4)][rank::world]
    torch.manual_seed(3)
    objectives = [
        WeightedObjective(objective.weight, make_objective(objective, live_teacher())) for objective in OBJECTIVES
    ]
    student.projections = torch.nn.ModuleList([objectives[-1].plan]).double()
    wrapped = DistributedDataParallel(student)
    metrics = accumulate_gradients(wrapped, batches, objectives, live_teacher(), balance=balance)
    if rank == 0:
        gradients = {name: parameter.grad for name, parameter in student.named_parameters()}
        torch.save((asdict(metrics), gradients), out / f"{world}.pt")


def alone(rank, world, port, location, out):
    """Two steps under DDP of an objective that does not use the output matrix."""
    dist.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=world)
    torch.set_num_threads(1)
    shards = ShardSet(location, verify=False)
    wrapped = DistributedDataParallel(
        logprobs_of(llama(300, tied=False), prepared(STUDENT).encoder.token_bytes.begins_pretoken)
    )
    online = OnlineTeacher(32, HuggingFaceModel(llama(600, seed=1)), prepared(STUDENT), prepared(TEACHER), None)
    objectives = [WeightedObjective(1.0, make_objective(HiddenStates(kind="hidden_states"), online))]
    stream = micro_batches(shards.student_lengths(), 200, seed=1)
    for _ in range(2):
        batch = [collate(shards, next(stream)) for _ in range(world)][rank]
        wrapped.zero_grad()
        loss = accumulate_gradients(wrapped, [batch], objectives, online).loss
    gradients = [parameter.grad for parameter in wrapped.parameters()]
    torch.save((loss, [gradient.abs().sum() for gradient in gradients]), out / f"alone-{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


@pytest.mark.slow
def test_an_objective_without_the_output_matrix_works_under_ddp(tmp_path):
    write_set(tmp_path / "shards", prepared(STUDENT), prepared(TEACHER), texts(40))
    mp.spawn(alone, (2, free_port(), tmp_path / "shards", tmp_path), nprocs=2)
    first, second = (torch.load(tmp_path / f"alone-{rank}.pt") for rank in (0, 1))
    assert first[0] == second[0] > 0
    assert first[1] == second[1]  # reduced over both workers


@pytest.mark.parametrize("options", OBJECTIVES, ids=lambda objective: objective.kind)
def test_under_autocast_losses_are_summed_in_float32(tmp_path, options):
    student, teacher = prepared(STUDENT), prepared(TEACHER)
    models = [logprobs_of(llama(size, seed=seed), tokenizer.encoder.token_bytes.begins_pretoken)
              for size, seed, tokenizer in ((300, 0, student), (600, 1, teacher))]  # fmt: skip
    top = TopTokens(8, exact_map(student.encoder.token_bytes, teacher.encoder.token_bytes))
    write_set(
        tmp_path,
        student,
        teacher,
        texts(8),
        parts=1,
        teacher_model=models[1],
        stored=Stored(top, prefix_top(8, 4, student, teacher)),
    )
    online = OnlineTeacher(32, HuggingFaceModel(models[1].model), student, teacher, None)
    batch = collate(ShardSet(tmp_path, verify=True), np.arange(6))
    planned = make_objective(options, online)(batch)
    dtypes = []

    def watched(outputs, teacher_outputs):
        total = planned.loss_sum(outputs, teacher_outputs)
        dtypes.append(total.dtype)
        return total

    objective = WeightedObjective(1.0, lambda _: replace(planned, loss_sum=watched))
    rounded = accumulate_gradients(models[0], [batch], [objective], online, torch.bfloat16).loss
    exact = accumulate_gradients(models[0], [batch], [objective], online).loss
    assert dtypes == [torch.float32] * 2
    assert rounded == pytest.approx(exact, rel=0.05, abs=0.02)


def test_balanced_objectives_pull_equally_at_the_last_layer_and_idle_ones_not_at_all(tmp_path):
    student, teacher = prepared(STUDENT), prepared(TEACHER)
    write_set(tmp_path, student, teacher, texts(20), parts=1)  # without top tokens: one_to_one_kl finds no place
    batches = [collate(ShardSet(tmp_path, verify=True), np.arange(n, n + 4)) for n in (0, 4)]
    model = logprobs_of(llama(300, dtype=torch.float64), student.encoder.token_bytes.begins_pretoken)
    chosen = [OBJECTIVES[0], Sft(kind="sft"), OneToOneKl(kind="one_to_one_kl")]
    objectives = [WeightedObjective(1.0, make_objective(objective, None)) for objective in chosen]
    norms = []
    for objective in objectives[:2]:
        model.zero_grad()
        accumulate_gradients(model, batches, [objective])
        norms.append(float(torch.stack([p.grad.norm() for p in model.model.model.layers[1].parameters()]).norm()))
    weights = accumulate_gradients(model, batches, objectives, balance=True).weights
    assert weights[2] == 0
    assert sum(weights) == pytest.approx(1)
    assert weights[0] * norms[0] == pytest.approx(weights[1] * norms[1], rel=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("balance", [False, True])
def test_one_two_and_four_workers_give_the_same_loss_and_gradients(tmp_path, balance):
    student, teacher = prepared(STUDENT), prepared(TEACHER)
    model = logprobs_of(llama(600, seed=1), teacher.encoder.token_bytes.begins_pretoken)
    top = TopTokens(8, exact_map(student.encoder.token_bytes, teacher.encoder.token_bytes))
    write_set(
        tmp_path / "shards",
        student,
        teacher,
        texts(40),
        teacher_model=model,
        stored=Stored(top, prefix_top(8, 4, student, teacher)),
    )
    for world in (1, 2, 4):
        mp.spawn(worker, (world, free_port(), tmp_path / "shards", tmp_path, balance), nprocs=world)
    results = [torch.load(tmp_path / f"{world}.pt") for world in (1, 2, 4)]
    metrics, gradients = results[0]
    assert metrics["loss"] == pytest.approx(np.dot(metrics["losses"], metrics["weights"]), rel=1e-12)
    assert all(gradient.abs().max() > 0 for gradient in gradients.values())
    for other, other_gradients in results[1:]:
        assert other["tokens"] == metrics["tokens"]
        assert other["losses"] == pytest.approx(metrics["losses"], rel=1e-6)
        assert other["weights"] == pytest.approx(metrics["weights"], rel=1e-6)
        for name, gradient in gradients.items():
            torch.testing.assert_close(other_gradients[name], gradient, rtol=1e-6, atol=1e-12)
