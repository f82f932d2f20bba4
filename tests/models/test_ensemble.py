"""Ensembles: averages by their definition, generation with a cache for each member, and what is refused."""

import pytest
import torch
from transformers import DynamicCache, MambaConfig, MambaForCausalLM, MixtralConfig, MixtralForCausalLM

from ctd_core.errors import UsageError
from ctd_core.models.ensemble import Ensemble, check_one_tokenizer, load_ensemble
from ctd_core.models.model_config import positions_of
from tests.models.test_byte_expansion import student_of
from tests.support.models import gpt2, llama
from tests.support.tokenizers import TEXTS, TOTAL, train_tokenizer

IDS = torch.tensor([[5, 6, 7, 8, 9, 10], [11, 12, 13, 14, 15, 16]])


def members():
    return [llama(300), gpt2(300, seed=1), llama(320, seed=2)]  # the last has rows of padding


@pytest.mark.parametrize("average", ["probabilities", "logprobs"])
def test_distributions_are_averaged_by_the_definition(average):
    models, weights = members(), [1.0, 2.0, 1.0]
    with torch.no_grad():
        found = Ensemble(models, weights, average)(IDS).logits
        logprobs = [model(IDS).logits[..., :300].log_softmax(-1) for model in models]
    shares = [weight / 4 for weight in weights]
    if average == "probabilities":
        expected = sum(share * part.exp() for share, part in zip(shares, logprobs, strict=True)).log()
    else:
        expected = sum(share * part for share, part in zip(shares, logprobs, strict=True)).log_softmax(-1)
    assert found.shape == (2, 6, 300)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found.exp().sum(-1), torch.ones(2, 6))


def test_two_of_the_same_model_are_that_model():
    model = llama(300)
    with torch.no_grad():
        expected = model(IDS).logits.log_softmax(-1)
        for average in ("probabilities", "logprobs"):
            torch.testing.assert_close(Ensemble([model, model], None, average)(IDS).logits, expected)


@pytest.mark.parametrize("average", ["probabilities", "logprobs"])
@pytest.mark.parametrize("options", [{"do_sample": False}, {"num_beams": 3, "do_sample": False}, {"do_sample": True}])
def test_with_caches_the_same_is_written_as_without(average, options):
    ensemble = Ensemble(members(), [1.0, 2.0, 1.0], average)
    ids = torch.tensor([[0, 0, 5, 6], [7, 8, 9, 10]])
    mask = torch.tensor([[0, 0, 1, 1], [1, 1, 1, 1]])
    written = []
    for use_cache in (True, False):
        torch.manual_seed(0)
        written.append(
            ensemble.generate(
                ids, attention_mask=mask, max_new_tokens=24, use_cache=use_cache, pad_token_id=0, **options
            )
        )
    assert torch.equal(*written)


def test_members_may_be_students_of_bytes_with_expansion():
    expanded, _ = student_of()
    plain = llama(expanded.get_output_embeddings().weight.shape[0], seed=5)
    ensemble = Ensemble([expanded, plain])
    ids = torch.tensor([list(b"the then")])
    written = [
        ensemble.generate(ids, max_new_tokens=16, do_sample=False, use_cache=use_cache, pad_token_id=0)
        for use_cache in (True, False)
    ]
    assert torch.equal(*written)


@pytest.mark.parametrize("pair", [(gpt2, gpt2), (gpt2, llama), (llama, gpt2)])
def test_padding_on_the_left_changes_nothing(pair):
    ensemble = Ensemble([pair[0](300), pair[1](300, seed=1)])
    alone = ensemble.generate(torch.tensor([[5, 6]]), max_new_tokens=12, do_sample=False, pad_token_id=0)[0, 2:]
    ids = torch.tensor([[0, 0, 5, 6], [7, 8, 9, 10]])
    mask = torch.tensor([[0, 0, 1, 1], [1, 1, 1, 1]])
    together = ensemble.generate(ids, attention_mask=mask, max_new_tokens=12, do_sample=False, pad_token_id=0)[0, 4:]
    assert torch.equal(alone, together)


def test_what_an_ensemble_cannot_take_is_refused_and_positions_are_heeded():
    ensemble = Ensemble([gpt2(300), gpt2(300, seed=1)])
    with torch.no_grad():
        assert not torch.equal(ensemble(IDS).logits, ensemble(IDS, position_ids=torch.arange(6)[None] + 9).logits)
    with pytest.raises(ValueError, match="not labels"):
        ensemble(IDS, labels=IDS)
    with pytest.raises(ValueError, match="cannot generate with assistant_model"):
        ensemble.generate(IDS[:1], assistant_model=gpt2(300))
    with pytest.raises(ValueError, match="cannot generate with prompt_lookup_num_tokens"):
        ensemble.generate(IDS[:1], prompt_lookup_num_tokens=3)
    short = llama(300)
    short.config.max_position_embeddings = 8
    assert Ensemble([llama(300), short]).config.max_position_embeddings == 8


def test_an_ensemble_ends_where_any_member_does_and_reads_what_all_read():
    endless, ending = llama(300), gpt2(300)
    del endless.config.max_position_embeddings
    endless.generation_config.eos_token_id, ending.generation_config.eos_token_id = None, [7, 9]
    for pair in ([endless, ending], [ending, endless]):
        ensemble = Ensemble(pair)
        assert positions_of(ensemble) == 512
        assert ensemble.generation_config.eos_token_id == [7, 9]


def test_members_with_another_kind_of_cache_write_without():
    torch.manual_seed(0)
    mamba = MambaForCausalLM(MambaConfig(vocab_size=300, hidden_size=32, num_hidden_layers=1)).eval()
    for pair in ([mamba, llama(300)], [llama(300), mamba]):
        ensemble = Ensemble(pair)
        written = ensemble.generate(IDS[:1], max_new_tokens=6, do_sample=False, pad_token_id=0)
        ids = IDS[:1]
        for _ in range(6):
            with torch.no_grad():
                ids = torch.cat([ids, ensemble(ids).logits[:, -1:].argmax(-1)], 1)
        assert torch.equal(written, ids)


def test_mixtures_of_experts_may_come_first():
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    experts = MixtralForCausalLM(
        MixtralConfig(vocab_size=300, num_key_value_heads=2, num_local_experts=4, eos_token_id=0, **sizes)
    )
    ensemble = Ensemble([experts.eval(), llama(300)])
    written = [
        ensemble.generate(IDS, max_new_tokens=12, do_sample=False, use_cache=use_cache, pad_token_id=0)
        for use_cache in (True, False)
    ]
    assert torch.equal(*written)


def test_the_members_tokenizer_is_one_with_a_chat_template_and_all_have_its_tokens(tmp_path):
    for name, rows, template in (("base", 401, None), ("chat", 401, "{{ messages }}"), ("small", 400, None)):
        tokenizer = train_tokenizer(TEXTS, 400)
        tokenizer.add_tokens(["<image>"], special_tokens=True)
        tokenizer.chat_template = template
        llama(rows).save_pretrained(tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)
    base, chat, small = (str(tmp_path / name) for name in ("base", "chat", "small"))
    for pair in ([base, chat], [chat, base]):
        assert load_ensemble(pair)[1].chat_template == "{{ messages }}"
    with pytest.raises(UsageError, match=r"small has no embeddings for <image>, which others have"):
        load_ensemble([base, small])
    load_ensemble([small, small])  # nobody writes it


def test_what_is_no_ensemble_is_refused():
    with pytest.raises(UsageError, match="two members or more"):
        Ensemble([llama(300)])
    with pytest.raises(UsageError, match="3 members need as many numbers above 0"):
        Ensemble(members(), [1.0, 2.0])
    with pytest.raises(UsageError, match="3 members need as many numbers above 0"):
        Ensemble(members(), [1.0, 2.0, 0.0])
    with pytest.raises(UsageError, match="3 members need as many numbers above 0"):
        Ensemble(members(), [1.0, 2.0, float("nan")])
    with pytest.raises(ValueError, match=r"through generate\(\)"):
        Ensemble(members())(IDS, past_key_values=DynamicCache())


def test_models_of_different_tokenizers_are_refused():
    one, same = train_tokenizer(TEXTS, 400), train_tokenizer(TEXTS, 400)
    check_one_tokenizer([one, same], ["a", "b"])
    with pytest.raises(UsageError, match=r"a and b have different tokenizers.*\d+ tokens have other ids"):
        check_one_tokenizer([one, train_tokenizer(TEXTS, 420)], ["a", "b"])
    with pytest.raises(UsageError, match="a and b have different tokenizers"):  # the same tokens, another normaliser
        check_one_tokenizer([TOTAL["byte-level BPE with NFC"](), one], ["a", "b"])
    same.chat_template = "{{ messages }}"
    check_one_tokenizer([one, same], ["a", "b"])
    one.chat_template = "{% for message in messages %}{{ message.content }}{% endfor %}"
    with pytest.raises(UsageError, match="a and b have different chat templates"):
        check_one_tokenizer([one, same], ["a", "b"])
    one.chat_template = same.chat_template
    check_one_tokenizer([one, same], ["a", "b"])
    same.add_tokens(["<|im_end|>"], special_tokens=True)
    with pytest.raises(UsageError, match=r"1 tokens have other ids, such as '<\|im_end\|>'"):
        check_one_tokenizer([one, same], ["a", "b"])
