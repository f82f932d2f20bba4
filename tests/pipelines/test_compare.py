"""Comparisons: every variant under every seed, once."""

import json
import subprocess
import sys
import time

import pytest
import yaml

from ctd_core.config.run import RunConfig
from ctd_core.errors import CtdError, UsageError
from pipelines.artifacts.metrics_file import read_metrics
from pipelines.artifacts.run_plan import plan_run
from pipelines.comparison.compare import trial_file
from pipelines.comparison.summary import Row, as_table, plot
from tests.pipelines.test_run import config, ctd, inputs, written  # noqa: F401  # fixtures


@pytest.fixture
def comparison(config, tmp_path):  # noqa: F811
    file = tmp_path / "objectives.yaml"
    run = written(config | {"train": config["train"] | {"steps": 2, "checkpoint_every": None}}, tmp_path)
    variants = {
        "alm": {"train.objectives": [{"kind": "alm", "temperature": float("inf")}]},
        "sft": {"train.objectives": [{"kind": "sft"}]},
    }
    file.write_text(yaml.safe_dump({"recipe": str(run), "seeds": [0, 1], "variants": variants}))
    return file


def test_every_variant_is_trained_under_every_seed_and_shown_with_its_spread(comparison, tmp_path):
    output = ctd("compare", "--config", comparison)
    run = tmp_path / "runs" / "tiny"
    trials = sorted(run.glob("train-*/trial-*.json"))
    assert len(trials) == 4
    rows = json.loads((run / "comparison-objectives" / "table.json").read_text())
    assert [row["variant"] for row in rows] == ["alm", "sft"]
    for row in rows:
        mean, error = row["figures"]["held-out: distance"]
        assert mean > 0
        assert error >= 0
        assert row["figures"]["peak memory, MB"][0] > 50
    by_variant = {row["variant"]: row["figures"]["held-out: bits per byte"][0] for row in rows}
    assert len(set(by_variant.values())) == 2
    markdown = (run / "comparison-objectives" / "table.md").read_text().splitlines()
    assert [line.split("|")[1].strip() for line in markdown] == ["variant", "---", "alm", "sft"]
    assert (run / "comparison-objectives" / "table.svg").read_text().startswith("<?xml")
    assert "mean ± standard error" in output
    stamps = [trial.stat().st_mtime_ns for trial in trials]
    trials[0].unlink()  # as if killed before it ended
    ctd("compare", "--config", comparison)
    assert [trial.stat().st_mtime_ns for trial in trials][1:] == stamps[1:]


def test_a_variant_that_fails_does_not_take_the_others_along(comparison, tmp_path):
    values = yaml.safe_load(comparison.read_text())
    variants = {
        "diverges": {"train.learning_rate": 1e30, "train.max_grad_norm": None},
        "sft": values["variants"]["sft"],
    }
    comparison.write_text(yaml.safe_dump(values | {"seeds": [0], "variants": variants}))
    with pytest.raises(CtdError, match="norm is nan"):
        ctd("compare", "--config", comparison)
    assert len(list(tmp_path.glob("runs/tiny/train-*/trial-*.json"))) == 1


def test_a_training_that_another_command_began_is_left_alone(comparison, tmp_path):
    ctd("prepare", "--config", tmp_path / "run.yaml")
    ctd("train", "--config", tmp_path / "run.yaml")
    described = yaml.safe_load(comparison.read_text())
    comparison.write_text(yaml.safe_dump(described | {"variants": {"as it is": {}}}))
    with pytest.raises(UsageError, match="begun by another command"):
        ctd("compare", "--config", comparison)
    assert len(list(tmp_path.glob("runs/tiny/train-*"))) == 1


def test_what_one_variant_has_no_figure_of_is_an_empty_cell():
    figures = {"general: distance": (0.5, 0.1), "own texts: distance": (2.0, None), "seconds a step": (0.25, None)}
    rows = [Row(variant="a", figures=figures), Row(variant="b", figures={"general: distance": (0.25, None)})]
    assert as_table(rows).columns == ["variant", *figures]
    assert as_table(rows).rows == [["a", "0.500 ± 0.100", "2.000", "0.250"], ["b", "0.250", "", ""]]
    plot(rows)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"variants": {"other data": {"prepare.slice_bytes": 3000}}}, "other data changes more than train"),
        ({"variants": {"typo": {"train.step": 3}}}, r"typo: train\.step: there is no such field"),
        ({"variants": {}}, "variants"),
        ({"seeds": [1, 1]}, "two seeds, are the same training"),
        (
            {"variants": {"kd": {"train.objectives": [{"kind": "kd"}]}}},
            "objectives.yaml: kd: train.objectives: kd comp",
        ),
        ({"variants": {"frozen": {"train.freeze": ["no_such"]}}}, r"frozen: train\.freeze: no parameter has a match"),
        ({"recipe": "missing.yaml"}, "missing.yaml: cannot be read"),
        ({"recipe": "missing"}, "missing: there is no such recipe; there is .*small"),
    ],
)
def test_a_comparison_that_is_none_is_refused(comparison, change, message):
    comparison.write_text(yaml.safe_dump(yaml.safe_load(comparison.read_text()) | change))
    with pytest.raises(UsageError, match=message):
        ctd("compare", "--config", comparison)


def test_variants_write_after_the_same_prompts_and_others_are_another_trial(comparison, config, tmp_path):  # noqa: F811
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('{"prompt": "The sum"}\n')
    values = yaml.safe_load(comparison.read_text())
    rounds = {"train.on_policy": {"rounds": 1, "texts": 2, "prompts": str(prompts)}}
    comparison.write_text(yaml.safe_dump(values | {"variants": values["variants"] | {"own": rounds}}))
    with pytest.raises(UsageError, match="write after different prompts"):
        ctd("compare", "--config", comparison, "--set", "evaluate.own_texts={}")
    own = {"own_texts": {"prompts": str(prompts)}}
    names = set()
    for text in ("The sum", "The sum", "A difference"):
        prompts.write_text(json.dumps({"prompt": text}) + "\n")
        names.add(trial_file(plan_run(RunConfig.model_validate(config | {"evaluate": config["evaluate"] | own}))).name)
    assert len(names) == 2


def test_of_two_comparisons_at_once_neither_takes_the_others_training_away(comparison, tmp_path):
    values = yaml.safe_load(comparison.read_text())
    values["seeds"], values["variants"] = [0], {"alm": {"train.steps": 150}}
    comparison.write_text(yaml.safe_dump(values))
    ctd("prepare", "--config", tmp_path / "run.yaml")
    command = [sys.executable, "-m", "pipelines", "compare", "--config", str(comparison)]
    first = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    runs = tmp_path / "runs" / "tiny"
    while first.poll() is None and not any(read_metrics(file) for file in runs.glob("train-*/metrics.jsonl")):
        time.sleep(0.1)
    second = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    said = [result.communicate(timeout=400)[1] for result in (first, second)]
    assert [first.returncode, second.returncode] == [0, 0], said
    (file,) = runs.glob("train-*/metrics.jsonl")
    assert [line["step"] for line in read_metrics(file)] == [*range(1, 151)]
