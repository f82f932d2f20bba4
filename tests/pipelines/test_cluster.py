"""cluster.yaml as Ray itself checks it, without a cloud."""

from pathlib import Path

import yaml


def test_cluster_yaml_is_what_ray_up_takes():
    from ray.autoscaler._private import util

    config = yaml.safe_load((Path(__file__).parents[2] / "cluster.yaml").read_text())
    util.validate_config(util.prepare_config(config))
    assert set(config["available_node_types"]) == {"head", "tokenize", "gpu"}
