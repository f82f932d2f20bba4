"""Ray's fake machines, each with a folder of its own for the files of jobs, as real machines have.

Those of Ray share one folder: a machine that comes deletes what jobs on the others run from, and unpacks it again.
"""

from functools import partial
from typing import Any
from unittest.mock import patch
from uuid import uuid4

from ray._private import parameter
from ray.autoscaler._private.fake_multi_node.node_provider import FakeMultiNodeProvider


class FakeMachines(FakeMultiNodeProvider):
    def _create_node_with_resources_and_labels(self, *request: Any) -> None:
        own_folder = partial(parameter.RayParams, runtime_env_dir_name=uuid4().hex)
        with self.lock, patch.object(parameter, "RayParams", own_folder):
            super()._create_node_with_resources_and_labels(*request)
