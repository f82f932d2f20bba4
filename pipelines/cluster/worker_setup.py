"""What each of Ray's worker processes does first."""

import os

import ray


def name_cluster() -> None:
    """Set the address of this process's cluster for Ray's own code, also where others run on the same machine.

    To clean up stopped trials, Ray Train asks for the only cluster of a machine, and waits for ever where two are.
    """
    os.environ["RAY_ADDRESS"] = ray.get_runtime_context().gcs_address
