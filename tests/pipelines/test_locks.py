"""Two commands of one run at once: one works, the other waits and is told for whom."""

import json
import os
import subprocess
import sys
import threading
import time

import pytest

from ctd_core.config.run import RunConfig
from pipelines.artifacts import locks
from pipelines.artifacts.locks import stage_lock
from pipelines.artifacts.metrics_file import read_metrics
from pipelines.artifacts.remote_copy import RunFiles
from pipelines.artifacts.run_plan import plan_run
from pipelines.stages import export
from pipelines.stages.evaluate import RESULTS
from tests.pipelines.test_run import config, ctd, inputs, only, written  # noqa: F401  # fixtures


def test_of_two_trainings_of_one_run_the_second_waits_and_finds_it_done(config, tmp_path):  # noqa: F811
    train = config["train"] | {"steps": 150, "checkpoint_every": 150}
    file = written(config | {"train": train}, tmp_path)
    ctd("prepare", "--config", file)
    command = [sys.executable, "-m", "pipelines", "train", "--config", str(file)]
    both = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    said = [done.communicate(timeout=400)[1] for done in both]
    assert [done.returncode for done in both] == [0, 0], said
    metrics = only(tmp_path / "runs" / "tiny", "train-*") / "metrics.jsonl"
    assert [line["step"] for line in read_metrics(metrics)] == [*range(1, 151)]
    (waited,) = (number for number, line in enumerate(said) if "all 150 steps are done already" in line)
    assert f"is being worked on by process {both[1 - waited].pid} on" in said[waited]


def test_model_and_report_are_written_by_one_command_at_a_time(config, tmp_path, monkeypatch):  # noqa: F811
    plan = plan_run(RunConfig.model_validate(config))
    begun = threading.Event()
    monkeypatch.setattr(export, "write_model", lambda plan: begun.set())
    with stage_lock(plan.files, RESULTS):
        thread = threading.Thread(target=export.export, args=(plan,))
        thread.start()
        assert not begun.wait(1)
    thread.join(timeout=60)
    assert begun.is_set()


@pytest.fixture
def machines(tmp_path, monkeypatch):
    """The files of one run on two machines, whose store is a folder; all is faster."""
    for name, times in (("RENEW_SECONDS", 100), ("LEASE_SECONDS", 100), ("POLL_SECONDS", 10)):
        monkeypatch.setattr(locks, name, getattr(locks, name) / times)
    store = (tmp_path / "store").as_uri()
    return [RunFiles(tmp_path / name, store) for name in ("one", "two")]


def test_a_store_has_one_holder_who_stays_it_as_long_as_it_lives(machines, tmp_path, capsys):
    order = []

    def second():
        with stage_lock(machines[1], "train-x"):
            order.append("second")

    with stage_lock(machines[0], "train-x"):
        waiting = threading.Thread(target=second)
        waiting.start()
        time.sleep(3 * locks.LEASE_SECONDS)  # it gives signs of life all the while
        order.append("first")
    waiting.join(timeout=10)
    assert order == ["first", "second"]
    assert f"worked on by process {os.getpid()}" in capsys.readouterr().err
    assert not (tmp_path / "store" / ".lock-train-x").exists()


def test_the_lease_of_a_killed_holder_ends_by_itself(machines, tmp_path):
    lease = tmp_path / "store" / ".lock-train-x"
    lease.parent.mkdir()
    lease.write_text(json.dumps({"machine": "gone", "process": 1, "id": "a", "since": "then", "alive": time.time()}))
    start = time.monotonic()
    with stage_lock(machines[0], "train-x"):
        assert time.monotonic() - start > 0.5 * locks.LEASE_SECONDS
        assert json.loads(lease.read_text())["process"] == os.getpid()


def test_of_many_that_begin_at_the_same_moment_one_at_a_time_works(tmp_path, machines):
    working, most = [], []

    def work(number):
        files = RunFiles(tmp_path / f"machine {number}", machines[0].store)
        with stage_lock(files, "prepare"):
            working.append(number)
            most.append(len(working))
            time.sleep(0.05)
            working.remove(number)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert most == [1] * 5
