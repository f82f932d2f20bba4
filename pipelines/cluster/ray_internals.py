"""What of Ray is private or set by environment variables, each with the reason. Import this before Ray is started."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

from ray._private import accelerators, services
from ray._private.utils import detect_fate_sharing_support, get_num_cpus
from ray._private.worker import WORKER_MODE, global_worker

ENVIRONMENT = {
    # A checkpoint reported just before a worker dies is kept, and a report does not wait for the next poll.
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
    # Ray Data hands its actors objects of its own and lets them restart, and Ray's core warns of that at every start;
    # the command keeps these objects for as long as it runs. Errors of the core come out as exceptions too.
    "RAY_BACKEND_LOG_LEVEL": "fatal",
    # Workers stay in the directory of the command, so that relative paths of a run mean the same there.
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_AIR_NEW_OUTPUT": "0",  # Tune's other output has no silent mode
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",  # the table of trials has them
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # a training writes what they would
}
for name, value in ENVIRONMENT.items():
    os.environ.setdefault(name, value)


@contextmanager
def groups_of_their_own() -> Iterator[None]:
    """Give each process of a Ray that is started here a process group of its own, for which Ray has no option.

    `timeout` and shells send SIGTERM to all processes of a command's group, and the command needs its Ray for one
    checkpoint more, before it stops Ray itself. Only where the kernel ends Ray with a command that is killed (Linux):
    elsewhere Ray does that by the group.
    """
    if not detect_fate_sharing_support():
        yield
        return
    start = services.ConsolePopen
    services.ConsolePopen = partial(start, process_group=0)  # type: ignore[misc, assignment]  # is a class
    try:
        yield
    finally:
        services.ConsolePopen = start  # type: ignore[misc]


def resources_of_machine() -> dict[str, float]:
    """The CPUs and GPUs that a Ray on this machine would have; there is no public way to ask without starting Ray."""
    gpus = accelerators.get_accelerator_manager_for_resource("GPU")
    return {"CPU": get_num_cpus(), "GPU": 0 if gpus is None else gpus.get_current_node_num_accelerators()}


def is_worker_process() -> bool:
    """Whether Ray started this process as a worker; there is no public way to ask without starting Ray."""
    return bool(global_worker.mode == WORKER_MODE)
