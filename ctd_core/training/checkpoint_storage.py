"""Storage for torch.distributed.checkpoint: safetensors files, and a JSON index of what is in which.

    checkpoint.json                   written last: each tensor's pieces by file, bytes and checksum
    tensors-00000.safetensors …       what each worker wrote

Nothing of it is a pickle, so that reading it runs no code; every piece is compared with its checksum before it is used.
"""

import json
import os
import posixpath
import struct
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO, cast

import pyarrow as pa
import torch
from torch import Tensor
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import LoadPlan, LoadPlanner, SavePlan, SavePlanner
from torch.distributed.checkpoint.storage import StorageReader, StorageWriter, WriteResult
from torch.futures import Future

from ctd_core.storage.locations import file_system, is_uri
from ctd_core.training.checkpoint_index import (
    METADATA,
    CheckpointDamaged,
    Piece,
    StoredTensor,
    checksum_of,
    index_of,
    read_stored,
)

DTYPES = {  # by their names in safetensors files
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64,
    "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip
NAMES = {dtype: name for name, dtype in DTYPES.items()}


class Writer(StorageWriter):
    """Each worker writes one safetensors file into `location`, a directory or a URI; the first one then the JSON."""

    def __init__(self, location: str) -> None:
        self._location = location
        self._files, self._root = file_system(location)
        self._rank = 0

    def reset(self, checkpoint_id: str | os.PathLike[str] | None = None) -> None:
        """No state is carried from one checkpoint to the next."""

    def set_up_storage_writer(self, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        """Take the number of this worker, by which its file is named."""
        self._rank = kwargs.get("rank") or (torch.distributed.get_rank() if torch.distributed.is_initialized() else 0)

    def prepare_local_plan(self, plan: SavePlan) -> SavePlan:
        """The plan as it is."""
        self._files.create_dir(self._root, recursive=True)
        return plan

    def prepare_global_plan(self, plans: list[SavePlan]) -> list[SavePlan]:
        """The plans as they are."""
        return plans

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        """Write this worker's tensors; raises OSError where that cannot be done."""
        file = f"tensors-{self._rank:05d}.safetensors"
        tensors = {_name(item.index): cast(Tensor, planner.resolve_data(item)) for item in plan.items}
        results = []
        with self._created(file) as stream:
            begin = stream.write(_header(tensors))
            for item, tensor in zip(plan.items, tensors.values(), strict=True):
                raw = _bytes_of(tensor)
                stream.write(raw)
                end = begin + len(raw)
                chunk = item.tensor_data.chunk  # type: ignore[union-attr]
                piece = Piece(
                    offsets=tuple(chunk.offsets), sizes=tuple(chunk.sizes), file=file, begin=begin, end=end,
                    checksum=checksum_of(raw),
                )  # fmt: skip
                results.append(WriteResult(item.index, len(raw), piece))
                begin = end
        future: Future[list[WriteResult]] = Future()
        future.set_result(results)
        return future

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        """Write the JSON, which makes the checkpoint complete."""
        pieces: dict[str, list[Piece]] = defaultdict(list)
        for result in (item for worker in results for item in worker):
            pieces[result.index.fqn].append(result.storage_data)
        tensors = {
            name: StoredTensor(dtype=NAMES[stored.properties.dtype], size=tuple(stored.size), pieces=pieces[name])
            for name, stored in metadata.state_dict_metadata.items()
            if isinstance(stored, TensorStorageMetadata)
        }
        with self._created(METADATA) as stream:
            stream.write(index_of(tensors).model_dump_json().encode())

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike[str]) -> bool:
        """Any location may be one."""
        return True

    @contextmanager
    def _created(self, file: str) -> Iterator[BinaryIO]:
        """A new file, which is on the disk once the context is left."""
        path = posixpath.join(self._root, file)
        if is_uri(self._location):
            with self._files.open_output_stream(path) as stream:
                yield stream
            return
        with open(path, "wb") as local:
            yield local
            local.flush()
            os.fsync(local.fileno())


class Reader(StorageReader):
    """What Writer wrote, piece by piece, each compared with its checksum; raises as `read_stored` does."""

    def __init__(self, location: str) -> None:
        self._location = location
        self._files, self._root = file_system(location)
        self._stored = read_stored(location).tensors

    def reset(self, checkpoint_id: str | os.PathLike[str] | None = None) -> None:
        """No state is carried from one checkpoint to the next."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        """What is stored."""
        tensors = {
            name: TensorStorageMetadata(
                TensorProperties(DTYPES[stored.dtype]),
                torch.Size(stored.size),
                [ChunkStorageMetadata(torch.Size(piece.offsets), torch.Size(piece.sizes)) for piece in stored.pieces],
            )
            for name, stored in self._stored.items()
        }
        return Metadata(dict(tensors))

    def set_up_storage_reader(self, metadata: Metadata, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        """Every worker has read the JSON already."""

    def prepare_local_plan(self, plan: LoadPlan) -> LoadPlan:
        """The plan as it is."""
        return plan

    def prepare_global_plan(self, plans: list[LoadPlan]) -> list[LoadPlan]:
        """The plans as they are."""
        return plans

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Future[None]:
        """Fill the tensors that the planner names; raises CheckpointDamaged where a piece is not what was written."""
        wanted: dict[str, list[tuple[Piece, Any]]] = defaultdict(list)
        for item in plan.items:
            piece = self._piece(item.storage_index)
            wanted[piece.file].append((piece, item))
        for file, items in wanted.items():
            with self._opened(file) as stream:
                for piece, item in sorted(items, key=lambda piece: piece[0].begin):
                    dtype = DTYPES[self._stored[item.storage_index.fqn].dtype]
                    stored = self._read(stream, piece, dtype)
                    for axis, (offset, length) in enumerate(zip(item.storage_offsets, item.lengths, strict=True)):
                        stored = stored.narrow(axis, offset, length)
                    target = planner.resolve_tensor(item)
                    target.detach().copy_(stored)
                    planner.commit_tensor(item, target)
        future: Future[None] = Future()
        future.set_result(None)
        return future

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike[str]) -> bool:
        """Any location may be one."""
        return True

    def _piece(self, index: MetadataIndex) -> Piece:
        pieces = self._stored[index.fqn].pieces
        return next(piece for piece in pieces if index.offset is None or piece.offsets == tuple(index.offset))

    def _opened(self, file: str) -> pa.NativeFile:
        path = posixpath.join(self._root, file)
        return self._files.open_input_file(path) if is_uri(self._location) else pa.memory_map(path)

    def _read(self, stream: pa.NativeFile, piece: Piece, dtype: torch.dtype) -> Tensor:
        stream.seek(piece.begin)
        raw = stream.read_buffer(piece.end - piece.begin)
        if raw.size != piece.end - piece.begin or checksum_of(raw) != piece.checksum:
            raise CheckpointDamaged(f"{self._location}/{piece.file}: its content differs from its checksum.")
        if not raw.size:
            return torch.zeros(piece.sizes, dtype=dtype)
        # Read-only memory: it is copied into the target, and never written.
        return torch.frombuffer(memoryview(raw), dtype=dtype).reshape(piece.sizes)


def _name(index: MetadataIndex) -> str:
    """What a piece is called in its file: its tensor, and where it begins in it if not at its beginning."""
    is_first = index.offset is None or not any(index.offset)
    return index.fqn if is_first else f"{index.fqn}@{','.join(map(str, index.offset or ()))}"


def _header(tensors: dict[str, Tensor]) -> bytes:
    """What a safetensors file begins with; the tensors follow in the same order."""
    entries, begin = {}, 0
    for name, tensor in tensors.items():
        end = begin + tensor.numel() * tensor.element_size()
        entries[name] = {"dtype": NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [begin, end]}
        begin = end
    text = json.dumps(entries).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text


def _bytes_of(tensor: Tensor) -> memoryview:
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return memoryview(flat.view(torch.uint8).numpy().data) if flat.numel() else memoryview(b"")
