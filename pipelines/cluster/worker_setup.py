"""What each of Ray's worker processes does first."""

import os

import ray


def name_cluster() -> None:
    """Tell Ray's own code in this process which cluster it belongs to, also where others run on the same machine.

    To clean up stopped trials, Ray Train asks for the only cluster of a machine, and waits for ever where two are.
    """
    os.environ["RAY_ADDRESS"] = ray.get_runtime_context().gcs_address
