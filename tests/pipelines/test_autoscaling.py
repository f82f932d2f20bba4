"""A whole run on a cluster that begins without a single worker machine."""

import json
import subprocess
import time

import pytest

from tests.pipelines.test_jobs import submit
from tests.pipelines.test_run import config, inputs, written  # noqa: F401  # fixtures
from tests.support.ray_heads import RAY, ray_head

NODE_TYPES = {
    "tokenize": {"resources": {"CPU": 2}, "node_config": {}, "min_workers": 0, "max_workers": 2},
    "teacher": {"resources": {"CPU": 2, "teacher": 1}, "node_config": {}, "min_workers": 0, "max_workers": 2},
    "train": {"resources": {"CPU": 2, "train": 2}, "node_config": {}, "min_workers": 0, "max_workers": 2},
    "gpu": {"resources": {"CPU": 2, "GPU": 1}, "node_config": {}, "min_workers": 0, "max_workers": 2},
}


@pytest.fixture
def head(tmp_path):
    with ray_head(tmp_path, "--num-cpus=0", autoscaling=NODE_TYPES) as environment:
        yield environment


def worker_nodes(head):
    """The state of every worker machine that there is or was, and its resources."""
    command = [RAY, "list", "nodes", "--detail", "--format", "json"]
    found = subprocess.run(command, env=head, capture_output=True, text=True, check=True).stdout
    nodes = json.loads(found) if found.startswith("[") else []  # in words where there is none
    return [(node["state"], node["resources_total"]) for node in nodes if not node["is_head_node"]]


def test_the_machines_that_each_stage_asks_for_come_and_go(head, config, tmp_path):  # noqa: F811
    assert worker_nodes(head) == []
    changes = {
        "prepare": config["prepare"] | {"scoring_resources": {"teacher": 1}},
        "train": config["train"] | {"num_workers": 2, "worker_resources": {"train": 1}},
        "sample": {},
    }
    file = written(config | changes, tmp_path)
    done = submit(head, "--", "run", "--config", file)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "gap closed" in done.stdout
    came = worker_nodes(head)
    kinds = {kind for _, resources in came for kind in ("teacher", "train", "GPU") if kind in resources}
    assert kinds == {"teacher", "train"}  # nothing asked for a GPU
    deadline = time.monotonic() + 180
    while any(state != "DEAD" for state, _ in worker_nodes(head)):
        assert time.monotonic() < deadline
        time.sleep(1)
