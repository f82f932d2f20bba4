"""A student made under its teacher's own tokenizer is its teacher, for every architecture; or it is refused by name."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from ctd_core.errors import CtdError, UsageError
from ctd_core.models import loading
from ctd_core.models.export import export_model
from ctd_core.models.language_model import HuggingFaceModel
from ctd_core.models.loading import DTYPES, check_weights, load_model
from ctd_core.models.transfer import transfer_model
from tests.support.shard_sets import prepared

OWN, OTHER = "byte-level BPE, 300", "byte-level BPE, 600"
ROWS = 320  # of the embedding: 20 more than the tokenizer has tokens
SHAPE = {
    "vocab_size": ROWS, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 128, "initializer_range": 0.3,
    "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0,
}  # fmt: skip
GPT2 = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128}
MOE = {"num_experts": 2, "num_local_experts": 2, "num_experts_per_tok": 1, "moe_intermediate_size": 32}
# By model type: what differs from SHAPE.
SUPPORTED = {
    "llama": {},
    "mistral": {},
    "mixtral": MOE,
    "qwen2": {},
    "qwen2_moe": MOE | {"shared_expert_intermediate_size": 32},
    "qwen3": {},
    "qwen3_moe": MOE,
    "gemma": {},
    "gemma2": {"final_logit_softcapping": 5.0, "attn_logit_softcapping": 10.0},
    "gemma3_text": {"sliding_window": 64, "final_logit_softcapping": None},
    "phi": {"num_key_value_heads": 4},
    "phi3": {},
    "gpt2": GPT2,
    "gpt_neo": {"num_layers": 2, "num_heads": 4, "attention_types": [[["global", "local"], 1]]},
    "gpt_neox": {},
    "gptj": GPT2 | {"rotary_dim": 4},
    "gpt_bigcode": GPT2,
    "starcoder2": {},
    "opt": {"ffn_dim": 48, "word_embed_proj_dim": 16},
    "bloom": {"n_layer": 2, "n_head": 4},
    "falcon": {"num_kv_heads": 2, "new_decoder_architecture": True},
    "olmo": {},
    "olmo2": {},
    "granite": {"logits_scaling": 4.0, "embedding_multiplier": 3.0, "attention_multiplier": 0.3},
    "cohere": {"logit_scale": 0.25},
    "cohere2": {"logit_scale": 0.25},
    "stablelm": {},
    "smollm3": {},
    "glm": {},
    "nemotron": {},
    "helium": {},
    "exaone4": {},
    "ministral": {},
    "llama4_text": MOE,
}
REFUSED = {
    "gemma3n_text": {
        "vocab_size_per_layer_input": ROWS, "hidden_size_per_layer_input": 8, "num_kv_shared_layers": 0,
        "laurel_rank": 4, "layer_types": ["full_attention"] * 2, "activation_sparsity_pattern": [0.0, 0.0],
    },
}  # fmt: skip


def make(model_type, tied, **more):
    torch.manual_seed(1)
    values = {**SHAPE, **more}
    known = AutoConfig.for_model(model_type)
    if "head_dim" not in known.to_dict():
        values.pop("head_dim")
    config = AutoConfig.for_model(model_type, **values)
    config.tie_word_embeddings = tied
    return AutoModelForCausalLM.from_config(config).eval()


def logits(model):
    return model(input_ids=torch.tensor([[0, 5, 7, 250, 299, 31]]), use_cache=False).logits


@torch.no_grad()
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("model_type", SUPPORTED)
def test_a_student_under_its_teachers_tokenizer_is_its_teacher_and_can_be_exported(model_type, tied, tmp_path):
    own, other = prepared(OWN), prepared(OTHER)
    make(model_type, tied, **SUPPORTED[model_type]).save_pretrained(tmp_path / "teacher")
    teacher = load_model(str(tmp_path / "teacher"))
    check_weights(str(tmp_path / "teacher"))
    same, weights = transfer_model(teacher, own, own), teacher.state_dict()
    assert same.state_dict().keys() == weights.keys()
    assert all(torch.equal(tensor, weights[name]) for name, tensor in same.state_dict().items())
    torch.testing.assert_close(logits(same), logits(teacher))  # some kernels' last bit depends on where weights lie
    student = transfer_model(teacher, other, own, pad_to_multiple_of=64)
    expected = logits(student)
    assert expected.isfinite().all()
    export_model(HuggingFaceModel(student), other.encoder.tokenizer, "", tmp_path / "model")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype=torch.float32).eval()
    torch.testing.assert_close(logits(again), expected)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
    assert tokenizer("it's 12 (café)")["input_ids"] == other.encoder.tokenizer("it's 12 (café)")["input_ids"]


def test_layers_are_those_of_the_text_beside_as_many_of_images():
    vision = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 28, "patch_size": 14}
    config = AutoConfig.for_model("gemma3", text_config=SHAPE, vision_config=vision, mm_tokens_per_image=4)
    model = AutoModelForCausalLM.from_config(config)
    assert len(model.model.vision_tower.encoder.layers) == 2
    assert HuggingFaceModel(model).layers is model.model.language_model.layers


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ({"temperature": 0.9, "top_p": 0.6}, {}),
        ({"do_sample": False, "top_k": 5, "repetition_penalty": 1.1}, {"repetition_penalty": 1.1}),
        ({"do_sample": True, "temperature": 0.6}, {"do_sample": True, "temperature": 0.6}),
        ({"do_sample": True, "temperature": 0.6, "early_stopping": True}, {"do_sample": True, "temperature": 0.6}),
        ({"pad_token_id": -1}, {}),
        ({"output_scores": True, "temperature": 0.5}, {}),
    ],
)
def test_a_generation_config_that_could_not_be_written_again_loses_what_is_not_used(given, kept, tmp_path, caplog):
    make("llama", False).save_pretrained(tmp_path)
    ids = {"bos_token_id": 1, "eos_token_id": [2, 3]}
    (tmp_path / "generation_config.json").write_text(json.dumps(ids | given))
    model = load_model(str(tmp_path))
    assert {name: getattr(model.generation_config, name) for name in ids | kept} == ids | kept
    taken = [name for name in given if name not in kept and name != "do_sample"]
    assert all(f"{name}: {given[name]}" in caplog.text for name in taken)
    student = transfer_model(model, prepared(OTHER), prepared(OWN))
    student.save_pretrained(tmp_path / "student")


@pytest.mark.parametrize(("is_fast", "expected"), [(False, torch.float32), (True, torch.bfloat16)])
def test_the_fastest_type_is_bfloat16_only_where_that_is_faster(tmp_path, monkeypatch, is_fast, expected):
    monkeypatch.setattr(loading, "has_fast_bfloat16", lambda device: is_fast)
    make("llama", False, **SUPPORTED["llama"]).save_pretrained(tmp_path)
    assert load_model(str(tmp_path), dtype="fastest").dtype == expected
    assert load_model(str(tmp_path)).dtype == torch.float32


@pytest.mark.parametrize(
    ("capabilities", "is_fast"),
    [
        ({"amx_bf16": True}, True),
        ({"avx512_bf16": True}, True),
        ({"avx512_f": True, "amx_bf16": False}, False),
        ({}, False),
    ],
)
def test_a_cpu_is_fast_in_bfloat16_where_it_has_instructions_for_it(monkeypatch, capabilities, is_fast):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    assert loading.has_fast_bfloat16(torch.device("cpu")) == is_fast


@torch.no_grad()
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("model_type", ["llama", "gemma2", "gpt2", "phi"])
def test_a_student_is_its_teacher_in_every_dtype(model_type, dtype, tmp_path):
    own = prepared(OWN)
    make(model_type, False, **SUPPORTED[model_type]).save_pretrained(tmp_path)
    teacher = load_model(str(tmp_path), dtype=dtype)
    student = transfer_model(teacher, own, own)
    assert student.dtype == DTYPES[dtype]
    assert torch.equal(logits(student), logits(teacher))


@torch.no_grad()
def test_an_output_matrix_that_the_config_denies_is_the_students_too(tmp_path):
    teacher = make("llama", tied=False)
    teacher.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": True}))
    own, loaded = prepared(OWN), load_model(str(tmp_path))
    assert torch.equal(logits(loaded), logits(teacher))
    student = transfer_model(loaded, own, own)
    assert not student.config.tie_word_embeddings
    student.save_pretrained(tmp_path / "student")
    assert torch.equal(logits(load_model(str(tmp_path / "student"))), logits(teacher))


@pytest.mark.parametrize("missing", ["model.layers.1.mlp.up_proj.weight", "lm_head.weight"])
def test_weights_that_a_file_lacks_are_told_and_not_made_up(missing, tmp_path):
    make("llama", tied=False).save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    save_file({name: tensor for name, tensor in weights.items() if name != missing}, tmp_path / "model.safetensors")
    with pytest.raises(UsageError, match=f"no weights for {missing}, which would be random"):
        load_model(str(tmp_path))
    with pytest.raises(UsageError, match=f"no weights for {missing}, which would be random"):
        check_weights(str(tmp_path))


@pytest.mark.parametrize("model_type", REFUSED)
def test_architectures_that_cannot_be_moved_are_refused_by_name(model_type):
    teacher = make(model_type, True, **REFUSED[model_type])
    with pytest.raises(CtdError, match=type(teacher).__name__):
        transfer_model(teacher, prepared(OTHER), prepared(OWN))
