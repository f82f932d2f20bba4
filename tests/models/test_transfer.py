"""A student made from its teacher under a new tokenizer."""

import pytest
import torch

from ctd_core.errors import CtdError, UsageError
from ctd_core.models.fingerprints import loaded_fingerprint, weights_fingerprint
from ctd_core.models.loading import check_head, load_model
from ctd_core.models.transfer import encode_bytes, old_tokens, transfer_model
from ctd_core.text.prepared_tokenizer import prepare_tokenizer
from ctd_core.text.token_bytes import ids_by_bytes
from ctd_core.text.tokenizers import load_tokenizer, train_tokenizer
from tests.support.models import gpt2, llama
from tests.support.real_tokenizers import REAL
from tests.support.shard_sets import prepared
from tests.support.tokenizers import TEXTS

OLD, NEW = "byte-level BPE, 300", "byte-level BPE, 600"


def decode(tokenizer, ids):
    return b"".join(tokenizer.encoder.token_bytes.by_id[token] for token in ids)


@pytest.mark.parametrize("student", [NEW, "bytes", "byt5", "SentencePiece BPE"])
@pytest.mark.parametrize("teacher", [OLD, "SentencePiece BPE with a leading space"])
def test_every_token_has_old_tokens_that_spell_it_and_an_exact_match_alone(student, teacher):
    new, old = prepared(student), prepared(teacher)
    exact = set(old.encoder.token_bytes.by_id)
    token_bytes = new.encoder.token_bytes
    for token_id, sources in enumerate(old_tokens(new, old)):
        raw = token_bytes.by_id[token_id]
        if raw:
            assert decode(old, sources) == raw
            assert len(sources) == 1 or raw not in exact


def test_a_piece_and_not_a_byte_fallback_token_is_the_exact_match_of_a_letter():
    new, old = prepared(NEW), prepared("SentencePiece BPE")
    letter = new.encoder.token_bytes.by_id.index(b"a")
    ((piece,), names) = old_tokens(new, old)[letter], old.encoder.tokenizer.convert_ids_to_tokens
    assert names(piece) == "a"


def test_a_piece_is_the_exact_match_also_where_byte_fallback_tokens_come_after_it():
    tokenizer = prepared("SentencePiece BPE with a leading space, pieces before bytes")
    names = tokenizer.encoder.tokenizer.convert_ids_to_tokens
    ((encoded,),) = [text.ids.tolist()[1:] for text in tokenizer.encoder.encode_batch(["\n"])]
    assert names(encoded) == "\n"
    assert ids_by_bytes(tokenizer.encoder.token_bytes)[b"\n"] == encoded
    assert old_tokens(tokenizer, tokenizer)[encoded] == [encoded]


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("untie", [True, False])
def test_embeddings_are_means_of_old_ones_and_the_rest_is_the_teachers(tied, untie):
    new, old = prepared(NEW), prepared(OLD)
    teacher = llama(300, tied)
    student = transfer_model(teacher, new, old, untie=untie, pad_to_multiple_of=64)
    assert student.config.tie_word_embeddings == (tied and not untie)
    sources = old_tokens(new, old)
    ends = [
        (teacher.get_input_embeddings().weight, student.get_input_embeddings().weight),
        (teacher.get_output_embeddings().weight, student.get_output_embeddings().weight),
    ]
    for before, after in ends:
        assert len(after) == 512
        for token_id, ids in enumerate(sources):
            expected = before[ids].mean(0) if ids else before.mean(0)
            torch.testing.assert_close(after[token_id], expected)
        torch.testing.assert_close(after[-1], before.mean(0))
    assert (ends[0][1] is ends[1][1]) == (tied and not untie)
    torch.testing.assert_close(
        dict(student.model.layers.named_parameters()), dict(teacher.model.layers.named_parameters())
    )


def chat_side():
    """A tokenizer of 302 entries, two of which mark the turns of a chat."""
    tokenizer = train_tokenizer(TEXTS, 300)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    return prepare_tokenizer(tokenizer, "chat", None, None)


def test_a_teacher_under_its_own_tokenizer_is_unchanged():
    tokenizer = chat_side()
    teacher = gpt2(302)
    student = transfer_model(teacher, tokenizer, tokenizer)
    ids = torch.tensor([[0, 5, 7, 250, 300, 301]])
    torch.testing.assert_close(student(ids).logits, teacher(ids).logits)


def test_the_token_that_begins_every_text_learns_though_it_is_the_padding_token_too(tmp_path):
    new = prepared(NEW)
    student = transfer_model(llama(300, tied=False), new, prepared(OLD))
    ((begin,), padding) = new.markers["begin"], student.config.pad_token_id
    assert begin == padding
    student.save_pretrained(tmp_path)
    for model in (student, load_model(str(tmp_path))):
        model(torch.tensor([[begin, 5, 7]])).logits.logsumexp(2).sum().backward()
        assert model.get_input_embeddings().weight.grad[begin].norm() > 0


def test_a_tokenizer_with_more_ids_than_the_embedding_is_an_error():
    with pytest.raises(CtdError, match="embedding has 200 entries"):
        transfer_model(llama(200), prepared(OLD), prepared(OLD))


def test_loading_what_is_no_model_is_an_error_that_names_it(tmp_path):
    with pytest.raises(UsageError, match=str(tmp_path)):
        load_model(str(tmp_path))


def test_a_head_that_does_more_than_is_known_is_refused(monkeypatch):
    model = llama(300)
    check_head(model, "tiny")
    forward = type(model).forward

    def scaled(self, **inputs):
        output = forward(self, **inputs)
        output.logits = output.logits * 2
        return output

    monkeypatch.setattr(type(model), "forward", scaled)
    with pytest.raises(CtdError, match=r"tiny: LlamaForCausalLM computes its logits"):
        check_head(model, "tiny")


def test_weights_that_give_no_numbers_are_told(tmp_path):
    model = llama(300)
    with torch.no_grad():
        model.get_input_embeddings().weight[5] = torch.nan  # as rows that no token uses may be
    check_head(model, "tiny")
    with torch.no_grad():
        model.model.norm.weight[0] = torch.nan
    with pytest.raises(CtdError, match="tiny: its logits are not finite"):
        check_head(model, "tiny")


def test_scale_and_cap_are_read_from_configs():
    from transformers import (
        CohereConfig,
        CohereForCausalLM,
        Gemma2Config,
        Gemma2ForCausalLM,
        GraniteConfig,
        GraniteForCausalLM,
    )

    shape = {
        "vocab_size": 100, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 4,
        "num_key_value_heads": 4, "head_dim": 8, "pad_token_id": 0, "bos_token_id": 0, "eos_token_id": 0,
    }  # fmt: skip
    cohere = CohereConfig(**shape, logit_scale=0.25)
    gemma = Gemma2Config(**shape, final_logit_softcapping=3.0, initializer_range=0.5)
    granite = GraniteConfig(**shape, logits_scaling=4.0)
    for architecture, config in (
        (CohereForCausalLM, cohere), (Gemma2ForCausalLM, gemma), (GraniteForCausalLM, granite),
    ):  # fmt: skip
        check_head(architecture(config).eval(), architecture.__name__)


def test_a_hub_id_stands_for_its_commit_of_today(monkeypatch):
    commits = iter(["a" * 40, "b" * 40])
    there = "transformers.utils.hub.cached_file"
    monkeypatch.setattr(there, lambda name, file: f"/cache/models--me--student/snapshots/{next(commits)}/{file}")
    assert [loaded_fingerprint("me/student") for _ in range(2)] == [f"me/student@{'a' * 40}", f"me/student@{'b' * 40}"]


def test_a_piece_of_a_word_is_spelled_as_within_a_word_where_a_tokenizer_puts_a_space_in_front():
    tokenizer = prepare_tokenizer(load_tokenizer(str(REAL["Mistral v1"])), "Mistral v1", None, None)
    names, pieces = tokenizer.encoder.tokenizer.convert_ids_to_tokens, [b"chool", b"atural", b" chool", b"\xc3"]
    spelled = [names(ids) for ids in encode_bytes(tokenizer, pieces)]
    assert spelled == [["ch", "ool"], ["at", "ural"], ["▁ch", "ool"], ["<0xC3>"]]


def test_the_fingerprint_of_weights_changes_with_them(tmp_path):
    for seed in (0, 1):
        llama(100, seed=seed).save_pretrained(tmp_path / str(seed))
    first, second = (weights_fingerprint(str(tmp_path / str(seed)), None) for seed in (0, 1))
    assert first != second
    assert first == weights_fingerprint(str(tmp_path / "0"), None)
