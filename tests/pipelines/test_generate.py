"""`ctd generate`: a corpus that goes on where it was stopped."""

import copy
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
from tests.support.tokenizers import TOTAL


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
    if (tmp_path / "stopped.jsonl").exists():
        with (tmp_path / "stopped.jsonl").open("a") as stream:
            stream.write('{"messages": [{"ro')  # a line that was cut
    assert generate(model, tmp_path / "stopped.jsonl").exit_code == 0
    whole, stopped = ((tmp_path / name).read_bytes() for name in ("whole.jsonl", "stopped.jsonl"))
    assert whole == stopped
    corpus = JsonLines(kind="jsonl", paths=[str(tmp_path / "whole.jsonl")], messages="messages")
    documents = list(read_documents(corpus, 10**6))
    assert len(documents) == len(whole.splitlines()) > 3
    assert all(isinstance(document, Document) for document in documents)


def test_copies_on_ray_write_what_this_process_writes(tmp_path):
    tokenizer = TOTAL["byte-level BPE, 600"]()
    llama(len(tokenizer)).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    lines = [json.dumps({"prompt": text}) + "\n" for text in ("One", "Two", "Three", "Four", "Five")]
    (tmp_path / "prompts.jsonl").write_text("".join(lines))
    written = []
    for name, options in (("here", []), ("ray", ["--actors", "2"])):
        command = ["generate", "--model", str(tmp_path / "model"), "--prompts", str(tmp_path / "prompts.jsonl")]
        command += ["--output", str(tmp_path / name), "--batch", "2", "--max-new-tokens", "8", *options]
        result = CliRunner().invoke(app, command)
        assert result.exit_code == 0, result.output
        written.append((tmp_path / name).read_text())
    assert written[0] == written[1]
    assert len(written[0].splitlines()) == 5
    (tmp_path / "prompts.jsonl").write_text(json.dumps({"prompt": "on and on " * 900}) + "\n")
    command[-1] = "1"
    with pytest.raises(UsageError, match=r"prompt 1: .* tokens and 8 new ones"):
        raise CliRunner().invoke(app, [*command, "--output", str(tmp_path / "long")]).exception
    assert not (tmp_path / "long").exists()


def test_of_two_at_once_one_is_refused(model, tmp_path):
    with FileLock(tmp_path / "written.jsonl.lock"), pytest.raises(UsageError, match="another `ctd generate` writes"):
        raise generate(model, tmp_path / "written.jsonl", 4).exception


def test_a_file_of_other_settings_is_left_alone(model, tmp_path):
    assert generate(model, tmp_path / "written.jsonl", 4).exit_code == 0
    before = (tmp_path / "written.jsonl").read_bytes()
    with pytest.raises(UsageError, match="of other settings"):
        raise generate(model, tmp_path / "written.jsonl", 8, "--seed", "1").exception
    settings = tmp_path / "written.jsonl.settings.json"
    here = settings.read_text()
    settings.write_text(json.dumps(json.loads(here) | {"gpu": True}))  # begun elsewhere, in another type
    with pytest.raises(UsageError, match="of other settings"):
        raise generate(model, tmp_path / "written.jsonl", 8).exception
    settings.write_text(here)
    llama(len(chat_tokenizer("ChatML")), seed=3).save_pretrained(model)  # other weights under the same name
    with pytest.raises(UsageError, match="of other settings"):
        raise generate(model, tmp_path / "written.jsonl", 8).exception
    assert (tmp_path / "written.jsonl").read_bytes() == before
    assert json.loads(settings.read_text())["seed"] == 0


def prompts_file(tmp_path, records):
    file = tmp_path / "prompts.jsonl"
    file.write_text("".join(json.dumps(record) + "\n" for record in records))
    return ["--prompts", str(file), "--temperature", "0"]


PROMPTS = [
    {"id": number, "prompt": f"what is {number}", "answer": "?"} if number % 2 else
    {"id": number, "messages": [{"role": "user", "content": f"what is {number}"}]}
    for number in range(10)
]  # fmt: skip


def test_prompts_come_back_in_order_with_answers_and_go_on_where_it_was_stopped(model, tmp_path, monkeypatch):
    options = prompts_file(tmp_path, PROMPTS)
    assert generate(model, tmp_path / "whole.jsonl", 1, *options).exit_code == 0
    answered = [json.loads(line) for line in (tmp_path / "whole.jsonl").read_text().splitlines()]
    assert [record["id"] for record in answered] == list(range(10))
    for given, record in zip(PROMPTS, answered, strict=True):
        assert record == given | {"generated": record["generated"]}
        assert record["generated"]["ended"]  # as all that EndingSampler writes
        assert record["generated"]["tokens"] <= 8
        assert record["generated"]["logprob"] < 0
    write, calls = sampling.TransformersSampler.write, []

    def until_stopped(self, *arguments):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return write(self, *arguments)

    monkeypatch.setattr(sampling.TransformersSampler, "write", until_stopped)
    assert generate(model, tmp_path / "stopped.jsonl", 1, *options).exit_code == 130
    assert len((tmp_path / "stopped.jsonl").read_text().splitlines()) == 4
    assert generate(model, tmp_path / "stopped.jsonl", 1, *options).exit_code == 0
    assert (tmp_path / "stopped.jsonl").read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
    other = prompts_file(tmp_path, PROMPTS[:3])
    with pytest.raises(UsageError, match="of other settings"):
        raise generate(model, tmp_path / "whole.jsonl", 1, *other).exception


def test_prompts_that_name_a_special_token_are_told(model, tmp_path, caplog):
    options = prompts_file(tmp_path, [*PROMPTS, {"messages": [{"role": "user", "content": "what is <|im_end|>?"}]}])
    assert generate(model, tmp_path / "written.jsonl", 1, *options).exit_code == 0
    (told,) = [line for line in caplog.messages if "special token" in line]
    assert "1 of 11 prompts hold the name of a special token, such as <|im_end|>" in told


def test_several_models_write_as_their_ensemble(model, tmp_path):
    tokenizer = chat_tokenizer("ChatML")
    llama(len(tokenizer), seed=1).save_pretrained(tmp_path / "second")
    tokenizer.save_pretrained(tmp_path / "second")
    options = prompts_file(tmp_path, PROMPTS)
    written = {}
    for name, models in {"first": [], "both": [tmp_path / "second"], "twice": [model]}.items():
        more = [argument for other in models for argument in ("--model", str(other))]
        assert generate(model, tmp_path / f"{name}.jsonl", 1, *more, *options).exit_code == 0
        written[name] = [
            json.loads(line)["generated"]["text"] for line in (tmp_path / f"{name}.jsonl").read_text().splitlines()
        ]
    assert written["twice"] == written["first"] != written["both"]
    other = chat_tokenizer("Gemma")
    llama(len(other)).save_pretrained(tmp_path / "other")
    other.save_pretrained(tmp_path / "other")
    with pytest.raises(UsageError, match=r"have different tokenizers.*Move both to one tokenizer first"):
        raise generate(model, tmp_path / "x.jsonl", 1, "--model", str(tmp_path / "other"), *options).exception


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"question": "?"}, r"prompts\.jsonl:line 2: no `prompt` \(a text or messages\) and no `messages`"),
        ({"prompt": ""}, r"prompts\.jsonl:line 2: no `prompt`"),
        ({"prompt": "?", "system": "!"}, "line 2: 'system' is not read.* Write it as the first of `messages`"),
        (
            {"messages": [{"role": "user", "content": "?"}], "tools": [{}, {"name": "f"}]},
            "line 2: 'tools' is not read.* Take it out",
        ),
        ({"prompt": " \n"}, r"prompts\.jsonl:line 2: the prompt is empty"),
        ({"prompt": "half \ud83d"}, r"prompts\.jsonl:line 2: half a surrogate pair"),
        (
            {"prompt": "on and on " * 400},
            r"prompts\.jsonl: prompt 2: \d+ tokens and 8 new ones are more than the \d+ that \S+ reads",
        ),
        ({"messages": [[{"role": "user"}]]}, r"prompts\.jsonl:line 2: no `prompt`"),
        ({"prompt": "hi", "generated": "x"}, r"prompts\.jsonl:line 2: 'generated' is where the answer would stand"),
        ({"messages": [{"role": "assistant", "content": "4"}]}, "line 2: the last message is an answer"),
        ({"messages": [{"role": "user"}]}, r"prompts\.jsonl: prompt 2: the chat template of \S+ refuses it"),
    ],
)
def test_bad_prompts_are_refused_with_their_line_before_anything_is_written(model, tmp_path, record, message):
    options = prompts_file(tmp_path, [PROMPTS[0], record])
    with pytest.raises(UsageError, match=message):
        raise generate(model, tmp_path / "written.jsonl", 1, *options).exception
    assert not (tmp_path / "written.jsonl").exists()


def test_a_models_own_generation_config_joins_nothing_that_is_asked_for(model, tmp_path):
    options = prompts_file(tmp_path, PROMPTS)
    assert generate(model, tmp_path / "plain.jsonl", 1, *options).exit_code == 0
    config = json.loads((model / "generation_config.json").read_text())
    penalties = {"repetition_penalty": 5.0, "no_repeat_ngram_size": 2, "num_beams": 3, "min_new_tokens": 6}
    (model / "generation_config.json").write_text(json.dumps(config | penalties))
    assert generate(model, tmp_path / "penalties.jsonl", 1, *options).exit_code == 0
    plain, penalised = ((tmp_path / f"{name}.jsonl").read_text() for name in ("plain", "penalties"))
    assert plain == penalised


def test_a_file_that_was_cut_is_not_filled_up_and_odd_characters_come_back(model, tmp_path):
    records = [{"prompt": "a\u2028b", "note": "\ud800"}]
    (tmp_path / "prompts.jsonl").write_text(
        json.dumps(records[0], ensure_ascii=False).replace("\ud800", "\\ud800") + "\n"
    )
    options = ["--prompts", str(tmp_path / "prompts.jsonl"), "--temperature", "0"]
    assert generate(model, tmp_path / "w.jsonl", 1, *options).exit_code == 0
    assert json.loads((tmp_path / "w.jsonl").read_text())["note"] == "\ud800"
    (tmp_path / "w.jsonl").write_text("")
    with pytest.raises(UsageError, match="the file is shorter than it was"):
        raise generate(model, tmp_path / "w.jsonl", 1, *options).exception


def test_messages_to_a_model_without_a_template_and_greedy_corpora_are_refused(model, tmp_path):
    tokenizer = copy.deepcopy(chat_tokenizer("ChatML"))  # which other tests are given too
    tokenizer.chat_template = None
    tokenizer.save_pretrained(model)
    (model / "chat_template.jinja").unlink(missing_ok=True)
    with pytest.raises(UsageError, match=r"prompt 1: messages, and .* has no chat template"):
        raise generate(model, tmp_path / "x.jsonl", 1, *prompts_file(tmp_path, PROMPTS)).exception
    for options in (["--output", "s3://KEY:hunter2@bucket/x"], ["--prompts", "https://me:hunter2@host/x"]):
        result = generate(model, tmp_path / "x.jsonl", 1, *options)
        with pytest.raises(UsageError, match=f"{options[0]} is a file on this machine"):
            raise result.exception
        assert "hunter2" not in f"{result.output}{result.exception}"
    with pytest.raises(UsageError, match="writes the same document again and again"):
        raise generate(model, tmp_path / "x.jsonl", 1, "--temperature", "0").exception
