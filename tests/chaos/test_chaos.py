"""Machines that die while a run is under way: nothing is lost, nothing is there twice, nothing is half there.

`make chaos` disturbs each stage at five moments (CHAOS_SEEDS=5), pytest alone at one.
"""

import os
import random
import resource
import shutil
import signal
import subprocess
import sys
from contextlib import ExitStack

import pytest
import yaml

from tests.pipelines.test_run import config, ctd, inputs, only, written  # noqa: F401  # fixtures
from tests.support.chaos import ROOT, Chaos, kill_below, kill_command, losses, shards
from tests.support.ray_heads import machine_of, ray_head

pytestmark = pytest.mark.chaos
SEEDS = range(int(os.environ.get("CHAOS_SEEDS", "1")))


@pytest.fixture
def chaos(request, faults):
    return Chaos(random.Random(request.node.name), faults)


@pytest.fixture(scope="module")
def undisturbed(inputs, tmp_path_factory):  # noqa: F811
    """What a run that nothing happens to leaves behind, and how to write the file of one like it."""

    def file(folder, **changes):
        run = {
            "name": "tiny",
            "output": str(folder / "runs"),
            "teacher": {"model": str(inputs / "teacher")},
            "student": {"tokenizer": {"kind": "train", "vocab_size": 300}},
            "corpus": {"kind": "jsonl", "paths": [str(inputs / "corpus.jsonl")]},
            "prepare": {"student_window_tokens": 96, "teacher_window_tokens": 96, "slice_bytes": 1000},
            "train": {
                "steps": 200,
                "batch_tokens": 400,
                "gradient_accumulation": 2,
                "num_workers": 2,
                "checkpoint_every": 5,
            },
        }
        path = folder / "run.yaml"
        path.write_text(yaml.safe_dump({**run, **changes}))
        return path

    folder = tmp_path_factory.mktemp("undisturbed")
    ctd("prepare", "--config", file(folder))
    ctd("train", "--config", file(folder))
    run = folder / "runs" / "tiny"
    return shards(run), losses(run), file, run


def prepared(quiet, folder):
    """The directory of a run with all that the quiet one had before its training, and where its training will be."""
    run = folder / "runs" / "tiny"
    shutil.copytree(quiet, run)
    (training,) = run.glob("train-*")
    shutil.rmtree(training)
    return run, training


def shards_made(run, least):
    """Whether at least so many shards are there."""
    return lambda: num_shards(run) >= least


def num_shards(run):
    """How many shards are there whole."""
    return len(list(run.glob("prepared/*/*.arrow.json")))


def num_files(run):
    """How many files and folders its trainings have. Some vanish meanwhile, which os.walk bears, and glob does not."""
    walked = (found for training in run.glob("train-*") for found in os.walk(training))
    return sum(len(folders) + len(files) for _, folders, files in walked)


@pytest.mark.parametrize("seed", SEEDS)
def test_shards_are_those_of_a_quiet_day_whatever_dies_in_prepare(undisturbed, chaos, tmp_path, seed):
    expected, _, file, _ = undisturbed
    run, path = tmp_path / "runs" / "tiny", file(tmp_path)

    some = shards_made(run, chaos.random.randrange(1, 8))
    chaos.run("prepare", "--config", path, when=some, strike=kill_command)
    assert shards(run).items() <= expected.items()
    more = shards_made(run, num_shards(run) + chaos.random.randrange(4))
    status, said = chaos.run("prepare", "--config", path, when=more, strike=kill_below("ray::MapWorker"))
    assert status == 0, said
    assert shards(run) == expected
    assert len(chaos.injected) == 2


@pytest.mark.parametrize("seed", SEEDS)
def test_shards_without_targets_are_those_of_a_quiet_day_whatever_task_dies(undisturbed, chaos, tmp_path, seed):
    _, _, file, _ = undisturbed
    parts = {"student_window_tokens": 96, "teacher_window_tokens": 96, "slice_bytes": 1000, "targets": False}
    changes = {"prepare": parts, "train": {"steps": 1, "objectives": [{"kind": "sft"}]}}
    quiet, path = tmp_path / "quiet", file(tmp_path, **changes)
    ctd("prepare", "--config", path, "--set", f"output={quiet}")
    some = shards_made(tmp_path / "runs" / "tiny", chaos.random.randrange(1, 8))
    task = kill_below("ray::Map(encode_and_write)")
    status, said = chaos.run("prepare", "--config", path, when=some, strike=task)
    assert status == 0, said
    assert shards(tmp_path / "runs" / "tiny") == shards(quiet / "tiny")
    assert len(chaos.injected) == 1


@pytest.mark.parametrize("seed", SEEDS)
def test_losses_are_those_of_a_quiet_day_whatever_dies_in_training(undisturbed, chaos, tmp_path, seed):
    _, expected, file, quiet = undisturbed
    path = file(tmp_path)
    run, training = prepared(quiet, tmp_path)

    def checkpoint(least):
        return lambda: any(int(file.parent.name[5:]) >= least for file in training.glob("step_*/checkpoint.json"))

    chaos.run("train", "--config", path, when=checkpoint(5), strike=kill_command)
    assert losses(run) == expected[: len(losses(run))]
    status, said = chaos.run("train", "--config", path, when=checkpoint(10), strike=kill_below("RayTrainWorker"))
    assert status == 0, said
    assert losses(run) == expected
    assert len(chaos.injected) == 2


@pytest.mark.parametrize("seed", SEEDS)
def test_rounds_are_those_of_a_quiet_day_whenever_the_command_dies(undisturbed, chaos, tmp_path, seed):
    _, _, file, quiet = undisturbed
    rounds = {"rounds": 3, "texts": 24, "batch": 8, "max_new_tokens": 2, "staleness": seed % 2}
    train = {"steps": 60, "batch_tokens": 400, "checkpoint_every": 5, "on_policy": rounds}
    found = {}
    for name, kills in (("quiet", 0), ("killed", 3)):
        (tmp_path / name).mkdir()
        path = file(tmp_path / name, train=train)
        run, _ = prepared(quiet, tmp_path / name)

        def files_there(least, run=run):
            return lambda: num_files(run) >= least

        for kill in range(kills):
            moment = files_there(chaos.random.randrange(1 + 15 * kill, 15 + 15 * kill))
            chaos.run("train", "--config", path, when=moment, strike=kill_command)
        ctd("train", "--config", path)
        texts = {str(item.relative_to(run)): item.read_bytes() for item in run.glob("train-*/round-*/texts-*/*")}
        found[name] = texts, losses(run)
    assert found["killed"] == found["quiet"]
    assert len(found["quiet"][1]) == 60
    assert chaos.injected.count("SIGKILL of the command") >= 2


@pytest.mark.parametrize("seed", SEEDS)
def test_shards_are_those_of_a_quiet_day_when_a_whole_machine_dies(undisturbed, chaos, tmp_path, seed):
    expected, _, file, _ = undisturbed
    run, path = tmp_path / "runs" / "tiny", file(tmp_path)
    with ray_head(tmp_path, "--num-cpus=0", dashboard=False) as head, machine_of(head) as first, ExitStack() as later:
        some = shards_made(run, chaos.random.randrange(1, 6))

        def replace_machine(pid):
            os.killpg(first.pid, signal.SIGKILL)
            later.enter_context(machine_of(head))
            return "the loss of a machine"

        joining = head | {"RAY_ADDRESS": head["GCS"]}
        status, said = chaos.run("prepare", "--config", path, when=some, strike=replace_machine, env=joining)
        assert status == 0, said
    assert shards(run) == expected
    assert len(chaos.injected) == 1


def test_a_full_disk_and_a_truncated_checkpoint_are_told_and_got_over(undisturbed, chaos, tmp_path):
    _, _, file, quiet = undisturbed
    run, _ = prepared(quiet, tmp_path)
    train = yaml.safe_load(file(tmp_path).read_text())["train"] | {"num_workers": 0}
    path = file(tmp_path, train=train)
    command = [sys.executable, "-m", "pipelines", "train", "--config", str(path)]

    def small_disk():
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))

    full = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, preexec_fn=small_disk)
    chaos.injected.append("a full disk at a checkpoint")
    assert full.returncode == 1
    assert "Free some space and run" in full.stderr
    assert not list(run.glob("train-*/step_*"))
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    whole = losses(run)
    last = max(run.glob("train-*/step_*"))
    state = last / "tensors-00000.safetensors"
    state.write_bytes(state.read_bytes()[: chaos.random.randrange(state.stat().st_size)])
    chaos.injected.append("a truncated checkpoint")
    exporting = [sys.executable, "-m", "pipelines", "export", "--config", str(path)]
    torn = subprocess.run(exporting, cwd=ROOT, capture_output=True, text=True)
    assert torn.returncode == 1
    assert "differs from its checksum" in torn.stderr
    assert "aside and run the same command again" in torn.stderr
    shutil.rmtree(last)
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    assert losses(run) == whole
