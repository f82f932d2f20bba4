"""Objectives over a batch against slow sums."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from ctd_core.align.vocabulary import exact_map
from ctd_core.config.align import AtWhitespace, Debiased, Finest, Groups
from ctd_core.config.objectives import PUBLISHED_ALM, Alm, OneToOneKl, PolicyGradient, PrefixKl, Sft
from ctd_core.models.prefix_positions import prefix_top
from ctd_core.models.scoring import Stored, TopTokens
from ctd_core.objectives.divergences import binarised_divergence
from ctd_core.objectives.interface import NO_CHUNKS, StudentOutputs, at_chunks, boundary_chunks, chunk_sums, declared
from ctd_core.objectives.registry import make_objective
from ctd_core.ops.fused_logprobs import Head
from ctd_core.shards.batches import collate
from ctd_core.shards.reading import ShardSet
from tests.support.models import llama, logprobs_of
from tests.support.shard_sets import prepared, texts, write_set

RULES = [Finest(), AtWhitespace(kind="whitespace"), Debiased(kind="debiased"), Groups(kind="groups", size=3)]
STUDENT, TEACHER = "byte-level BPE, 300", "byte-level BPE, 600"


@pytest.fixture(scope="module")
def batch(tmp_path_factory):
    """Five rows with random targets and a tiny teacher's five most probable tokens."""
    location = tmp_path_factory.mktemp("shards")
    student, teacher = prepared(STUDENT), prepared(TEACHER)
    model = logprobs_of(llama(600, seed=1), teacher.encoder.token_bytes.begins_pretoken)
    top = TopTokens(5, exact_map(student.encoder.token_bytes, teacher.encoder.token_bytes))
    stored = Stored(top, prefix_top(5, 0, student, teacher))
    write_set(location, student, teacher, texts(12), parts=1, teacher_model=model, stored=stored)
    return collate(ShardSet(location, verify=True), np.arange(5))


def plan(options, batch):
    return make_objective(options, None)(batch)


def outputs(batch, token=None, boundary=None, asked=None, top=None, prefixes=None):
    """What a student would say, zeros where nothing is given."""
    token = torch.zeros(len(batch.target_ids)) if token is None else token
    bounds = torch.zeros(len(batch.chunk_rows)) if boundary is None else at_chunks(batch, asked, boundary)
    nothing = torch.zeros(len(batch.positions), 1)
    head = torch.zeros(1, 1)
    return StudentOutputs(token, chunk_sums(batch, token), bounds, top, prefixes, nothing, Head(head), head)


def random_student(batch, asked):
    random = torch.Generator().manual_seed(0)
    token = -torch.rand(len(batch.target_ids), generator=random) * 3
    boundary = -torch.rand(len(asked), generator=random)
    top = (batch.top.teacher_logprobs + torch.rand(len(batch.top.ids), generator=random) - 0.5).clamp(max=-0.01)
    return outputs(batch, token, boundary, asked, top - 0.1)


def merged_chunks(batch, rule):
    """The finest chunks of each merged one, one chunk after another."""
    chunks, merged = batch.chunks, []
    for n in np.flatnonzero(chunks.scored):
        merged.append(n)
        closes = {
            "finest": True,
            "whitespace": chunks.before_whitespace[n],
            "debiased": chunks.teacher_boundary_logprobs[n] > math.log(0.1),
            "groups": len(merged) == 3,
        }[rule.kind]
        if closes or chunks.breaks[n]:
            yield merged
            merged = []


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.kind)
@pytest.mark.parametrize("boundary", [True, False])
@pytest.mark.parametrize("average", ["chunk", "byte", "token"])
@pytest.mark.parametrize("leave_out", [True, False])
def test_alm_is_the_mean_divergence_of_merged_chunks(batch, rule, boundary, average, leave_out):
    options = Alm(
        kind="alm",
        divergence="kl",
        chunks=rule,
        boundary=boundary,
        temperature=2.0,
        average=average,
        exclude_one_to_one=leave_out,
    )
    planned = plan(options, batch)
    student = random_student(batch, boundary_chunks([planned]))
    chunks, total, weights = batch.chunks, 0.0, 0.0
    for merged in merged_chunks(batch, rule):
        if leave_out and len(merged) == 1 and chunks.one_to_one[merged[0]]:
            continue
        student_logprobs, teacher_logprobs = student.chunk[merged].sum(), float(chunks.teacher_logprobs[merged].sum())
        if boundary:
            student_logprobs, teacher_logprobs = (
                student_logprobs + student.boundary[merged[-1]],
                teacher_logprobs + chunks.teacher_boundary_logprobs[merged[-1]],
            )
        sizes = {"chunk": 1, "byte": chunks.num_bytes[merged].sum(), "token": chunks.num_student_tokens[merged].sum()}
        total += sizes[average] * binarised_divergence("kl", student_logprobs, torch.tensor(teacher_logprobs), 2.0)
        weights += sizes[average]
    assert planned.count == weights
    torch.testing.assert_close(planned.loss_sum(student, None), torch.as_tensor(total), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("credit", ["even", "proportional", "whole"])
def test_a_policy_gradient_pushes_each_token_by_its_share_of_what_the_chunk_is_credited_with(batch, credit):
    planned = plan(PolicyGradient(kind="policy_gradient", credit=credit, max_advantage=0.8), batch)
    token = random_student(batch, NO_CHUNKS).token.requires_grad_()
    planned.loss_sum(outputs(batch, token), None).backward()
    chunks, expected = batch.chunks, torch.zeros_like(token)
    for n in np.flatnonzero(chunks.scored):
        own = batch.chunk_of_target == int(n)
        logprobs = token.detach()[own]
        advantage = min(max(float(chunks.teacher_logprobs[n]) - float(logprobs.sum()), -0.8), 0.8)
        shares = {"even": 1 / len(logprobs), "proportional": logprobs / logprobs.sum(), "whole": 1.0}[credit]
        expected[own] = -advantage * shares * torch.ones_like(logprobs)
    torch.testing.assert_close(token.grad, expected)
    assert planned.count == chunks.num_student_tokens[chunks.scored].sum()


def test_credited_whole_a_policy_gradient_is_that_of_the_reverse_divergence():
    """All texts of one token of four, as often as the student writes each."""
    teacher = torch.tensor([0.4, 0.3, 0.2, 0.1]).log()
    logits = torch.tensor([0.3, -0.2, 0.9, 0.0], requires_grad=True)
    student = logits.log_softmax(0)
    divergence = (student.exp() * (student - teacher)).sum()
    (wanted,) = torch.autograd.grad(divergence, logits, retain_graph=True)
    total = torch.zeros(())
    for token in range(4):
        one = SimpleNamespace(
            chunks=SimpleNamespace(
                teacher_logprobs=teacher[token : token + 1].numpy(),
                scored=np.array([True]),
                num_student_tokens=np.array([1]),
            ),
            chunk_of_target=torch.tensor([0]),
        )
        planned = make_objective(PolicyGradient(kind="policy_gradient", credit="whole"), None)(one)
        given = SimpleNamespace(token=student[token : token + 1], chunk=student[token : token + 1])
        total = total + student[token].detach().exp() * planned.loss_sum(given, None)
    (found,) = torch.autograd.grad(total, logits)
    torch.testing.assert_close(found, wanted)


def test_sft_is_the_cross_entropy_of_the_targets(batch):
    planned = plan(Sft(kind="sft"), batch)
    student = random_student(batch, boundary_chunks([planned]))
    assert planned.count == len(batch.target_ids)
    torch.testing.assert_close(planned.loss_sum(student, None), -student.token.sum())


@pytest.mark.parametrize("direction", ["forward", "reverse"])
def test_one_to_one_kl_is_the_divergence_over_the_stored_tokens_and_the_rest(batch, direction):
    planned = plan(OneToOneKl(kind="one_to_one_kl", direction=direction), batch)
    student, top, total, groups = random_student(batch, boundary_chunks([planned])), batch.top, 0.0, set()
    for group in set(top.group.tolist()):
        student_logprobs, teacher_logprobs = (
            tensor[top.group == group].double().exp() for tensor in (student.top, top.teacher_logprobs)
        )
        student_logprobs, teacher_logprobs = (
            torch.cat([logprobs, (1 - logprobs.sum())[None]]) for logprobs in (student_logprobs, teacher_logprobs)
        )
        p, q = (teacher_logprobs, student_logprobs) if direction == "forward" else (student_logprobs, teacher_logprobs)
        total, groups = total + float((p * (p / q).log()).sum()), groups | {group}
    assert planned.count == len(groups) > 10
    assert planned.loss_sum(student, None).item() == pytest.approx(total, rel=1e-4)


@pytest.mark.parametrize("direction", ["forward", "reverse"])
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_prefix_kl_is_the_divergence_over_the_stored_tokens_and_the_rest(batch, direction, temperature):
    planned = plan(PrefixKl(kind="prefix_kl", direction=direction, temperature=temperature), batch)
    stored = batch.prefixes
    random = torch.rand(len(stored.ids), generator=torch.Generator().manual_seed(0))
    student, total = (stored.teacher_logprobs - 0.1 - random).double(), 0.0
    for group in range(stored.groups):
        sides = [side[stored.group == group].double().exp() for side in (stored.teacher_logprobs, student)]
        sides = [torch.cat([side, (1 - side.sum()).clamp(min=1e-6)[None]]) ** (1 / temperature) for side in sides]
        p, q = (side / side.sum() for side in (sides if direction == "forward" else sides[::-1]))
        total += temperature**2 * float((p * (p / q).log()).sum())
    assert planned.count == stored.groups > 100
    assert planned.loss_sum(outputs(batch, prefixes=student), None).item() == pytest.approx(total, rel=1e-3)


def test_likely_tokens_stand_at_the_targets(batch):
    stored, targets = batch.prefixes, dict(zip(batch.target_rows.tolist(), batch.target_ids.tolist(), strict=True))
    rows = [int(stored.rows[stored.group == group][0]) for group in range(stored.groups)]
    assert set(rows) <= set(targets)
    assert len(rows) > 0.8 * len(targets)  # the others begin beyond the first teacher token of their chunk


@pytest.mark.parametrize("direction", ["forward", "reverse"])
@pytest.mark.parametrize("extreme", [-200.0, -1e-9])
def test_one_to_one_kl_is_0_in_agreement_and_finite_at_extremes(batch, direction, extreme):
    planned = plan(OneToOneKl(kind="one_to_one_kl", direction=direction), batch)
    agreeing = outputs(batch, top=batch.top.teacher_logprobs)
    assert planned.loss_sum(agreeing, None).item() == pytest.approx(0, abs=1e-6)
    top = torch.full_like(batch.top.teacher_logprobs, extreme).requires_grad_()
    loss = planned.loss_sum(outputs(batch, top=top), None)
    (grad,) = torch.autograd.grad(loss, top)
    assert loss.isfinite()
    assert grad.isfinite().all()


def test_the_stored_tokens_stand_where_a_chunk_is_one_token_of_both_sides(batch):
    top, chunks = batch.top, batch.chunks
    chosen = np.flatnonzero(chunks.one_to_one)
    rows = {int(batch.target_rows[(batch.chunk_of_target == chunk).nonzero()[0, 0]]) for chunk in chosen}
    stored = set(top.rows.tolist())
    assert stored <= rows
    assert len(stored) > 0.9 * len(rows)  # the rest has none of its top tokens in the student's vocabulary
    assert all(len(set(top.ids[top.group == group].tolist())) == (top.group == group).sum() for group in top.group)


def test_chunk_log_likelihoods_are_sums_over_tokens(batch):
    student = random_student(batch, boundary_chunks([]))
    for chunk in range(len(batch.chunk_rows)):
        torch.testing.assert_close(student.chunk[chunk], student.token[batch.chunk_of_target == chunk].sum())


def test_an_output_that_an_objective_does_not_declare_is_not_there(batch):
    seen = declared(outputs(batch), frozenset({"targets"}))
    for use in (lambda: seen.boundary[0], lambda: seen.boundary.sum(), lambda: seen.top + 1):
        with pytest.raises((LookupError, TypeError)):
            use()
    assert declared(outputs(batch), frozenset({"boundary"})).boundary is not seen.boundary


def test_a_plan_declares_what_its_options_need(batch):
    for options in (Alm(kind="alm"), PUBLISHED_ALM, Sft(kind="sft"), OneToOneKl(kind="one_to_one_kl")):
        assert plan(options, batch).needs == options.needs
    assert "boundary" in PUBLISHED_ALM.needs
    assert "boundary" not in Alm(kind="alm").needs
