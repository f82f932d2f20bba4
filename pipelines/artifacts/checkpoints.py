"""The checkpoints of a training: step_00000100/ … in its directory, or at a URI, each whole or not counted."""

import posixpath
from collections.abc import Callable
from pathlib import Path

import torch

from ctd_core.errors import CtdError
from ctd_core.storage.atomic import atomic_directory
from ctd_core.storage.locations import below, delete_folder, is_uri, names_in
from ctd_core.training.checkpoint_storage import is_complete
from ctd_core.training.loop import Metrics
from ctd_core.training.workers import ALONE, Worker
from pipelines.artifacts.run_paths import Places

KEPT = 2
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
    """The whole checkpoints of a training, the fewest steps first."""
    return [one for one in _begun(training) if is_complete(names_in(one), one)]


def _begun(training: str) -> list[str]:
    return [below(training, name) for name in names_in(training) if name.startswith(PREFIX)]


def latest_checkpoint(training: str) -> str | None:
    """The checkpoint of the most steps, None where there is none."""
    whole = checkpoints(training)
    return whole[-1] if whole else None


def starting_checkpoint(training: str, worker: Worker) -> str | None:
    """The latest checkpoint as the first worker sees it: all have to start from the same one."""
    found = latest_checkpoint(training) if worker.rank == 0 else None
    return found if worker.world == 1 else _told(found)


def trained_checkpoint(places: Places) -> str:
    """The run's latest checkpoint; raises CtdError where there is none."""
    checkpoint = latest_checkpoint(places.checkpoints)
    if checkpoint is None:
        raise CtdError(f"{places.checkpoints}: no checkpoint here. Run `ctd train` with the same config first.")
    return checkpoint


def keeping(
    training: str, worker: Worker = ALONE, afterwards: Callable[[Metrics], None] = lambda metrics: None
) -> Callable[[Metrics, Callable[[str | Path], None]], None]:
    """A hook of the loop's: checkpoints of `training`, the last few of which stay; then `afterwards` is called.

    Every worker writes its part: at a URI into its place, where the file that makes it whole comes last, otherwise into
    a directory that the first one makes, and then puts into its place.
    """

    def save(metrics: Metrics, write: Callable[[str | Path], None]) -> None:
        place = checkpoint_at(training, int(metrics["step"]))
        if is_uri(training):
            write(place)
        elif worker.rank:
            write(_told(None) or place)
        else:
            with atomic_directory(Path(place)) as temporary:
                write(temporary if worker.world == 1 else _told(str(temporary)) or temporary)
        if worker.rank == 0:
            oldest = checkpoints(training)[-KEPT:][0]
            for old in _begun(training):
                if steps_done(old) < steps_done(oldest):
                    delete_folder(old)
        afterwards(metrics)

    return save


def _told(location: str | None) -> str | None:
    """What the first worker has for `location`."""
    told = [location]
    torch.distributed.broadcast_object_list(told)
    return told[0]
