"""The JSON index of a checkpoint: which file holds which part of which tensor, and their checksums."""

import json
import posixpath
from pathlib import Path
from typing import Any

import xxhash

from ctd_core.config.base import Record
from ctd_core.errors import CtdError, UsageError
from ctd_core.storage.locations import file_system

METADATA = "checkpoint.json"
PICKLED_METADATA = ".metadata"  # of earlier versions
VERSION = 1


class CheckpointDamaged(CtdError):
    """A checkpoint whose files are not what was written."""


class Piece(Record):
    """One stored part of a tensor: where it lies in the tensor, and where in which file; checksum: XXH3, 128 bits."""

    offsets: tuple[int, ...]
    sizes: tuple[int, ...]
    file: str
    begin: int
    end: int
    checksum: str


class StoredTensor(Record):
    """A tensor and its pieces."""

    dtype: str
    size: tuple[int, ...]
    pieces: list[Piece]


class StoredCheckpoint(Record):
    """What checkpoint.json holds; `checksum` is that of `tensors` as JSON."""

    version: int
    checksum: str
    tensors: dict[str, StoredTensor]


def checksum_of(content: Any) -> str:
    """The XXH3 checksum of bytes, 128 bits in hexadecimal digits."""
    return xxhash.xxh3_128_hexdigest(content)


def read_stored(location: str) -> StoredCheckpoint:
    """The JSON of the checkpoint in `location`.

    Args:
        location: a directory or a URI.

    Returns:
        What it says of the tensors.

    Raises:
        CheckpointDamaged: it is missing or not what was written.
        UsageError: it is of another version.
    """
    files, root = file_system(location)
    try:
        with files.open_input_file(posixpath.join(root, METADATA)) as stream:
            stored = StoredCheckpoint.model_validate_json(bytes(stream.read()))
    except (FileNotFoundError, ValueError) as error:  # pydantic's errors are ValueErrors
        raise CheckpointDamaged(f"{location}: no {METADATA} that can be read, so not a complete checkpoint.") from error
    if stored.version != VERSION:
        raise UsageError(
            f"{location}: a checkpoint of version {stored.version}; this version reads {VERSION}. Use the version of "
            "ctd-ray that wrote it."
        )
    if stored.checksum != checksum_of(_canonical(stored.tensors)):
        raise CheckpointDamaged(f"{location}/{METADATA}: its content differs from its checksum.")
    return stored


def is_complete(names: list[str], location: str | Path) -> bool:
    """Whether a folder of these files is a complete checkpoint.

    Args:
        names: the names of the files in the folder.
        location: what messages call the folder.

    Returns:
        Whether it is complete.

    Raises:
        UsageError: an earlier version wrote it, with metadata whose reader runs code.
    """
    if PICKLED_METADATA in names:
        raise UsageError(
            f"{location}: a checkpoint of an earlier version. Its metadata is a pickle, which could run code, and is "
            "not read. Finish this training with the version that began it, or move its directory aside."
        )
    return METADATA in names


def _canonical(tensors: dict[str, StoredTensor]) -> bytes:
    plain = {name: tensor.model_dump(mode="json") for name, tensor in tensors.items()}
    return json.dumps(plain, sort_keys=True).encode()


def index_of(tensors: dict[str, StoredTensor]) -> StoredCheckpoint:
    """The index of these tensors."""
    return StoredCheckpoint(version=VERSION, checksum=checksum_of(_canonical(tensors)), tensors=tensors)
