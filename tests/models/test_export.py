"""An exported tokenizer writes before a text what stood there in training, and knows what ended it."""

import pytest
from tokenizers import processors
from transformers import AutoTokenizer, GenerationConfig

from ctd_core.models.export import export_model
from ctd_core.models.language_model import HuggingFaceModel
from ctd_core.text.prepared_tokenizer import prepare_tokenizer
from pipelines.stages.export_check import check_directory
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
    export_model(model, prepare_tokenizer(tokenizer, kind, "<begin>", None).exported, "", tmp_path)
    exported = AutoTokenizer.from_pretrained(tmp_path)
    assert exported("Hello")["input_ids"] == [begin, *plain]
    assert exported("Hello", add_special_tokens=False)["input_ids"] == plain
    assert tokenizer("Hello")["input_ids"] == plain  # the tokenizer itself stays as it was


def test_another_begin_takes_the_place_of_its_own_and_another_end_stops_it(tmp_path):
    tokenizer = TOTAL["byte-level BPE, 300"]()
    tokenizer.add_tokens(["<begin>", "<end>"], special_tokens=True)
    own, begin, end = tokenizer.eos_token_id, *tokenizer.convert_tokens_to_ids(["<begin>", "<end>"])
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=[tokenizer.eos_token, "$A"], pair=["$A", "$B"], special_tokens=[(tokenizer.eos_token, own)]
    )
    plain = tokenizer("Hello", add_special_tokens=False)["input_ids"]
    assert tokenizer("Hello")["input_ids"] == [own, *plain]
    model = llama(len(tokenizer))
    model.generation_config.eos_token_id = own
    trained = prepare_tokenizer(tokenizer, "the student's", "<begin>", "<end>").exported
    export_model(HuggingFaceModel(model), trained, "", tmp_path)
    exported = AutoTokenizer.from_pretrained(tmp_path)
    assert exported("Hello")["input_ids"] == [begin, *plain]
    assert exported.eos_token_id == end
    assert end in GenerationConfig.from_pretrained(tmp_path).eos_token_id
    check_directory(tmp_path)
