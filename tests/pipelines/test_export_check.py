"""`ctd export --check` and `--push`."""

import json
from fnmatch import fnmatch

import pytest
from huggingface_hub import HfApi
from safetensors.torch import load_file, save_file

from ctd_core.errors import CtdError, UsageError
from ctd_core.models.export import export_model
from ctd_core.models.language_model import HuggingFaceModel
from pipelines.stages.export_check import check_directory, push
from tests.pipelines.test_run import config, ctd, inputs, written  # noqa: F401
from tests.support.chat_templates import chat_tokenizer
from tests.support.models import llama


@pytest.fixture
def exported(tmp_path):
    """A chat model whose generation config knew nothing of its template."""
    tokenizer = chat_tokenizer("ChatML")
    (tmp_path / "model").mkdir()
    export_model(
        HuggingFaceModel(llama(len(tokenizer), tied=False)), tokenizer, "---\ntags: []\n---\n", tmp_path / "model"
    )
    return tmp_path / "model"


def change(file, **values):
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def test_an_exported_chat_model_is_the_same_elsewhere_and_stops_at_the_ends_of_turns(exported):
    check_directory(exported)
    ends = json.loads((exported / "generation_config.json").read_text())["eos_token_id"]
    assert chat_tokenizer("ChatML").convert_tokens_to_ids("<|im_end|>") in ends


def test_what_is_not_the_same_is_named(exported, monkeypatch):
    change(exported / "generation_config.json", eos_token_id=0)
    with pytest.raises(CtdError, match=r"what it writes would not stop at <\|im_end\|>"):
        check_directory(exported)
    monkeypatch.setattr("pipelines.stages.export_check.load_tokenizer", lambda name: chat_tokenizer("Gemma"))
    with pytest.raises(CtdError, match=r"elsewhere it is not the same:\n  the tokens of 'Hello, world!' are \["):
        check_directory(exported)


def test_no_code_of_others_runs(exported, tmp_path, monkeypatch):
    ran = tmp_path / "ran"
    code = f"open({str(ran)!r}, 'w').write('x')\nraise SystemExit\n"
    (tmp_path / "torch.py").write_text(code)  # beside the model
    (exported / "modeling_evil.py").write_text(code)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    change(exported / "config.json", auto_map={"AutoModelForCausalLM": "modeling_evil.EvilModel"})
    check_directory(exported)
    assert not ran.exists()
    tokenizer, model = chat_tokenizer("ChatML"), llama(300)
    model.config.auto_map = {"AutoModelForCausalLM": "modeling_evil.EvilModel"}
    (tmp_path / "again").mkdir()
    export_model(HuggingFaceModel(model), tokenizer, "", tmp_path / "again")
    assert "auto_map" not in (tmp_path / "again" / "config.json").read_text()


def test_a_model_with_code_that_is_trusted_is_the_same_elsewhere(exported):
    (exported / "modeling_own.py").write_text(
        "from transformers import LlamaConfig, LlamaForCausalLM\n\n\n"
        "class OwnConfig(LlamaConfig):\n    model_type = 'own'\n\n\n"
        "class OwnModel(LlamaForCausalLM):\n    config_class = OwnConfig\n"
    )
    auto = {"AutoConfig": "modeling_own.OwnConfig", "AutoModelForCausalLM": "modeling_own.OwnModel"}
    change(exported / "config.json", model_type="own", architectures=["OwnModel"], auto_map=auto)
    check_directory(exported, trust_remote_code=True)


def test_a_model_that_transformers_cannot_load_is_an_error_with_its_reason(exported):
    weights = load_file(exported / "model.safetensors")
    weights["model.embed_tokens.weight"] = weights["model.embed_tokens.weight"][:4].clone()
    save_file(weights, exported / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CtdError, match="transformers cannot use it: "):
        check_directory(exported)


@pytest.mark.parametrize("is_public", [False, True])
def test_a_student_is_sent_with_its_card_and_to_the_public_with_a_licence_alone(exported, monkeypatch, is_public):
    calls = []
    monkeypatch.setattr(HfApi, "create_repo", lambda self, name, **options: calls.append((name, options)))
    monkeypatch.setattr(HfApi, "upload_folder", lambda self, **options: calls.append(options) or "https://hub/commit")
    if is_public:
        with pytest.raises(UsageError, match="the card names no licence"):
            push(exported, "org/name", is_public)
        (exported / "README.md").write_text("---\nlicense: mit\n---\n")
    assert push(exported, "org/name", is_public) == "https://hub/commit"
    assert calls[0] == ("org/name", {"private": not is_public, "exist_ok": True})
    assert calls[1]["folder_path"] == exported
    named = {file.name for file in exported.iterdir()} - {"README.md"}
    assert all(any(fnmatch(name, pattern) for pattern in calls[1]["delete_patterns"]) for name in named)


def test_what_the_hub_refuses_is_an_error_with_the_way_out(exported, monkeypatch):
    with pytest.raises(UsageError, match=r"--push a/b/c: write ORG/NAME"):
        push(exported, "a/b/c", False)

    def refuse(self, name, **options):
        raise ConnectionError("offline mode is enabled")

    monkeypatch.setattr(HfApi, "create_repo", refuse)
    with pytest.raises(CtdError, match=r"the hub refuses it \(.*offline.*\)\. Log in with `hf auth login`"):
        push(exported, "org/name", False)
    with pytest.raises(UsageError, match="--public belongs to --push"):
        ctd("export", "--recipe", "small", "--public")
