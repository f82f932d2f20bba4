"""Objectives over a batch against slow sums."""

import math

import numpy as np
import pytest
import torch

from ctd_core.config import Alm, AtWhitespace, Debiased, Finest, Groups, Sft
from ctd_core.objectives.divergences import binarised_divergence
from ctd_core.objectives.terms import boundary_chunks, loss_sum, plan, student_logprobs
from ctd_core.shards.batches import NO_TARGET, collate
from ctd_core.shards.reading import ShardSet
from tests.shards.sets import side, texts, write_set

RULES = [Finest(), AtWhitespace(kind="whitespace"), Debiased(kind="debiased"), Groups(kind="groups", size=3)]


@pytest.fixture(scope="module")
def batch(tmp_path_factory):
    location = tmp_path_factory.mktemp("shards")
    write_set(location, side("byte-level BPE, 300"), side("byte-level BPE, 600"), texts(12), parts=1)
    return collate(ShardSet(location, verify=True), np.arange(5))


def random_student(batch, asked):
    random = torch.Generator().manual_seed(0)
    token = -torch.rand(len(batch.positions), generator=random) * 3
    token = torch.where(batch.target_ids == NO_TARGET, 0.0, token)
    return student_logprobs(batch, asked, token, -torch.rand(len(asked), generator=random))


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.kind)
@pytest.mark.parametrize("boundary", [True, False])
def test_alm_is_the_divergence_summed_over_merged_chunks(batch, rule, boundary):
    objective = Alm(kind="alm", chunks=rule, boundary=boundary, temperature=2.0)
    planned = plan(objective, batch)
    student = random_student(batch, boundary_chunks([planned]))
    total, count, mine, theirs = 0.0, 0, 0.0, 0.0
    chunks, place = batch.chunks, 0
    for n in range(len(chunks.scored)):
        if not chunks.scored[n]:
            continue
        mine, theirs, place = mine + student.chunk[n], theirs + float(chunks.teacher_logprobs[n]), place + 1
        closes = {
            "finest": True,
            "whitespace": chunks.before_whitespace[n],
            "debiased": chunks.teacher_boundary_logprobs[n] > math.log(0.1),
            "groups": place == 3,
        }[rule.kind]
        if closes or chunks.breaks[n]:
            if boundary:
                mine, theirs = mine + student.boundary[n], theirs + float(chunks.teacher_boundary_logprobs[n])
            total += binarised_divergence("kl", mine, torch.tensor(theirs), 2.0)
            count, mine, theirs, place = count + 1, 0.0, 0.0, 0
    assert planned.count == count
    torch.testing.assert_close(loss_sum(objective, planned, student), total, rtol=1e-4, atol=1e-4)


def test_sft_is_the_cross_entropy_of_the_targets(batch):
    objective = Sft(kind="sft")
    planned = plan(objective, batch)
    student = random_student(batch, boundary_chunks([planned]))
    assert planned.count == int((batch.target_ids != NO_TARGET).sum())
    torch.testing.assert_close(loss_sum(objective, planned, student), -student.token.sum())


def test_chunk_log_likelihoods_are_sums_over_tokens(batch):
    student = random_student(batch, np.zeros(0, dtype=np.int64))
    for chunk in range(len(batch.chunk_rows)):
        inside = (batch.chunk_of_target == chunk) & (batch.target_ids != NO_TARGET)
        torch.testing.assert_close(student.chunk[chunk], student.token[inside].sum())
