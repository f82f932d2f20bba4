"""The manifests of machines: cluster.yaml as Ray itself checks it, without a cloud, and the RayJob beside it."""

from pathlib import Path

import yaml

ROOT = Path(__file__).parents[2]


def test_cluster_yaml_is_what_ray_up_takes():
    from ray.autoscaler._private import util

    config = yaml.safe_load((ROOT / "cluster.yaml").read_text())
    util.validate_config(util.prepare_config(config))
    types = config["available_node_types"]
    assert types["head"]["resources"] == {"CPU": 0}
    assert all(one["min_workers"] == 0 for name, one in types.items() if name != "head")


def test_the_rayjob_has_the_groups_of_cluster_yaml():
    types = yaml.safe_load((ROOT / "cluster.yaml").read_text())["available_node_types"]
    cluster = yaml.safe_load((ROOT / "pipelines" / "rayjob.yaml").read_text())["spec"]["rayClusterSpec"]
    assert cluster["headGroupSpec"]["rayStartParams"] == {"num-cpus": "0"}
    groups = {one["groupName"]: one for one in cluster["workerGroupSpecs"]}
    assert set(groups) == set(types) - {"head"}
    for name, group in groups.items():
        assert (group["minReplicas"], group["maxReplicas"]) == (0, types[name]["max_workers"])
        (container,) = group["template"]["spec"]["containers"]
        assert ("nvidia.com/gpu" in container["resources"]["limits"]) == ("GPU" in types[name]["resources"])
