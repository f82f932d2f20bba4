"""Jobs on a running cluster that asks for a token, with `ray job submit` and with `ctd submit`."""

import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ctd_core.errors import CtdError
from tests.pipelines.heads import ray_head
from tests.pipelines.test_run import config, ctd, inputs, written  # noqa: F401  # fixtures

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def head(tmp_path_factory):
    with ray_head(tmp_path_factory.mktemp("head"), "--num-cpus=2") as environment:
        yield environment


def submit(head, *arguments):
    command = [sys.executable, "-m", "pipelines", "submit", *map(str, arguments)]
    return subprocess.run(command, env=head, cwd=ROOT, capture_output=True, text=True, timeout=120)


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
    assert "this job runs python -m pipelines prepare" in other.stderr


def test_a_job_of_wrong_usage_ends_with_its_own_exit_status(head, config, tmp_path):  # noqa: F811
    file = written(config | {"output": "runs"}, tmp_path)
    done = submit(head, "--", "prepare", "--config", file)
    assert done.returncode == 2
    assert "Name a directory that all machines share" in done.stdout
    command = ["ray", "job", "submit", "--working-dir", ".", "--", "python", "-m", "pipelines", "runs", str(tmp_path)]
    done = subprocess.run(command, env=head, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0
    assert "last change" in done.stdout


@pytest.mark.parametrize("stops", [False, True])
def test_an_interrupt_leaves_the_job_alone_unless_asked(head, config, tmp_path, stops):  # noqa: F811
    file = written(config | {"train": config["train"] | {"steps": 100_000}}, tmp_path)
    option = ["--stop-on-interrupt"] if stops else []
    arguments = ["submit", "--job", f"long-{stops}", *option, "--", "train", "--config", str(file)]
    following = subprocess.Popen(
        [sys.executable, "-m", "pipelines", *arguments], env=head, cwd=ROOT, stderr=subprocess.PIPE, text=True
    )
    for line in following.stderr:
        if "runs python" in line:
            break
    time.sleep(2)
    following.send_signal(signal.SIGINT)
    said = following.communicate(timeout=60)[1]
    assert following.returncode == 1
    assert ("was stopped" if stops else "goes on. Follow it: ctd submit") in said
    status = ["ray", "job", "status", f"long-{stops}"]
    found = subprocess.run(status, env=head, capture_output=True, text=True).stdout
    assert re.search("STOPPED" if stops else "RUNNING|PENDING|FAILED", found)
    subprocess.run(["ray", "job", "stop", f"long-{stops}"], env=head, capture_output=True)


def test_an_address_where_nothing_answers_is_told():
    with pytest.raises(CtdError, match=r"no cluster answers there .* RAY_AUTH_MODE=token"):
        ctd("submit", "--address", "http://127.0.0.1:9", "--job", "one")
