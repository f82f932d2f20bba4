"""Stored distributions over student tokens: what they are for known pairs of tokenizers."""

import copy

import numpy as np
import pyarrow as pa
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

import ctd_core as ctd
from ctd_core.align.documents import MARKER, SCORED
from ctd_core.config.objectives import Kd, PrefixKl
from ctd_core.config.training import Train
from ctd_core.errors import CtdError
from ctd_core.models.language_model import HuggingFaceModel
from ctd_core.models.online_teacher import OnlineTeacher
from ctd_core.models.prefix_positions import end_in, prefix_positions, prefix_top
from ctd_core.models.scorer import Scores, TransformersScorer
from ctd_core.models.scoring import Stored, score_rows
from ctd_core.objectives.registry import make_objective
from ctd_core.ops.prefix_marginals import PrefixMarginals
from ctd_core.shards.batches import collate
from ctd_core.shards.building import build_rows
from ctd_core.shards.files import ShardDamaged, check_columns
from ctd_core.shards.rows import MemoryRows
from ctd_core.text.documents import BEGIN, END, Document, Marker, Text, Turn, plain_document
from ctd_core.text.prepared_tokenizer import prepare_tokenizer
from ctd_core.text.stops import stops_of
from ctd_core.training.loop import Hooks, train
from ctd_core.training.step import WeightedObjective, accumulate_gradients
from tests.support.chat_templates import TEMPLATES, chat_tokenizer, prepared_chat
from tests.support.models import llama, logprobs_of
from tests.support.real_tokenizers import REAL
from tests.support.shard_sets import prepared, texts
from tests.support.tokenizers import TOTAL, sentencepiece_bpe, wrap

TEACHER = "byte-level BPE, 600"


def scored_rows(student, teacher, model, k, batch_tokens=256, drawn=0, documents=6):
    documents = [plain_document(str(n), text) for n, text in enumerate(texts(documents))]
    rows, counts = build_rows(student, teacher, documents, 400, 400)
    scorer = TransformersScorer(logprobs_of(model, teacher.encoder.token_bytes.begins_pretoken))
    stored = Stored(prefix=prefix_top(k, drawn, student, teacher))
    return MemoryRows("rows", [score_rows(scorer, rows, batch_tokens, stored)], counts)


def test_with_one_tokenizer_it_is_knowledge_distillation():
    """Loss and gradients, but for what half precision and the shares that are not stored take away."""
    teacher = prepared("bytes")
    models = [llama(len(teacher.encoder.token_bytes.by_id), seed=seed) for seed in (0, 1)]
    rows = scored_rows(teacher, teacher, models[1], 255)
    batch = collate(rows, np.arange(len(rows)))
    online = OnlineTeacher(32, HuggingFaceModel(models[1]), teacher, teacher, None)
    results = []
    for options in (Kd(kind="kd"), PrefixKl(kind="prefix_kl")):
        student = logprobs_of(models[0], teacher.encoder.token_bytes.begins_pretoken)
        student.zero_grad()
        metrics = accumulate_gradients(
            student, [batch], [WeightedObjective(1.0, make_objective(options, online))], online
        )
        results.append((metrics, student.model.model.layers[0].mlp.up_proj.weight.grad.clone()))
    (kd, kd_gradient), (prefix, prefix_gradient) = results
    assert prefix.counts[0] == len(batch.target_ids)
    assert prefix.loss == pytest.approx(kd.loss, rel=2e-3)
    assert torch.nn.functional.cosine_similarity(kd_gradient.flatten(), prefix_gradient.flatten(), 0) > 0.999


def test_with_drawn_tokens_the_gradient_is_as_large_as_that_of_the_whole_distribution():
    """Along that gradient; across it there is noise. The likeliest tokens alone fall short of it."""
    tokenizer = prepared(TEACHER)
    models = [llama(len(tokenizer.encoder.token_bytes.by_id), seed=seed) for seed in (0, 3)]
    gradients = []
    for k, drawn in ((255, 0), (8, 0), (8, 4)):
        rows = scored_rows(tokenizer, tokenizer, models[1], k, drawn=drawn, documents=100)
        learner = logprobs_of(models[0], tokenizer.encoder.token_bytes.begins_pretoken)
        learner.zero_grad()
        objective = WeightedObjective(1.0, make_objective(PrefixKl(kind="prefix_kl"), None))
        accumulate_gradients(learner, [collate(rows, np.arange(len(rows)))], [objective], None)
        gradients.append(learner.model.model.layers[0].mlp.up_proj.weight.grad.flatten().clone())
    whole, likeliest, with_drawn = gradients
    assert float(with_drawn @ whole / (whole @ whole)) == pytest.approx(1, abs=0.1)
    assert float(likeliest @ whole / (whole @ whole)) < 0.7


@pytest.mark.parametrize("options", [{"direction": "reverse"}, {"temperature": 2.0}])
def test_in_reverse_or_with_a_temperature_drawn_tokens_are_left_out(options):
    tokenizer = prepared(TEACHER)
    size, losses = len(tokenizer.encoder.token_bytes.by_id), []
    for k, drawn in ((4, 0), (8, 4)):
        rows = scored_rows(tokenizer, tokenizer, llama(size, seed=3), k, drawn=drawn)
        batch = collate(rows, np.arange(len(rows)))
        assert batch.prefixes.drawn.any() == bool(drawn)
        learner = logprobs_of(llama(size), tokenizer.encoder.token_bytes.begins_pretoken)
        objective = WeightedObjective(1.0, make_objective(PrefixKl(kind="prefix_kl", **options), None))
        losses.append(accumulate_gradients(learner, [batch], [objective], None).loss)
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)


@pytest.mark.parametrize("kind", ["bytes", "byte-level BPE, 300", "SentencePiece BPE with a leading space"])
def test_every_share_is_a_sum_over_the_teachers_tokens(kind):
    """The position after student tokens u of a chunk: each next token s by all teacher tokens whose bytes go on so."""
    student, teacher, model = prepared(kind), prepared(TEACHER), llama(600, seed=3)
    rows = scored_rows(student, teacher, model, 255)
    from ctd_core.models.transfer import old_tokens

    spellings = old_tokens(teacher, student)
    teacher_bytes = teacher.encoder.token_bytes.by_id
    checked = positions = 0
    for row in rows.batches[0].to_pylist():
        with torch.no_grad():
            probabilities = model(torch.tensor(row["teacher_ids"])[None]).logits[0].double().softmax(1).numpy()
        stored = iter(zip(row["prefix_ids"], row["prefix_logprobs"], strict=True))
        expected_positions = set()
        begins = zip([0, *row["student_chunk_ends"]], [0, *row["teacher_chunk_ends"]], strict=True)
        for (a, b), end, kind_flags in zip(begins, row["student_chunk_ends"], row["chunk_kinds"], strict=False):
            if not kind_flags & 1:
                continue
            length = len(teacher_bytes[row["teacher_ids"][b]])
            for token in range(a, end):
                before = row["student_ids"][a:token]
                spelled = sum(student.encoder.token_bytes.lengths_bytes[n] for n in before)
                agreeing = [n for n, s in enumerate(spellings) if s[: len(before)] == before and s]
                own = spellings[row["teacher_ids"][b]][: len(before) + 1]
                if (token > a and spelled >= length) or own != [*before, row["student_ids"][token]]:
                    break
                expected_positions.add(token)
                shares = {}
                for n in agreeing:
                    if len(spellings[n]) > len(before):
                        s = spellings[n][len(before)]
                        shares[s] = shares.get(s, 0.0) + probabilities[b - 1][n]
                mass = sum(probabilities[b - 1][agreeing]) if before else 1.0
                told = [next(stored) for _ in range(row["prefix_counts"][token])]
                for s, logprob in told:
                    assert np.exp(logprob) == pytest.approx(shares[s] / mass, rel=0.01)
                rest = sum(shares.values()) / mass - sum(np.exp(logprob) for _, logprob in told)
                assert rest < 1e-4 * len(shares) + 0.01
                checked += len(told)
        positions += len(expected_positions)
        assert set(np.flatnonzero(row["prefix_counts"])) <= expected_positions
        assert not list(stored)
    assert rows.batches[0].schema.field("prefix_ids").type == pa.list_(pa.uint16())
    assert checked > positions > 100


class Certain:
    """A teacher that is sure of every text as it is, or takes another token for as likely everywhere."""

    dtype = "float32"

    def __init__(self, vocab_size, other=None):
        self.vocab_size, self._other = vocab_size, other

    def score(self, requests, asked):
        kept = asked.prefix_k, asked.prefix_drawn
        marginals = PrefixMarginals(asked.trie, *kept, self.vocab_size, torch.device("cpu"))
        return [self._scores(request, marginals) for request in requests]

    def _scores(self, request, marginals):
        following = torch.from_numpy(request.token_ids[request.prefix_positions + 1].astype(np.int64))
        sure = torch.nn.functional.one_hot(following, self.vocab_size).float()
        if self._other is not None:
            sure[:, self._other] += 1
        rows = torch.arange(len(following))
        places = torch.from_numpy(request.prefix_nodes), torch.from_numpy(request.prefix_chances)
        told = marginals(sure, sure.sum(1), rows, *places)
        zeros = np.zeros(len(request.token_ids))
        none = np.zeros((len(request.top_positions), 0))
        prefixes = (values.numpy() for values in (told.counts, told.tokens, told.logprobs, told.drawn))
        return Scores(
            zeros, zeros[request.boundary_positions], none.astype(np.int64), none.astype(np.float32), *prefixes
        )


CONVERSATION = Document(
    "chat",
    (Turn("user", "Who runs?", scored=False), Turn("assistant", "The quick fox runs far.")),
)


@pytest.mark.parametrize(
    ("student", "teacher", "chat"),
    [
        ("Mistral v1", "SmolLM2", "keep"),
        ("Mistral v1", "SmolLM2", None),
        ("Mistral v1", "Qwen", None),
        ("Qwen", "Mistral v1", None),
        ("bytes", "Mistral v1", None),
        ("bytes", "SmolLM2", "keep"),
        ("SmolLM2", "SmolLM2", "keep"),
    ],
)
def test_a_teacher_that_is_sure_of_the_text_teaches_the_text(student, teacher, chat):
    """Every stored position gives all probability to the text's own token, ends of turns and of texts among them."""
    names = [str(REAL[name]) if name in REAL else name for name in (student, teacher)]
    theirs = ctd.prepare_tokenizer(names[1])
    ours = ctd.prepare_tokenizer(names[0], chat_of=names[1] if chat else None)
    documents = [plain_document(str(n), text) for n, text in enumerate(texts(6))]
    documents += [CONVERSATION] if chat else []
    rows, _ = build_rows(ours, theirs, documents, 96, 96)
    stored = Stored(prefix=prefix_top(4, 2, ours, theirs))
    rows = score_rows(Certain(len(theirs.encoder.token_bytes.by_id)), rows, 256, stored).to_pylist()
    asked = special = 0
    for row in rows:
        counts = np.array(row["prefix_counts"])
        at = np.flatnonzero(counts)
        assert counts.max() <= 1
        assert row["prefix_ids"] == np.array(row["student_ids"])[at].tolist()
        np.testing.assert_allclose(row["prefix_logprobs"], 0, atol=1e-3)
        asked += len(at)
        special += int(ours.encoder.token_bytes.is_special[row["prefix_ids"]].sum())
    assert asked > 0.6 * sum(len(row["student_ids"]) for row in rows)
    assert special >= len(documents)  # each ends


@pytest.mark.parametrize("drawn", [0, 2])
def test_tokens_of_a_share_of_all_are_known_as_drawn_or_not(drawn):
    tokenizer = prepared(TEACHER)
    documents = [plain_document(str(n), text) for n, text in enumerate(texts(6))]
    rows, counts = build_rows(tokenizer, tokenizer, documents, 400, 400)
    stored = Stored(prefix=prefix_top(2, drawn, tokenizer, tokenizer))
    scored = score_rows(Certain(len(tokenizer.encoder.token_bytes.by_id)), rows, 256, stored)
    batch = collate(MemoryRows("rows", [scored], counts), np.arange(len(rows)))
    assert len(batch.prefixes.drawn)
    assert (batch.prefixes.drawn == bool(drawn)).all()
    np.testing.assert_allclose(batch.prefixes.teacher_logprobs, 0, atol=1e-6)


def test_the_teachers_end_is_that_of_turns_in_all_of_a_conversation_and_that_of_texts_in_a_text():
    name = str(REAL["SmolLM2"])
    theirs, ours = ctd.prepare_tokenizer(name), ctd.prepare_tokenizer(str(REAL["Mistral v1"]), chat_of=name)
    user, answer = CONVERSATION.segments
    documents = [
        plain_document("text", texts(1)[0]),
        Document("long", (user, Turn("assistant", "The quick fox runs far. " * 60))),
        Document("cut", (user, Turn("assistant", answer.text, is_cut=True))),
    ]
    rows, _ = build_rows(ours, theirs, documents, 96, 96)
    end, turn_end = theirs.markers["end"][0], ours.encoder.tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert theirs.encoder.tokenizer.convert_ids_to_tokens(end) == "<|im_end|>"
    teacher = Certain(len(theirs.encoder.token_bytes.by_id), other=end)
    rows = score_rows(teacher, rows, 256, Stored(prefix=prefix_top(4, 2, ours, theirs))).to_pylist()
    assert len(rows) > 5
    for row in rows:
        ids = [turn_end, *ours.markers["end"]] if row["document"] != "text" else [*ours.markers["end"], turn_end]
        assert ids[0] in row["prefix_ids"]
        assert ids[1] not in row["prefix_ids"]


@pytest.mark.parametrize("theirs", TEMPLATES)
@pytest.mark.parametrize("ours", TEMPLATES)
def test_students_with_a_template_of_their_own_learn_where_turns_end(ours, theirs):
    """By a special token on both sides, of whatever name, and by no other token in its place."""
    student, teacher = prepared_chat(ours), prepared_chat(theirs)
    rows, _ = build_rows(student, teacher, [CONVERSATION], 400, 400)
    (row,) = rows.to_pylist()
    last = np.flatnonzero(np.array(row["chunk_kinds"]) & SCORED)[-1]
    at = row["student_chunk_ends"][last - 1]
    ends = row["student_ids"][at], row["teacher_ids"][row["teacher_chunk_ends"][last - 1]]
    asked = prefix_top(4, 0, student, teacher)
    told = score_rows(Certain(700, other=ends[1]), rows, 256, Stored(prefix=asked)).to_pylist()[0]
    counts = np.array(told["prefix_counts"])
    if "plain" in (ours, theirs):
        assert not counts[at] or ours == theirs
        return
    assert counts[at] == 1
    offsets = np.concatenate([[0], np.cumsum(counts)])
    for token, start, stop in zip(row["student_ids"], offsets, offsets[1:], strict=False):
        assert set(told["prefix_ids"][start:stop]) <= {token, ends[0]}


def test_a_template_that_writes_a_space_before_the_end_of_a_turn_takes_it_for_no_end():
    tokenizer = copy.deepcopy(chat_tokenizer("Mistral v1"))
    tokenizer.chat_template = tokenizer.chat_template.replace("+ eos_token", "+ ' ' + eos_token")
    student, teacher = prepare_tokenizer(tokenizer, "Llama 2", None, None), prepared_chat("ChatML")
    (user, _), text = CONVERSATION.segments, "It was in 1969 and in 1972."
    rows, _ = build_rows(student, teacher, [Document("chat", (user, Turn("assistant", text)))], 400, 400)
    told = score_rows(Certain(700), rows, 256, Stored(prefix=prefix_top(4, 0, student, teacher)))
    assert not set(told["prefix_ids"].to_pylist()[0]) & stops_of(student.encoder.tokenizer, "Llama 2")


def byte_level(vocabulary, merges):
    backend = Tokenizer(models.BPE(vocabulary, merges))
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    return wrap(backend)


def test_a_token_that_the_student_cannot_spell_adds_to_no_other():
    student, teacher = (
        prepare_tokenizer(byte_level({name: number for number, name in enumerate(names)}, merges), "", None, None)
        for names, merges in ((["a", "b"], []), (["a", "b", "}", "}a"], [("}", "a")]))
    )
    assert prefix_top(4, 0, student, teacher).first_tokens.tolist() == [0, 1, -1, -1]


@pytest.mark.parametrize("end", [(Marker(END),), ()])
def test_a_teacher_that_begins_texts_with_its_end_does_not_teach_the_students_beginning(end):
    tokenizer = sentencepiece_bpe(prefix=True)
    tokenizer.bos_token, tokenizer.eos_token = "<s>", "</s>"
    student, teacher = prepare_tokenizer(tokenizer, "student", None, None), prepared(TEACHER)
    assert teacher.markers[BEGIN] == teacher.markers[END]
    assert student.markers[BEGIN] != student.markers[END]
    document = Document("cut or not", (Marker(BEGIN, scored=False), Text(texts(1)[0]), *end))
    rows, _ = build_rows(student, teacher, [document], 400, 400)
    sure = Certain(len(teacher.encoder.token_bytes.by_id), other=teacher.markers[END][0])
    told = score_rows(sure, rows, 256, Stored(prefix=prefix_top(4, 0, student, teacher)))["prefix_ids"]
    told = {token for row in told.to_pylist() for token in row}
    assert student.markers[END][0] in told
    assert student.markers[BEGIN][0] not in told


def test_a_token_without_a_row_in_the_students_embedding_is_not_told():
    both = [TOTAL[kind]() for kind in ("byte-level BPE, 300", TEACHER)]
    for tokenizer in both:
        tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_end|>"]})
    student, teacher = (
        prepare_tokenizer(side, "it", None, None, rows) for side, rows in zip(both, (300, 601), strict=True)
    )
    rows, _ = build_rows(student, teacher, [plain_document("d", texts(1)[0])], 400, 400)
    told = score_rows(Certain(601, other=600), rows, 256, Stored(prefix=prefix_top(4, 2, student, teacher)))
    assert max(token for row in told["prefix_ids"].to_pylist() for token in row) < 300


def test_two_tokens_that_end_turns_are_each_taught_where_they_stand():
    """A student whose template ends the user's turns by another token than its own."""
    name = str(REAL["SmolLM2"])
    theirs, ours = ctd.prepare_tokenizer(name), ctd.prepare_tokenizer(str(REAL["Mistral v1"]), chat_of=name)
    asked = prefix_top(4, 2, ours, theirs)
    end, (text_end,) = theirs.markers["end"][0], ours.markers["end"]
    turn_end = ours.encoder.tokenizer.convert_tokens_to_ids("<|im_end|>")
    kinds = np.full(3, SCORED | MARKER, dtype=np.uint8)
    ends, ids = np.arange(1, 4, dtype=np.int32), np.array([1, turn_end, text_end], dtype=np.int32)
    row = ids, np.array([1, end, end], dtype=np.int32), ends, ends, kinds
    found = prefix_positions(asked, *row)
    assert end_in(asked, [row]) == (-1, -1)
    assert found.student.tolist() == [1, 2]
    told = found.student_tokens(np.array([text_end, 7, turn_end, text_end]), np.array([2, 2]), (-1, -1))
    assert told.tolist() == [turn_end, 7, turn_end, text_end]


def test_batches_change_no_stored_number():
    student, teacher, model = prepared("byte-level BPE, 300"), prepared(TEACHER), llama(600, seed=3)
    one, other = (scored_rows(student, teacher, model, 5, tokens, drawn=2).batches[0] for tokens in (64, 4096))
    for name in ("prefix_counts", "prefix_ids"):
        assert one.column(name).equals(other.column(name))
    both = (rows.column("prefix_logprobs").to_pylist() for rows in (one, other))
    for first, second in zip(*both, strict=True):
        np.testing.assert_allclose(first, second, atol=2e-3)


def test_shards_without_likely_tokens_are_refused_by_name():
    student, teacher = prepared("byte-level BPE, 300"), prepared(TEACHER)
    documents = [plain_document(str(n), text) for n, text in enumerate(texts(6))]
    batch, counts = build_rows(student, teacher, documents, 96, 96)
    options = Train(steps=1, batch_tokens=256, objectives=[PrefixKl(kind="prefix_kl")])
    model = logprobs_of(llama(300), student.encoder.token_bytes.begins_pretoken)
    hooks = Hooks(lambda metrics: None, lambda metrics, write: None, lambda model: {})
    with pytest.raises(CtdError, match=r"the rows: prefix_kl needs shards with likely tokens.*prefix_k, such as 8"):
        train(options, model, MemoryRows("the rows", [batch], counts), hooks)


def test_counts_that_do_not_fit_the_stored_tokens_are_damage():
    student, teacher, model = prepared("byte-level BPE, 300"), prepared(TEACHER), llama(600, seed=3)
    rows = scored_rows(student, teacher, model, 5)
    batch, position = rows.batches[0], rows.batches[0].schema.get_field_index("prefix_counts")
    check_columns(batch, rows.counts, "a shard")
    counts = [list(values) for values in batch.column("prefix_counts").to_pylist()]
    counts[1][-2] += 1
    damaged = batch.set_column(position, batch.schema.field(position), pa.array(counts, pa.list_(pa.uint8())))
    with pytest.raises(ShardDamaged, match="prefix_ids do not fit prefix_counts"):
        check_columns(damaged, rows.counts, "a shard")
