"""Jobs on a running cluster that asks for a token, with `ray job submit` and with `ctd submit`."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from ctd_core.errors import CtdError
from tests.pipelines.test_run import config, ctd, inputs, written  # noqa: F401  # fixtures
from tests.support.ray_heads import RAY, ray_head

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def head(tmp_path_factory):
    with ray_head(tmp_path_factory.mktemp("head"), "--num-cpus=2") as environment:
        yield environment


def submit(head, *arguments):
    command = [sys.executable, "-m", "pipelines", "submit", *map(str, arguments)]
    return subprocess.run(command, env=head, cwd=ROOT, capture_output=True, text=True, timeout=400)


def test_a_job_prepares_on_the_cluster_and_is_followed_again(head, config, tmp_path):  # noqa: F811
    file = written(config, tmp_path)
    first = submit(head, "--job", "one", "--", "prepare", "--config", file)
    assert first.returncode == 0, first.stderr
    assert "prepared" in first.stdout
    assert len(list((tmp_path / "runs" / "tiny" / "prepared").glob("*/manifest.json"))) == 2
    again = submit(head, "--job", "one")
    assert again.returncode == 0
    assert again.stdout == first.stdout
    other = submit(head, "--job", "one", "--", "train", "--config", file)
    assert other.returncode == 2
    assert "this job runs ctd prepare --config" in other.stderr


def test_a_job_of_wrong_usage_ends_with_its_own_exit_status(head, config, tmp_path):  # noqa: F811
    file = written(config | {"output": "runs"}, tmp_path)
    done = submit(head, "--", "prepare", "--config", file)
    assert done.returncode == 2
    assert "Name a directory that all machines share" in done.stdout
    command = [
        RAY,
        "job",
        "submit",
        "--working-dir",
        ".",
        "--",
        sys.executable,
        "-m",
        "pipelines",
        "runs",
        str(tmp_path),
    ]
    done = subprocess.run(command, env=head, cwd=ROOT, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0
    assert "last change" in done.stdout


def test_an_interrupt_leaves_the_job_alone_unless_asked(head, config, tmp_path):  # noqa: F811
    file = written(config | {"train": config["train"] | {"steps": 1_000_000}}, tmp_path)
    assert submit(head, "--", "prepare", "--config", file).returncode == 0

    def interrupted(*arguments):
        """What is said on an interrupt that comes when training is under way, and the status of the job then."""
        following = subprocess.Popen(
            [sys.executable, "-m", "pipelines", "submit", "--job", "long", *map(str, arguments)],
            env=head, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        try:
            assert any("of 1000000" in line for line in following.stdout)
            following.send_signal(signal.SIGINT)
            said = following.communicate(timeout=400)[1]
        finally:
            following.kill()
        assert following.returncode == 130
        status = [RAY, "job", "status", "long"]
        return said, subprocess.run(status, env=head, capture_output=True, text=True, check=True).stdout

    said, status = interrupted("--", "train", "--config", file)
    assert "long goes on. Follow it: ctd submit" in said
    assert "RUNNING" in status
    said, status = interrupted("--stop-on-interrupt")
    assert "long was stopped" in said
    assert "was stopped" in status


def test_a_directory_too_large_to_send_is_told(head, tmp_path):
    (tmp_path / "model.safetensors").write_bytes(os.urandom(101 * 2**20))  # the cluster takes 100 MiB
    done = submit(head, "--working-dir", tmp_path, "--", "runs")
    assert done.returncode == 1
    assert "Large files, such as models, are not sent along" in done.stderr


def test_an_address_where_nothing_answers_is_told():
    with pytest.raises(CtdError, match=r"no cluster answers there .* RAY_AUTH_MODE=token"):
        ctd("submit", "--address", "http://127.0.0.1:9", "--job", "one")
