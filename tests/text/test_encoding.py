"""A text is accepted only where the tokens spell it."""

import pickle
import unicodedata

import pytest
from hypothesis import given
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from transformers import ByT5Tokenizer

from ctd_core.errors import DocumentError, TokenizerError
from ctd_core.text.encoding import EncodedPair, EncodedText, TextEncoder, encode_pairs
from ctd_core.text.tokenizers import bytes_tokenizer, load_tokenizer, train_tokenizer
from tests.support.strategies import TEXT
from tests.support.tokenizers import PARTIAL, TEXTS, TOTAL, encoder, with_normaliser, wrap


@pytest.mark.parametrize("kind", TOTAL)
def test_every_text_is_spelled_by_its_tokens(kind):
    tokenizer = encoder(kind)

    @given(TEXT)
    def spells(text):
        form = unicodedata.normalize("NFC", text) if "NFC" in kind else text
        (encoded,) = tokenizer.encode_batch([form])
        assert isinstance(encoded, EncodedText)
        pieces = [tokenizer.token_bytes.by_id[token_id] for token_id in encoded.ids]
        spelled = b"".join(pieces)
        invented = len(spelled) - len(form.encode())
        assert spelled == b" " * invented + form.encode()
        assert invented in (0, 1)
        assert invented == 0 or "leading space" in kind
        assert encoded.byte_ends.tolist() == [
            sum(map(len, pieces[: n + 1])) - invented for n in range(len(pieces))
        ]  # fmt: skip

    spells()


@pytest.mark.parametrize("kind", PARTIAL)
def test_a_character_without_a_token_drops_the_text_with_its_reason(kind):
    known, unknown = encoder(kind).encode_batch(["the quick brown fox", "the \U00012345 fox"])
    assert isinstance(known, EncodedText)
    assert isinstance(unknown, DocumentError)
    assert unknown.reason == "no token for a character"


def test_a_literal_metaspace_is_not_mistaken_for_a_space():
    (result,) = encoder("SentencePiece BPE").encode_batch(["a▁b"])
    assert isinstance(result, DocumentError)
    assert result.reason == "tokens spell another text"


def test_the_names_of_special_tokens_are_ordinary_text():
    tokenizer = encoder("byte-level BPE, 600")
    (encoded,) = tokenizer.encode_batch(["a<|endoftext|>b"])
    assert not tokenizer.token_bytes.is_special[encoded.ids].any()


def test_a_text_that_names_a_special_token_of_a_unigram_model_is_dropped_for_that_reason():
    (result,) = encoder("Unigram").encode_batch(["the </s> fox"])
    assert isinstance(result, DocumentError)
    assert result.reason == "the special token </s> in a text"


def test_added_text_that_is_looked_for_after_normalising_has_the_bytes_that_it_takes():
    tokenizer = encoder("SentencePiece BPE with a leading space, pieces before bytes")
    (encoded,) = tokenizer.encode_batch(["a fox"])
    assert encoded.ids[-1] == tokenizer.tokenizer.convert_tokens_to_ids("fox")
    assert encoded.byte_ends.tolist()[-2:] == [1, 5]


def test_dropout_is_for_training_and_not_for_shards():
    plain, dropping = (train_tokenizer(TEXTS, 600) for _ in range(2))
    dropping.backend_tokenizer.model.dropout = 0.5
    expected, *others = (
        TextEncoder(tokenizer, "some/model").encode_batch(TEXTS[:3]) for tokenizer in (plain, *[dropping] * 5)
    )
    for encodings in others:
        assert [encoding.ids.tolist() for encoding in encodings] == [encoding.ids.tolist() for encoding in expected]


@pytest.mark.parametrize("kind", TOTAL | PARTIAL)
def test_an_encoder_that_has_travelled_to_a_worker_encodes_as_before(kind):
    tokenizer = encoder(kind)
    special = [token for token, added in tokenizer.tokenizer.added_tokens_decoder.items() if added.special]
    names = tokenizer.tokenizer.convert_ids_to_tokens(special)
    given = [*TEXTS, "", "cafe\u0301", *(f"a{name}b" for name in names)]
    for before, after in zip(
        *(encoder_copy.encode_batch(given) for encoder_copy in (tokenizer, pickle.loads(pickle.dumps(tokenizer)))),
        strict=True,
    ):
        assert type(before) is type(after)
        if isinstance(before, EncodedText):
            assert before.ids.tolist() == after.ids.tolist()
            assert before.byte_ends.tolist() == after.byte_ends.tolist()


def test_decomposed_text_is_brought_to_the_form_that_both_sides_keep():
    pair, surrogate = encode_pairs(encoder("byte-level BPE with NFC"), encoder("bytes"), ["cafe\u0301", "\ud800"])
    assert isinstance(pair, EncodedPair)
    assert pair.text_bytes == "café".encode()
    assert isinstance(surrogate, DocumentError)
    assert surrogate.reason == "not Unicode text"


def test_normalisers_that_undo_each_other_drop_only_the_texts_they_fight_over():
    nfc, nfd = encoder("byte-level BPE with NFC"), TextEncoder(with_normaliser(normalizers.NFD()), "NFD")
    plain, accented = encode_pairs(nfc, nfd, ["plain", "é"])
    assert isinstance(plain, EncodedPair)
    assert isinstance(accented, DocumentError)
    assert accented.reason == "normalisers disagree"


def test_a_normaliser_that_changes_what_a_text_says_drops_that_text_alone():
    quoting = TextEncoder(with_normaliser(normalizers.Replace("``", '"')), "some/model")
    plain, quoted = encode_pairs(quoting, encoder("bytes"), ["`plain`", "``quoted''"])
    assert isinstance(plain, EncodedPair)
    assert isinstance(quoted, DocumentError)
    assert quoted.reason == "a normaliser changes the text"


@pytest.mark.parametrize(
    ("normaliser", "example"),
    [
        (normalizers.Lowercase(), "Hello World"),
        (normalizers.Sequence([normalizers.NFD(), normalizers.StripAccents()]), "naïve café Å"),
        (normalizers.Replace("\n", " "), "a\\nb"),
    ],
)
def test_a_tokenizer_that_cannot_spell_its_input_is_refused_by_name_with_an_example(normaliser, example):
    with pytest.raises(TokenizerError) as caught:
        TextEncoder(with_normaliser(normaliser), "some/model")
    assert "some/model" in str(caught.value)
    assert example in str(caught.value)


@pytest.mark.parametrize(
    "model",
    [
        models.WordPiece({"[UNK]": 0, "a": 1}, unk_token="[UNK]"),
        models.WordLevel({"[UNK]": 0, "a": 1}, unk_token="[UNK]"),
        models.BPE({"a": 0, "a</w>": 1}, [], end_of_word_suffix="</w>"),
        models.BPE({"a": 0}, []),
    ],
)
def test_models_that_lose_the_white_space_between_tokens_are_refused(model):
    backend = Tokenizer(model)
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    with pytest.raises(TokenizerError, match="some/model"):
        TextEncoder(wrap(backend), "some/model")


def test_byte_fallback_control_and_text_tokens_are_told_apart():
    token_bytes = encoder("SentencePiece BPE").token_bytes
    backend = encoder("SentencePiece BPE").tokenizer.backend_tokenizer
    assert token_bytes.by_id[backend.token_to_id("<0x0A>")] == b"\n"
    assert token_bytes.begins_pretoken[backend.token_to_id("<0x0A>")]
    assert token_bytes.by_id[backend.token_to_id("▁")] == b" "
    assert token_bytes.is_special[backend.token_to_id("<s>")]
    assert token_bytes.begins_pretoken[backend.token_to_id("<s>")]
    assert not token_bytes.begins_pretoken[backend.token_to_id("e")]


def test_the_fast_byt5_has_the_ids_of_the_slow_one():
    slow, fast = ByT5Tokenizer(), encoder("byt5")
    for text in TEXTS[:3]:
        (encoded,) = fast.encode_batch([text])
        assert encoded.ids.tolist() == slow(text, add_special_tokens=False)["input_ids"]


def test_the_bytes_tokenizer_is_bytes_and_survives_saving(tmp_path):
    bytes_tokenizer().save_pretrained(tmp_path)
    again = load_tokenizer(str(tmp_path))
    assert again("é\n")["input_ids"] == [256, *"é\n".encode()]  # as in training
    assert again("é\n", add_special_tokens=False)["input_ids"] == list("é\n".encode())
    assert again.eos_token_id == 256


def test_loading_accepts_a_tokenizer_file_and_names_one_that_is_not(tmp_path):
    train_tokenizer(TEXTS, 300).backend_tokenizer.save(str(tmp_path / "tokenizer.json"))
    assert load_tokenizer(str(tmp_path / "tokenizer.json")).is_fast
    (tmp_path / "broken.json").write_text("{}")
    for name in ("broken.json", "missing"):
        with pytest.raises(TokenizerError, match=name):
            load_tokenizer(str(tmp_path / name))


def test_a_vocabulary_too_small_for_the_bytes_is_refused():
    with pytest.raises(TokenizerError, match="257"):
        train_tokenizer(TEXTS, 256)
