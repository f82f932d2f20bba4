"""Corpora and shards by URI, on a store that speaks S3's protocol."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyarrow import fs

from ctd_core.config.text import JsonLines, Parquet, TextFiles
from ctd_core.errors import CtdError, UsageError
from ctd_core.storage.locations import (
    delete_folder,
    download,
    file_system,
    files_below,
    find_files,
    names_in,
    size_and_time,
    upload,
)
from ctd_core.text.corpora import corpus_files
from tests.support.stores import s3_store
from tests.text.test_corpora import TEXTS, read


@pytest.fixture(scope="module")
def store():
    with s3_store("corpora") as (head, tail, _):
        yield lambda key: f"{head}/{key}{tail}"


def put(location, content):
    files, path = file_system(location)
    with files.open_output_stream(path) as stream:
        stream.write(content)


@pytest.mark.parametrize("slice_bytes", [300, 10**6])
def test_a_corpus_on_s3_is_read_as_one_on_a_disk(store, slice_bytes):
    lines = "".join(json.dumps({"text": text}) + "\n" for text in TEXTS).encode()
    for name in ("a/one.jsonl", "a/two.jsonl", "a/b/three.jsonl"):
        put(store(name), lines)
    assert read(JsonLines(kind="jsonl", paths=[store("a/*.jsonl")]), slice_bytes)[1] == TEXTS * 2
    assert read(JsonLines(kind="jsonl", paths=[store("a/**/*.jsonl")]), slice_bytes)[1] == TEXTS * 3
    assert read(JsonLines(kind="jsonl", paths=[store("a/one.jsonl")]), slice_bytes)[1] == TEXTS
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({"body": TEXTS}), sink, row_group_size=9)
    put(store("a.parquet"), sink.getvalue())
    assert read(Parquet(kind="parquet", paths=[store("a.parquet")], field="body"), slice_bytes)[1] == TEXTS
    for n, text in enumerate(TEXTS[:5]):
        put(store(f"texts/{n}.txt"), text.encode())
    assert read(TextFiles(kind="text", paths=[store("texts/[0-9].txt")]), slice_bytes)[1] == TEXTS[:5]


def test_what_a_store_holds_is_told_by_size_and_time(store):
    put(store("sizes/x"), b"12345")
    (found,) = corpus_files(TextFiles(kind="text", paths=[store("sizes/*")]))
    assert found == store("sizes/x")
    size, changed = size_and_time(found)
    assert size == 5
    assert changed > 1e18


def test_local_patterns_are_those_of_glob(tmp_path):
    names = ["a.txt", "b.txt", "c/d.txt", "c/e/a.txt", "c/e/ba.txt"]
    for name in [*names, ".hidden.txt", ".c/a.txt"]:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("")
    uri = f"file://{tmp_path}"
    for pattern, expected in (
        ("/*.txt", ["a.txt", "b.txt"]),
        ("/**/*.txt", names),
        ("/**/a.txt", ["a.txt", "c/e/a.txt"]),
        ("/**/c/*.txt", ["c/d.txt"]),
        ("/**/c/**/[a-z].txt", ["c/d.txt", "c/e/a.txt"]),
    ):
        assert find_files(f"{tmp_path}{pattern}") == [f"{tmp_path}/{name}" for name in expected]
        assert find_files(uri + pattern) == [f"{uri}/{name}" for name in expected]


def test_a_store_that_is_none_is_told(store):
    with pytest.raises(UsageError, match="no file system could be found"):
        find_files("s4://bucket/*.txt")
    with pytest.raises(UsageError, match="no such file"):
        corpus_files(TextFiles(kind="text", paths=[store("nothing/*")]))
    for place in (store("nothing"), __file__):
        with pytest.raises(UsageError, match="no such folder"):
            files_below(place)
    assert isinstance(file_system("relative")[0], fs.LocalFileSystem)


def test_folders_go_to_a_store_and_come_back_as_they_were(store, tmp_path):
    (tmp_path / "here" / "below").mkdir(parents=True)
    (tmp_path / "here" / "a.txt").write_text("a")
    (tmp_path / "here" / "below" / "b.txt").write_text("b")
    place = store("runs/one")
    assert names_in(place) == []
    upload(tmp_path / "here", place)
    assert names_in(place) == ["a.txt", "below"]
    assert set(files_below(store("runs"))) == {"one/a.txt", "one/below/b.txt"}
    download(place, tmp_path / "there")
    download(store("runs/one/below/b.txt"), tmp_path / "b.txt")
    delete_folder(place)
    assert names_in(place) == []
    with pytest.raises(CtdError, match=r"one.*: cannot be read"):
        download(place, tmp_path / "again")
    assert (tmp_path / "there" / "a.txt").read_text() == "a"
    assert (tmp_path / "there" / "below" / "b.txt").read_text() == "b"
    assert (tmp_path / "b.txt").read_text() == "b"
