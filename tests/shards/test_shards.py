"""Shards: what is written is what is read, whole or not at all."""

import json
from collections import Counter
from itertools import islice

import datasets
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ctd_core.align.documents import SCORED
from ctd_core.errors import CtdError
from ctd_core.shards.batches import collate
from ctd_core.shards.building import build_rows
from ctd_core.shards.files import (
    Folder,
    finished_shards,
    is_finished,
    read_manifest,
    shard_bytes,
    verify_shards,
    write_manifest,
    write_shard,
)
from ctd_core.shards.manifest import add_counts, build_manifest, check_dropped, check_student, check_teacher
from ctd_core.shards.reading import ShardSet
from ctd_core.shards.row_order import micro_batches
from ctd_core.text.documents import BEGIN, END, Document, Marker, Text, plain_document
from tests.support.disks import files_of_at_most
from tests.support.shard_sets import prepared, texts, write_set

STUDENT, TEACHER = "byte-level BPE, 300", "byte-level BPE, 600"


@pytest.fixture
def made(tmp_path):
    write_set(tmp_path, prepared(STUDENT), prepared(TEACHER), texts(40))
    return tmp_path


def test_rows_come_back_as_they_were_and_datasets_reads_them(made):
    shards = ShardSet(made, verify=True)
    files = [str(made / entry.file) for entry in shards.manifest.shards]
    rows = datasets.load_dataset("arrow", data_files=files, split="train", cache_dir=str(made / "cache"))
    assert len(rows) == len(shards) == shards.manifest.counts.rows
    numbers = np.arange(len(shards))
    for column in rows.column_names[1:]:
        assert [row.tolist() for row in shards.read(column, numbers)] == list(rows[column])
    assert shards.documents(numbers) == list(rows["document"])


def test_a_uri_reads_like_a_path(made):
    assert len(ShardSet(made.as_uri(), verify=True)) == len(ShardSet(made, verify=True))


def test_a_batch_holds_each_rows_tokens_and_the_chunks_of_their_successors(made):
    shards = ShardSet(made, verify=True)
    rows = np.array([3, 0, 7])
    batch = collate(shards, rows)
    flat = batch.input_ids.flatten()[batch.positions].tolist()
    ids = shards.read("student_ids", rows)
    assert flat == [token for row_ids in ids for token in row_ids]
    found = zip(batch.target_rows.tolist(), batch.target_ids.tolist(), batch.chunk_of_target.tolist(), strict=True)
    expected = []
    at = first_chunk = 0
    for row, row_ids in enumerate(ids):
        ends = shards.read("student_chunk_ends", rows)[row]
        kinds = shards.read("chunk_kinds", rows)[row]
        assert batch.chunk_rows[first_chunk : first_chunk + len(ends)].tolist() == [at + end - 1 for end in ends]
        for place in range(len(row_ids) - 1):
            chunk = int(np.searchsorted(ends, place + 1, side="right"))
            if kinds[chunk] & 1:
                expected.append((at + place, row_ids[place + 1], first_chunk + chunk))
        at, first_chunk = at + len(row_ids), first_chunk + len(ends)
    assert list(found) == expected
    assert batch.chunks.breaks[first_chunk - 1]


@given(st.lists(st.integers(1, 50), min_size=1, max_size=60), st.integers(50, 200), st.integers(0, 3))
def test_every_epoch_holds_every_row_once_within_the_budget(lengths, budget, seed):
    lengths = np.array(lengths)
    stream = micro_batches(lengths, budget, seed)
    for _ in range(2):
        seen = Counter()
        while sum(seen.values()) < len(lengths):
            rows = next(stream)
            assert len(rows) * lengths[rows].max() <= budget
            seen.update(rows.tolist())
        assert seen == Counter(range(len(lengths)))


def test_the_order_depends_on_seed_and_epoch_alone():
    lengths = np.random.default_rng(0).integers(1, 100, 3000)
    first, again, other = (
        [rows.tolist() for rows in islice(micro_batches(lengths, 400, seed), 300)] for seed in (1, 1, 2)
    )
    assert first == again != other


def test_length_buckets_keep_padding_small():
    lengths = np.random.default_rng(0).integers(1, 512, 4000)
    padded = used = 0
    for rows in islice(micro_batches(lengths, 4096, 0), 200):
        padded += len(rows) * lengths[rows].max()
        used += lengths[rows].sum()
    assert 1 - used / padded < 0.05


def test_a_shard_cut_short_is_an_error_that_names_it(made):
    file = next(made.glob("*.arrow"))
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(CtdError, match=rf"{file.name}.*Prepare again"):
        ShardSet(made, verify=False)
    assert file.name not in finished_shards(Folder(made))


def test_a_shard_of_another_content_is_an_error_that_names_it(made):
    file = next(made.glob("*.arrow"))
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(bytes(content))
    with pytest.raises(CtdError, match=rf"{file.name}.*checksum"):
        ShardSet(made, verify=True)


def test_a_missing_shard_or_manifest_is_an_error_that_names_it(made):
    next(made.glob("*.arrow")).unlink()
    with pytest.raises(CtdError, match="cannot be read"):
        ShardSet(made, verify=False)
    (made / "manifest.json").unlink()
    with pytest.raises(CtdError, match="ctd prepare"):
        ShardSet(made, verify=False)


def test_a_manifest_of_another_version_or_of_nothing_is_an_error(made):
    manifest = json.loads((made / "manifest.json").read_text())
    (made / "manifest.json").write_text(json.dumps(manifest | {"schema_version": 99}))
    with pytest.raises(CtdError, match="schema 99"):
        ShardSet(made, verify=False)
    (made / "manifest.json").write_text("{}")
    with pytest.raises(CtdError, match="not a manifest"):
        ShardSet(made, verify=False)


def test_what_a_killed_or_damaged_preparation_left_is_moved_aside_and_the_rest_kept(made):
    folder = Folder(made)
    assert is_finished(folder)
    first, second = sorted(made.glob("*.arrow"))
    content = bytearray(first.read_bytes())
    content[-200] ^= 1
    first.write_bytes(bytes(content))
    assert not is_finished(folder)
    assert list(verify_shards(folder)) == [second.name]
    assert (made / f"{first.name}.aside").read_bytes() == bytes(content)
    assert (made / f"{first.name}.json.aside").exists()
    (made / f"{second.name}.json").write_text("")
    assert verify_shards(folder) == finished_shards(folder) == {}


@pytest.mark.parametrize("written", ["", "{}", '{"schema_version": 99}'])
def test_a_manifest_that_cannot_be_read_is_moved_aside_so_that_preparing_is_the_way_out(made, written):
    (made / "manifest.json").write_text(written)
    assert not is_finished(Folder(made))
    assert (made / "manifest.json.aside").read_text() == written
    assert len(verify_shards(Folder(made))) == 2


@pytest.mark.parametrize(
    ("column", "change"),
    [
        ("student_chunk_ends", lambda row: row[::-1]),
        ("teacher_chunk_ends", lambda row: [*row[:-1], row[-1] + 1]),
        ("student_chunk_ends", lambda row: [*row[:-1], row[-1] - 1]),
        ("teacher_chunk_ends", lambda row: row[:-1]),
        ("student_ids", lambda row: [*row[:-1], 10_000]),
        ("teacher_ids", lambda row: [-1, *row[1:]]),
        ("chunk_bytes", lambda row: [*row, 1]),
    ],
)
def test_columns_that_do_not_fit_each_other_are_an_error_though_every_checksum_is_right(made, column, change):
    folder = Folder(made)
    manifest = read_manifest(folder)
    entry = manifest.shards[0]
    rows = folder.open_batch(entry, verify=True)
    lists = rows.column(column).to_pylist()
    lists[3] = change(lists[3])
    number = rows.schema.get_field_index(column)
    changed = rows.set_column(number, rows.schema.field(number), pa.array(lists, rows.schema.field(number).type))
    planted = write_shard(folder, 0, shard_bytes(changed), entry.counts)
    write_manifest(folder, build_manifest(manifest.origin, [planted, *manifest.shards[1:]]))
    with pytest.raises(CtdError, match=entry.file):
        ShardSet(made, verify=True)


def test_targets_of_another_teacher_are_refused(made):
    manifest = read_manifest(Folder(made))
    of_one = manifest.model_copy(update={"origin": manifest.origin.model_copy(update={"teacher_model": "one"})})
    check_teacher(of_one, "here", "one", 600)
    with pytest.raises(CtdError, match="computed by a teacher of fingerprint one"):
        check_teacher(of_one, "here", "other", 600)
    with pytest.raises(CtdError, match="embedding has 20 entries"):
        check_teacher(of_one, "here", "one", 20)


def test_documents_that_hold_names_of_special_tokens_are_counted_with_an_example():
    texts = ["fine", "a template's <|endoftext|> within", "fine too"]
    documents = [plain_document(f"d{n}", text) for n, text in enumerate(texts)]
    _, counts = build_rows(prepared(STUDENT), prepared(TEACHER), documents, 96, 96)
    assert (counts.with_special_tokens, counts.special_token_example) == (1, "<|endoftext|> in document d1")
    both = add_counts([counts, counts])
    assert (both.with_special_tokens, both.special_token_example) == (2, "<|endoftext|> in document d1")


def test_windows_in_which_nothing_is_to_be_learned_are_left_out_and_counted():
    prompt, response = " ".join(texts(12)), "the answer is seven"
    document = Document("d", (Marker(BEGIN, scored=False), Text(prompt, scored=False), Text(response), Marker(END)))
    sides = prepared(STUDENT), prepared(TEACHER)
    _, whole = build_rows(*sides, [document], 10_000, 10_000)
    rows, counts = build_rows(*sides, [document], 48, 48)
    learned = [any(kinds & SCORED for kinds in row) for row in rows["chunk_kinds"].to_pylist()]
    assert all(learned)
    assert 0 < len(learned) < 3
    assert counts.left_out_rows > 3
    assert counts.scored_bytes == whole.scored_bytes == len(response)


def test_shards_of_another_tokenizer_or_a_smaller_vocabulary_are_refused(made):
    manifest = read_manifest(Folder(made))
    check_student(manifest, "here", prepared(STUDENT), 300)
    with pytest.raises(CtdError, match="fingerprint"):
        check_student(manifest, "here", prepared(TEACHER), 600)
    with pytest.raises(CtdError, match="embedding has 200 entries"):
        check_student(manifest, "here", prepared(STUDENT), 200)


def test_dropped_documents_are_counted_with_an_example_and_too_many_are_an_error():
    documents = [plain_document("good", "fine"), plain_document("bad", "a \ud800"), plain_document("none", "")]
    rows, counts = build_rows(prepared(STUDENT), prepared(TEACHER), documents, 96, 96)
    assert (rows.num_rows, counts.documents, counts.empty_documents, counts.dropped_documents) == (1, 3, 1, 1)
    check_dropped(counts, 0.5)
    with pytest.raises(CtdError, match=r"not Unicode text: 1, such as document bad") as error:
        check_dropped(counts, 0.01)
    assert "max_dropped_fraction" in str(error.value)


def test_a_disk_that_fills_up_leaves_nothing_half_written(tmp_path):
    with files_of_at_most(1000), pytest.raises(CtdError, match=r"shard-000000\.arrow: cannot be written"):
        Folder(tmp_path).write("shard-000000.arrow", b"x" * 5000)
    assert list(tmp_path.iterdir()) == []
