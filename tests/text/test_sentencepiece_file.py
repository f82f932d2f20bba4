"""tokenizer.model, which llama.cpp reads, gives the ids of the tokenizer that it was made of."""

import copy
import io
import sys

import pytest
import sentencepiece
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken

from ctd_core.models.export import export_model
from ctd_core.models.language_model import HuggingFaceModel
from ctd_core.text.sentencepiece_file import sentencepiece_file
from pipelines.teachers.tokenizers import sentencepiece_bpe
from tests.support.models import llama
from tests.support.real_tokenizers import real_encoder
from tests.support.tokenizers import TEXTS, TOTAL

PIECES = st.sampled_from([*"ab e1-=.\n\t▁é日", " " * 3, " " * 17, "the", "--------", "👩‍👩‍👧", "it is "])


def trained():
    """A SentencePiece model as Mistral's: BPE with byte fallback, a dummy prefix, and runs of spaces as pieces."""
    made = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXTS), model_writer=made, model_type="bpe", vocab_size=600, byte_fallback=True,
        add_dummy_prefix=True, remove_extra_whitespaces=False, normalization_rule_name="identity",
        character_coverage=0.99, minloglevel=2, allow_whitespace_only_pieces=True,
    )  # fmt: skip
    return made.getvalue()


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """The model as it is, and after a way through a tokenizer.json and back."""
    file = tmp_path_factory.mktemp("sentencepiece") / "tokenizer.model"
    file.write_bytes(trained())
    tokenizer = sentencepiece_bpe(file)
    original = sentencepiece.SentencePieceProcessor(model_file=str(file))
    again = sentencepiece.SentencePieceProcessor(model_proto=sentencepiece_file(tokenizer))
    return tokenizer, original, again


@given(st.lists(PIECES, max_size=20).map("".join))
def test_a_model_that_became_a_tokenizer_and_a_model_again_gives_the_same_ids(pair, text):
    tokenizer, original, again = pair
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert original.encode(text) == ids
    assert again.encode(text) == ids


@pytest.mark.slow
def test_mistrals_tokenizer_gives_the_ids_of_its_file():
    tokenizer = real_encoder("Mistral v1").tokenizer
    model = sentencepiece.SentencePieceProcessor(model_proto=sentencepiece_file(tokenizer))

    @given(st.lists(PIECES, max_size=30).map("".join))
    def promises(text):
        assert model.encode(text) == tokenizer(text, add_special_tokens=False)["input_ids"]

    promises()


def test_special_tokens_keep_their_kind_and_what_sentencepiece_would_do_otherwise_is_refused(pair):
    tokenizer = copy.deepcopy(pair[0])
    tokenizer.add_tokens([AddedToken("<|turn|>", special=True)])
    model = sentencepiece.SentencePieceProcessor(model_proto=sentencepiece_file(tokenizer))
    for name in ("<s>", "</s>", "<|turn|>"):
        assert model.is_control(tokenizer.convert_tokens_to_ids(name))
    assert (model.bos_id(), model.eos_id(), model.unk_id()) == (
        tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id,
    )  # fmt: skip
    tokenizer.add_tokens([AddedToken("[note]")])  # after it comes another space of the tokenizer's own
    assert sentencepiece_file(tokenizer) is None


def test_an_export_has_the_file_or_says_what_it_takes(pair, tmp_path, monkeypatch, caplog):
    tokenizer, _, _ = pair
    model = HuggingFaceModel(llama(len(tokenizer)))
    (there := tmp_path / "there").mkdir()
    export_model(model, tokenizer, "", there)
    assert (there / "tokenizer.model").read_bytes() == sentencepiece_file(tokenizer)
    (without := tmp_path / "without").mkdir()
    monkeypatch.setitem(sys.modules, "sentencepiece", None)
    with caplog.at_level("INFO"):
        export_model(model, tokenizer, "", without)
    assert not (without / "tokenizer.model").exists()
    assert "ctd-ray[gguf]" in caplog.text


@pytest.mark.parametrize("kind", sorted(TOTAL))
def test_only_sentencepieces_own_kind_has_such_a_file(kind):
    tokenizer = TOTAL[kind]()
    raw = sentencepiece_file(tokenizer)
    assert (raw is not None) == (kind in ("SentencePiece BPE", "SentencePiece BPE with a leading space"))
    if raw is not None:
        model = sentencepiece.SentencePieceProcessor(model_proto=raw)
        texts = [*TEXTS, " a  b", "", "   "]
        assert model.encode(texts) == tokenizer(texts, add_special_tokens=False)["input_ids"]
