"""A training that goes on with fewer machines, and takes in others."""

import os
import shutil
import signal
import subprocess
import sys
import time

import pytest

from pipelines.artifacts.metrics_file import read_metrics
from tests.pipelines.test_run import config, ctd, inputs, only, written  # noqa: F401  # fixtures
from tests.support.chaos import ROOT
from tests.support.ray_heads import machine_of, ray_head

PATIENCE_SECONDS = 110
# As `ctd train`, but for a look at the machines every few seconds.
COMMAND = (
    "import pipelines.stages.train as train; train.RESIZE_SECONDS = 2.0; from pipelines.__main__ import main; main()"
)


def workers_of(folder):
    """How many workers each of the steps that are there had, and their losses."""
    lines = [read_metrics(file) for file in folder.glob("train-*/metrics.jsonl")]
    return [(int(line["workers"]), line["loss"]) for line in (lines[0] if lines else [])]


@pytest.mark.chaos
def test_losses_stay_the_same_while_machines_come_and_go(config, tmp_path):  # noqa: F811
    config |= {"evaluate": {}, "sample": {}}
    config["train"] |= {"steps": 400, "learning_rate": 1e-5, "checkpoint_every": 400}
    file = written(config, tmp_path)
    ctd("prepare", "--config", file)
    quiet, run = tmp_path / "runs" / "tiny", tmp_path / "elastic" / "runs" / "tiny"
    shutil.copytree(quiet, run)
    ctd("train", "--config", file)
    elastic = [f"output={run.parent}", "train.num_workers=2", "train.min_workers=1", "train.checkpoint_every=1"]
    command = [sys.executable, "-c", COMMAND, "train", "--config", str(file)]
    command += [part for line in elastic for part in ("--set", line)]
    with (
        ray_head(tmp_path, "--num-cpus=0", dashboard=False) as head,
        machine_of(head),
        (tmp_path / "said").open("w") as said,
    ):
        environment = head | {"RAY_ADDRESS": head["GCS"], "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "5"}
        training = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=said, stderr=said)

        def wait_for(workers, since=0):
            """Until a step after `since` had so many workers; the number of steps."""
            deadline = time.monotonic() + PATIENCE_SECONDS
            while workers not in [count for count, _ in workers_of(run)[since:]]:
                assert training.poll() is None, (tmp_path / "said").read_text()
                assert time.monotonic() < deadline, f"no step with {workers} workers, after {workers_of(run)[-1:]}"
                time.sleep(0.2)
            return len(workers_of(run))

        try:
            wait_for(1)
            with machine_of(head) as second:
                wait_for(2)
                os.killpg(second.pid, signal.SIGKILL)
            wait_for(1, wait_for(2))
        finally:
            training.kill()
            training.wait()
    elastic_losses, quiet_losses = workers_of(run), [loss for _, loss in workers_of(quiet)]
    assert len(quiet_losses) == 400 > len(elastic_losses)
    assert [loss for _, loss in elastic_losses] == pytest.approx(quiet_losses[: len(elastic_losses)], rel=1e-5)
