"""A training that is asked to end makes a checkpoint first, and goes on from it as if nothing had been."""

import os
import signal
import subprocess
import sys
import time

import pytest

from pipelines.artifacts.checkpoints import checkpoints
from pipelines.artifacts.metrics_file import read_metrics
from pipelines.stages.stopping import Switch
from tests.pipelines.test_run import config, ctd, inputs, only, written  # noqa: F401  # fixtures


def test_all_workers_stop_after_the_same_step():
    switch = Switch()
    assert not any(switch.stops_after(step) for step in (1, 1, 2))  # one of two workers is ahead
    switch.turn()
    assert not switch.stops_after(2)
    assert switch.stops_after(3)
    switch.turn()
    assert switch.stops_after(3)


@pytest.mark.parametrize(("workers", "sent"), [(0, signal.SIGINT), (2, signal.SIGTERM)])
def test_a_training_that_is_asked_to_end_goes_on_from_there(config, tmp_path, workers, sent):  # noqa: F811
    steps = 100
    train = config["train"] | {
        "steps": steps,
        "num_workers": workers,
        "checkpoint_every": steps,
        "evaluate_every": None,
    }
    file = written(config | {"train": train}, tmp_path)
    ctd("prepare", "--config", file)
    command = [sys.executable, "-m", "pipelines", "train", "--config", str(file)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
    run = tmp_path / "runs" / "tiny"
    while process.poll() is None and not any(read_metrics(file) for file in run.glob("train-*/metrics.jsonl")):
        time.sleep(0.1)
    os.killpg(process.pid, sent)  # all of them, as a terminal and `timeout` do
    _, said = process.communicate(timeout=300)
    assert process.returncode == 130, said
    assert "stopping after this step, with a checkpoint; again to stop at once" in said
    training = only(run, "train-*")
    (checkpoint,) = checkpoints(str(training))
    done = int(checkpoint[-8:])
    assert f"stopped after step {done}. Run the same command again" in said
    assert [line["step"] for line in read_metrics(training / "metrics.jsonl")] == [*range(1, done + 1)]
    assert 0 < done < steps
    assert f"going on from step {done}" in ctd("train", "--config", file)
    assert [line["step"] for line in read_metrics(training / "metrics.jsonl")] == [*range(1, steps + 1)]
