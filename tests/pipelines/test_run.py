"""Whole runs on a tiny model, through the command line."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file
from tokenizers.processors import ByteLevel
from transformers import AutoModelForCausalLM, AutoTokenizer
from typer.testing import CliRunner

from ctd_core.config.run import RunConfig
from ctd_core.errors import CtdError, UsageError
from ctd_core.evaluation.metrics import TEACHER_DISTANCE
from ctd_core.models.model_config import is_byte_expanded
from ctd_core.shards.files import Folder, read_manifest
from ctd_core.text.tokenizers import END_OF_TEXT, bytes_tokenizer, save_tokenizer
from pipelines.artifacts.metrics_file import read_metrics
from pipelines.artifacts.report import Report, SetMetrics, metrics_table
from pipelines.artifacts.run_plan import plan_run
from pipelines.cli import app
from pipelines.display.progress import progress
from pipelines.stages import evaluate, measure
from pipelines.stages.export import is_exported
from pipelines.stages.prepare import prepare
from pipelines.stages.student import ensure_student
from pipelines.stages.tokenizer import ensure_tokenizer
from tests.support.models import llama
from tests.support.shard_sets import texts
from tests.support.tokenizers import TEXTS, train_tokenizer


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """A teacher of 600 entries and a corpus of 120 lines."""
    folder = tmp_path_factory.mktemp("inputs")
    llama(600).save_pretrained(folder / "teacher")
    train_tokenizer(TEXTS, 600).save_pretrained(folder / "teacher")
    (folder / "teacher" / "README.md").write_bytes("---\nlicense: mit\n---\nIn Latin-1: größer".encode("latin-1"))
    lines = [json.dumps({"text": text}) for text in texts(120)]
    (folder / "corpus.jsonl").write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture
def config(inputs, tmp_path):
    return {
        "name": "tiny",
        "output": str(tmp_path / "runs"),
        "teacher": {"model": str(inputs / "teacher")},
        "student": {"tokenizer": {"kind": "train", "vocab_size": 300}},
        "corpus": {"kind": "jsonl", "paths": [str(inputs / "corpus.jsonl")], "held_out_fraction": 0.2},
        "prepare": {"student_window_tokens": 96, "teacher_window_tokens": 96, "slice_bytes": 8000},
        "train": {
            "objectives": [{"kind": "alm"}],
            "steps": 4,
            "batch_tokens": 400,
            "gradient_accumulation": 2,
            "learning_rate": 1e-3,
            "checkpoint_every": 2,
        },
        "evaluate": {"sets": {"held-out": {"kind": "held_out"}}, "gap_set": "held-out"},
        "sample": {"prompts": ["the quick"], "max_new_tokens": 4},
    }


def ctd(*arguments):
    """Run a command in this process; its standard output, or its exception."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if result.exception is not None:
        raise result.exception
    return result.output


def written(config, tmp_path, **changes):
    file = tmp_path / "run.yaml"
    file.write_text(yaml.safe_dump(config | changes))
    return file


def only(folder, pattern):
    (found,) = Path(folder).glob(pattern)
    return found


def test_a_student_of_bytes_with_expansion_is_trained_measured_exported_and_writes_elsewhere(config, tmp_path):
    student = {"tokenizer": {"kind": "bytes"}, "byte_expansion": {"max_bytes": 8}}
    changes = {"student": student, "train": config["train"] | {"objectives": [{"kind": "prefix_kl"}]}}
    ctd("run", "--config", written(config, tmp_path, **changes))
    model = tmp_path / "runs" / "tiny" / "model"
    assert "trust_remote_code=True" in (model / "README.md").read_text()
    assert is_byte_expanded(str(model))
    assert not is_byte_expanded(config["teacher"]["model"])
    assert "inputs_embeds=model.get_input_embeddings()(all_ids)[:, -new:]" in (model / "README.md").read_text()
    assert "cross-tokenizer distillation (prefix_kl) for 4 steps" in (model / "README.md").read_text()
    code = (
        "import sys; from transformers import AutoModelForCausalLM, AutoTokenizer\n"
        "m = AutoModelForCausalLM.from_pretrained(sys.argv[1], trust_remote_code=True)\n"
        "t = AutoTokenizer.from_pretrained(sys.argv[1], trust_remote_code=True)\n"
        "ids = t('the quick', return_tensors='pt')\n"
        "outs = [m.generate(**ids, max_new_tokens=20, do_sample=False, use_cache=cached) for cached in (True, False)]\n"
        "print((outs[0] == outs[1]).all().item(), ids['input_ids'].shape[1], repr(t.decode(outs[0][0])))"
    )
    done = subprocess.run([sys.executable, "-c", code, str(model)], capture_output=True, text=True, check=True)
    same, length, text = done.stdout.split(" ", 2)
    assert (same, int(length)) == ("True", len(b"the quick") + 1)
    assert "the quick" in text


def test_a_run_prepares_trains_measures_and_exports(config, tmp_path):
    file = written(config, tmp_path)
    output = ctd("run", "--config", file)
    run = tmp_path / "runs" / "tiny"
    report = json.loads((run / "report.json").read_text())
    assert "gap closed" in output
    figures = report["sets"]["held-out"]
    assert figures["teacher"]["teacher_distance_bits_per_byte"] == 0.0
    distances = [figures[which]["teacher_distance_bits_per_byte"] for which in ("student_before", "student_after")]
    assert report["gap_closed"] == pytest.approx(1 - distances[1] / distances[0])
    assert (
        set(report["seconds"]) == {"prepare", "train", "evaluate", "export", "sample"} == set(report["peak_memory_mb"])
    )
    assert min(report["peak_memory_mb"].values()) > 100
    assert report["student_parameters"] < report["teacher_parameters"]
    assert report["samples"][0]["prompt"] == "the quick"
    lines = [json.loads(line) for line in (only(run, "train-*") / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    assert {"loss", "chunks", "padding_share", "gradient_norm", "tokens_per_second"} <= set(lines[0])

    code = (
        "import sys, torch; from transformers import AutoModelForCausalLM, AutoTokenizer\n"
        "m, t = AutoModelForCausalLM.from_pretrained(sys.argv[1]), AutoTokenizer.from_pretrained(sys.argv[1])\n"
        "out = m.generate(**t('the quick', return_tensors='pt'), max_new_tokens=4, do_sample=False)\n"
        "print(m.num_parameters(), len(t), out.shape[1])"
    )
    done = subprocess.run([sys.executable, "-c", code, str(run / "model")], capture_output=True, text=True, check=True)
    parameters, entries, _ = (int(word) for word in done.stdout.split())
    assert (parameters, entries) == (report["student_parameters"], 300)
    card = (run / "model" / "README.md").read_text()
    assert str(tmp_path) not in card  # nothing of this machine
    assert Path(config["teacher"]["model"]).name in card
    assert "pipeline_tag: text-generation" in card
    assert "license: mit" in card
    assert "held-out" in card
    trained = load_file(only(run, "train-*/step_00000004/tensors-00000.safetensors"))
    for name, parameter in AutoModelForCausalLM.from_pretrained(run / "model").named_parameters():
        assert torch.equal(parameter, trained[f"student.model.{name}"])
    assert AutoTokenizer.from_pretrained(run / "model").eos_token == "<|endoftext|>"

    done = {path: path.stat().st_mtime_ns for kind in ("prepared/*", "model") for path in run.glob(f"{kind}/*")}
    ctd("run", "--config", file)  # does nothing that is done
    assert {path: path.stat().st_mtime_ns for path in done} == done
    assert json.loads((run / "report.json").read_text()) == report
    ctd("evaluate", "--config", file)  # measures again, and keeps the rest of the report
    assert json.loads((run / "report.json").read_text()) == report
    (run / "report.json").write_text('{"of_another_version": 1}')
    ctd("evaluate", "--config", file)
    assert json.loads((run / "report.json").read_text())["sets"] == report["sets"]
    shards = {path: time for path, time in done.items() if "model" not in path.parts}
    ctd("prepare", "--config", file, "--set", "prepare.student_window_tokens=64")
    assert len(list(run.glob("prepared/train-*"))) == 2  # other options, another place
    assert {path: path.stat().st_mtime_ns for path in shards} == shards


def test_what_is_measured_while_a_training_goes_on_is_of_the_step_that_it_began_with(config, tmp_path, monkeypatch):
    file = written(config, tmp_path)
    ctd("prepare", "--config", file)
    ctd("train", "--config", file)
    run = tmp_path / "runs" / "tiny"
    last, kept = only(run, "train-*/step_00000004"), tmp_path / "kept"
    shutil.move(last, kept)

    def measure_set(*arguments, **options):
        if kept.exists():
            shutil.move(kept, last)
        return measure.measure_set(*arguments, **options)

    monkeypatch.setattr(evaluate, "measure_set", measure_set)
    ctd("evaluate", "--config", file)
    assert "/step_00000002/" in json.loads((run / "report.json").read_text())["run"]
    assert "evaluate: this training is measured already" not in ctd("run", "--config", file)
    assert "/step_00000004/" in json.loads((run / "report.json").read_text())["run"]


def test_prepare_goes_on_where_it_was_killed_and_writes_nothing_twice(config, tmp_path):
    file = written(config, tmp_path)
    ctd("prepare", "--config", file)
    with pytest.raises(UsageError, match=r"num_workers.*64 CPUs"):
        ctd("train", "--config", file, "--set", "train.num_workers=64", "--set", "train.gradient_accumulation=64")
    folder = only(tmp_path, "runs/tiny/prepared/train-*")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert len(before) > 4
    kept = folder / "shard-000000.arrow"
    for name in ("manifest.json", "shard-000001.arrow.json"):  # as if killed between a shard and its entry
        (folder / name).unlink()
    stamp = kept.stat().st_mtime_ns
    ctd("prepare", "--config", file)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert kept.stat().st_mtime_ns == stamp
    kept.unlink()  # as the error for a damaged shard says
    ctd("prepare", "--config", file)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_a_corpus_or_a_teacher_that_changes_in_the_middle_of_a_command_is_told(config, tmp_path):
    corpus, measured, teacher = tmp_path / "corpus.jsonl", tmp_path / "measured.jsonl", tmp_path / "teacher"
    for copy in (corpus, measured):
        shutil.copyfile(config["corpus"]["paths"][0], copy)
    shutil.copytree(config["teacher"]["model"], teacher)
    other = {"other": {"kind": "jsonl", "paths": [str(measured)]}}
    changes = {
        "corpus": config["corpus"] | {"paths": [str(corpus)]},
        "teacher": {"model": str(teacher)},
        "evaluate": {"sets": config["evaluate"]["sets"] | other},
    }
    plan = plan_run(RunConfig.model_validate(config | changes))
    before = corpus.read_text()
    corpus.write_text(before.replace("quick", "quack"))
    with pytest.raises(CtdError, match="corpus: it has changed since the command began"):
        prepare(plan)
    assert not plan.tokenizer.exists()
    corpus.write_text(before)
    ensure_tokenizer(plan)
    for changed in (corpus, measured):
        changed.write_text(before.replace("quick", "quack"))
    with pytest.raises(CtdError, match=r"corpus, evaluate\.sets\.other: it has changed since the command began"):
        prepare(plan)
    for changed in (corpus, measured):
        changed.write_text(before)
    rows = sum(shard.counts.rows for shard in prepare(plan)["train"].shards)
    assert rows > 0
    for folder in (tmp_path / "runs" / "tiny" / "prepared").iterdir():
        assert len(list(folder.glob("*.aside"))) == 2 * len(list(folder.glob("*.arrow"))) > 0
    weights = teacher / "model.safetensors"
    good = weights.read_bytes()
    weights.write_bytes(good[:-4] + b"\0\0\0\1")
    with pytest.raises(CtdError, match="its files have changed since the command began"):
        ensure_student(plan)
    assert not plan.init.exists()
    weights.write_bytes(good)
    ensure_student(plan)
    assert plan.init.exists()


def test_texts_of_an_evaluation_and_a_student_that_change_in_the_middle_of_a_command_are_told(
    config, tmp_path, monkeypatch
):
    measured, student = tmp_path / "measured.jsonl", tmp_path / "student"
    shutil.copyfile(config["corpus"]["paths"][0], measured)
    shutil.copytree(config["teacher"]["model"], student)
    changes = {
        "student": {"tokenizer": {"kind": "pretrained", "name": str(student)}, "model": str(student)},
        "evaluate": {"sets": {"other": {"kind": "jsonl", "paths": [str(tmp_path / "measured*.jsonl")]}}},
    }
    plan = plan_run(RunConfig.model_validate(config | changes))
    before = measured.read_text()
    measured.write_text(before.replace("quick", "quack"))
    with pytest.raises(CtdError, match=r"evaluate\.sets\.other: it has changed since the command began"):
        prepare(plan)
    prepared = tmp_path / "runs" / "tiny" / "prepared"
    kept, moved = (sorted(path.suffix for path in prepared.glob(f"{name}-*/shard-*")) for name in ("train", "other"))
    assert set(kept) == {".arrow", ".json"}
    assert set(moved) == {".aside"}

    def progress_beside_a_new_file(*arguments):
        (tmp_path / "measured-2.jsonl").write_text(before)
        return progress(*arguments)

    measured.write_text(before)
    monkeypatch.setattr("pipelines.stages.prepare.progress", progress_beside_a_new_file)
    assert prepare(plan)["other"].counts.documents == before.count("\n")
    weights = student / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4] + b"\0\0\0\1")
    with pytest.raises(CtdError, match="its files have changed since the command began"):
        ensure_student(plan)
    assert not plan.init.exists()


def test_shards_that_unlike_machines_scored_in_two_types_are_told(config, tmp_path, caplog):
    file = written(config, tmp_path)
    ctd("prepare", "--config", file)
    assert "several types" not in caplog.text
    folder = only(tmp_path, "runs/tiny/prepared/train-*")
    entry = folder / "shard-000001.arrow.json"
    assert '"scored_as":{"float32":' in entry.read_text()
    entry.write_text(entry.read_text().replace('"scored_as":{"float32":', '"scored_as":{"bfloat16":'))
    (folder / "manifest.json").unlink()
    ctd("prepare", "--config", file)
    assert "the teacher calculated in several types" in caplog.text
    assert set(read_manifest(Folder(folder)).counts.scored_as) == {"float32", "bfloat16"}


def test_two_ray_workers_with_shares_of_the_student_train_as_this_process_does(config, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config["train"]["evaluate_every"] = 2
    file = written(config, tmp_path, output="runs")  # a relative path means the same on a worker
    ctd("prepare", "--config", file)
    ctd("train", "--config", file)
    run = tmp_path / "runs" / "tiny"
    alone = read_metrics(only(run, "train-*") / "metrics.jsonl")
    only(run, "train-*").rename(tmp_path / "alone")
    ctd("train", "--config", file, "--set", "train.num_workers=2", "--set", "train.strategy=fsdp")
    together = read_metrics(only(run, "train-*") / "metrics.jsonl")
    for name in ("loss", "gradient_norm"):
        assert [line[name] for line in together] == pytest.approx([line[name] for line in alone], rel=1e-5)
    distance = "held-out_teacher_distance_bits_per_byte"
    assert together[3][distance] == pytest.approx(alone[3][distance], rel=1e-5)
    assert [line["workers"] for line in together] == [2] * 4
    ctd("evaluate", "--config", file)
    report = json.loads((run / "report.json").read_text())
    figures = report["sets"]["held-out"]["student_after"]
    assert figures["teacher_distance_bits_per_byte"] == pytest.approx(together[3][distance], rel=1e-6)


def test_a_student_with_adapters_is_its_own_teacher_and_is_exported_without_them(config, tmp_path):
    config["train"] |= {"objectives": [{"kind": "alm"}, {"kind": "uld"}], "num_workers": 2}
    config["student"] |= {"adapters": {"rank": 4}}
    output = ctd("run", "--config", written(config, tmp_path))
    assert "uld asks the teacher at every step, which is the student without its adapters" in output
    run = tmp_path / "runs" / "tiny"
    report = json.loads((run / "report.json").read_text())
    exported, before = (AutoModelForCausalLM.from_pretrained(model) for model in (run / "model", only(run, "init-*")))
    assert exported.num_parameters() == report["student_parameters"]
    assert all("lora" not in name for name in exported.state_dict())
    changed = {
        name for name, tensor in before.state_dict().items() if not torch.equal(tensor, exported.state_dict()[name])
    }
    assert {"model.embed_tokens.weight", "model.layers.1.mlp.up_proj.weight"} <= changed
    assert not any("norm" in name for name in changed)


def test_shards_of_a_second_teacher_are_of_the_template_that_the_first_one_gives_the_student(config, inputs, tmp_path):
    config["train"]["objectives"] = [{"kind": "alm"}, {"kind": "alm", "teacher": "second"}]
    config["extra_teachers"] = {"second": {"model": str(inputs / "teacher")}}
    shutil.copytree(inputs / "teacher", tmp_path / "teacher")
    config["teacher"]["model"] = str(tmp_path / "teacher")
    stamps = []
    for template in ("", "{{ messages }}"):
        (tmp_path / "teacher" / "chat_template.jinja").write_text(template)
        stamps.append(plan_run(RunConfig.model_validate(config)).training_sets["second"].stamp)
    assert stamps[0] != stamps[1]


def test_a_second_teacher_of_another_tokenizer_teaches_along(config, inputs, tmp_path):
    llama(450, seed=3).save_pretrained(tmp_path / "second")
    train_tokenizer(TEXTS[::2], 450).save_pretrained(tmp_path / "second")
    config["train"]["num_workers"] = 2
    config["train"]["objectives"] = [{"kind": "alm"}, {"kind": "alm", "weight": 0.5, "teacher": "second"}]
    config["extra_teachers"] = {"second": {"model": str(tmp_path / "second")}}
    file = written(config, tmp_path)
    ctd("prepare", "--config", file)
    ctd("train", "--config", file)
    run = tmp_path / "runs" / "tiny"
    folders = sorted(run.glob("prepared/train-*"), key=lambda folder: "second" in folder.name)
    manifests = [json.loads((folder / "manifest.json").read_text()) for folder in folders]
    assert [manifest["origin"]["config"]["teacher"]["model"] for manifest in manifests] == [
        str(inputs / "teacher"),
        str(tmp_path / "second"),
    ]
    assert manifests[0]["counts"]["text_bytes"] == manifests[1]["counts"]["text_bytes"]
    assert manifests[0]["origin"]["teacher_tokenizer"] != manifests[1]["origin"]["teacher_tokenizer"]
    for line in (only(run, "train-*") / "metrics.jsonl").read_text().splitlines():
        step = json.loads(line)
        assert step["loss"] == pytest.approx(step["loss_0_alm"] + 0.5 * step["loss_1_alm"])
        assert step["loss_0_alm"] != step["loss_1_alm"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("train.step=3", r"train\.step: there is no such field"),
        ("train.steps=many", r"train\.steps: .*integer.*'many'"),
        ("train.batch_tokens=50", r"train\.batch_tokens is 50"),
        ("corpus.paths=[missing.jsonl]", r"missing\.jsonl: no such file"),
        ("corpus.kind=xml", r"corpus: .*xml"),
        ("student.tokenizer={kind: pretrained, name: /no/such}", r"/no/such: there is no such directory or file"),
        ("teacher.model=/no/such", r"/no/such"),
        ("teacher.begin_token=<s>", r"'<s>' is none of its special tokens"),
        ("train.objectives.3.weight=1", r"there is no '3'"),
        ("steps", r"--set dotted\.path=value"),
        ("name=2024-13-45", r"--set name=2024-13-45: not YAML"),
        ("corpus.field=body", r"none of the first 100 documents .*no text in the field 'body'.*there is text"),
        ("train.use_gpu=true", r"train\.use_gpu.*no GPU"),
        (
            "train={steps: 4, objectives: [{kind: alm}], num_workers: 500, gradient_accumulation: 500}",
            r"train\.num_workers and train\.use_gpu ask for 500 CPUs and 0 GPUs at once",
        ),
        ("prepare.scoring_actors=500", r"prepare\.scoring_actors .* ask for 500 CPUs"),
        ("evaluate.tasks={names: [x], gpus: 8}", r"evaluate\.tasks\.cpus and .* ask for 1 CPUs and 8 GPUs"),
        ("output=/proc/runs", r"output: /proc/runs: cannot be written"),
        ("train.objectives=[{kind: almm}]", r"Did you mean alm\?"),
        ("evaluate.gap_sett=x", r"Did you mean gap_set\?"),
        ("train.objectives=[{kind: alm, temprature: 2}]", r"Did you mean temperature\?"),
        ("train.freeze=['[']", r"train\.freeze: '\[' is no regular expression"),
        (
            "train.freeze=[no_such]",
            r"train\.freeze: no parameter has a match of 'no_such' in its name; names are model\.",
        ),
        ("train.freeze=['^lm_head']", r"train\.freeze: no parameter has a match of '\^lm_head'"),  # it is tied
        (
            "train={steps: 4, objectives: [{kind: alm}], freeze: [layers], stages: [{steps: 1, freeze: []}, "
            "{steps: 1, freeze: [no_such]}]}",
            r"train\.stages\.1\.freeze: no parameter has a match of 'no_such'",
        ),
        ("train.stages=[{steps: 1, freeze: [no_such]}]", r"train\.stages\.0\.freeze: no parameter has a match of 'no_"),
        ("train.stages=[{steps: 1}, {steps: 1, freeze: [.]}]", r"train\.stages\.1\.freeze: it fixes every parameter"),
        (
            "train={steps: 4, weighting: gradient_magnitude, freeze: [layers], objectives: [{kind: alm}, {kind: sft}]}",
            r"train\.freeze: it fixes the last layer",
        ),
        ("student.model=some/model", r"not for one that is trained here"),
        ("prepare.teacher_window_tokens=600", r"reads 512 tokens at most"),
        ("train.objectives=[{kind: alm, teacher: second}]", r"'second' is none of extra_teachers"),
        ("extra_teachers={second: {model: /no/such}}", r"no objective learns from extra_teachers\.second"),
        ("student={tokenizer: {kind: bytes}, adapters: {targets: [q_proj, c_attn]}}", r"'c_attn' is no linear layer"),
        ("train.weighting=gradient_magnitude", r"several objectives.*name several"),
        ("train.objectives=[{kind: kd}]", r"kd compares token by token"),
        ("sample={prompts: [a], max_new_tokens: 600}", r"sample\.max_new_tokens: 600 new tokens leave no room"),
        ("sample={prompts: [" + "word " * 600 + "]}", r"sample: number 1: \d+ tokens .* more than the 512"),
    ],
)
def test_a_wrong_run_is_refused_before_anything_starts(config, tmp_path, change, message):
    with pytest.raises(UsageError, match=message):
        ctd("run", "--config", written(config, tmp_path), "--dry-run", "--set", change)
    assert not (tmp_path / "runs").exists()


def test_a_student_that_does_not_fit_what_is_asked_of_it_is_refused(config, inputs, tmp_path):
    teacher = config["teacher"]["model"]
    questions = tmp_path / "questions.jsonl"
    questions.write_text(json.dumps({"q": "the sum and the difference " * 11, "a": "4"}) + "\n")
    asked = {"corpus": {"kind": "jsonl", "paths": [str(questions)], "prompt": "q", "response": "a"}}
    own = {"kind": "pretrained", "name": teacher}
    source = {"kind": "jsonl", "paths": config["corpus"]["paths"]}
    by_message = {
        "for tokenizers of single bytes": {"student": {"tokenizer": own, "byte_expansion": {}}},
        "bytes is not that of student.model": {"student": {"tokenizer": {"kind": "bytes"}, "model": teacher}},
        r"own: number 1: 29\d tokens and 256 new ones are more than the 512 that the student reads": {
            "student": {"tokenizer": {"kind": "bytes"}}, "evaluate": config["evaluate"] | {"problems": {"own": asked}},
        },
        "beside a mixture of corpora, only 1": {
            "corpus": {"kind": "mixture", "held_out_fraction": 0.2, "sources": [source]},
            "train": config["train"] | {"on_policy": {"rounds": 1, "fraction": 0.5}},
        },
    }  # fmt: skip
    for message, changes in by_message.items():
        with pytest.raises(UsageError, match=message):
            ctd("run", "--config", written(config, tmp_path, **changes), "--dry-run")
    whole = {"student": {"tokenizer": own, "model": teacher, "chat": "adopt"}}
    ctd("run", "--config", written(config, tmp_path, **whole), "--dry-run")


def test_sets_and_problems_of_files_that_are_trained_on_are_told(config, tmp_path):
    def told(**evaluate):
        file = written(config, tmp_path, evaluate=config["evaluate"] | evaluate)
        return CliRunner().invoke(app, ["run", "--config", str(file), "--dry-run"]).stderr

    assert "is trained on too" not in told()
    file = config["corpus"]["paths"][0]
    seen = {"held-out": {"kind": "held_out"}, "seen": {"kind": "jsonl", "paths": [file]}}
    assert f"evaluate.sets.seen: {file} is trained on too" in told(sets=seen)
    asked = tmp_path / "asked.jsonl"
    asked.write_text(json.dumps({"text": "1 and 1?", "q": "1 and 1?", "a": "#### 2"}) + "\n")
    problems = {"own": {"corpus": {"kind": "jsonl", "paths": [str(asked)], "prompt": "q", "response": "a"}}}
    assert "is trained on too" not in told(problems=problems)
    config["corpus"]["paths"].append(str(tmp_path / "*.jsonl"))
    assert f"evaluate.problems.own: {asked} is trained on too" in told(problems=problems)
    link = tmp_path / "link.json"
    link.symlink_to(file)
    for other in (f"file://{file}", os.path.relpath(file), str(link)):
        seen["seen"]["paths"] = [other]
        assert f"evaluate.sets.seen: {other} is trained on too" in told(sets=seen)
    config["corpus"] = {"kind": "general", "held_out_fraction": 0.2}
    assert "evaluate.sets.seen: general is trained on too" in told(sets=seen | {"seen": {"kind": "general"}})


def test_tasks_through_a_chat_template_that_is_not_there_are_refused(config, tmp_path):
    tasks = {"names": ["arc_easy"], "chat_template": True}
    file = written(config, tmp_path, evaluate=config["evaluate"] | {"tasks": tasks})
    with pytest.raises(UsageError, match="chat_template: the teacher has no chat template"):
        ctd("run", "--config", file, "--dry-run")


def test_a_student_of_bytes_with_expansion_is_refused_as_a_teacher_of_other_tokens(config, tmp_path):
    student = {"tokenizer": {"kind": "bytes"}, "byte_expansion": {"max_bytes": 8}}
    plan = plan_run(RunConfig.model_validate(config | {"student": student}))
    ensure_student(plan)
    teacher = tmp_path / "teacher"
    shutil.copytree(plan.init, teacher)
    save_tokenizer(bytes_tokenizer(), teacher)
    file = written(config | {"teacher": {"model": str(teacher)}}, tmp_path)
    with pytest.raises(UsageError, match=r"teacher has student.byte_expansion.*name one in student.model"):
        ctd("run", "--config", file, "--dry-run")


def test_a_large_file_that_cannot_be_divided_is_told(config, tmp_path):
    file = tmp_path / "large.csv"
    file.write_text("text\n" + "the sum and the difference\n" * 3000)
    corpus = {"kind": "csv", "paths": [str(file)], "held_out_fraction": 0.2}
    done = CliRunner().invoke(app, ["run", "--config", str(written(config, tmp_path, corpus=corpus)), "--dry-run"])
    assert "large.csv, of 0.1 MB, cannot be divided" in done.stderr
    assert "corpus.jsonl" not in done.stderr


def test_a_changed_option_is_told_where_it_begins_another_training(config, tmp_path, caplog):
    file = written(config, tmp_path)
    ctd("prepare", "--config", file)
    ctd("train", "--config", file, "--set", "train.steps=2")
    caplog.set_level("INFO")
    ctd("train", "--config", file, "--set", "train.steps=2", "--set", "train.learning_rate=1e-4")
    (told,) = [line for line in caplog.messages if "begins from the start" in line]
    assert re.search(r"train-\w+, after step 2 \(train\.learning_rate 0\.001, here 0\.0001\)", told)
    ctd("train", "--config", file, "--set", "train.steps=2", "--set", "train.checkpoint_every=1")  # the same training
    assert sum("begins from the start" in line for line in caplog.messages) == 1
    assert "tiny" in ctd("runs", tmp_path / "runs")
    assert "trained" in ctd("runs", tmp_path / "runs")


def test_sigterm_ends_any_command_as_ctrl_c_does():
    code = (
        "import os, signal; from pipelines import __main__, cli\n"
        "cli.app.command('die')(lambda: os.kill(os.getpid(), signal.SIGTERM))\n"
        "__main__.main()"
    )
    done = subprocess.run([sys.executable, "-c", code, "die"], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (130, "ctd: stopped\n")


def test_a_student_that_is_far_from_its_teacher_or_moves_away_is_told():
    def table(after, distance=1.0):
        before = {"bits_per_byte": 9.0, TEACHER_DISTANCE.name: 8.0}
        student = {"student_before": before, "student_after": {"bits_per_byte": after, TEACHER_DISTANCE.name: distance}}
        measured = SetMetrics(text_bytes=1, chunks=1, teacher={"bits_per_byte": 1.0}, **student)
        report = Report(run="", sets={"s": measured}, gap_closed=None, teacher_parameters=1, student_parameters=1)
        return metrics_table(report).caption

    assert "s: the student is still far from its teacher, 3.00 bits per byte to 1.00" in table(3.0)
    assert "far" not in table(1.2)
    assert "s: the student moved away" in table(1.2, 8.1)
    assert "moved away" not in table(1.2)


def test_a_warm_up_that_does_not_end_is_told(config, tmp_path):
    stages = ["train.stages=[{steps: 2, warmup_steps: 2}, {steps: 1}]", "train.warmup_steps=0"]
    told = CliRunner().invoke(
        app,
        ["run", "--config", str(written(config, tmp_path)), "--dry-run", *(w for s in stages for w in ("--set", s))],
    )
    assert "train.stages.0.warmup_steps is 2, of 2 steps: the learning rate does not reach 0.001" in told.stderr
    assert told.stderr.count("does not reach") == 1


def test_a_student_made_from_its_teacher_reads_no_longer_windows(config, tmp_path):
    longer = ["--set", "prepare.student_window_tokens=600", "--set", "train.batch_tokens=600"]
    with pytest.raises(UsageError, match=r"which the student is made from: .* reads 512 tokens at most"):
        ctd("run", "--config", written(config, tmp_path), "--dry-run", *longer)


def test_a_dry_run_expects_what_then_comes(config, tmp_path):
    whole = config["prepare"] | {"slice_bytes": 100_000}  # the corpus is small enough to be the sample
    file = written(config | {"prepare": whole}, tmp_path)
    expected = CliRunner().invoke(app, ["run", "--config", str(file), "--dry-run", "--estimate"]).stderr
    ctd("prepare", "--config", file)
    counts = read_manifest(Folder(only(tmp_path / "runs" / "tiny" / "prepared", "train-*"))).counts
    assert f"student {counts.student_tokens:,}, teacher {counts.teacher_tokens:,}" in expected
    assert f"{counts.rows:,}, {counts.text_bytes / counts.chunks:.2f} bytes a chunk" in expected
    assert re.search(r"training +│ 4 steps of [\d.e-]+ s", expected)


def test_a_dry_run_prints_the_whole_run_and_writes_nothing(config, tmp_path):
    sft = ["--set", "train.objectives=[{kind: sft}]"]
    done = CliRunner().invoke(app, ["run", "--config", str(written(config, tmp_path)), "--dry-run", *sft])
    printed = yaml.safe_load(done.stdout)
    assert printed["train"]["objectives"] == [{"kind": "sft", "weight": 1.0}]
    assert printed["prepare"]["max_dropped_fraction"] == 0.01
    assert not (tmp_path / "runs").exists()


def test_a_tokenizer_file_without_its_special_tokens_is_told(config, inputs, tmp_path):
    alone = tmp_path / "tokenizer.json"
    backend = train_tokenizer(TEXTS, 600).backend_tokenizer
    backend.post_processor = ByteLevel()
    backend.save(str(alone))
    pretrained = {"kind": "pretrained", "name": str(alone)}
    for more, roles in (({}, ["begin", "end"]), ({"begin_token": END_OF_TEXT, "end_token": END_OF_TEXT}, [])):
        file = written(config | {"student": {"tokenizer": pretrained} | more}, tmp_path)
        told = CliRunner().invoke(app, ["run", "--config", str(file), "--dry-run"]).stderr
        assert re.findall(r"Name one: student\.(\w+)_token", told) == roles


def test_a_full_disk_is_told_in_a_line_and_what_was_done_is_kept(config, tmp_path):
    file = written(config, tmp_path)
    ctd("prepare", "--config", file)
    training = plan_run(RunConfig.model_validate(config)).training
    training.mkdir()
    (training / "metrics.partial").symlink_to("/dev/full")  # becomes metrics.jsonl
    command = [sys.executable, "-m", "pipelines", "train", "--config", file]
    full = subprocess.run(command, capture_output=True, text=True)
    assert full.returncode == 1
    assert "ctd: a disk is full" in full.stderr
    assert "Traceback" not in full.stderr
    (training / "metrics.jsonl").unlink()
    subprocess.run(command, check=True, capture_output=True)
    assert len(read_metrics(training / "metrics.jsonl")) == 4


def test_a_full_disk_in_prepare_is_told_and_what_is_finished_is_kept(config, tmp_path):
    quiet, full = tmp_path / "quiet", tmp_path / "full"
    ctd("prepare", "--config", written(config, tmp_path), "--set", f"output={quiet}")
    shards = only(quiet, "tiny/prepared/train-*")
    expected = {path.name: path.read_bytes() for path in shards.iterdir()}
    folder = full / shards.relative_to(quiet)
    folder.mkdir(parents=True)
    last = max(name for name in expected if name.endswith(".arrow"))
    (folder / f".{last}.partial").symlink_to("/dev/full")  # becomes that shard
    command = [
        sys.executable,
        "-m",
        "pipelines",
        "prepare",
        "--config",
        tmp_path / "run.yaml",
        "--set",
        f"output={full}",
    ]
    failed = subprocess.run(command, capture_output=True, text=True)
    (folder / f".{last}.partial").unlink(missing_ok=True)
    assert failed.returncode == 1
    assert "No space left on device" in failed.stderr
    assert "Free some space or choose another location" in failed.stderr
    assert "Traceback" not in failed.stderr
    kept = {path: path.stat().st_mtime_ns for path in folder.glob("*.arrow")}
    assert 0 < len(kept) < len(list(shards.glob("*.arrow")))
    subprocess.run(command, check=True, capture_output=True)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == expected
    assert {path: path.stat().st_mtime_ns for path in kept} == kept


def test_what_another_machine_exported_is_not_taken_for_this_one(config, tmp_path):
    plan = plan_run(RunConfig.model_validate(config | {"output": f"file://{tmp_path / 'store'}"}))
    report = Report(run="train-1/step_1/2", sets={}, gap_closed=None, teacher_parameters=1, student_parameters=1)
    plan.model.mkdir(parents=True)
    card = plan.model / "README.md"
    card.write_text(f"Exported from `{report.run}`.")
    assert not is_exported(plan, report)  # not in the store yet
    plan.files.upload(plan.model)
    assert is_exported(plan, report)
    (tmp_path / "store" / "tiny" / "model" / "README.md").write_text("Exported from `train-3/step_1/2`.")
    assert not is_exported(plan, report)


def test_the_type_of_a_training_s_sums_is_in_its_name(config):
    def train(**more):
        return plan_run(RunConfig.model_validate(config | {"train": config["train"] | more})).training

    assert train() == train(autocast="off") == train(use_gpu=True, autocast="off")
    assert train(use_gpu=True) == train(use_gpu=True, autocast="fastest")
    assert len({train(), train(use_gpu=True), train(autocast="fastest")}) == 3


def test_files_that_are_no_runs_are_refused(tmp_path):
    twice = "name: a\ntrain: {steps: 1}\ntrain: {steps: 2}"
    for content, message in (("a: [", "not YAML"), ("- 1", "holds fields"), (twice, "train is given twice")):
        (tmp_path / "run.yaml").write_text(content)
        with pytest.raises(UsageError, match=message):
            ctd("run", "--config", tmp_path / "run.yaml")
    with pytest.raises(UsageError, match="cannot be read"):
        ctd("run", "--config", tmp_path / "missing.yaml")
    with pytest.raises(UsageError, match="either --config"):
        ctd("run")
    with pytest.raises(UsageError, match=r"no such recipe; there is .*demo"):
        ctd("run", "--recipe", "nothing")


def test_an_evaluation_set_that_is_not_prepared_is_missed_before_the_first_step(config, tmp_path):
    ctd("prepare", "--config", written(config, tmp_path))
    config["evaluate"]["sets"]["general"] = {"kind": "general"}
    with pytest.raises(CtdError, match="ctd prepare"):
        ctd("train", "--config", written(config, tmp_path), "--set", "train.evaluate_every=1")
    assert not list(tmp_path.glob("runs/tiny/train-*/metrics.jsonl"))


def test_a_teacher_that_cannot_be_loaded_is_told_as_itself(config, inputs, tmp_path):
    teacher = tmp_path / "teacher"
    shutil.copytree(inputs / "teacher", teacher)
    weights = teacher / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(UsageError, match=r"^\S+/teacher: no causal language model could be loaded"):
        ctd("prepare", "--config", written(config, tmp_path, teacher={"model": str(teacher)}))


def test_a_corpus_is_known_by_its_content_and_a_teacher_by_all_of_its_tokenizers_files(config, inputs, tmp_path):
    teacher = tmp_path / "teacher"
    shutil.copytree(inputs / "teacher", teacher)
    shutil.copy(config["corpus"]["paths"][0], tmp_path / "corpus.jsonl")
    corpus = {"kind": "jsonl", "paths": [str(tmp_path / "corpus.jsonl")]}
    config |= {"teacher": {"model": str(teacher)}, "corpus": corpus, "evaluate": {}}
    config["train"]["objectives"] = [{"kind": "sft"}]
    config["prepare"]["targets"] = False

    def location():
        return plan_run(RunConfig.model_validate(config)).datasets["train"].location

    first = location()
    os.utime(tmp_path / "corpus.jsonl")
    assert location() == first
    (teacher / "added_tokens.json").write_text("{}")
    second = location()
    (tmp_path / "corpus.jsonl").write_text('{"text": "another"}\n')
    assert len({first, second, location()}) == 3


def test_training_or_exporting_before_preparing_says_what_to_run(config, tmp_path):
    file = written(config, tmp_path, student={"tokenizer": {"kind": "bytes"}})
    with pytest.raises(CtdError, match="ctd prepare"):
        ctd("train", "--config", file)
    with pytest.raises(CtdError, match="ctd train"):
        ctd("export", "--config", file)


def unprepared(config, tmp_path, lines):
    """A run on a corpus of these lines, without anything else to make first."""
    file = tmp_path / "bad.jsonl"
    file.write_text(lines)
    changes = {
        "corpus": {"kind": "jsonl", "paths": [str(file)]},
        "evaluate": {},
        "student": {"tokenizer": {"kind": "bytes"}},
    }
    return written(config, tmp_path, **changes)


def test_an_error_on_a_worker_comes_out_as_itself(config, tmp_path):
    file = unprepared(config, tmp_path, '{"text": "fine"}\n{"text": \n')
    with pytest.raises(CtdError, match=r"^\S+/bad\.jsonl:line 2: not a line of JSON"):
        ctd("prepare", "--config", file)


def test_too_many_dropped_documents_fail_the_run_with_the_reasons(config, tmp_path):
    file = unprepared(config, tmp_path, '{"text": "fine"}\n{"text": "lone \\ud800"}\n{"text": null}\n')
    with pytest.raises(CtdError, match=r"(?s)3 documents.*no text in the field 'text': 1.*not Unicode text: 1"):
        ctd("prepare", "--config", file)
    assert not list(tmp_path.glob("runs/tiny/prepared/*/manifest.json"))
    ctd("prepare", "--config", file, "--set", "prepare.max_dropped_fraction=0.9")
    with pytest.raises(CtdError, match=r"(?s)3 documents.*not Unicode text: 1"):
        ctd("prepare", "--config", file)  # the shards are there, and hold less than is asked


def test_a_corpus_without_documents_is_refused(config, tmp_path):
    with pytest.raises(UsageError, match="there is no document in"):
        ctd("prepare", "--config", unprepared(config, tmp_path, ""))
