"""Inputs that once gave wrong results without a word, as whole commands: what is right, or a refusal that says why.

Their parts have tests of their own: tests/text/test_tokenizer_files.py, tests/text/test_corpora.py,
tests/models/test_token_ids.py and tests/models/test_architectures.py.
"""

import gzip
import json
import random
import re
import time

import numpy as np
import pyarrow as pa
import pytest
import torch
from pyarrow import parquet
from tokenizers import AddedToken, normalizers
from tokenizers.processors import TemplateProcessing
from transformers import AutoModelForCausalLM, GenerationConfig

from ctd_core.errors import CtdError, UsageError
from ctd_core.shards.reading import ShardSet
from tests.pipelines.test_run import ctd, only
from tests.pipelines.test_run import written as write_run
from tests.support.models import llama
from tests.support.shard_sets import texts
from tests.text.test_tokenizer_files import backend, written

NO_TARGETS = {"evaluate": {}, "train": {"steps": 2, "objectives": [{"kind": "sft"}]}}
SPECIAL = {"special": True, "normalized": False}


def teacher(folder, tokenizer, rows, **config):
    """A small model of so many rows, with `tokenizer`."""
    llama(rows).save_pretrained(folder)
    return written(tokenizer, folder, **config)


@pytest.fixture
def case(tmp_path):
    """A function that writes the run of a case: `documents` in JSON lines, and `changes`; its file."""

    def write(documents=None, **changes):
        given = texts(60) if documents is None else documents
        (tmp_path / "docs.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in given))
        run = {
            "name": "case",
            "output": str(tmp_path / "runs"),
            "teacher": {"model": str(tmp_path / "teacher")},
            "student": {"tokenizer": {"kind": "train", "vocab_size": 400}},
            "corpus": {"kind": "jsonl", "paths": [str(tmp_path / "docs.jsonl")], "held_out_fraction": 0.1},
            "prepare": {"student_window_tokens": 128, "teacher_window_tokens": 128},
            "train": {"steps": 2, "batch_tokens": 512, "objectives": [{"kind": "alm"}]},
            "evaluate": {"gap_set": "held", "sets": {"held": {"kind": "held_out"}}},
        }
        return write_run(run | changes, tmp_path)

    return write


def shards_of(tmp_path, name):
    return ShardSet(only(tmp_path / "runs" / "case" / "prepared", f"{name}-*"), verify=True)


def test_targets_are_scored_on_the_ids_of_the_teachers_own_file(case, tmp_path):
    tokenizer = backend()
    teacher(tmp_path / "teacher", tokenizer, 500, tokenizer_class="GPT2Tokenizer")
    documents = [f"it's 12345 boats, {text}" for text in texts(40)]
    ctd("prepare", "--config", case(documents, prepare={"teacher_window_tokens": 512, "student_window_tokens": 512}))
    shards = shards_of(tmp_path, "train")
    found = {tuple(row.tolist()) for row in shards.read("teacher_ids", np.arange(len(shards)))}
    assert len(found) > 20
    assert found <= {(0, *tokenizer.encode(text).ids, 0) for text in documents}  # 0 begins and ends a text


def test_a_special_token_beyond_the_embedding_gets_a_row_and_a_text_with_one_is_dropped(case, tmp_path):
    larger = backend()
    larger.add_special_tokens([AddedToken("<image_soft>", **SPECIAL)])
    larger.add_tokens([AddedToken("<table_row>", normalized=False)])
    teacher(tmp_path / "teacher", larger, backend().get_vocab_size())
    own = backend(400)
    own.add_special_tokens([AddedToken("<image_soft>", **SPECIAL)])
    student = {"tokenizer": {"kind": "pretrained", "name": str(written(own, tmp_path / "own"))}}
    documents = [*texts(150), "A page with one <table_row> in it."]
    assert "1 documents dropped" in ctd("run", "--config", case(documents, student=student))
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "runs" / "case" / "model")
    assert torch.isfinite(model.get_input_embeddings().weight).all()


def test_ids_of_the_old_vocabulary_are_not_exported(case, tmp_path):
    teacher(tmp_path / "teacher", backend(), 500)
    old = GenerationConfig(eos_token_id=[0, 490], suppress_tokens=[450, 480], bad_words_ids=[[460], [470, 471]])
    old.save_pretrained(tmp_path / "teacher")
    ctd("run", "--config", case(sample={"prompts": ["the quick"], "max_new_tokens": 5}))
    exported = json.loads((tmp_path / "runs" / "case" / "model" / "generation_config.json").read_text())
    ids = [int(digits) for digits in re.findall(r"\d+", json.dumps({k: v for k, v in exported.items() if "_id" in k}))]
    assert max(ids) < 400
    assert not {"bad_words_ids", "suppress_tokens"} & exported.keys()


def test_a_head_that_the_config_denies_is_kept(case, tmp_path):
    torch.manual_seed(5)
    teacher(tmp_path / "teacher", backend(), 500)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "teacher")
    model.lm_head.weight = torch.nn.Parameter(torch.randn(500, model.config.hidden_size) * 0.1)
    model.config.tie_word_embeddings = False
    model.save_pretrained(tmp_path / "teacher")
    config = json.loads((tmp_path / "teacher" / "config.json").read_text())
    (tmp_path / "teacher" / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": True}))
    same = {"tokenizer": {"kind": "pretrained", "name": str(tmp_path / "teacher")}}
    file = case(student=same, train={"steps": 1, "batch_tokens": 512, "learning_rate": 1e-12})
    ctd("run", "--config", file)
    report = json.loads((tmp_path / "runs" / "case" / "report.json").read_text())
    before = report["sets"]["held"]["student_before"]
    assert before["teacher_distance_bits_per_byte"] < 1e-6
    assert before["bits_per_byte"] == pytest.approx(report["sets"]["held"]["teacher"]["bits_per_byte"], rel=1e-6)
    assert report["student_parameters"] == model.num_parameters()


def test_corpora_are_read_whatever_their_place_and_kind(case, tmp_path):
    teacher(tmp_path / "teacher", backend(), 500)
    folder = tmp_path / "corpus [v2]"
    folder.mkdir()
    lines = "".join(json.dumps({"text": text}) + "\n" for text in texts(60))
    (folder / "part-0.jsonl").write_text(lines)
    with gzip.open(folder / "part-1.jsonl.gz", "wt") as file:
        file.write(lines)
    parquet.write_table(pa.table({"text": pa.array(texts(60)).dictionary_encode()}), folder / "part-2.parquet")
    for kind, pattern in (("jsonl", "*.jsonl*"), ("parquet", "*.parquet")):
        ctd("run", "--dry-run", "--config", case(corpus={"kind": kind, "paths": [f"{folder}/{pattern}"]}, evaluate={}))
    with pytest.raises(UsageError, match="is a directory"):
        ctd("run", "--dry-run", "--config", case(corpus={"kind": "jsonl", "paths": [str(folder)]}, evaluate={}))


def test_a_tokenizer_learns_from_text_without_a_break_in_seconds(case, tmp_path):
    teacher(tmp_path / "teacher", backend(), 500)
    state = random.Random(2)
    letters = ["".join(state.choices("ACGT", k=100_000)) for _ in range(4)]
    tokenizer = {"tokenizer": {"kind": "train", "vocab_size": 1000}}
    prepare = {"student_window_tokens": 128, "teacher_window_tokens": 128, "targets": False}
    start = time.monotonic()
    ctd("prepare", "--config", case(letters, student=tokenizer, prepare=prepare, **NO_TARGETS))
    assert time.monotonic() - start < 60


def test_a_tokenizer_that_would_never_end_is_refused(tmp_path):
    endless = backend()
    endless.normalizer = normalizers.Replace("\u200c", "")
    endless.add_tokens([AddedToken("\u200c", normalized=True)])
    folder = written(endless, tmp_path / "endless")
    with pytest.raises(UsageError, match="into nothing"):
        ctd("inspect", "--student", folder, "--teacher", "bytes", "--text", "ab")


def test_a_run_that_learns_nothing_fails(case, tmp_path):
    teacher(tmp_path / "teacher", backend(), 500)
    train = {"steps": 2, "batch_tokens": 512, "objectives": [{"kind": "one_to_one_kl"}]}
    prepare = {"student_window_tokens": 128, "teacher_window_tokens": 128, "top_k": 4}
    file = case(
        [" boats" * n for n in range(3, 60)],
        student={"tokenizer": {"kind": "bytes"}}, train=train, prepare=prepare, evaluate={},
    )  # fmt: skip
    with pytest.raises(CtdError, match="nothing was learned"):
        ctd("run", "--config", file)
    assert not (tmp_path / "runs" / "case" / "model").exists()


def test_text_that_a_chat_template_was_applied_to_is_told(case, tmp_path):
    chat = backend()
    chat.add_special_tokens([AddedToken(marker, **SPECIAL) for marker in ("<|begin|>", "<|turn|>", "<|eot|>")])
    chat.post_processor = TemplateProcessing(
        single="<|begin|> $A", special_tokens=[("<|begin|>", chat.token_to_id("<|begin|>"))]
    )
    teacher(tmp_path / "teacher", chat, 503, bos_token="<|begin|>", eos_token="<|eot|>")
    documents = [f"<|begin|><|turn|>user\n\n{text}<|eot|>" for text in texts(40)]
    said = ctd("prepare", "--config", case(documents))
    assert re.search(r"\d+ of \d+ documents hold names of special tokens, such as <\|begin\|>", said)


def test_nothing_that_is_not_finite_is_exported(case, tmp_path):
    bad = backend()
    bad.add_special_tokens([AddedToken("<|unused|>", **SPECIAL)])
    model = llama(501, tied=False)
    with torch.no_grad():
        model.get_input_embeddings().weight[-1] = float("nan")
    model.save_pretrained(tmp_path / "teacher")
    written(bad, tmp_path / "teacher")
    student = {"tokenizer": {"kind": "train", "vocab_size": 400}, "pad_to_multiple_of": 64}
    ctd("run", "--config", case(student=student))
    exported = AutoModelForCausalLM.from_pretrained(tmp_path / "runs" / "case" / "model")
    assert all(torch.isfinite(tensor).all() for tensor in exported.state_dict().values())
