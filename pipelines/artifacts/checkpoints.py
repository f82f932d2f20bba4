"""The checkpoints of a training: step_00000100/ … in its directory, or at a URI. An incomplete one does not count."""

import posixpath
from collections.abc import Callable
from pathlib import Path

import torch

from ctd_core.errors import CtdError
from ctd_core.storage.atomic import atomic_directory
from ctd_core.storage.locations import below, delete_folder, is_uri, names_in
from ctd_core.training.checkpoint_index import is_complete
from ctd_core.training.loop import Metrics
from ctd_core.training.workers import ALONE, Worker

CHECKPOINTS_KEPT = 2
PREFIX = "step_"


def checkpoint_at(training: str, steps: int) -> str:
    """Where the checkpoint after `steps` steps of a training lies."""
    return below(training, f"{PREFIX}{steps:08d}")


def steps_done(checkpoint: str | None) -> int:
    """The steps done at `checkpoint`; None is the start."""
    return 0 if checkpoint is None else int(name_of(checkpoint).removeprefix(PREFIX))


def name_of(checkpoint: str) -> str:
    """The last part of a checkpoint's location."""
    return posixpath.basename(checkpoint.partition("?")[0] if is_uri(checkpoint) else checkpoint)


def checkpoints(training: str) -> list[str]:
    """The complete checkpoints of a training, the fewest steps first."""
    return [location for location in _begun(training) if is_complete(names_in(location), location)]


def _begun(training: str) -> list[str]:
    return [below(training, name) for name in names_in(training) if name.startswith(PREFIX)]


def latest_checkpoint(training: str) -> str | None:
    """The checkpoint of the most steps, None where there is none."""
    complete = checkpoints(training)
    return complete[-1] if complete else None


def trained_checkpoint(training: str) -> str:
    """The latest checkpoint of a training.

    Args:
        training: the location of the training's checkpoints.

    Returns:
        Its location.

    Raises:
        CtdError: there is none.
    """
    checkpoint = latest_checkpoint(training)
    if checkpoint is None:
        raise CtdError(f"{training}: no checkpoint here. Run `ctd train` with the same config first.")
    return checkpoint


def starting_checkpoint(training: str, worker: Worker) -> str | None:
    """The latest checkpoint as the first worker sees it: all have to start from the same one."""
    found = latest_checkpoint(training) if worker.rank == 0 else None
    return found if worker.world_size == 1 else _broadcast(found)


def checkpoint_writer(
    training: str,
    worker: Worker = ALONE,
    afterwards: Callable[[Metrics], None] = lambda metrics: None,
    keeps: int | None = None,
) -> Callable[[Metrics, Callable[[str | Path], None]], None]:
    """The loop's hook that writes checkpoints of `training` and deletes all but the last CHECKPOINTS_KEPT.

    Every worker writes its part. At a URI it goes where the checkpoint will be, and the file that completes it comes
    last; in a file system it goes into a temporary directory of the first worker's, which is renamed.

    Args:
        training: the location of the training's checkpoints.
        worker: this worker.
        afterwards: called on every worker with the step's metrics.
        keeps: the step of a checkpoint that is not deleted.

    Returns:
        The hook, which every worker has to call.
    """

    def save(metrics: Metrics, write: Callable[[str | Path], None]) -> None:
        location = checkpoint_at(training, int(metrics["step"]))
        if is_uri(training):
            write(location)
        elif worker.world_size == 1:
            with atomic_directory(Path(location)) as temporary:
                write(temporary)
        elif worker.rank:
            write(_broadcast(None) or location)
        else:
            with atomic_directory(Path(location)) as temporary:
                _broadcast(str(temporary))
                write(temporary)
        if worker.rank == 0:
            _delete_old(training, keeps)
        afterwards(metrics)

    return save


def _delete_old(training: str, keeps: int | None) -> None:
    oldest = checkpoints(training)[-CHECKPOINTS_KEPT:][0]
    for location in _begun(training):
        if steps_done(location) < steps_done(oldest) and steps_done(location) != keeps:
            delete_folder(location)


def _broadcast(location: str | None) -> str | None:
    """The first worker's `location`, on every worker."""
    locations = [location]
    torch.distributed.broadcast_object_list(locations)
    return locations[0]
