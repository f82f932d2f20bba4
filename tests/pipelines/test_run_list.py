"""`ctd runs` on directories as the stages leave them."""

import json
import os
import time

import pytest
from typer.testing import CliRunner

from ctd_core.errors import UsageError
from pipelines.artifacts.locks import stage_lock
from pipelines.artifacts.remote_copy import RunFiles
from pipelines.cli import app


def put(file, text, age):
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
    os.utime(file, (time.time() - age,) * 2)


def metrics(steps):
    lines = [
        {"step": n, "loss": 1 / n} | ({"general_teacher_distance_bits_per_byte": 0.5} if n == 2 else {}) for n in steps
    ]
    return "".join(json.dumps(line) + "\n" for line in lines)


def test_every_run_is_listed_with_its_state_its_figures_and_its_age(tmp_path):
    put(tmp_path / "a/prepared/train-1/shard-000000.arrow", "", 10_000)
    put(tmp_path / "b/prepared/train-1/shard-000000.arrow", "", 5000)
    put(tmp_path / "b/prepared/train-1/manifest.json", "", 5000)
    for name in ("c", "d"):
        put(tmp_path / name / "prepared/train-1/manifest.json", "", 4000)
        put(tmp_path / name / "train-1/metrics.jsonl", metrics([1, 2]), 3000)
        put(tmp_path / name / "train-2/metrics.jsonl", metrics([1, 2, 3]) + '{"step": 4', 2000)
    put(tmp_path / "d/report.json", json.dumps({"run": "train-1/step_00000002/x", "gap_closed": 0.25}), 1000)
    put(tmp_path / "e/report.json", "{}", 20_000)  # of another version
    put(tmp_path / "tokenizers/tokenizer.json", "", 0)  # no run

    put(tmp_path / "f/train-1/metrics.jsonl", metrics([1, 2, 3]), 30_000)
    put(tmp_path / "f/train-1/options.json", '{"train": {"steps": 3}}', 40_000)
    put(tmp_path / "c/train-2/options.json", '{"train": {"steps": 4}}', 40_000)

    with stage_lock(RunFiles(tmp_path / "c", None), "train-2"):
        result = CliRunner().invoke(app, ["runs", str(tmp_path), "--json"])
    found = [json.loads(line) for line in result.output.splitlines()]
    assert [run.pop("age_seconds") for run in found] == pytest.approx(
        [1000, 2000, 5000, 10_000, 20_000, 30_000], abs=300
    )
    assert found == [
        {"name": "d", "state": "measured", "working": False, "step": 2, "last": {"gap_closed": 0.25}},
        {
            "name": "c",
            "state": "training",
            "working": True,
            "step": 3,
            "last": {"loss": 1 / 3, "general_teacher_distance_bits_per_byte": 0.5},
        },
        {"name": "b", "state": "prepared", "working": False, "step": None, "last": {}},
        {"name": "a", "state": "preparing", "working": False, "step": None, "last": {}},
        {"name": "e", "state": "measured", "working": False, "step": None, "last": {}},
        {
            "name": "f",
            "state": "trained",
            "working": False,
            "step": 3,
            "last": {"loss": 1 / 3, "general_teacher_distance_bits_per_byte": 0.5},
        },
    ]
    table = CliRunner().invoke(app, ["runs", str(tmp_path)]).output
    assert "3 hours ago" in table
    assert "preparing, stopped" in table
    assert "training, stopped" in table
    assert "gap closed 0.25" in table


def test_a_path_without_runs_is_an_error_that_says_which():
    with pytest.raises(UsageError, match="/no/such: no such folder"):
        raise CliRunner().invoke(app, ["runs", "/no/such"]).exception
