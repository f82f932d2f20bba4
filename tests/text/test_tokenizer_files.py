"""A tokenizer is what its tokenizer.json says, whatever class its config names; and so is an exported one."""

import json
import random

import pytest
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import AutoTokenizer

from ctd_core.errors import TokenizerError
from ctd_core.text.prepared_tokenizer import check_embedding, prepare_tokenizer
from ctd_core.text.token_bytes import BYTE_OF_CHARACTER
from ctd_core.text.tokenizers import load_tokenizer, save_tokenizer, train_tokenizer
from tests.support.tokenizers import TEXTS

CLASSES = [
    "PreTrainedTokenizerFast", "GPT2Tokenizer", "GPT2TokenizerFast", "LlamaTokenizer", "LlamaTokenizerFast",
    "GPTNeoXTokenizerFast", "GemmaTokenizerFast", "RobertaTokenizerFast", "CodeGenTokenizerFast", "NoSuchTokenizer",
]  # fmt: skip
PATTERN = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
PROBES = ["it's 12345 boats (café)", " a  b\n\n\tc", "<|endoftext|> x", "日本語 größer", "don't 9"]
ROLES = {"bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>"}


def backend(vocab_size=500):
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(PATTERN), "isolated"), pre_tokenizers.ByteLevel(False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=["<|endoftext|>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )  # fmt: skip
    tokenizer.train_from_iterator([*TEXTS, "it's 12345 boats don't 9876 (café)"] * 4, trainer)
    return tokenizer


def written(tokenizer, folder, **config):
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(ROLES | config))
    return folder


def test_an_exported_tokenizer_names_no_code(tmp_path):
    vocabulary = {name: number for number, name in enumerate([*BYTE_OF_CHARACTER, "<|endoftext|>"])}
    (tmp_path / "vocab.json").write_text(json.dumps(vocabulary))
    (tmp_path / "merges.txt").write_text("#version: 0.2\n")
    code = {"AutoTokenizer": ["evil/repository--evil.Slow", "evil/repository--evil.Fast"]}
    config = {"tokenizer_class": "GPT2Tokenizer", "auto_map": code, **ROLES}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
    save_tokenizer(load_tokenizer(str(tmp_path)), tmp_path / "exported")
    assert not any("evil" in file.read_text() for file in (tmp_path / "exported").iterdir())


@pytest.mark.parametrize("name", CLASSES)
def test_the_ids_are_those_of_the_file_and_stay_so_in_an_export(name, tmp_path):
    expected = backend()
    sides = {"padding_side": "left", "truncation_side": "left"}
    loaded = load_tokenizer(str(written(expected, tmp_path / "given", tokenizer_class=name, **sides)))
    save_tokenizer(loaded, tmp_path / "exported")
    (tmp_path / "exported" / "config.json").write_text(json.dumps({"model_type": "llama"}))
    again = AutoTokenizer.from_pretrained(tmp_path / "exported")
    for probe in PROBES:
        ids = expected.encode(probe).ids
        assert loaded(probe)["input_ids"] == again(probe)["input_ids"] == ids
    assert (again.bos_token, again.eos_token) == ("<|endoftext|>", "<|endoftext|>")
    assert (again.padding_side, again.truncation_side) == ("left", "left")
    saved = json.loads((tmp_path / "exported" / "tokenizer_config.json").read_text())
    assert saved["tokenizer_class"] == "PreTrainedTokenizerFast"  # which transformers 4.56 and 5 know
    assert not isinstance(saved.get("extra_special_tokens"), list)  # which 4.56 cannot read


def test_tokens_that_the_config_adds_and_roles_and_the_chat_template_are_kept(tmp_path):
    size = backend().get_vocab_size()
    added = {str(size): {"content": "<|turn|>", "special": True}}
    folder = written(
        backend(), tmp_path, added_tokens_decoder=added, chat_template="{{ messages }}", pad_token="<|turn|>"
    )
    loaded = load_tokenizer(str(folder))
    assert loaded.convert_tokens_to_ids("<|turn|>") == loaded.pad_token_id == size
    assert loaded.chat_template == "{{ messages }}"


@pytest.mark.parametrize("content", ["", "{}", '{"model": 1}'])
def test_a_file_that_is_no_tokenizer_is_an_error_that_names_it(tmp_path, content):
    folder = written(backend(), tmp_path)
    (folder / "tokenizer.json").write_text(content)
    for name in (folder, folder / "tokenizer.json"):
        with pytest.raises(TokenizerError, match=r"tokenizer\.json"):
            load_tokenizer(str(name))


def test_an_added_token_that_is_normalised_to_nothing_is_refused(tmp_path):
    tokenizer = backend()
    tokenizer.normalizer = normalizers.Replace("\u200c", "")
    tokenizer.add_tokens([AddedToken("\u200c", normalized=True)])
    with pytest.raises(TokenizerError, match="into nothing"):
        load_tokenizer(str(written(tokenizer, tmp_path)))


def test_a_text_with_a_token_beyond_the_embedding_is_dropped_and_another_models_vocabulary_refused():
    tokenizer = train_tokenizer(TEXTS, 300)
    tokenizer.add_tokens([AddedToken("<table_row>")])
    assert check_embedding(tokenizer, "t", 300) == ["<table_row>"]
    good, bad = prepare_tokenizer(tokenizer, "t", None, None, 300).encoder.encode_batch(
        ["a page", "a <table_row> in it"]
    )
    assert len(good.ids)
    assert bad.reason == "a token beyond the model's embedding"
    assert "'<table_row>' is 300" in str(bad)
    with pytest.raises(TokenizerError, match="t: its token ids reach 299, and the model's embedding has 290 entries"):
        prepare_tokenizer(tokenizer, "t", None, None, 290)


def test_training_on_text_without_a_break_is_bounded():
    text = "".join(random.Random(0).choices("ACGT", k=200_000))
    assert len(train_tokenizer([text], 270)) == 270
