"""A chat model moved to another tokenizer: it keeps its template, and stops by itself."""

import json

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer
from typer.testing import CliRunner

from ctd_core.errors import UsageError
from ctd_core.shards.files import Folder, read_manifest
from pipelines.cli import app
from tests.pipelines.test_run import ctd, only, written
from tests.support.chat_templates import CHATML
from tests.support.models import llama
from tests.support.tokenizers import TEXTS, train_tokenizer

ANSWERS = ["about two hours", "the red one", "no, thank you", "in the garden"]


@pytest.fixture(scope="module")
def chat_inputs(tmp_path_factory):
    """A chat teacher of 602 entries, and 80 conversations."""
    folder = tmp_path_factory.mktemp("chat")
    tokenizer = train_tokenizer(TEXTS, 600)
    tokenizer.add_special_tokens({"eos_token": "<|im_end|>"})
    tokenizer.add_tokens(["<|im_start|>"], special_tokens=True)
    tokenizer.chat_template = CHATML
    model = llama(len(tokenizer))
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.save_pretrained(folder / "teacher")
    tokenizer.save_pretrained(folder / "teacher")
    rows = [
        {
            "messages": [
                {"role": "user", "content": f"{TEXTS[n % len(TEXTS)]} {n}?"},
                {"role": "assistant", "content": ANSWERS[n % 4]},
            ]
        }
        for n in range(80)
    ]
    (folder / "chat.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture
def chat_config(chat_inputs, tmp_path):
    corpus = {"kind": "jsonl", "paths": [str(chat_inputs / "chat.jsonl")], "messages": "messages"}
    return {
        "name": "chat",
        "output": str(tmp_path / "runs"),
        "teacher": {"model": str(chat_inputs / "teacher")},
        "student": {"tokenizer": {"kind": "train", "vocab_size": 300}},
        "corpus": corpus | {"held_out_fraction": 0.2},
        "prepare": {"student_window_tokens": 400, "teacher_window_tokens": 400},
        "train": {"steps": 4, "batch_tokens": 800, "learning_rate": 1e-3},
        "evaluate": {"sets": {"held-out": {"kind": "held_out"}}, "gap_set": "held-out"},
        "sample": {"prompts": ["what time is it"], "max_new_tokens": 6},
    }


def test_a_runs_first_documents_are_shown_on_both_sides(chat_config, tmp_path):
    file = written(chat_config | {"student": {"tokenizer": {"kind": "bytes"}}}, tmp_path)
    shown = CliRunner().invoke(app, ["inspect", "--config", str(file), "--documents", "2", "--json"])
    assert shown.exit_code == 0, shown.output
    documents = [json.loads(line) for line in shown.stdout.splitlines()]
    assert len(documents) == 2
    for document in documents:
        for side in ("student", "teacher"):
            text = "".join(chunk[side] for chunk in document["chunks"])
            scored = "".join(chunk[side] for chunk in document["chunks"] if chunk["is_scored"])
            assert text.startswith("<|im_start|>user\n")
            assert scored.removesuffix("<|im_end|>\n") in ANSWERS
    plain = CliRunner().invoke(app, ["inspect", "--config", str(file), "--documents", "1"])
    assert "<|im_start|>assistant" in plain.stdout
    untrained = CliRunner().invoke(app, ["inspect", "--config", str(written(chat_config, tmp_path))])
    assert "not trained yet" in str(untrained.exception)


def test_a_tokenizer_without_a_template_is_refused_before_anything_starts(chat_config, tmp_path):
    student = {"tokenizer": {"kind": "bytes"}, "chat": "none"}
    with pytest.raises(UsageError, match="has no chat template, and the corpus holds conversations"):
        ctd("run", "--config", written(chat_config | {"student": student}, tmp_path), "--dry-run")


def test_what_is_no_conversation_is_told_before_anything_starts(chat_config, tmp_path):
    good = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    records = [{"messages": good}] * 3 + [
        {"messages": [{"content": "no role"}]},
        {"messages": [{"role": "user"}, *good]},
    ]
    file = tmp_path / "mixed.jsonl"
    file.write_text("".join(json.dumps(record) + "\n" for record in records))
    corpus = chat_config["corpus"] | {"paths": [str(file)]}
    run = written(chat_config | {"corpus": corpus}, tmp_path)
    told = CliRunner().invoke(app, ["run", "--config", str(run), "--dry-run"]).stderr
    assert f"corpus: 1 of the first 5 documents will be dropped: a message without a role: {file}:line 4" in told
    assert f"a message without a content: {file}:line 5" in told
    assert "2 of the first 5 documents will be dropped, and `ctd prepare` fails where more than 1% of all are" in told
    assert "documents of each corpus: 3 warnings, see above" in told
    message = rf"none of the first 5 documents can be used: no messages in the field 'chats'.*{file}:line 1: there is "
    with pytest.raises(UsageError, match=message + r"messages\. Which .* is read, corpus\.messages says"):
        ctd("run", "--config", written(chat_config | {"corpus": corpus | {"messages": "chats"}}, tmp_path), "--dry-run")


def test_a_chat_model_keeps_its_template_under_a_new_tokenizer(chat_config, tmp_path):
    file = written(chat_config, tmp_path)
    ctd("run", "--config", file)
    run = tmp_path / "runs" / "chat"
    counts = read_manifest(Folder(only(run / "prepared", "train-*"))).counts
    assert counts.dropped_documents == 0
    assert counts.scored_chunks < counts.chunks  # the answers alone
    tokenizer, model = AutoTokenizer.from_pretrained(run / "model"), AutoModelForCausalLM.from_pretrained(run / "model")
    assert tokenizer.chat_template == CHATML
    question = [{"role": "user", "content": "what time is it"}]
    prompt = tokenizer.apply_chat_template(question, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    assert model.get_input_embeddings().weight.shape[0] == len(tokenizer)
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    eos = model.generation_config.eos_token_id
    assert end in (eos if isinstance(eos, list) else [eos])
    assert model.generate(**prompt, max_new_tokens=3, do_sample=False).shape[1] <= prompt["input_ids"].shape[1] + 3
    sample = json.loads((run / "report.json").read_text())["samples"][0]
    assert "<|im_start|>" not in sample["student"]
    assert sample["answered"] == {"teacher": True, "student": True}
