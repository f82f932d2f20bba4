"""Which tokens mark the beginning and the end of a text."""

import pytest
from tokenizers import processors

from ctd_core.errors import TokenizerError
from ctd_core.text.documents import BEGIN, END
from ctd_core.text.prepared_tokenizer import prepare_tokenizer
from tests.support.tokenizers import sentencepiece_bpe, train_tokenizer


def special():
    tokenizer = sentencepiece_bpe(prefix=False)
    tokenizer.bos_token, tokenizer.eos_token = "<s>", "</s>"
    return tokenizer


def test_bos_begins_and_eos_ends():
    tokenizer = special()
    markers = prepare_tokenizer(tokenizer, "t", None, None).markers
    assert markers == {BEGIN: (tokenizer.bos_token_id,), END: (tokenizer.eos_token_id,)}


def test_what_the_tokenizer_itself_writes_before_a_text_comes_first():
    tokenizer = special()
    unk = tokenizer.convert_tokens_to_ids("<unk>")
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<unk> <s> $A </s>", special_tokens=[("<unk>", unk), ("<s>", 1), ("</s>", 2)]
    )
    assert prepare_tokenizer(tokenizer, "t", None, None).markers[BEGIN] == (unk, 1)


def test_without_bos_a_text_begins_with_eos():
    tokenizer = special()
    tokenizer.bos_token = None
    assert prepare_tokenizer(tokenizer, "t", None, None).markers[BEGIN] == (tokenizer.eos_token_id,)


def test_markers_can_be_named_and_a_wrong_name_is_an_error():
    assert prepare_tokenizer(special(), "t", "</s>", "<s>").markers == {BEGIN: (2,), END: (1,)}
    with pytest.raises(TokenizerError, match=r"t: 'the' is none of its special tokens"):
        prepare_tokenizer(train_tokenizer(["the"] * 9, 300), "t", "the", None)
