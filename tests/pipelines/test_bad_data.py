"""Data that cannot be learned from: what `ctd prepare` says of it, its exit status, and that it writes nothing."""

import gzip
import json
import sys

import pytest
import yaml

from pipelines.cli import run_command_line
from tests.support.chat_templates import CHATML
from tests.support.models import llama
from tests.support.tokenizers import TEXTS, train_tokenizer

ROWS = [{"text": f"{text} {number}"} for number, text in enumerate(TEXTS * 4)]
CHAT = [{"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}] * 20
TOOLS = [row | {"tools": [{"name": "f"}]} for row in CHAT]
TWO_USERS = [{"messages": [{"role": "user", "content": "q"}] * 2 + [{"role": "assistant", "content": "a"}]}] * 20
REFUSING = "{% for m in messages %}{{ m.content }}{% endfor %}{{ raise_exception('roles must alternate') }}"


def lines(rows):
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A teacher of 602 entries with a chat template, the same without, and one whose template refuses everything."""
    folder = tmp_path_factory.mktemp("models")
    tokenizer = train_tokenizer(TEXTS, 600)
    tokenizer.add_tokens(["<|im_start|>", "<|im_end|>"], special_tokens=True)
    for name, template in (("base", None), ("chat", CHATML), ("refusing", REFUSING)):
        tokenizer.chat_template = template
        tokenizer.save_pretrained(folder / name)
        llama(len(tokenizer)).save_pretrained(folder / name)
    return folder


@pytest.fixture
def prepare(models, tmp_path, monkeypatch, capsys):
    """A function that prepares one file of such a name and content; the exit status and what was printed."""

    def run(name, content, teacher="base", **corpus):
        if content is not None:
            (tmp_path / name).write_bytes(content)
        config = {
            "name": "bad",
            "output": str(tmp_path / "runs"),
            "teacher": {"model": str(models / teacher)},
            "student": {"tokenizer": {"kind": "bytes"}, "chat": "keep" if teacher != "base" else "none"},
            "corpus": {"kind": "jsonl", "paths": [str(tmp_path / name)]} | corpus,
            "prepare": {"targets": False, "student_window_tokens": 128, "teacher_window_tokens": 128},
            "train": {"steps": 1, "objectives": [{"kind": "sft"}]},
        }
        (tmp_path / "run.yaml").write_text(yaml.safe_dump(config))
        monkeypatch.setattr(sys, "argv", ["ctd", "prepare", "--config", str(tmp_path / "run.yaml")])
        with pytest.raises(SystemExit) as end:
            run_command_line()
        return end.value.code, capsys.readouterr().err

    return run


@pytest.mark.parametrize(
    ("name", "content", "corpus", "status", "message"),
    [
        ("c.jsonl", None, {}, 2, "c.jsonl"),
        ("c.jsonl", b"", {}, 2, "there is no document in"),
        ("c.jsonl", lines(ROWS).decode().encode("utf-16"), {}, 1, "UTF-16 text. Convert it to UTF-8"),
        ("c.jsonl", b'{"text": "caf\xe9"}\n' * 20, {}, 1, "line 1: not a line of JSON ('utf-8' codec can't decode"),
        ("c.jsonl", b'{"text": "\\ud800"}\n' * 20, {}, 2, "a lone surrogate"),
        ("c.jsonl", b'{"text": ""}\n' * 20, {}, 2, "the first 20 documents are empty"),
        ("c.jsonl", b'{"text": 3}\n' * 20, {}, 2, "text"),
        ("c.jsonl", b"not json\n" * 20, {}, 1, "c.jsonl"),
        ("c.jsonl", lines(ROWS), {"field": "body"}, 2, "body"),
        ("c.json", json.dumps(ROWS).encode()[:-9], {}, 1, "c.json"),
        ("c.jsonl.gz", gzip.compress(lines(ROWS))[:-9], {}, 1, "c.jsonl.gz"),
        ("c.csv", b"body,n\na,1\n", {"kind": "csv"}, 2, "there is body, n"),
        ("c.parquet", b"PAR1 and no more", {"kind": "parquet"}, 2, "c.parquet: not a Parquet file"),
        ("c.arrow", b"ARROW1 and no more", {"kind": "arrow"}, 1, "c.arrow"),
        ("c.jsonl", lines(CHAT), {"messages": "messages"}, 2, "has no chat template"),
        ("c.jsonl", lines(ROWS), {"prompt": "q"}, 2, "response"),
        ("c.jsonl", lines(ROWS), {"weight": 0.5}, 2, "weight"),
        ("c.jsonl", lines(ROWS), {"sample_fraction": 0}, 2, "sample_fraction"),
    ],
)  # fmt: skip
def test_texts_that_cannot_be_read_are_refused_before_anything_is_written(
    prepare, tmp_path, name, content, corpus, status, message
):
    code, said = prepare(name, content, **corpus)
    assert code == status, said
    assert message in said
    assert "Traceback" not in said
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("rows", "teacher", "message"),
    [
        ([{"messages": [{"role": "usr", "content": "q"}]}] * 20, "chat", "a role that is not known"),
        ([{"messages": [{"role": "user", "content": "q"}]}] * 20, "chat", "without an assistant's message"),
        ([{"messages": "text"}] * 20, "chat", "no messages"),
        (TOOLS, "chat", "definitions of tools"),
        (TWO_USERS, "refusing", "roles must alternate"),
        (ROWS, "chat", "no messages in the field 'messages'"),
    ],
)
def test_conversations_that_cannot_be_learned_are_refused_before_anything_is_written(
    prepare, tmp_path, rows, teacher, message
):
    code, said = prepare("c.jsonl", lines(rows), teacher, messages="messages")
    assert code == 2, said
    assert message in said
    assert "Traceback" not in said
    assert not (tmp_path / "runs").exists()
