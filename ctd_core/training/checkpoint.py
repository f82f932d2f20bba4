"""A checkpoint: the full state for an exact resume.

torch.distributed.checkpoint plans who writes and reads what, see checkpoint_storage for the files: each worker writes
what it has, and any number of workers of either strategy, or a single process, reads what it needs.
"""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save

from ctd_core.errors import CtdError
from ctd_core.models.logprob_model import LogprobModel
from ctd_core.training.checkpoint_index import CheckpointDamaged
from ctd_core.training.checkpoint_storage import Reader, Writer


def save_checkpoint(
    location: str | Path, student: LogprobModel, optimizer: torch.optim.Optimizer, steps_done: int
) -> None:
    """Write into `location`, an empty directory, or a URI, the same for all workers; each of them has to call it.

    The position in the data and the learning rate follow from the number of steps. Raises CtdError on every worker
    where one cannot write.
    """
    progress = {"steps_done": torch.tensor(steps_done), "random": torch.get_rng_state()}
    state = {"student": _tensors(student), "optimizer": _optimizer_tensors(student, optimizer), "progress": progress}
    try:
        with _quiet():
            save(state, storage_writer=Writer(str(location)), no_dist=not dist.is_initialized())
    except (CheckpointException, OSError) as error:
        cause = _cause(error)
        if not isinstance(cause, OSError):
            raise cause from error
        raise CtdError(
            f"{location}: the checkpoint cannot be written ({cause}). Free some space and run the same command again, "
            "if that is what it lacked: it goes on from the checkpoint before."
        ) from error


def load_checkpoint(location: str | Path, student: LogprobModel, optimizer: torch.optim.Optimizer) -> int:
    """Put everything back, each worker its own, and return the steps done.

    Raises CtdError where the checkpoint cannot be read, is damaged, or is not one of this student.
    """
    progress = {"steps_done": torch.tensor(0), "random": torch.get_rng_state()}
    state = {"student": _tensors(student), "optimizer": _optimizer_tensors(student, optimizer), "progress": progress}
    _read(str(location), state)
    torch.set_rng_state(progress["random"])
    return int(progress["steps_done"])


def read_steps_done(location: str | Path) -> int:
    """The steps that a checkpoint was written after; raises CtdError where it cannot be read or is damaged."""
    progress = {"steps_done": torch.tensor(0)}
    _read(str(location), {"progress": progress})
    return int(progress["steps_done"])


def load_weights(location: str | Path, student: LogprobModel) -> None:
    """The weights of the model alone, into this one process, for evaluation and export."""
    _read(str(location), {"student": _tensors(student)})


def _tensors(student: LogprobModel) -> dict[str, torch.Tensor]:
    """Parameters and buffers, tied ones once; of a sharded student, this worker's shards."""
    first: dict[int, tuple[str, torch.Tensor]] = {}
    for name, tensor in student.state_dict(keep_vars=True).items():
        first.setdefault(id(tensor), (name, tensor))
    return dict(first.values())


def _optimizer_tensors(student: LogprobModel, optimizer: torch.optim.Optimizer) -> dict[str, dict[str, torch.Tensor]]:
    return {name: optimizer.state[tensor] for name, tensor in _tensors(student).items() if tensor in optimizer.state}


def _read(location: str, state: dict[str, Any]) -> None:
    try:
        with _quiet():
            load(state, storage_reader=Reader(location), no_dist=not dist.is_initialized())
    except (CheckpointException, OSError, CheckpointDamaged) as error:
        cause = _cause(error)
        if isinstance(cause, CheckpointDamaged):
            raise CtdError(
                f"{cause} Move {location} aside and run the same command again: it goes on from the checkpoint before, "
                "or from the start."
            ) from error
        if isinstance(cause, OSError):
            raise CtdError(f"{location}: cannot be read ({cause}). Run the same command again.") from error
        raise cause from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Without torch's words that a single process is one, and that memory which is only copied is read-only."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given buffer is not writable")
        warnings.filterwarnings("ignore", "torch.distributed is disabled")
        yield


def _cause(error: BaseException) -> BaseException:
    """What happened: on the first worker where it happened, on several."""
    return next(iter(error.failures.values()))[0] if isinstance(error, CheckpointException) else error
