"""Token ids in configs are the student's, or taken out and reported."""

import json
import logging

import pytest
import torch
from transformers import GenerationConfig

from ctd_core.errors import CtdError, UsageError
from ctd_core.models.export import export_model
from ctd_core.models.language_model import HuggingFaceModel
from ctd_core.models.loading import load_model
from ctd_core.models.model_config import check_learnable, check_origin, read_model_config
from ctd_core.models.transfer import transfer_model
from tests.support.models import llama
from tests.support.shard_sets import prepared

OLD, NEW = "byte-level BPE, 300", "byte-level BPE, 600"


def test_ids_in_configs_become_the_students_or_are_taken_out_and_reported(caplog):
    new, old = prepared("bytes"), prepared(OLD)
    teacher = llama(300)
    longer = [token for token, raw in enumerate(old.encoder.token_bytes.by_id) if raw and len(raw) > 1]
    letter = old.encoder.token_bytes.by_id.index(b"a")
    config, end = teacher.generation_config, old.encoder.tokenizer.eos_token_id
    config.eos_token_id = [end, letter, longer[0]]
    config.suppress_tokens = [letter, longer[1]]
    config.bad_words_ids = [[letter, letter], [letter, longer[2]]]
    config.begin_suppress_tokens = [longer[3]]
    config.forced_eos_token_id = letter
    config.repetition_penalty, config.no_repeat_ngram_size, config.temperature = 1.1, 3, 0.7
    teacher.config.image_token_id = longer[4]
    with caplog.at_level(logging.WARNING):
        student = transfer_model(teacher, new, old)
    found = student.generation_config
    assert found.eos_token_id == [new.encoder.tokenizer.eos_token_id, ord("a")]
    assert found.suppress_tokens == [ord("a")]
    assert found.bad_words_ids == [[ord("a"), ord("a")]]
    assert found.begin_suppress_tokens is None
    assert found.forced_eos_token_id == ord("a")
    assert student.config.image_token_id == -1  # models compare it with the ids of a text
    usual = GenerationConfig()
    assert (found.repetition_penalty, found.no_repeat_ngram_size) == (
        usual.repetition_penalty, usual.no_repeat_ngram_size
    )  # fmt: skip
    assert found.temperature == 0.7
    assert "repetition_penalty: 1.1, no_repeat_ngram_size: 3" in caplog.text
    assert transfer_model(teacher, old, old).generation_config.repetition_penalty == 1.1
    for lost in longer[:5]:
        assert str(lost) in caplog.text


def test_rows_that_are_not_finite_are_in_no_mean_and_named(caplog, tmp_path):
    new, old = prepared(NEW), prepared(OLD)
    teacher = llama(300, tied=False)
    with torch.no_grad():
        teacher.get_input_embeddings().weight[70] = torch.nan
        teacher.get_output_embeddings().weight[71, 3] = torch.inf
    student = transfer_model(teacher, new, old, pad_to_multiple_of=64)
    assert all(parameter.isfinite().all() for parameter in student.parameters())
    names = old.encoder.tokenizer.convert_ids_to_tokens([70, 71])
    assert all(f"{row} ({name})" in caplog.text for row, name in zip((70, 71), names, strict=True))
    with torch.no_grad():
        student.model.layers[0].mlp.up_proj.weight[0, 0] = torch.nan
    with pytest.raises(CtdError, match=r"layers\.0\.mlp\.up_proj\.weight holds numbers that are not finite"):
        export_model(HuggingFaceModel(student), new.encoder.tokenizer, "", tmp_path)


def test_a_special_token_beyond_the_embedding_begins_as_the_mean():
    teacher = llama(300)
    tokenizer = prepared(OLD).encoder.tokenizer
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    from ctd_core.text.prepared_tokenizer import prepare_tokenizer

    old = prepare_tokenizer(tokenizer, "old", None, None, 300)
    student = transfer_model(teacher, old, old)
    rows = student.get_input_embeddings().weight
    assert len(rows) == 301
    torch.testing.assert_close(rows[300], teacher.get_input_embeddings().weight.mean(0))


def test_code_beside_a_model_is_not_run_unless_it_is_trusted(tmp_path):
    trace = tmp_path / "it ran"
    lines = [f"open({str(trace)!r}, 'w')", "from transformers import LlamaConfig", "class Own(LlamaConfig): pass"]
    (tmp_path / "own.py").write_text("\n".join(lines))
    auto = {"AutoConfig": "own.Own", "AutoModelForCausalLM": "own.Own"}
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "own", "auto_map": auto}))
    for load in (read_model_config, load_model):
        with pytest.raises(UsageError, match="trust_remote_code: true"):
            load(str(tmp_path))
    assert not trace.exists()


def test_models_that_no_student_can_come_from_are_told_by_their_configs(tmp_path):
    def is_written(**values):
        (tmp_path / "config.json").write_text(json.dumps(values))

    is_written(model_type="rwkv")
    with pytest.raises(UsageError, match="RWKV is not supported"):
        read_model_config(str(tmp_path))
    is_written(model_type="llama", quantization_config={"quant_method": "awq"})
    with pytest.raises(UsageError, match="weights quantised by awq, so no student"):
        check_origin(str(tmp_path), None, False, same_vocabulary=True)
    with pytest.raises(UsageError, match=r"student\.model: .* quantised by awq, which do not learn"):
        check_learnable(str(tmp_path), None, False)
    is_written(model_type="llama", quantization_config={"quant_method": "mxfp4"})
    check_origin(str(tmp_path), None, False, same_vocabulary=False)


def test_a_directory_of_adapters_and_a_missing_one_are_told_apart(tmp_path):
    (tmp_path / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "some/base"}))
    with pytest.raises(UsageError, match=r"LoRA adapters of some/base.*merge_and_unload"):
        load_model(str(tmp_path))
    with pytest.raises(UsageError, match="there is no such directory"):
        load_model(str(tmp_path / "typo"))
