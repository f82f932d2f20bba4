"""`ctd generate`: a corpus that goes on where it was stopped."""

import json

import pytest
from filelock import FileLock
from typer.testing import CliRunner

from ctd_core.config.text import JsonLines
from ctd_core.errors import UsageError
from ctd_core.generation import sampler as sampling
from ctd_core.text.corpora import read_documents
from ctd_core.text.documents import Document
from pipelines.cli import app
from tests.support.chat_templates import chat_tokenizer
from tests.support.models import EndingSampler, llama


@pytest.fixture
def model(tmp_path, monkeypatch):
    monkeypatch.setattr("pipelines.stages.generate.TransformersSampler", EndingSampler)
    tokenizer = chat_tokenizer("ChatML")
    llama(len(tokenizer)).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def generate(model, output, documents=10, *options):
    command = ["generate", "--model", str(model), "--output", str(output), "--documents", str(documents)]
    return CliRunner().invoke(app, [*command, "--batch", "4", "--max-new-tokens", "8", *options])


@pytest.mark.parametrize("call", [1, 2, 4])  # in the first batch, and in the second
def test_a_stopped_corpus_goes_on_to_the_same_file(model, tmp_path, monkeypatch, call):
    assert generate(model, tmp_path / "whole.jsonl").exit_code == 0
    write, calls = sampling.TransformersSampler.write, []

    def until_stopped(self, *arguments):
        calls.append(1)
        if len(calls) == call:
            raise KeyboardInterrupt
        return write(self, *arguments)

    monkeypatch.setattr(sampling.TransformersSampler, "write", until_stopped)
    assert generate(model, tmp_path / "stopped.jsonl").exit_code == 130
    with (tmp_path / "stopped.jsonl").open("a") as stream:
        stream.write('{"messages": [{"ro')  # a line that was cut
    assert generate(model, tmp_path / "stopped.jsonl").exit_code == 0
    whole, stopped = ((tmp_path / name).read_bytes() for name in ("whole.jsonl", "stopped.jsonl"))
    assert whole == stopped
    corpus = JsonLines(kind="jsonl", paths=[str(tmp_path / "whole.jsonl")], messages="messages")
    documents = list(read_documents(corpus, 10**6))
    assert len(documents) == len(whole.splitlines()) > 3
    assert all(isinstance(document, Document) for document in documents)


def test_of_two_at_once_one_is_refused(model, tmp_path):
    with FileLock(tmp_path / "written.jsonl.lock"), pytest.raises(UsageError, match="another `ctd generate` writes"):
        raise generate(model, tmp_path / "written.jsonl", 4).exception


def test_a_file_of_other_settings_is_left_alone(model, tmp_path):
    assert generate(model, tmp_path / "written.jsonl", 4).exit_code == 0
    before = (tmp_path / "written.jsonl").read_bytes()
    with pytest.raises(UsageError, match="of other settings"):
        raise generate(model, tmp_path / "written.jsonl", 8, "--seed", "1").exception
    assert (tmp_path / "written.jsonl").read_bytes() == before
    assert json.loads((tmp_path / "written.jsonl.settings.json").read_text())["seed"] == 0
