"""Clusters: whose Ray it is; cluster.yaml as Ray itself checks it, without a cloud, and the RayJob beside it."""

import signal
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import ray
import yaml
from ray.exceptions import RayTaskError

from ctd_core.errors import UsageError
from pipelines.cluster.connection import connect, is_local, reraised_errors, stop_local_ray

ROOT = Path(__file__).parents[2]


def test_a_ray_of_ones_own_has_no_more_than_this_machine_and_workers_leave_that_to_others(monkeypatch):
    def ask_for_much():
        connect(1000, 0, "train.num_workers")
        return is_local()

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    stop_local_ray()
    try:
        with pytest.raises(UsageError, match=r"train\.num_workers ask for 1000 CPUs"):
            ask_for_much()
        with pytest.raises(UsageError, match="teacher: this machine has no such resource"):
            connect(1, 0, "prepare.scoring_actors", {"teacher": 1})
        assert is_local()
        assert not ray.get(ray.remote(ask_for_much).remote())  # on a cluster that may grow
    finally:
        stop_local_ray()


def test_two_threads_that_need_ray_start_one(monkeypatch):
    started = []

    def init(**options):
        time.sleep(0.2)
        started.append(options)

    monkeypatch.setattr(ray, "is_initialized", lambda: bool(started))
    monkeypatch.setattr(ray, "init", init)
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 2.0})
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    with ThreadPoolExecutor(2) as threads:
        list(threads.map(lambda _: connect(1, 0, "a test"), range(2)))
    assert len(started) == 1


def test_an_error_of_an_actor_has_the_words_of_its_cause_alone():
    for error in (
        UsageError("number 3: too long"),
        RayTaskError("fail", "a traceback", UsageError("number 3: too long")),
    ):
        with pytest.raises(UsageError) as raised, reraised_errors():
            raise error.as_instanceof_cause() if isinstance(error, RayTaskError) else error
        assert str(raised.value) == "number 3: too long"


def test_cluster_yaml_is_what_ray_up_takes():
    from ray.autoscaler._private import util

    config = yaml.safe_load((ROOT / "cluster.yaml").read_text())
    util.validate_config(util.prepare_config(config))
    types = config["available_node_types"]
    assert types["head"]["resources"] == {"CPU": 0}
    for commands in (config["head_start_ray_commands"], config["worker_start_ray_commands"]):
        assert all("RAY_AUTH_MODE=token" in command for command in commands if "ray start" in command)
        assert not any("0.0.0.0" in command for command in commands)
    assert "--dashboard-host=127.0.0.1" in config["head_start_ray_commands"][-1]
    assert all(node_type["min_workers"] == 0 for name, node_type in types.items() if name != "head")


def test_the_rayjob_has_the_groups_of_cluster_yaml():
    types = yaml.safe_load((ROOT / "cluster.yaml").read_text())["available_node_types"]
    cluster = yaml.safe_load((ROOT / "pipelines" / "rayjob.yaml").read_text())["spec"]["rayClusterSpec"]
    assert cluster["authOptions"] == {"mode": "token"}
    assert cluster["headGroupSpec"]["rayStartParams"] == {"num-cpus": "0"}
    groups = {group["groupName"]: group for group in cluster["workerGroupSpecs"]}
    assert set(groups) == set(types) - {"head"}
    for name, group in groups.items():
        assert (group["minReplicas"], group["maxReplicas"]) == (0, types[name]["max_workers"])
        (container,) = group["template"]["spec"]["containers"]
        assert ("nvidia.com/gpu" in container["resources"]["limits"]) == ("GPU" in types[name]["resources"])
