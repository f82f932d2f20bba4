"""Corpora in numbered parts, each of which a worker can read by itself."""

import ast
import gzip
import hashlib
import json
import re
import sys
import sysconfig
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any, BinaryIO

from ctd_core.config import Corpus, GeneralText, HubDataset, JsonLines, Parquet, StdlibDocs, TextFiles
from ctd_core.errors import CtdError, DocumentError, UsageError
from ctd_core.storage import file_system, find_files, is_uri, open_to_read, size_and_time

LEAST_DOCSTRING = 60  # characters; shorter ones are hardly documents


@dataclass(frozen=True)
class SourceText:
    """One document as the corpus has it, and an id by which a user finds it there."""

    id: str
    text: str


@dataclass(frozen=True)
class Part:
    """A part of a corpus: `start` to `stop` of `source`, in bytes, row groups, rows or files, as its kind has it.

    A corpus that lies in no files has its `texts` here, one of whole files their names in `files`.
    """

    number: int
    source: str
    start: int
    stop: int
    texts: tuple[SourceText, ...] = ()
    files: tuple[str, ...] = ()


def plan_parts(corpus: Corpus, part_bytes: int) -> list[Part]:
    """The parts of `corpus`, of about `part_bytes` of text each; what they hold depends on nothing else.

    Raises UsageError where a file is missing or there is nothing to read.
    """
    if type(corpus) in TEXTS:
        texts = TEXTS[type(corpus)]()
        cuts = _by_size([len(one.text) for one in texts], part_bytes)
        return [Part(n, source, start, stop, texts[start:stop]) for n, (source, start, stop) in enumerate(cuts)]
    ranges = list(PLANS[type(corpus)](corpus, part_bytes))
    if not ranges:
        raise UsageError(f"corpus: there is nothing in {corpus!r}. Name files or a dataset that hold documents.")
    return [Part(number, *one) for number, one in enumerate(ranges)]


def read_part(corpus: Corpus, part: Part) -> Iterator[SourceText | DocumentError]:
    """The documents of `part`, or why there is no text where one should be.

    Raises CtdError, naming the place, where the part cannot be read.
    """
    yield from part.texts or READERS[type(corpus)](corpus, part)


def corpus_files(corpus: Corpus) -> list[str]:
    """The locations of the files that `corpus` is read from; none where it is a dataset of a hub, or in no files."""
    if isinstance(corpus, JsonLines | Parquet | TextFiles):
        return _files(corpus.paths)
    folder = Path(corpus.name) if isinstance(corpus, HubDataset) else None
    inside = sorted(folder.rglob("*")) if folder is not None and folder.is_dir() else []
    return [str(file) for file in inside if file.is_file()]


def training_texts(corpus: Corpus, texts: Iterable[SourceText | DocumentError]) -> Iterator[SourceText | DocumentError]:
    """Those of `texts` that are trained on: not held out, and in the sample. What is no text passes, to be counted."""
    held, sample = corpus.held_out_fraction, corpus.sample_fraction
    stop = held + sample * (1 - held)
    return (one for one in texts if isinstance(one, DocumentError) or held <= share(one.text) < stop)


def held_out_texts(
    corpus: Corpus, sample_fraction: float, texts: Iterable[SourceText | DocumentError]
) -> Iterator[SourceText]:
    """Those of `texts` that are held out, or `sample_fraction` of them."""
    stop = corpus.held_out_fraction * sample_fraction
    return (one for one in texts if isinstance(one, SourceText) and share(one.text) < stop)


def is_unicode(text: str) -> bool:
    """Whether `text` can be written as UTF-8: it holds no lone surrogate."""
    return not any("\ud800" <= character <= "\udfff" for character in text)


def share(text: str) -> float:
    """A number in [0, 1) that stands for this text, evenly spread over texts."""
    digest = hashlib.sha256(text.encode(errors="surrogatepass")).digest()
    return int.from_bytes(digest[:6], "big") / 2**48


def _files(patterns: list[str]) -> list[str]:
    found: list[str] = []
    for pattern in patterns:
        files = find_files(pattern)
        if not files:
            raise UsageError(_no_file(pattern))
        found += files
    by_path = {file_system(file)[1]: file for file in reversed(found)}  # patterns may overlap, and paths be links
    return [file for file in dict.fromkeys(found) if by_path[file_system(file)[1]] == file]


def _no_file(pattern: str) -> str:
    if not is_uri(pattern):
        path = Path(pattern).expanduser()
        if path.is_dir():
            return f"corpus.paths: {pattern} is a directory. Say which files in it: {pattern.rstrip('/')}/*.jsonl"
        fixed = next(one for one in (path, *path.parents) if not re.search(r"[*?\[]", str(one)))
        if fixed != path and not fixed.exists():
            return f"corpus.paths: {pattern}: there is no directory {fixed}."
        if fixed == path and not path.parent.exists():
            return f"corpus.paths: {pattern}: there is no directory {path.parent}."
    return f"corpus.paths: {pattern}: no such file."


# --- JSON lines: a part is a range of bytes; a line belongs to the part in which it begins -----------------------


def _plan_json_lines(corpus: JsonLines, part_bytes: int) -> Iterator[tuple[str, int, int]]:
    for file in _files(corpus.paths):
        size, _ = size_and_time(file)
        if is_gzip(file):  # cannot be entered in its middle
            yield file, 0, size
            continue
        yield from ((file, start, min(start + part_bytes, size)) for start in range(0, size, part_bytes))


def _read_json_lines(corpus: JsonLines, part: Part) -> Iterator[SourceText | DocumentError]:
    with _opened(part.source) as compressed:
        stream: Any = gzip.GzipFile(fileobj=compressed) if is_gzip(part.source) else compressed
        stop = sys.maxsize if stream is not compressed else part.stop
        if part.start:
            stream.seek(part.start - 1)
            stream.readline()
        while (at := stream.tell()) < stop and (line := _line(stream, part.source)):
            if not line.strip():
                continue
            place = f"{part.source}:byte {at}"
            try:
                value = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise CtdError(f"{place}: not a line of JSON ({error}).") from error
            yield _text(value, corpus.field, place)


def is_gzip(file: str) -> bool:
    """Whether a file is compressed, by its name; a URI's query is not part of it."""
    return file.partition("?")[0].endswith(".gz") if is_uri(file) else file.endswith(".gz")


def _line(stream: Any, file: str) -> bytes:
    try:
        return bytes(stream.readline())
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise CtdError(f"{file}: not a complete gzip file ({error}). Copy it again.") from error


def _opened(file: str) -> BinaryIO:
    try:
        return open_to_read(file)
    except OSError as error:
        raise CtdError(f"{file}: cannot be read ({error.strerror or error}).") from error


def _text(value: Any, field: str, place: str) -> SourceText | DocumentError:
    found = value.get(field) if isinstance(value, dict) else None
    if isinstance(found, str):
        return SourceText(place, found)
    if isinstance(found, bytes):  # a Parquet column of type binary
        try:
            return SourceText(place, found.decode())
        except UnicodeDecodeError as error:
            return DocumentError("not UTF-8 text", f"{place}: {error.reason} at byte {error.start}")
    known = ", ".join(sorted(value)) if isinstance(value, dict) else f"a {type(value).__name__}"
    return DocumentError(f"no text in the field {field!r}", f"{place}, where there is {known}; corpus.field names it")


# --- Parquet: a part is a range of row groups ---------------------------------------------------------------------


def _plan_parquet(corpus: Parquet, part_bytes: int) -> Iterator[tuple[str, int, int]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    for file in _files(corpus.paths):
        try:
            with open_to_read(file) as stream:
                metadata = pq.read_metadata(stream)
        except pa.ArrowInvalid as error:
            raise UsageError(f"corpus.paths: {file}: not a Parquet file ({error}).") from error
        except OSError as error:
            raise CtdError(f"corpus.paths: {file}: cannot be read ({error}).") from error
        columns = metadata.schema.to_arrow_schema()
        if corpus.field not in columns.names:
            raise UsageError(f"corpus.field: {file} has no {corpus.field!r}; there is {', '.join(columns.names)}.")
        start = size = 0
        for group in range(metadata.num_row_groups):
            size += metadata.row_group(group).total_byte_size
            if size >= part_bytes or group == metadata.num_row_groups - 1:
                yield file, start, group + 1
                start, size = group + 1, 0


def _read_parquet(corpus: Parquet, part: Part) -> Iterator[SourceText | DocumentError]:
    import pyarrow.parquet as pq

    with _opened(part.source) as stream, pq.ParquetFile(stream) as file:
        for group in range(part.start, part.stop):
            for row, text in enumerate(file.read_row_group(group, columns=[corpus.field]).column(0).to_pylist()):
                place = f"{part.source}:row group {group}, row {row}"
                yield _text({corpus.field: text}, corpus.field, place)


# --- Text files: a part is a range of files -----------------------------------------------------------------------


def _plan_text_files(corpus: TextFiles, part_bytes: int) -> Iterator[tuple[Any, ...]]:
    files = _files(corpus.paths)
    for source, start, stop in _by_size([size_and_time(file)[0] for file in files], part_bytes):
        yield source, start, stop, (), tuple(files[start:stop])


def _read_text_files(corpus: TextFiles, part: Part) -> Iterator[SourceText]:
    for file in part.files:
        with _opened(file) as stream:
            content = stream.read()
        try:
            yield SourceText(file, content.decode())
        except UnicodeDecodeError as error:
            raise CtdError(f"{file}: not UTF-8 text ({error.reason} at byte {error.start}). Convert it.") from error


def _by_size(sizes: list[int], part_bytes: int) -> Iterator[tuple[str, int, int]]:
    start = total = 0
    for n, size in enumerate(sizes):
        total += size
        if total >= part_bytes or n == len(sizes) - 1:
            yield "", start, n + 1
            start, total = n + 1, 0


# --- Datasets: a part is a range of rows --------------------------------------------------------------------------


def _plan_dataset(corpus: HubDataset, part_bytes: int) -> Iterator[tuple[str, int, int]]:
    rows = _dataset(corpus)
    if corpus.field not in rows.column_names:
        raise UsageError(
            f"corpus.field: {corpus.name} has no {corpus.field!r}; there is {', '.join(rows.column_names)}."
        )
    probe = [len(str(text)) for text in rows[: min(len(rows), 100)][corpus.field]]
    step = max(1, part_bytes * len(probe) // max(sum(probe), 1))
    yield from ((corpus.name, start, min(start + step, len(rows))) for start in range(0, len(rows), step))


def _read_dataset(corpus: HubDataset, part: Part) -> Iterator[SourceText | DocumentError]:
    rows = _dataset(corpus).select_columns([corpus.field]).select(range(part.start, part.stop))
    for number, row in enumerate(rows, part.start):
        place = f"{corpus.name}[{corpus.split}]:row {number}"
        yield _text(row, corpus.field, place)


def _dataset(corpus: HubDataset) -> Any:
    import datasets

    try:
        if Path(corpus.name).is_dir() and (
            (Path(corpus.name) / "state.json").exists() or (Path(corpus.name) / "dataset_dict.json").exists()
        ):
            saved = datasets.load_from_disk(corpus.name)
            return saved[corpus.split] if isinstance(saved, datasets.DatasetDict) else saved
        return datasets.load_dataset(corpus.name, corpus.configuration, split=corpus.split, revision=corpus.revision)
    except (OSError, ValueError, KeyError, datasets.exceptions.DatasetsError) as error:  # by where the dataset is
        raise UsageError(
            f"corpus.name: {corpus.name}: no dataset could be loaded ({type(error).__name__}: {error}). Give a hub id "
            "or a directory written by save_to_disk."
        ) from error


# --- Texts that are at hand everywhere ----------------------------------------------------------------------------


@cache
def _stdlib_docs() -> tuple[SourceText, ...]:
    root = Path(sysconfig.get_path("stdlib"))
    left_out = {"site-packages", "dist-packages", "test", "tests", "idlelib", "lib2to3", "__pycache__", "turtledemo"}
    found: dict[str, str] = {}
    for file in sorted(root.rglob("*.py")):
        if not left_out & set(file.relative_to(root).parts):
            name = file.relative_to(root).with_suffix("").as_posix()
            for number, text in enumerate(_docstrings(file.read_text(encoding="utf-8"))):
                found.setdefault(text, f"{name}:{number}")
    return tuple(SourceText(place, text) for text, place in found.items())


def _docstrings(source: str) -> Iterator[str]:
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            text = ast.get_docstring(node)
            if text and len(text) >= LEAST_DOCSTRING:
                yield text


@cache
def _general() -> tuple[SourceText, ...]:
    lines = resources.files("ctd_core.text").joinpath("general.jsonl").read_text(encoding="utf-8").splitlines()
    return tuple(SourceText(f"general:{number}", json.loads(line)["text"]) for number, line in enumerate(lines))


PLANS: dict[type[Corpus], Callable[..., Iterator[tuple[Any, ...]]]] = {
    JsonLines: _plan_json_lines,
    Parquet: _plan_parquet,
    TextFiles: _plan_text_files,
    HubDataset: _plan_dataset,
}
READERS: dict[type[Corpus], Callable[..., Iterator[SourceText | DocumentError]]] = {
    JsonLines: _read_json_lines,
    Parquet: _read_parquet,
    TextFiles: _read_text_files,
    HubDataset: _read_dataset,
}
TEXTS: dict[type[Corpus], Callable[[], tuple[SourceText, ...]]] = {StdlibDocs: _stdlib_docs, GeneralText: _general}
