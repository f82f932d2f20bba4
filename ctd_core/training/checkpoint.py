"""What a checkpoint holds: all that makes the steps after it those of a run that never stopped.

It is in the format of torch.distributed.checkpoint: each worker writes what it has, and any number of workers of either
strategy, or a single process, reads what it needs.
"""

import logging
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save

from ctd_core.errors import CtdError
from ctd_core.models.student import LogprobModel

WHOLE = ".metadata"  # written last
logging.getLogger("c10d-NullHandler-dcp_logger").propagate = False  # torch's own notes on every call, at level DEBUG


def save_checkpoint(directory: Path, student: LogprobModel, optimizer: torch.optim.Optimizer, steps_done: int) -> None:
    """Write into `directory`, which has to exist, and to be the same for all workers; every worker has to call it.

    The position in the data and the learning rate follow from the number of steps. Raises CtdError on every worker
    where one cannot write.
    """
    progress = {"steps_done": torch.tensor(steps_done), "random": torch.get_rng_state()}
    state = {"student": _tensors(student), "optimizer": _optimizer_tensors(student, optimizer), "progress": progress}
    try:
        with _quiet():
            save(state, storage_writer=FileSystemWriter(directory), no_dist=not dist.is_initialized())
    except (CheckpointException, OSError, RuntimeError) as error:  # torch raises RuntimeError where the disk is full
        for left in directory.iterdir():
            with suppress(OSError):  # another worker took it away
                shutil.rmtree(left) if left.is_dir() else left.unlink()
        raise CtdError(
            f"{directory}: the checkpoint cannot be written ({_cause(error)}). Free some space and run the same "
            "command again: it goes on from the checkpoint before."
        ) from error


def load_checkpoint(directory: Path, student: LogprobModel, optimizer: torch.optim.Optimizer) -> int:
    """Put everything back, each worker its own, and return the steps done.

    Raises CtdError where the checkpoint is not whole.
    """
    progress = {"steps_done": torch.tensor(0), "random": torch.get_rng_state()}
    state = {"student": _tensors(student), "optimizer": _optimizer_tensors(student, optimizer), "progress": progress}
    _read(directory, state)
    torch.set_rng_state(progress["random"])
    return int(progress["steps_done"])


def load_weights(directory: Path, student: LogprobModel) -> None:
    """The weights of the model alone, into this one process, for evaluation and export."""
    _read(directory, {"student": _tensors(student)})


def _tensors(student: LogprobModel) -> dict[str, torch.Tensor]:
    """Parameters and buffers, tied ones once; of a student that is shared out, this worker's shares."""
    first: dict[int, tuple[str, torch.Tensor]] = {}
    for name, one in student.state_dict(keep_vars=True).items():
        first.setdefault(id(one), (name, one))
    return dict(first.values())


def _optimizer_tensors(student: LogprobModel, optimizer: torch.optim.Optimizer) -> dict[str, dict[str, torch.Tensor]]:
    return {name: optimizer.state[one] for name, one in _tensors(student).items() if one in optimizer.state}


def _read(directory: Path, state: dict[str, Any]) -> None:
    try:
        with _quiet():
            load(state, storage_reader=FileSystemReader(directory), no_dist=not dist.is_initialized())
    except (CheckpointException, Exception) as error:  # the first is no Exception
        raise CtdError(
            f"{directory}: not a whole checkpoint ({_cause(error)}). Delete this directory: the run goes on from the "
            "checkpoint before, or from the start."
        ) from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Without torch's word that a single process is one."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled")
        yield


def _cause(error: BaseException) -> str:
    """What happened, in a line: of one worker, where it happened on several."""
    if isinstance(error, CheckpointException):
        error = next(iter(error.failures.values()))[0]
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
