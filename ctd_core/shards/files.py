"""Shard files and their manifest on any file system: written atomically, checked when read."""

import hashlib
import json
import posixpath
from contextlib import suppress
from pathlib import Path

import numpy as np
import pyarrow as pa
from pyarrow import fs, ipc
from pydantic import ValidationError

from ctd_core.errors import CtdError
from ctd_core.shards import MANIFEST, schema
from ctd_core.shards.cache import Cache
from ctd_core.shards.manifest import Counts, Manifest, ShardEntry, parse_manifest
from ctd_core.storage.atomic import write_atomic
from ctd_core.storage.locations import below, file_system, is_uri

ENTRY_SUFFIX = ".arrow.json"
PER_CHUNK = {schema.CHUNK_BYTES, schema.TEACHER_TOP_COUNTS, *(field.name for field in schema.TARGET_FIELDS)}


class ShardDamaged(CtdError):
    """A shard that is missing, or not what was written."""


class Folder:
    """A folder of shards: a local path, or a URI (see storage)."""

    def __init__(self, location: str | Path) -> None:
        self.name = str(location)
        self._files, self._root = file_system(self.name)
        self.is_local = isinstance(self._files, fs.LocalFileSystem)

    def path(self, file: str) -> str:
        """The path of `file` within the file system."""
        return posixpath.join(self._root, file)

    def exists(self, file: str) -> bool:
        """Whether there is such a file."""
        return bool(self._files.get_file_info(self.path(file)).type == fs.FileType.File)

    def sizes_bytes(self) -> dict[str, int]:
        """The size of every file here, by name."""
        found = self._files.get_file_info(fs.FileSelector(self._root, allow_not_found=True))
        return {info.base_name: int(info.size) for info in found if info.type == fs.FileType.File}

    def read(self, file: str) -> bytes:
        """The bytes of `file`; raises CtdError where it cannot be read."""
        try:
            with self._files.open_input_file(self.path(file)) as stream:
                return bytes(stream.read())
        except OSError as error:
            raise CtdError(f"{self.name}/{file}: cannot be read ({error}).") from error

    def write(self, file: str, content: bytes | pa.Buffer) -> None:
        """Write `file` atomically; raises CtdError where it cannot be written."""
        try:
            write_atomic(below(self.name, file), content, temporary=f".{file}.partial")
        except OSError as error:
            raise CtdError(
                f"{self.name}/{file}: cannot be written ({error}). Free some space or choose another location, then "
                "run the same command again: finished shards are not made again."
            ) from error

    def set_aside(self, file: str) -> None:
        """Give a file another name, under which nothing looks for it; raises CtdError where that cannot be done."""
        try:
            self._files.move(self.path(file), self.path(f"{file}.aside"))
        except OSError as error:
            raise CtdError(f"{self.name}/{file}: cannot be moved aside ({error}). Move it yourself.") from error

    def open_batch(self, entry: ShardEntry, verify: bool, cache: Cache | None = None) -> pa.RecordBatch:
        """The one record batch of a shard, memory-mapped where the folder is local or there is a `cache`.

        Raises ShardDamaged where the file is missing, truncated or, with `verify`, differs from its checksum.
        """
        source = f"{self.name}/{entry.file}"
        way_out = "Prepare again: only this shard is made again."
        try:
            if self.is_local:
                buffer = pa.memory_map(self.path(entry.file)).read_buffer()
            elif cache is not None:
                buffer, verify = cache.fetch(entry, lambda: self.read(entry.file), verify), False  # it has verified
            else:
                buffer = pa.py_buffer(self.read(entry.file))
        except FileNotFoundError as error:
            raise ShardDamaged(f"{source}: the shard cannot be read ({error}). {way_out}") from error
        except OSError as error:  # it may be good
            raise CtdError(f"{source}: the shard cannot be read ({error}). Run the same command again.") from error
        if buffer.size != entry.size_bytes:
            raise ShardDamaged(f"{source}: {buffer.size} bytes where the manifest has {entry.size_bytes}. {way_out}")
        if verify and hashlib.sha256(buffer).hexdigest() != entry.sha256:
            raise ShardDamaged(f"{source}: its content differs from its checksum. {way_out}")
        try:
            with ipc.open_file(buffer) as reader:
                return reader.get_batch(0)
        except (pa.ArrowInvalid, OSError) as error:
            raise ShardDamaged(f"{source}: not a shard ({error}). {way_out}") from error


def shard_file(part: int) -> str:
    """The name of the shard of a part of the corpus."""
    return f"shard-{part:06d}.arrow"


def shard_bytes(batch: pa.RecordBatch) -> pa.Buffer:
    """`batch` as an Arrow IPC file."""
    sink = pa.BufferOutputStream()
    with ipc.new_file(sink, batch.schema) as writer:
        writer.write_batch(batch)
    return sink.getvalue()


def write_shard(folder: Folder, part: int, content: bytes | pa.Buffer, counts: Counts) -> ShardEntry:
    """Write a shard, then the entry beside it that marks it as complete."""
    buffer = content if isinstance(content, pa.Buffer) else pa.py_buffer(content)
    file = shard_file(part)
    entry = ShardEntry(file=file, size_bytes=buffer.size, sha256=hashlib.sha256(buffer).hexdigest(), counts=counts)
    folder.write(file, buffer)
    folder.write(file + ".json", entry.model_dump_json().encode())
    return entry


def finished_shards(folder: Folder) -> dict[str, ShardEntry]:
    """The shards of `folder` that are complete, by file name: those with an entry, and of the size that it gives."""
    sizes = folder.sizes_bytes()
    entries = [_read_entry(folder, file) for file in sorted(sizes) if file.endswith(ENTRY_SUFFIX)]
    return {entry.file: entry for entry in entries if entry is not None and sizes.get(entry.file) == entry.size_bytes}


def verify_shards(folder: Folder, cache: Cache | None = None) -> dict[str, ShardEntry]:
    """The shards of `folder` whose content is what was written, by file name.

    What is not is moved aside, under its name with `.aside` behind it: it is made again, and nothing is deleted.
    Remote shards are verified in `cache`, where there is one.
    """
    good: dict[str, ShardEntry] = {}
    sizes = folder.sizes_bytes()
    for file in sorted(file for file in sizes if file.endswith(ENTRY_SUFFIX)):
        if file.removesuffix(".json") not in sizes:
            continue  # the shard is made again, and its entry with it
        entry = _read_entry(folder, file)
        if entry is not None and sizes.get(entry.file) == entry.size_bytes:
            with suppress(ShardDamaged):
                check_columns(folder.open_batch(entry, verify=True, cache=cache), entry.counts, entry.file)
                good[entry.file] = entry
                continue
        for bad in (file, file.removesuffix(".json")):
            if bad in sizes:
                folder.set_aside(bad)
    return good


def is_finished(folder: Folder, cache: Cache | None = None) -> bool:
    """Whether the manifest is there and every shard that it names, unchanged.

    A manifest that cannot be read, or is of another version, is moved aside, and so are damaged shards.
    """
    if MANIFEST not in folder.sizes_bytes():
        return False
    content = folder.read(MANIFEST).decode(errors="replace")
    try:
        manifest = parse_manifest(content, f"{folder.name}/{MANIFEST}")
    except CtdError:
        folder.set_aside(MANIFEST)
        return False
    good = verify_shards(folder, cache)
    return all(good.get(shard.file) == shard for shard in manifest.shards)


def _read_entry(folder: Folder, file: str) -> ShardEntry | None:
    try:
        entry = ShardEntry.model_validate_json(folder.read(file))
    except ValidationError:
        return None
    return entry if entry.file + ".json" == file else None


def check_columns(batch: pa.RecordBatch, counts: Counts, source: str) -> None:
    """Raises ShardDamaged where the columns of a shard do not fit each other: token and chunk numbers out of range."""
    names = [field.name for field in schema.ALIGNMENT_FIELDS]
    if batch.schema.names[: len(names)] != names or batch.num_rows != counts.rows:
        raise ShardDamaged(f"{source}: other columns or rows than a shard of this version has.")
    offsets, _ = schema.list_parts(batch.column(schema.CHUNK_KINDS))
    filled = np.flatnonzero(np.diff(offsets))
    for ids, ends, largest in (
        (schema.STUDENT_IDS, schema.STUDENT_CHUNK_ENDS, counts.max_student_id),
        (schema.TEACHER_IDS, schema.TEACHER_CHUNK_ENDS, counts.max_teacher_id),
    ):
        token_offsets, tokens = schema.list_parts(batch.column(ids))
        end_offsets, chunk_ends = schema.list_parts(batch.column(ends))
        lengths = np.diff(token_offsets)
        steps = np.diff(chunk_ends, prepend=0)
        steps[offsets[:-1][filled]] = chunk_ends[offsets[:-1][filled]]  # a row's first chunk begins at 0
        if (
            not np.array_equal(end_offsets, offsets)
            or not np.array_equal(chunk_ends[offsets[1:][filled] - 1], lengths[filled])
            or steps.min(initial=0) < 0
            or tokens.min(initial=0) < 0
            or tokens.max(initial=-1) > largest
        ):
            raise ShardDamaged(f"{source}: {ends} do not fit {ids}, or these lie outside of their vocabulary.")
    if schema.PREFIX_COUNTS in batch.schema.names:
        tokens_of_rows, _ = schema.list_parts(batch.column(schema.STUDENT_IDS))
        count_offsets, prefix_counts = schema.list_parts(batch.column(schema.PREFIX_COUNTS))
        stored = np.add.reduceat(np.append(prefix_counts.astype(np.int64), 0), count_offsets[:-1])
        stored[np.diff(count_offsets) == 0] = 0
        for values in (schema.PREFIX_IDS, schema.PREFIX_LOGPROBS):
            if not np.array_equal(count_offsets, tokens_of_rows) or not np.array_equal(
                np.diff(schema.list_parts(batch.column(values))[0]), stored
            ):
                raise ShardDamaged(f"{source}: {values} do not fit {schema.PREFIX_COUNTS}.")
    for field in batch.schema:
        if field.name in PER_CHUNK and not np.array_equal(schema.list_parts(batch.column(field.name))[0], offsets):
            raise ShardDamaged(f"{source}: {field.name} has not a value for each chunk.")


def write_manifest(folder: Folder, manifest: Manifest) -> None:
    """Close a set of shards."""
    folder.write(MANIFEST, json.dumps(manifest.model_dump(mode="json"), indent=1).encode())


def read_manifest(folder: Folder) -> Manifest:
    """The manifest of `folder`; raises CtdError where there is none."""
    if not folder.exists(MANIFEST):
        inside = [] if is_uri(folder.name) else sorted(Path(folder.name).glob(f"prepared/*/{MANIFEST}"))
        names = ", ".join(str(file.parent) for file in inside)
        hint = f"Name one of {names}." if inside else "Run `ctd prepare` first."
        raise CtdError(f"{folder.name}: no {MANIFEST} here, so no finished shards. {hint}")
    return parse_manifest(folder.read(MANIFEST).decode(), f"{folder.name}/{MANIFEST}")
