"""An exported tokenizer writes before a text what stood there in training."""

import pytest
from tokenizers import processors
from transformers import AutoTokenizer

from ctd_core.models.export import export_model
from ctd_core.models.language_model import HuggingFaceModel
from tests.support.models import llama
from tests.support.tokenizers import TOTAL


@pytest.mark.parametrize("kind", ["bytes", "byte-level BPE, 300", "SentencePiece BPE with a leading space"])
def test_the_begin_token_is_written_also_where_the_tokenizer_did_not(kind, tmp_path):
    tokenizer = TOTAL[kind]()
    tokenizer.add_tokens(["<begin>"], special_tokens=True)
    begin = tokenizer.convert_tokens_to_ids("<begin>")
    tokenizer.backend_tokenizer.post_processor = processors.ByteLevel()
    plain = tokenizer("Hello", add_special_tokens=False)["input_ids"]
    model = HuggingFaceModel(llama(len(tokenizer)))
    export_model(model, tokenizer, "", tmp_path, [begin])
    exported = AutoTokenizer.from_pretrained(tmp_path)
    assert exported("Hello")["input_ids"] == [begin, *plain]
    assert exported("Hello", add_special_tokens=False)["input_ids"] == plain
    assert tokenizer("Hello")["input_ids"] == plain  # the tokenizer itself stays as it was
