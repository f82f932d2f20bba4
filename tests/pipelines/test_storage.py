"""Runs on a store that speaks S3's protocol, and is slow and refuses requests at times: as on a disk."""

import json
from pathlib import Path

import pytest
import ray
import yaml
from pyarrow import fs
from transformers import AutoModelForCausalLM

from ctd_core.storage.locations import file_system, names_in
from tests.pipelines.test_run import config, ctd, inputs, only, written  # noqa: F401  # fixtures
from tests.support.stores import s3_store


@pytest.fixture
def store(faults):
    with s3_store("bucket", troubles=0.2) as (head, tail, troubled):
        yield lambda key: f"{head}/{key}{tail}"
        faults += ["a store that is slow, and answers 500"] * troubled.refused
        assert troubled.refused > 20


def losses(folder, run="runs/tiny"):
    lines = (only(folder, f"{run}/train-*") / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["loss"] for line in lines]


def test_a_run_on_s3_is_one_on_a_disk(store, config, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    local = written(config, tmp_path)
    ctd("prepare", "--config", local)
    ctd("train", "--config", local)
    shards = {file.name: file.read_bytes() for file in only(tmp_path, "runs/tiny/prepared/train-*").iterdir()}

    (corpus,) = config["corpus"]["paths"]
    files, _ = file_system(store(""))
    with files.open_output_stream("bucket/corpus.jsonl") as stream:
        stream.write(Path(corpus).read_bytes())
    config["corpus"]["paths"] = [store("*.jsonl")]
    config["prepare"]["storage"] = store("shards")
    config["output"] = str(tmp_path / "remote" / "runs")
    (tmp_path / "remote").mkdir()
    remote = written(config, tmp_path / "remote")
    ctd("prepare", "--config", remote)
    (folder,) = (
        file.path for file in files.get_file_info(fs.FileSelector("bucket/shards/tiny")) if "train-" in file.path
    )

    def stored():
        found = files.get_file_info(fs.FileSelector(folder))
        return {file.base_name: (files.open_input_file(file.path).read(), file.mtime_ns) for file in found}

    before = stored()
    arrows = {name for name in shards if name.endswith(".arrow")}
    assert {name for name in before if name.endswith(".arrow")} == arrows
    assert len(arrows) > 2
    for name in ("manifest.json", "shard-000001.arrow.json"):  # as if killed between a shard and its entry
        files.delete_file(f"{folder}/{name}")
    ctd("prepare", "--config", remote)
    after = stored()
    assert {name: content for name, (content, _) in after.items() if "manifest" not in name} == {
        name: content for name, (content, _) in before.items() if "manifest" not in name
    }
    assert after["shard-000000.arrow"] == before["shard-000000.arrow"]  # and not written again
    ctd("train", "--config", remote, "--set", "train.steps=4")
    assert losses(tmp_path / "remote") == losses(tmp_path)
    assert {file.read_bytes() for file in (tmp_path / "home/.cache/ctd/shards").iterdir()} >= {
        content for name, (content, _) in after.items() if name in arrows
    }


@pytest.fixture
def another_machine(tmp_path, monkeypatch):
    """Begins work on a machine of that name, which has nothing of any run."""

    def begin(name):
        monkeypatch.setenv("HOME", str(tmp_path / name))
        ray.shutdown()  # workers have the home of whoever started Ray
        return tmp_path / name / ".cache/ctd/runs"

    yield begin
    ray.shutdown()


def test_a_whole_run_lies_on_s3_and_goes_on_from_there_on_another_machine(store, config, tmp_path, another_machine):  # noqa: F811
    config["train"] |= {"evaluate_every": 2}
    local = written(config, tmp_path)
    ctd("prepare", "--config", local)
    ctd("train", "--config", local)

    first = another_machine("first")
    config["train"] |= {"num_workers": 2}
    config["output"] = store("runs")
    remote = written(config, tmp_path)
    ctd("prepare", "--config", remote)
    shorter = ["--set", "train.checkpoint_every=1", "--set", "train.strategy=fsdp"]
    files, _ = file_system(store(""))
    ctd("train", "--config", remote, *shorter)
    found = files.get_file_info(fs.FileSelector("bucket/runs/tiny"))
    is_folder = fs.FileType.Directory
    (training,) = (file.path for file in found if "/train-" in file.path and file.type == is_folder)
    assert [name for name in names_in(store(training.removeprefix("bucket/"))) if name.startswith("step_")] == [
        "step_00000003",
        "step_00000004",
    ]
    files.delete_file(f"{training}/step_00000004/checkpoint.json")  # as if killed while it was written
    whole = losses(tmp_path)
    assert losses(first, "*/tiny") == pytest.approx(whole, rel=1e-5)

    second = another_machine("second")
    output = ctd("run", "--config", remote, *shorter)
    assert "gap closed" in output
    assert "both are in s3://" in " ".join(output.split())
    assert losses(second, "*/tiny") == pytest.approx(whole, rel=1e-5)
    report = json.loads(only(second, "*/tiny/report.json").read_text())
    assert AutoModelForCausalLM.from_pretrained(only(second, "*/tiny/model"))
    (line,) = ctd("runs", store("runs"), "--json").splitlines()
    assert json.loads(line) | {"age_seconds": 0} == {
        "name": "tiny",
        "state": "measured",
        "working": False,
        "step": 4,
        "last": {"gap_closed": pytest.approx(report["gap_closed"])},
        "age_seconds": 0,
    }


@pytest.mark.chaos
def test_comparisons_and_searches_on_s3_are_taken_up_on_another_machine(store, config, tmp_path, another_machine):  # noqa: F811
    first = another_machine("first")
    config["train"] |= {"steps": 2, "evaluate_every": 1}
    config["output"] = store("runs")
    run, rates = str(written(config, tmp_path)), [1e-3, 1e-4]
    comparing, searching = tmp_path / "rates.yaml", tmp_path / "search.yaml"
    variants = {f"{rate:g}": {"train.learning_rate": rate} for rate in rates}
    comparing.write_text(yaml.safe_dump({"recipe": run, "seeds": [0], "variants": variants}))
    ctd("compare", "--config", comparing)
    table = json.loads(only(first, "*/tiny/comparison-rates/table.json").read_text())
    another_machine("second")
    space = {"train.learning_rate": {"grid": rates}}
    search = {"recipe": run, "space": space, "searcher": "grid", "scheduler": {"kind": "none"}}
    searching.write_text(yaml.safe_dump(search))
    best = Path(ctd("tune", "--config", searching).split()[-1]).read_text()

    third = another_machine("third")
    ctd("compare", "--config", comparing)
    assert json.loads(only(third, "*/tiny/comparison-rates/table.json").read_text()) == table
    again = Path(ctd("tune", "--config", searching, "--resume").split()[-1])
    assert again.read_text() == best
    assert not list(third.glob("*/tiny/train-*/metrics.jsonl"))  # nothing was trained here
    ctd("export", "--config", again)
    assert AutoModelForCausalLM.from_pretrained(only(third, "*/tiny/model"))
