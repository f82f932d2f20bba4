"""A step gives the same loss and gradients however its micro-batches are split over workers and accumulation."""

import socket
from functools import cache

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.nn.parallel import DistributedDataParallel

from ctd_core.align.vocabulary import exact_map
from ctd_core.config import Alm, Debiased, Finest, Gold, HiddenStates, MinEd, OneToOneKl, PKl, Sft, Uld
from ctd_core.models.scoring import TopTokens
from ctd_core.models.student import LogprobModel
from ctd_core.objectives.plan import LiveTeacher
from ctd_core.objectives.table import make_objective
from ctd_core.shards.batches import collate, micro_batches
from ctd_core.shards.reading import ShardSet
from ctd_core.training.step import WeightedObjective, accumulate_gradients
from tests.models.tiny import llama
from tests.shards.sets import side, texts, write_set

STUDENT, TEACHER = "byte-level BPE, 300", "byte-level BPE, 600"
OBJECTIVES = [
    Alm(kind="alm", chunks=Debiased(kind="debiased"), temperature=2.0),
    Alm(kind="alm", divergence="tv", temperature=float("inf"), chunks=Finest(), boundary=False, weight=0.5),
    Sft(kind="sft", weight=0.3),
    OneToOneKl(kind="one_to_one_kl"),
    Uld(kind="uld"),
    MinEd(kind="mined"),
    HiddenStates(kind="hidden_states"),
    PKl(kind="p_kl"),
    Gold(kind="gold"),
]


@cache
def live_teacher():
    model = llama(600, seed=1, dtype=torch.float64)
    return LiveTeacher(model, side(STUDENT), side(TEACHER))


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def worker(rank, world, port, location, out):
    dist.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=world)
    torch.set_num_threads(1)
    one_step(rank, world, location, out)
    dist.barrier()
    dist.destroy_process_group()  # after DDP's own objects are gone


def one_step(rank, world, location, out):
    shards = ShardSet(location, verify=False)
    student = LogprobModel(llama(300, dtype=torch.float64), side(STUDENT).encoder.spelling.begins_pretoken)
    stream = micro_batches(shards.student_lengths(), 200, seed=1)
    batches = [collate(shards, next(stream)) for _ in range(4)][rank::world]
    objectives = [WeightedObjective(one.weight, make_objective(one, live_teacher())) for one in OBJECTIVES]
    metrics = accumulate_gradients(DistributedDataParallel(student), batches, objectives, live_teacher())
    if rank == 0:
        gradients = {name: one.grad for name, one in student.named_parameters()}
        torch.save((metrics.losses, metrics.loss, metrics.tokens, gradients), out / f"{world}.pt")


def test_one_two_and_four_workers_give_the_same_loss_and_gradients(tmp_path):
    student, teacher = side(STUDENT), side(TEACHER)
    model = LogprobModel(llama(600, seed=1), teacher.encoder.spelling.begins_pretoken)
    top = TopTokens(8, exact_map(student.encoder.spelling, teacher.encoder.spelling))
    write_set(tmp_path / "shards", student, teacher, texts(40), teacher_model=model, top=top)
    for world in (1, 2, 4):
        mp.spawn(worker, (world, free_port(), tmp_path / "shards", tmp_path), nprocs=world)
    results = [torch.load(tmp_path / f"{world}.pt") for world in (1, 2, 4)]
    losses, loss, tokens, gradients = results[0]
    assert loss == pytest.approx(sum(one * o.weight for one, o in zip(losses, OBJECTIVES, strict=True)), rel=1e-12)
    assert all(gradient.abs().max() > 0 for gradient in gradients.values())
    for other_losses, other_loss, other_tokens, other_gradients in results[1:]:
        assert other_tokens == tokens
        assert other_losses == pytest.approx(losses, rel=1e-6)
        assert other_loss == pytest.approx(loss, rel=1e-6)
        for name, gradient in gradients.items():
            torch.testing.assert_close(other_gradients[name], gradient, rtol=1e-6, atol=1e-12)
