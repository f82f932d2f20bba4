"""What a checkpoint holds: all that makes the steps after it those of a run that never stopped.

It is in the format of torch.distributed.checkpoint: each worker writes what it has, and any number of workers of either
strategy, or a single process, reads what it needs.
"""

import io
import os
import posixpath
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from pyarrow import fs
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystem, FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save

from ctd_core.errors import CtdError
from ctd_core.models.student import LogprobModel
from ctd_core.storage import file_system, is_uri

WHOLE = ".metadata"  # written last
READ_BYTES = 8 * 2**20


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
            save(state, storage_writer=_writer(str(location)), no_dist=not dist.is_initialized())
    except (CheckpointException, OSError, RuntimeError) as error:  # torch raises RuntimeError where the disk is full
        raise CtdError(
            f"{location}: the checkpoint cannot be written ({_cause(error)}). Free some space and run the same "
            "command again, if that is what it lacked: it goes on from the checkpoint before."
        ) from error


def load_checkpoint(location: str | Path, student: LogprobModel, optimizer: torch.optim.Optimizer) -> int:
    """Put everything back, each worker its own, and return the steps done.

    Raises CtdError where the checkpoint is not whole.
    """
    progress = {"steps_done": torch.tensor(0), "random": torch.get_rng_state()}
    state = {"student": _tensors(student), "optimizer": _optimizer_tensors(student, optimizer), "progress": progress}
    _read(str(location), state)
    torch.set_rng_state(progress["random"])
    return int(progress["steps_done"])


def load_weights(location: str | Path, student: LogprobModel) -> None:
    """The weights of the model alone, into this one process, for evaluation and export."""
    _read(str(location), {"student": _tensors(student)})


def _tensors(student: LogprobModel) -> dict[str, torch.Tensor]:
    """Parameters and buffers, tied ones once; of a student that is shared out, this worker's shares."""
    first: dict[int, tuple[str, torch.Tensor]] = {}
    for name, one in student.state_dict(keep_vars=True).items():
        first.setdefault(id(one), (name, one))
    return dict(first.values())


def _optimizer_tensors(student: LogprobModel, optimizer: torch.optim.Optimizer) -> dict[str, dict[str, torch.Tensor]]:
    return {name: optimizer.state[one] for name, one in _tensors(student).items() if one in optimizer.state}


def _read(location: str, state: dict[str, Any]) -> None:
    try:
        with _quiet():
            load(state, storage_reader=_reader(location), no_dist=not dist.is_initialized())
    except (CheckpointException, Exception) as error:  # the first is no Exception
        raise CtdError(
            f"{location}: not a whole checkpoint ({_cause(error)}). Where the storage can be read, delete this "
            "directory: the run goes on from the checkpoint before, or from the start."
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


# --- On any file system -----------------------------------------------------------------------------------------


class _Files(FileSystem):
    """A file system of pyarrow's, as torch.distributed.checkpoint calls it."""

    def __init__(self, files: fs.FileSystem) -> None:
        self._files = files

    @contextmanager
    def create_stream(self, path: str | os.PathLike[str], mode: str) -> Iterator[Any]:
        if mode == "rb":
            with io.BufferedReader(self._files.open_input_file(str(path)), READ_BYTES) as stream:
                yield stream
        else:
            with self._files.open_output_stream(str(path)) as stream:
                yield stream

    def concat_path(self, path: str | os.PathLike[str], suffix: str) -> str:
        return posixpath.join(str(path), suffix)

    def rename(self, path: str | os.PathLike[str], new_path: str | os.PathLike[str]) -> None:
        self._files.move(str(path), str(new_path))

    def init_path(self, path: str | os.PathLike[str]) -> str:
        return str(path)

    def mkdir(self, path: str | os.PathLike[str]) -> None:
        self._files.create_dir(str(path), recursive=True)

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike[str]) -> bool:
        return True

    def exists(self, path: str | os.PathLike[str]) -> bool:
        return bool(self._files.get_file_info(str(path)).type != fs.FileType.NotFound)

    def rm_file(self, path: str | os.PathLike[str]) -> None:
        self._files.delete_file(str(path))


def _writer(location: str) -> FileSystemWriter:
    if not is_uri(location):
        return FileSystemWriter(location)
    files, path = file_system(location)
    writer = FileSystemWriter(path, sync_files=False)
    writer.fs, writer.path = _Files(files), path
    return writer


def _reader(location: str) -> FileSystemReader:
    reader = FileSystemReader(location)
    if is_uri(location):
        files, path = file_system(location)
        reader.fs, reader.path = _Files(files), path
    return reader
