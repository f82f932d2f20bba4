"""Corpora: every document once, whatever the parts; errors that name the place."""

import gzip
import json
import re

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ctd_core.config.text import (
    GeneralText,
    HubDataset,
    JsonLines,
    Parquet,
    StdlibDocs,
    TextFiles,
    WrittenConversations,
)
from ctd_core.errors import CtdError, UsageError
from ctd_core.text.corpora import corpus_files, plan_slices, read_slice
from ctd_core.text.corpora.files import matching_files
from ctd_core.text.corpora.slices import hash_fraction, held_out_documents, training_documents

TEXTS = [f"text {n} " + "é" * (n % 7) for n in range(50)]


def read(corpus, slice_bytes):
    parts = plan_slices(corpus, slice_bytes)
    assert [part.number for part in parts] == list(range(len(parts)))
    return parts, [document.text for part in parts for document in read_slice(corpus, part)]


def json_lines(path):
    path.write_text("".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in TEXTS))
    return JsonLines(kind="jsonl", paths=[str(path)])


@pytest.mark.parametrize("slice_bytes", [1, 7, 100, 1000, 10**6])
def test_each_line_is_read_once_whatever_the_parts(tmp_path, slice_bytes):
    corpus = json_lines(tmp_path / "a.jsonl")
    parts, texts = read(corpus, slice_bytes)
    assert texts == TEXTS
    assert len(parts) > 1 or slice_bytes == 10**6


def test_patterns_name_many_files(tmp_path):
    for name in ("a", "b"):
        json_lines(tmp_path / f"{name}.jsonl")
    assert read(JsonLines(kind="jsonl", paths=[f"{tmp_path}/*.jsonl"]), 10**6)[1] == TEXTS * 2
    overlapping = [f"{tmp_path}/*.jsonl", f"{tmp_path}/a.jsonl"]
    assert read(JsonLines(kind="jsonl", paths=overlapping), 10**6)[1] == TEXTS * 2
    json_lines(tmp_path / "c[1].jsonl")
    assert read(JsonLines(kind="jsonl", paths=[f"{tmp_path}/c[1].jsonl"]), 10**6)[1] == TEXTS


def test_files_that_come_while_parts_are_read_change_none_of_them(tmp_path):
    for n, text in enumerate(TEXTS[:4]):
        (tmp_path / f"{n}.txt").write_text(text)
    corpus = TextFiles(kind="text", paths=[f"{tmp_path}/*.txt"])
    parts = plan_slices(corpus, 1)
    (tmp_path / "+.txt").write_text("later")
    assert [document.text for part in parts for document in read_slice(corpus, part)] == TEXTS[:4]


@pytest.mark.parametrize("slice_bytes", [1, 10**6])
def test_parquet_text_files_and_saved_datasets(tmp_path, slice_bytes):
    pq.write_table(pa.table({"body": TEXTS}), tmp_path / "a.parquet", row_group_size=9)
    assert read(Parquet(kind="parquet", paths=[str(tmp_path / "a.parquet")], field="body"), slice_bytes)[1] == TEXTS
    for n, text in enumerate(TEXTS):
        (tmp_path / f"{n:02}.txt").write_text(text)
    assert read(TextFiles(kind="text", paths=[f"{tmp_path}/*.txt"]), slice_bytes)[1] == TEXTS
    datasets.Dataset.from_dict({"body": TEXTS}).save_to_disk(tmp_path / "saved")
    assert read(HubDataset(kind="dataset", name=str(tmp_path / "saved"), field="body"), slice_bytes)[1] == TEXTS


@pytest.mark.slow
def test_texts_that_are_everywhere():
    _, general = read(GeneralText(kind="general"), 10**6)
    assert 25_000 < sum(len(text.encode()) for text in general) < 35_000
    parts, docs = read(StdlibDocs(kind="stdlib-docs"), 100_000)
    assert len(set(docs)) == len(docs) > 3000
    assert len(parts) > 5
    assert any("regular expression" in text for text in docs)


@pytest.mark.parametrize("train_on", ["assistant", "all"])
def test_packaged_conversations_are_of_a_user_and_an_assistant(train_on):
    corpus = WrittenConversations(kind="conversations", train_on=train_on)
    documents = [document for part in plan_slices(corpus, 50_000) for document in read_slice(corpus, part)]
    assert len({document.id for document in documents}) == len(documents) > 400
    for document in documents:
        assert [turn.role for turn in document.turns] == ["user", "assistant"]
        assert [turn.scored for turn in document.turns] == [train_on == "all", True]
        assert all(turn.text == turn.text.strip() != "" for turn in document.turns)


@given(st.sets(st.text(max_size=20), max_size=40), st.floats(0, 0.9), st.floats(0.01, 1))
def test_training_and_held_out_documents_are_disjoint(texts, held_out, sample):
    from ctd_core.text.documents import plain_document

    corpus = GeneralText(kind="general", held_out_fraction=held_out, sample_fraction=sample)
    sources = [plain_document("x", text) for text in texts]
    trained = {document.text for document in training_documents(corpus, sources)}
    held = {document.text for document in held_out_documents(corpus, 1.0, sources)}
    assert not trained & held
    if sample == 1:
        assert trained | held == texts


def test_rows_without_text_are_told_with_their_place_and_pass_on_to_training_alone(tmp_path):
    file = tmp_path / "a.jsonl"
    corpus = JsonLines(kind="jsonl", paths=[str(file)], held_out_fraction=0.9)
    for row, there in (({"body": "a"}, "there is body"), (1, "there is a int"), ({"text": None}, "there is text")):
        file.write_text(json.dumps(row) + "\n")
        (part,) = plan_slices(corpus, 100)
        (found,) = read_slice(corpus, part)
        assert (found.reason, "a.jsonl:line 1" in str(found)) == ("no text in the field 'text'", True)
        assert there in str(found)
        assert list(training_documents(corpus, [found])) == [found]
        assert not list(held_out_documents(corpus, 1.0, [found]))


def test_shares_are_even():
    shares = [hash_fraction(str(n)) for n in range(4000)]
    assert abs(sum(share < 0.25 for share in shares) / 4000 - 0.25) < 0.03


def test_bad_files_are_errors_that_name_the_place(tmp_path):
    bad = tmp_path / "bad.jsonl"
    corpus = JsonLines(kind="jsonl", paths=[str(bad)])
    for content, message in (
        ('{"text": "a"}\nnonsense\n', r"bad\.jsonl:line 2: not a line of JSON"),
        ('{"text": "a"}\n\n' + "{" * 200, r"bad\.jsonl:line 3: not a line of JSON"),
        ("[1\n", r"bad\.jsonl: not a JSON array"),
        ("[" * 100_000, r"bad\.jsonl: not a JSON array"),
    ):
        bad.write_text(content)
        with pytest.raises(CtdError, match=message):
            read(corpus, 100)
    (tmp_path / "bad.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(CtdError, match=r"bad\.txt: not UTF-8"):
        read(TextFiles(kind="text", paths=[str(tmp_path / "bad.txt")]), 100)
    with pytest.raises(UsageError, match="not a Parquet file"):
        read(Parquet(kind="parquet", paths=[str(bad)]), 100)
    with pytest.raises(UsageError, match="no dataset could be loaded"):
        read(HubDataset(kind="dataset", name=str(tmp_path / "missing")), 100)
    pq.write_table(pa.table({"body": TEXTS}), tmp_path / "a.parquet")
    with pytest.raises(UsageError, match="there is body"):
        read(Parquet(kind="parquet", paths=[str(tmp_path / "a.parquet")]), 100)
    pq.write_table(pa.table({"meta": [{"text": "a"}]}), tmp_path / "b.parquet")
    with pytest.raises(UsageError, match="there is meta"):
        read(Parquet(kind="parquet", paths=[str(tmp_path / "b.parquet")]), 100)


def test_compressed_json_lines_are_read_and_broken_ones_named(tmp_path):
    file = tmp_path / "a.jsonl.gz"
    lines = b"".join(json.dumps({"text": f"text {n}"}).encode() + b"\n" for n in range(50))
    file.write_bytes(gzip.compress(lines))
    corpus = JsonLines(kind="jsonl", paths=[str(file)])
    found = [document.text for part in plan_slices(corpus, 20) for document in read_slice(corpus, part)]
    assert found == [f"text {n}" for n in range(50)]
    file.write_bytes(gzip.compress(lines)[:-20])
    with pytest.raises(CtdError, match=r"a\.jsonl\.gz: not a complete \.gz file"):
        [*read_slice(corpus, plan_slices(corpus, 20)[0])]


def test_a_parquet_column_of_bytes_is_read_as_utf_8(tmp_path):
    pq.write_table(pa.table({"text": pa.array(["größer".encode(), b"\xff"], pa.binary())}), tmp_path / "a.parquet")
    corpus = Parquet(kind="parquet", paths=[str(tmp_path / "a.parquet")])
    good, bad = [document for part in plan_slices(corpus, 100) for document in read_slice(corpus, part)]
    assert good.text == "größer"
    assert bad.reason == "not UTF-8 text"


def test_two_spellings_of_a_path_are_one_file_and_brackets_in_a_folder_are_its_name(tmp_path):
    folder = tmp_path / "corpus [v2]"
    folder.mkdir()
    (folder / "a.jsonl").write_text('{"text": "one"}\n')
    (tmp_path / "link.jsonl").symlink_to(folder / "a.jsonl")
    paths = [f"{folder}/*.jsonl", f"{tmp_path}/./{folder.name}/a.jsonl", str(tmp_path / "link.jsonl")]
    assert corpus_files(JsonLines(kind="jsonl", paths=paths)) == [str(folder / "a.jsonl")]
    for path, message in (
        (str(folder), "is a directory. Say which files"),
        (f"{tmp_path}/typo/*.jsonl", f"there is no directory {tmp_path}/typo"),
        (f"{tmp_path}/typo/a.jsonl", f"there is no directory {tmp_path}/typo"),
    ):
        with pytest.raises(UsageError, match=re.escape(message)):
            corpus_files(JsonLines(kind="jsonl", paths=[path]))


def test_files_of_one_path_in_two_stores_are_two_files(monkeypatch):
    monkeypatch.setattr("ctd_core.text.corpora.files.find_files", lambda pattern: [pattern])
    monkeypatch.setattr("ctd_core.text.corpora.files.file_system", lambda file: (None, "bucket/a.jsonl"))
    files = ["s3://bucket/a.jsonl", "gs://bucket/a.jsonl", "s3://bucket/a.jsonl?endpoint_override=localhost"]
    assert matching_files([*files, files[0]]) == files
