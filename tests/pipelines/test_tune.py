"""Searches: every trial on the same shards, stopped early where it lags, resumed where the search was interrupted."""

import json
import math
import pickle
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from pyarrow import parquet
from ray import tune
from ray.tune import Callback
from tensorboardX.proto.event_pb2 import SessionLog

import pipelines.artifacts.run_plan
from ctd_core.config.search_space import parse_space
from ctd_core.errors import UsageError
from pipelines.artifacts.metrics_file import read_metrics
from pipelines.artifacts.run_plan import plan_run
from pipelines.recipes import read_run
from pipelines.search.options import Search
from pipelines.search.record import TrialRecord
from pipelines.search.trackers import Tracker
from pipelines.search.trial import trial_training
from pipelines.search.tune import optuna_searcher
from tests.pipelines.test_metrics_log import events
from tests.pipelines.test_run import config, ctd, inputs, only, written  # noqa: F401  # fixtures
from tests.support.chaos import Chaos, kill_below
from tests.support.ray_heads import ray_head

SPACE = {
    "train.learning_rate": {"grid": [1e-3, 1e-5]},
    "train.objectives.0.chunks": {"choice": [{"kind": "finest"}, {"kind": "debiased", "gamma": {"uniform": [0, 0.5]}}]},
}


@pytest.fixture
def searched(config, tmp_path):  # noqa: F811
    """A function that writes a search of the tiny run; its file."""

    def write(**changes):
        train = config["train"] | {"steps": 6, "checkpoint_every": None, "evaluate_every": 2}
        run = written(config | {"train": train}, tmp_path)
        file = tmp_path / "search.yaml"
        file.write_text(yaml.safe_dump({"recipe": str(run), "space": SPACE, "trials": 4} | changes))
        return file

    return write


def test_a_search_finds_the_best_of_its_trials_without_the_teacher(searched, config, tmp_path, monkeypatch):  # noqa: F811
    file = searched(scheduler={"kind": "none"}, seed=1)
    run = yaml.safe_load((tmp_path / "run.yaml").read_text())
    teacher = tmp_path / "teacher"
    shutil.copytree(run["teacher"]["model"], teacher)
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(run | {"teacher": {"model": str(teacher)}}))
    ctd("prepare", "--config", tmp_path / "run.yaml")
    ctd("train", "--config", tmp_path / "run.yaml", "--set", "train.steps=1", "--set", "train.evaluate_every=null")
    weights = pipelines.artifacts.run_plan.weights_fingerprint(str(teacher), None)
    monkeypatch.setattr(pipelines.artifacts.run_plan, "weights_fingerprint", lambda name, revision: weights)
    (teacher / "model.safetensors").unlink()  # whatever asks the teacher fails

    output = ctd("tune", "--config", file)
    best = Path(output.split()[-1])
    table = parquet.read_table(best.parent / "trials.parquet").to_pylist()
    assert [row["step"] for row in table if row["trial"] == 0] == [2, 4, 6]
    last = {row["trial"]: row for row in table if row["step"] == 6}
    assert len(last) == 4
    assert sorted(row["train.learning_rate"] for row in last.values()) == [1e-5, 1e-5, 1e-3, 1e-3]
    metric = "held-out_teacher_distance_bits_per_byte"
    lowest = min(last.values(), key=lambda row: row[metric])
    found = yaml.safe_load(best.read_text())
    assert found["train"]["learning_rate"] == lowest["train.learning_rate"]
    assert found["train"]["objectives"][0]["chunks"]["kind"] == lowest["train.objectives.0.chunks.kind"]
    before = set((tmp_path / "runs" / "tiny").glob("train-*"))
    ctd("train", "--config", best)  # is that trial's training, and so done already
    assert set((tmp_path / "runs" / "tiny").glob("train-*")) == before
    page = (best.parent / "index.html").read_text()
    assert page.count("<svg") == 2
    assert not re.search(r"(src|href)=.http", page)  # all that it shows is in it
    assert (best.parent / "metric.svg").exists()
    assert len((best.parent / "trials.md").read_text().splitlines()) == 2 + 4
    with pytest.raises(UsageError, match="was begun already"):
        ctd("tune", "--config", file)


@pytest.mark.chaos
def test_a_trial_may_have_several_workers_also_beside_another_ray(searched, tmp_path):
    scheduler = {"kind": "asha", "grace_steps": 2, "reduction_factor": 2}
    rates = {"train.learning_rate": {"grid": [1e-3, 1e-9]}}
    changes = {"train.num_workers": 2, "train.steps": 60}
    file = searched(space=rates, searcher="grid", scheduler=scheduler, changes=changes, trials=2)
    with ray_head(tmp_path, "--num-cpus=1"):
        output = ctd("tune", "--config", file)
    best = Path(output.split()[-1])
    assert yaml.safe_load(best.read_text())["train"]["learning_rate"] == 1e-3
    steps = {}
    for row in parquet.read_table(best.parent / "trials.parquet").to_pylist():
        steps.setdefault(row["train.learning_rate"], []).append(row["step"])
    assert steps[1e-3] == list(range(2, 61, 2))
    assert steps[1e-9] == steps[1e-3][: len(steps[1e-9])] != steps[1e-3]  # it goes on until the word to stop comes
    for file in tmp_path.glob("runs/tiny/train-*/metrics.jsonl"):
        assert {line["workers"] for line in read_metrics(file)} == {2}


@pytest.mark.chaos
def test_a_trial_that_dies_goes_on_from_its_checkpoint(searched, tmp_path, faults):
    rate = {"train.learning_rate": {"choice": [1e-3]}}
    changes = {"train.steps": 300, "train.evaluate_every": 30}
    file = searched(space=rate, searcher="grid", trials=None, scheduler={"kind": "none"}, changes=changes)
    chaos = Chaos(random.Random(0), faults)
    status, said = chaos.run(
        "tune", "--config", file,
        when=lambda: any(tmp_path.glob("runs/tiny/train-*/step_00000030/checkpoint.json")),
        strike=kill_below("ray::ImplicitFunc"),
    )  # fmt: skip
    assert status == 0, said
    assert len(chaos.injected) == 1
    training = only(tmp_path / "runs" / "tiny", "train-*")
    assert [line["step"] for line in read_metrics(training / "metrics.jsonl")] == list(range(1, 301))
    begins = [event.step for event in events(training) if event.session_log.status == SessionLog.START]
    assert begins[0] == 1
    assert begins[1] > 30


def test_a_trial_tells_no_figures_that_were_measured_on_other_sets(config, tmp_path, monkeypatch):  # noqa: F811
    reported = []
    monkeypatch.setattr(tune, "report", reported.append)

    def trial(share):
        sets = {"held-out": {"kind": "held_out", "sample_fraction": share}}
        train = config["train"] | {"steps": 6, "evaluate_every": 2}
        file = written(config | {"train": train, "evaluate": {"sets": sets, "gap_set": "held-out"}}, tmp_path)
        ctd("prepare", "--config", file)
        reported.clear()
        distance = "held-out_teacher_distance_bits_per_byte"
        trial_training({"values": {}}, plan_run(read_run(str(file), "a test", [])), distance, cpus=1)
        return [(line["step"], line[distance]) for line in reported]

    whole = trial(1.0)
    assert [step for step, _ in whole] == [2, 4, 6]
    ((step, distance),) = trial(0.5)  # of the same training, which is done: measured again
    assert step == 6
    assert distance != whole[-1][1]
    assert trial(1.0) == whole


def test_mlflow_is_told_of_every_trial_under_the_names_of_the_metrics(searched, tmp_path, monkeypatch):
    import mlflow

    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", str(tmp_path / "mlflow"))
    rates = {"train.learning_rate": {"log_uniform": [1e-5, 1e-3]}}
    ctd(
        "tune",
        "--config",
        searched(space=rates, searcher="optuna", trials=2, trackers=["mlflow"], scheduler={"kind": "none"}),
    )
    client = mlflow.MlflowClient(str(tmp_path / "mlflow"))
    (experiment,) = client.search_experiments(filter_string="name = 'tiny'")
    runs = client.search_runs([experiment.experiment_id])
    assert len({run.data.params["values/train.learning_rate"] for run in runs}) == 2
    assert {run.info.status for run in runs} == {"FINISHED"}
    name = "held-out_teacher_distance_bits_per_byte"
    histories = [client.get_metric_history(run.info.run_id, name) for run in runs]
    files = [read_metrics(file) for file in tmp_path.glob("runs/tiny/train-*/metrics.jsonl")]
    assert sorted([(point.step, point.value) for point in history] for history in histories) == sorted(
        [(line["step"], line[name]) for line in lines if name in line] for lines in files
    )


def test_a_search_outlives_its_tracker(caplog):
    class Gone(Callback):
        def on_trial_start(self, *what):
            raise ConnectionError("no route")

    trial = SimpleNamespace(trial_id="1")
    tracker = Tracker("mlflow", Gone())
    tracker.on_trial_error(1, [], trial)  # of one that never began
    tracker.on_trial_start(1, [], trial)
    tracker.on_trial_result(2, [], trial, {"step": 4.0})
    tracker.on_experiment_end([])
    assert [record.getMessage() for record in caplog.records] == ["tune: mlflow gets no more trials: no route"]


def test_a_tracker_that_cannot_be_reached_is_refused_before_any_work(searched, tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "nothing://such")
    with pytest.raises(UsageError, match=r"trackers: mlflow cannot be reached .*nothing"):
        ctd("tune", "--config", searched(trackers=["mlflow"]))
    monkeypatch.setitem(sys.modules, "mlflow", None)
    with pytest.raises(UsageError, match="Install it: pip install mlflow"):
        ctd("tune", "--config", searched(trackers=["mlflow"]))
    assert not list(tmp_path.glob("runs/tiny/prepared"))


def test_an_interrupted_search_goes_on_and_remembers_what_it_has_seen(searched, tmp_path):
    file = searched(
        space={"train.learning_rate": {"choice": [1e-3, 1e-12, 1e30]}},
        searcher="grid",
        trials=None,
        scheduler={"kind": "asha", "grace_steps": 2, "reduction_factor": 2},
        concurrent=1,
        max_failures=1,
    )
    command = [sys.executable, "-m", "pipelines", "tune", "--config", str(file)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    done = "train-*/step_00000006/checkpoint.json"
    while process.poll() is None and not list((tmp_path / "runs" / "tiny").glob(done)):
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=400)
    assert process.returncode == 130
    assert "the search was interrupted" in said
    assert f"ctd tune --config {file} --resume" in said

    first = only(tmp_path / "runs" / "tiny", done).parents[1] / "metrics.jsonl"
    content = first.read_text()
    trace = plant(only(tmp_path / "runs" / "tiny", "search-*"), tmp_path)
    best = Path(ctd("tune", "--config", file, "--resume").split()[-1])
    assert first.read_text() == content  # a trial that was finished is not run again
    table = parquet.read_table(best.parent / "trials.parquet").to_pylist()
    steps = {rate: [row["step"] for row in table if row["train.learning_rate"] == rate] for rate in (1e-3, 1e-12)}
    assert steps == {1e-3: [2, 4, 6], 1e-12: [2]}  # stopped by what the first trial had reached before
    (failed,) = [row for row in table if row["train.learning_rate"] == 1e30]
    assert re.search(r"Lower train\.learning_rate", failed["error"])
    assert yaml.safe_load(best.read_text())["train"]["learning_rate"] == 1e-3
    assert not trace.exists()  # no state of Ray's is read, which is a pickle


class Planted:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (self.path, "w")


def plant(search, folder):
    """Put code where Ray keeps a search's state; a file that is there once it ran."""
    trace = folder / "it ran"
    code = pickle.dumps(Planted(str(trace)))
    state = {"_type": "CLOUDPICKLE_FALLBACK", "value": code.hex()}
    content = json.dumps({"trial_data": [], "runner_data": state, "stats": state})
    for file in [*search.glob("experiment_state-*"), search / "experiment_state-2099-01-01_00-00-00.json"]:
        file.write_text(content)
    for name in ("searcher-state-2099-01-01.pkl", "search_gen_state-2099-01-01.json"):
        (search / name).write_bytes(code)
    return trace


def test_optuna_goes_on_with_what_ended_trials_came_to_and_begins_unfinished_ones_again():
    space = {path: parse_space(value, path) for path, value in SPACE.items()}
    options = Search(recipe="small", space=SPACE, searcher="optuna", seed=3)
    first = optuna_searcher(options, space, "distance")
    past = []
    for number in range(4):
        values = first.suggest(f"trial {number}")["values"]
        result = {"step": 4.0, "distance": 1.0 / (number + 1)}
        state = "running" if number == 1 else "ended"
        past.append(TrialRecord(values=values, choices=first.choices[f"trial {number}"], state=state, lines=[result]))
    again = optuna_searcher(options, space, "distance", past)
    assert again.suggest("first")["values"] == past[1].values
    assert [trial.value for trial in again._study.get_trials()][:3] == [1.0, 1 / 3, 1 / 4]


def test_optuna_takes_a_figure_that_is_not_defined_for_a_failure():
    options = Search(recipe="small", space=SPACE, searcher="optuna", seed=3)
    searcher = optuna_searcher(
        options, {path: parse_space(value, path) for path, value in SPACE.items()}, "correlation"
    )
    searcher.suggest("trial")
    searcher.on_trial_complete("trial", {"step": 4.0, "correlation": math.nan})
    assert [trial.state.name for trial in searcher._study.get_trials()] == ["FAIL"]


def test_a_resumed_search_by_optuna_does_not_begin_with_the_same_settings_again():
    space = {"train.learning_rate": {"log_uniform": [1e-5, 1e-2]}}
    options = Search(recipe="small", space=space, searcher="optuna", seed=3)
    parsed, past = {path: parse_space(value, path) for path, value in space.items()}, []
    for stop in range(2):
        searcher = optuna_searcher(options, parsed, "distance", past)
        for number in range(4):
            name = f"trial {stop} {number}"
            values, line = searcher.suggest(name)["values"], {"step": 4.0, "distance": 1.0}
            past.append(TrialRecord(values=values, choices=searcher.choices[name], state="ended", lines=[line]))
    assert len({trial.values["train.learning_rate"] for trial in past}) == 8


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"space": {"train.step": {"grid": [1, 2]}}}, r"train\.step: there is no such field"),
        ({"space": {"prepare.slice_bytes": {"grid": [3000]}}}, r"changes more than train\.\*"),
        ({"space": {"train.learning_rate": {"uniform": [1]}}}, r"space\.train\.learning_rate: uniform takes two"),
        ({"searcher": "grid"}, r"gamma: a grid search cannot try every number"),
        ({"metric": "held-out_correlation"}, "is best at its maximum. Set mode: max"),
        ({"metric": "loss"}, "metric: loss: a trial measures held-out_bits_per_byte, "),
        ({"cpus_per_trial": 1000}, "cpus_per_trial .* ask for 1000 CPUs"),
        ({"changes": {"train.num_workers": 2}, "concurrent": 64}, r"64 trials at once of 2 CPUs each are 128"),
        ({"scheduler": {"grace_steps": 4}}, r"scheduler: give its kind"),
        ({"space": {"train.steps": {"grid": [2, 4]}}}, r"train\.steps: trials of unlike length"),
        ({"space": {"train.num_workers": {"grid": [2]}}}, r"train\.num_workers: trials of unlike length or resources"),
        ({"changes": {"prepare.teacher_window_tokens": 600}}, r"reads 512 tokens at most"),
        ({"trial": 4}, "trial: there is no such field"),
        ({"searcher": "optuna", "space": {"train.learning_rate": {"loguniform": [1, 2]}}}, "learning_rate: "),
    ],
)
def test_a_search_that_cannot_be_run_is_refused(searched, change, message):
    with pytest.raises(UsageError, match=message):
        ctd("tune", "--config", searched(**change))
    with pytest.raises(UsageError, match="no search to resume"):
        ctd("tune", "--config", searched(), "--resume")
    with pytest.raises(UsageError, match="belongs to --resume"):
        ctd("tune", "--config", searched(), "--retry-failed")


def test_optuna_is_asked_for_what_was_chosen_alone():
    space = {path: parse_space(value, path) for path, value in SPACE.items()}
    options = Search(recipe="small", space=SPACE, searcher="optuna", seed=3)
    searcher = optuna_searcher(options, space, "distance")
    found = [searcher.suggest(f"trial {n}")["values"] for n in range(20)]
    assert {trial["train.learning_rate"] for trial in found} == {1e-3, 1e-5}
    for trial in found:
        chunks = trial["train.objectives.0.chunks"]
        assert chunks == {"kind": "finest"} or (chunks["kind"] == "debiased" and 0 <= chunks["gamma"] <= 0.5)
    assert len({repr(trial) for trial in found}) > 5
