"""Objectives that ask an online teacher, against slow sums over pairs."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from rapidfuzz.distance import Levenshtein

from ctd_core.align.vocabulary import exact_map
from ctd_core.config.align import AtWhitespace, Debiased, Finest, Groups
from ctd_core.config.objectives import Alm, Dskd, Gold, HiddenStates, Kd, MinEd, PKl, Uld
from ctd_core.errors import UsageError
from ctd_core.models.language_model import HuggingFaceModel
from ctd_core.models.online_teacher import OnlineTeacher
from ctd_core.models.transfer import old_tokens
from ctd_core.objectives import paired_positions
from ctd_core.objectives.interface import StudentOutputs
from ctd_core.objectives.registry import make_objective
from ctd_core.ops.fused_logprobs import Head
from ctd_core.shards.batches import collate
from ctd_core.shards.reading import ShardSet
from ctd_core.text.prepared_tokenizer import prepare_tokenizer
from ctd_core.training.step import WeightedObjective, accumulate_gradients
from tests.support.models import llama, logprobs_of
from tests.support.shard_sets import prepared, texts, write_set

ROWS = np.arange(5)
CROSSING = [
    Uld(kind="uld"),
    Uld(kind="uld", positions="one_to_one"),
    MinEd(kind="min_ed"),
    HiddenStates(kind="hidden_states"),
    PKl(kind="p_kl"),
    Gold(kind="gold"),
]
LEARNED = [Dskd(kind="dskd")]  # not 0 in agreement: its projections have to be learned first


class Pair:
    """A tiny student and an online teacher, and shards of their tokenizers."""

    def __init__(self, location, student, teacher):
        tokenizers = [prepared(student), prepared(teacher)]
        write_set(location, *tokenizers, texts(12), parts=1)
        self.shards = ShardSet(location, verify=True)
        sizes = [len(tokenizer.encoder.token_bytes.by_id) for tokenizer in tokenizers]
        self.student = logprobs_of(llama(sizes[0]), tokenizers[0].encoder.token_bytes.begins_pretoken)
        self.online = OnlineTeacher(32, HuggingFaceModel(llama(sizes[1], seed=1)), *tokenizers, None)

    def outputs(self, batch):
        token, _, hidden = self.student(
            batch.input_ids, batch.positions, batch.target_rows, batch.target_ids, batch.positions[:0]
        )
        head = self.student.model.get_output_embeddings()
        return StudentOutputs(*[token] * 5, hidden, Head(head.weight), head.weight)

    def logits(self, batch):
        """[B, S, V] and [B, T, U], from the models themselves."""
        return self.student.model(batch.input_ids).logits, self.online.model.module(batch.teacher.input_ids).logits

    def loss(self, options, batch):
        planned = make_objective(options, self.online)(batch)
        return planned.loss_sum(self.outputs(batch), self.online.outputs(batch)), planned.count


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    return Pair(tmp_path_factory.mktemp("shards"), "byte-level BPE, 300", "byte-level BPE, 600")


@pytest.fixture(scope="module")
def same(tmp_path_factory):
    """Student and teacher are one model."""
    made = Pair(tmp_path_factory.mktemp("same"), "byte-level BPE, 600", "byte-level BPE, 600")
    made.online.model.module.load_state_dict(made.student.model.state_dict())
    return made


def chunks(shards, row):
    """(student start, student end, teacher start, teacher end, kind) of each chunk of a row."""
    columns = ("student_chunk_ends", "teacher_chunk_ends", "chunk_kinds")
    student, teacher, kinds = (shards.read(column, np.array([row]))[0] for column in columns)
    before = zip([0, *student[:-1]], student, [0, *teacher[:-1]], teacher, kinds, strict=True)
    return [tuple(int(value) for value in row) for row in before]


def one_to_one(shards, row):
    return [
        (start - 1, teacher_start - 1)
        for start, end, teacher_start, teacher_end, kind in chunks(shards, row)
        if kind & 1 and not kind & 2 and end - start == teacher_end - teacher_start == 1
    ]


def same_index(shards, row):
    scored = [chunk for chunk in chunks(shards, row) if chunk[4] & 1]
    student = [position - 1 for chunk in scored for position in range(chunk[0], chunk[1])]
    teacher = [position - 1 for chunk in scored for position in range(chunk[2], chunk[3])]
    return list(zip(student, teacher, strict=False))


def uld(student, teacher):
    return uld_of(student.softmax(0).tolist(), teacher.softmax(0).tolist())


def uld_of(student, teacher):
    a, b = (sorted(tensor, reverse=True) for tensor in (student, teacher))
    size = max(len(a), len(b))
    return sum(abs(x - y) for x, y in zip(a + [0.0] * (size - len(a)), b + [0.0] * (size - len(b)), strict=True))


def test_uld_is_a_mean_over_its_pairs(pair, monkeypatch):
    monkeypatch.setattr(paired_positions, "BLOCK_BYTES", 4 * 900 * 20)  # blocks of twenty places
    batch = collate(pair.shards, ROWS)
    student, teacher = pair.logits(batch)
    for options, find in ((Uld(kind="uld"), same_index), (Uld(kind="uld", positions="one_to_one"), one_to_one)):
        pairs = [(n, *position) for n, row in enumerate(ROWS) for position in find(pair.shards, row)]
        loss, count = pair.loss(options, batch)
        assert count == len(pairs) > 20
        with torch.no_grad():
            expected = sum(uld(student[n, s], teacher[n, t]) for n, s, t in pairs)
        assert loss.item() == pytest.approx(expected, rel=1e-3)


def test_mined_maps_the_teachers_logits_where_it_can_and_learns_the_text_elsewhere(pair, monkeypatch):
    monkeypatch.setattr(paired_positions, "BLOCK_BYTES", 4 * 900 * 20)  # blocks of twenty places
    batch = collate(pair.shards, ROWS)
    with torch.no_grad():
        student, teacher = pair.logits(batch)
    token_bytes = [tokenizer.encoder.token_bytes.by_id for tokenizer in (pair.online.student, pair.online.teacher)]
    words = [raw.decode("latin-1") if raw else None for raw in token_bytes[1]]
    nearest = {
        token: min(
            (n for n, word in enumerate(words) if word),
            key=lambda n: (Levenshtein.distance(raw.decode("latin-1"), words[n]), len(words[n]), n),
        )
        for token, raw in enumerate(token_bytes[0])
        if raw
    }
    total = count = 0.0
    for n, row in enumerate(ROWS):
        ids = pair.shards.read("student_ids", np.array([row]))[0]
        pairs = one_to_one(pair.shards, row)
        for student_at, teacher_at in pairs:
            p = (teacher[n, teacher_at, list(nearest.values())] / 2).softmax(0)
            q = (student[n, student_at, list(nearest)] / 2).softmax(0)
            total += float((p * (p / q).log()).sum())
        scored = [chunk for chunk in chunks(pair.shards, row) if chunk[4] & 1]
        rest = {position for chunk in scored for position in range(chunk[0], chunk[1])} - {
            student_at + 1 for student_at, _ in pairs
        }
        total -= sum(float((student[n, position - 1] / 2).log_softmax(0)[int(ids[position])]) for position in rest)
        count += len(pairs) + len(rest)
    loss, counted = pair.loss(MinEd(kind="min_ed"), batch)
    assert counted == count > 40
    assert loss.item() == pytest.approx(total, rel=1e-4)


def test_hidden_states_are_compared_at_chunk_ends_channel_by_channel(pair):
    batch = collate(pair.shards, ROWS)
    with torch.no_grad():
        student = pair.student.model.base_model(batch.input_ids).last_hidden_state
        teacher = pair.online.model.module.base_model(batch.teacher.input_ids).last_hidden_state
    total = count = 0
    for n, row in enumerate(ROWS):
        ends = [(chunk[1] - 1, chunk[3] - 1) for chunk in chunks(pair.shards, row) if chunk[4] & 1]
        student_at = torch.stack([student[n, end] for end, _ in ends])
        teacher_at = torch.stack([teacher[n, end] for _, end in ends])
        total += float(((student_at - teacher_at) ** 2 / (teacher_at**2).mean(0)).mean(1).sum())
        count += len(ends)
    loss, counted = pair.loss(HiddenStates(kind="hidden_states"), batch)
    assert counted == count
    assert loss.item() == pytest.approx(total, rel=1e-4)


def test_p_kl_projects_each_student_token_onto_the_teachers_that_spell_it(pair):
    batch = collate(pair.shards, ROWS)
    sources = old_tokens(pair.online.student, pair.online.teacher)
    size = len(pair.online.teacher.encoder.token_bytes.by_id)
    student, teacher = pair.logits(batch)
    total = 0.0
    pairs = [(n, *position) for n, row in enumerate(ROWS) for position in one_to_one(pair.shards, row)]
    for n, s, t in pairs:
        projected = torch.zeros(size)
        for probability, ids in zip(student[n, s].detach().softmax(0), sources, strict=False):
            weights = torch.tensor([1.0, 0.1, 0.01, 0.001])[: len(ids)]
            for token, weight in zip(ids, weights / weights.sum(), strict=False):
                projected[token] += probability * weight
        p, q = teacher[n, t, :size].detach().softmax(0), projected / projected.sum() + 1e-10
        total += float((p * (p / q).log()).sum())
    loss, count = pair.loss(PKl(kind="p_kl"), batch)
    assert count == len(pairs)
    assert loss.item() == pytest.approx(total, rel=1e-3)


def with_more_tokens(tokenizer):
    """A tokenizer with two tokens more."""
    tokenizer = copy.deepcopy(tokenizer.encoder.tokenizer)
    tokenizer.add_tokens(["<added>", "<another>"])
    return prepare_tokenizer(tokenizer, "with more", None, None)


@pytest.mark.parametrize("options", CROSSING, ids=lambda options: options.kind)
def test_a_tokenizer_may_have_more_tokens_than_its_model(pair, options):
    batch = collate(pair.shards, ROWS)
    expected, _ = pair.loss(options, batch)
    larger = copy.copy(pair)
    tokenizers = [with_more_tokens(tokenizer) for tokenizer in (pair.online.student, pair.online.teacher)]
    larger.online = replace(pair.online, student=tokenizers[0], teacher=tokenizers[1])
    torch.testing.assert_close(larger.loss(options, batch)[0], expected)


def test_gold_compares_whole_chunks(pair):
    batch = collate(pair.shards, ROWS)
    ids = exact_map(pair.online.student.encoder.token_bytes, pair.online.teacher.encoder.token_bytes)
    teacher_at = np.flatnonzero(ids >= 0)
    student_at, size = ids[teacher_at], len(ids)
    vocabulary = len(pair.online.student.encoder.token_bytes.by_id)
    rests = np.setdiff1d(np.arange(vocabulary), student_at), np.setdiff1d(np.arange(size), teacher_at)
    student, teacher = (logits.detach() for logits in pair.logits(batch))
    total, several = 0.0, 0
    for n, row in enumerate(ROWS):
        for start, end, teacher_start, teacher_end, kind in chunks(pair.shards, row):
            if not kind & 1:
                continue
            several += end - start > 1
            p, q = student[n, end - 2, :vocabulary].softmax(0), teacher[n, teacher_end - 2, :size].softmax(0)
            for position in range(start, end - 1):
                p = p * student[n, position - 1].softmax(0)[batch.input_ids[n, position]]
            for position in range(teacher_start, teacher_end - 1):
                q = q * teacher[n, position - 1].softmax(0)[batch.teacher.input_ids[n, position]]
            a, b = p[student_at], q[teacher_at]
            matched = float((b * (b.clamp(min=1e-8) / a.clamp(min=1e-8)).log() - b + a).sum())
            rest = uld_of(p[rests[0]].tolist(), q[rests[1]].tolist())
            total += len(student_at) / size * matched + (1 - len(student_at) / size) * rest
    assert several > 5
    loss, _ = pair.loss(Gold(kind="gold"), batch)
    assert loss.item() == pytest.approx(total, rel=1e-3)


@pytest.mark.parametrize(("temperature", "rows"), [(1.0, 600), (3.0, 600), (1.0, 598)])
def test_kd_is_the_divergence_of_the_whole_distributions(same, temperature, rows):
    batch = collate(same.shards, ROWS)
    changed = llama(600, tied=False, seed=5)
    changed.lm_head.weight = torch.nn.Parameter(changed.lm_head.weight[:rows])  # none for tokens that were added
    online = OnlineTeacher(32, HuggingFaceModel(changed), same.online.student, same.online.teacher, None)
    planned = make_objective(Kd(kind="kd", temperature=temperature), online)(batch)
    tokens = min(len(same.online.student.encoder.token_bytes.by_id), rows)
    with torch.no_grad():
        loss = planned.loss_sum(same.outputs(batch), online.outputs(batch))
        student = same.student.model(batch.input_ids).logits[..., :tokens] / temperature
        teacher = changed(batch.teacher.input_ids).logits[..., :tokens] / temperature
    total = 0.0
    pairs, ends = [], 0
    for n, row in enumerate(ROWS):
        for start, end, teacher_start, _, kind in chunks(same.shards, row):
            if kind & 1:
                pairs += [(n, start + at - 1, teacher_start + at - 1) for at in range(end - start)]
                ends += kind & 2 > 0
    assert ends > 0
    assert len(pairs) == len(batch.target_ids)
    for n, s, t in pairs:
        p, q = teacher[n, t].softmax(0), student[n, s].softmax(0)
        total += temperature**2 * float((p * (p / q).log()).sum())
    assert planned.count == len(pairs)
    assert loss.item() == pytest.approx(total, rel=1e-3)


def test_dskd_crosses_both_spaces_by_attention(pair):
    batch = collate(pair.shards, ROWS)
    torch.manual_seed(0)
    objective = make_objective(Dskd(kind="dskd"), pair.online)
    head = pair.student.model.get_output_embeddings().weight
    common = int(batch.target_ids.mode().values)
    with torch.no_grad():  # so that the teacher's states often say the most common token
        objective.to_student.bias.copy_(10 * head[common])
    planned = objective(batch)
    loss = planned.loss_sum(pair.outputs(batch), pair.online.outputs(batch))
    models = pair.student.model, pair.online.model.module
    total = count = hits = 0.0
    with torch.no_grad():
        hidden = [
            model.base_model(ids).last_hidden_state
            for model, ids in zip(models, (batch.input_ids, batch.teacher.input_ids), strict=True)
        ]
        embeddings = [model.get_input_embeddings().weight for model in models]
        heads = [model.get_output_embeddings().weight for model in models]
        logits = pair.logits(batch)
        for n, row in enumerate(ROWS):
            scored = [chunk for chunk in chunks(pair.shards, row) if chunk[4] & 1]
            student_at = [position for chunk in scored for position in range(chunk[0], chunk[1])]
            teacher_at = [position for chunk in scored for position in range(chunk[2], chunk[3])]
            ids, teacher_ids = batch.input_ids[n], batch.teacher.input_ids[n]
            queries = objective.query(
                torch.stack([torch.cat([embeddings[0][ids[t - 1]], embeddings[0][ids[t]]]) for t in student_at])
            )
            keys = torch.stack(
                [torch.cat([embeddings[1][teacher_ids[t - 1]], embeddings[1][teacher_ids[t]]]) for t in teacher_at]
            )
            scores = queries @ (keys / keys.std()).T / (2 * 32) ** 0.5
            states = torch.stack([hidden[1][n, t - 1] for t in teacher_at])
            targets = torch.stack([embeddings[1][teacher_ids[t]] for t in teacher_at])
            spoken = objective.to_student(states / states.std() + targets / targets.std())
            values = objective.to_teacher(torch.stack([hidden[0][n, t - 1] for t in student_at]))
            for number, position in enumerate(student_at):
                crossed = (scores[number].softmax(0) @ spoken) @ heads[0].T
                p, q = crossed.softmax(0), logits[0][n, position - 1].softmax(0)
                total -= float(p[ids[position]].log())
                if int(crossed.argmax()) == int(ids[position]):
                    total, hits = total + float((p * (p / q).log()).sum()), hits + 1
            for number, position in enumerate(teacher_at):
                crossed = (scores[:, number].softmax(0) @ values) @ heads[1].T
                p, q = logits[1][n, position - 1].softmax(0), crossed.softmax(0)
                total += float((p * (p / q).log()).sum())
            count += len(student_at)
    assert planned.count == count > hits > 10
    assert loss.item() == pytest.approx(total, rel=1e-3)
    gradients = torch.autograd.grad(loss, [*objective.parameters(), *pair.student.model.parameters()])
    assert all(gradient.abs().sum() > 0 for gradient in gradients)


def test_hidden_states_of_unlike_sizes_meet_through_a_trained_projection(pair):
    batch, options = collate(pair.shards, ROWS), HiddenStates(kind="hidden_states")
    objective = make_objective(options, replace(pair.online, student_hidden_size=16))
    weight = objective.projection.weight
    assert weight.shape == (32, 16)
    outputs, teacher = pair.outputs(batch), pair.online.outputs(batch)
    narrow = replace(outputs, hidden=outputs.hidden[:, :16])
    projected = replace(outputs, hidden=narrow.hidden @ weight.T)
    loss = objective(batch).loss_sum(narrow, teacher)
    expected = make_objective(options, pair.online)(batch).loss_sum(projected, teacher)
    torch.testing.assert_close(loss, expected)
    assert torch.autograd.grad(loss, weight)[0].abs().sum() > 0


@pytest.mark.parametrize("boundary", [True, False])
@pytest.mark.parametrize("temperature", [1.0, 5.0])
@pytest.mark.parametrize(
    "rule", [Finest(), AtWhitespace(kind="whitespace"), Debiased(kind="debiased"), Groups(kind="groups", size=3)]
)
def test_alm_of_a_student_that_is_its_teacher_is_0(same, tmp_path, rule, temperature, boundary):
    write_set(tmp_path, same.online.student, same.online.teacher, texts(12), parts=1, teacher_model=same.student)
    batch = collate(ShardSet(tmp_path, verify=True), ROWS)
    options = Alm(kind="alm", divergence="kl", chunks=rule, temperature=temperature, boundary=boundary)
    same.student.model.zero_grad()
    loss = accumulate_gradients(same.student, [batch], [WeightedObjective(1.0, make_objective(options, None))]).loss
    assert abs(loss) < 1e-7
    assert max(float(parameter.grad.abs().max()) for parameter in same.student.model.parameters()) < 1e-6


WITHOUT_TEXT = [objective for objective in CROSSING if objective.kind != "min_ed"]  # min_ed learns the text too


@pytest.mark.parametrize("options", [*WITHOUT_TEXT, Kd(kind="kd")], ids=lambda objective: objective.kind)
def test_a_student_that_is_its_teacher_has_no_loss_and_no_gradient(same, options):
    loss, _ = same.loss(options, collate(same.shards, ROWS))
    assert abs(loss.item()) < 1e-4
    gradients = torch.autograd.grad(loss, list(same.student.model.parameters()))
    assert max(gradient.abs().max() for gradient in gradients) < 1e-3


@pytest.mark.parametrize("options", [*CROSSING, *LEARNED], ids=lambda objective: f"{objective.kind}")
def test_padding_changes_nothing(pair, options):
    objective = make_objective(options, pair.online)

    def loss(rows):
        batch = collate(pair.shards, rows)
        return objective(batch).loss_sum(pair.outputs(batch), pair.online.outputs(batch))

    together, apart = loss(ROWS), sum(loss(ROWS[n : n + 1]) for n in range(len(ROWS)))
    torch.testing.assert_close(together, apart, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("options", [*CROSSING, *LEARNED], ids=lambda objective: f"{objective.kind}")
def test_gradients_are_finite_at_extreme_logits(pair, options):
    batch = collate(pair.shards, ROWS)
    for scale in (1e-3, 1e4):
        student = pair.outputs(batch)
        hidden = (student.hidden.detach() * scale).requires_grad_()
        teacher = pair.online.outputs(batch)
        planned = make_objective(options, pair.online)(batch)
        loss = planned.loss_sum(StudentOutputs(*[student.token] * 5, hidden, student.head, student.embeddings), teacher)
        (grad,) = torch.autograd.grad(loss, hidden)
        assert loss.isfinite()
        assert grad.isfinite().all()


@pytest.mark.parametrize("options", [*CROSSING, *LEARNED], ids=lambda objective: f"{objective.kind}")
def test_a_teacher_may_be_of_half_precision(pair, options):
    torch.manual_seed(0)
    objective, batch = make_objective(options, pair.online), collate(pair.shards, ROWS)
    half = replace(pair.online, model=HuggingFaceModel(copy.deepcopy(pair.online.model.module).to(torch.bfloat16)))
    exact, rounded = (
        objective(batch).loss_sum(pair.outputs(batch), teacher.outputs(batch)) for teacher in (pair.online, half)
    )
    assert rounded.item() == pytest.approx(exact.item(), rel=0.1)


def test_objectives_that_cannot_be_had_say_so(pair):
    with pytest.raises(UsageError, match="different vocabularies"):
        make_objective(Kd(kind="kd"), pair.online)
    with pytest.raises(UsageError, match="min_ed, which needs a teacher"):
        make_objective(MinEd(kind="min_ed"), None)
