"""`ctd inspect`, run as a user runs it."""

import json
import subprocess
import sys

import pytest

from ctd_core.shards.building import build_rows
from ctd_core.shards.files import Folder, shard_bytes, write_manifest, write_shard
from ctd_core.shards.manifest import Origin, build_manifest, tokenizer_fingerprint
from ctd_core.text.documents import plain_document
from ctd_core.text.tokenizers import train_tokenizer
from tests.support.models import llama
from tests.support.shard_sets import prepared, write_set
from tests.support.tokenizers import TEXTS

TEXT = "The fox – naïve,\r\n\tand  日本語 👩‍👩‍👧"


@pytest.fixture(scope="module")
def tokenizer_dir(tmp_path_factory):
    path = tmp_path_factory.mktemp("tokenizer")
    train_tokenizer(TEXTS, 500).save_pretrained(path)
    return str(path)


def ctd(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "pipelines", *arguments], capture_output=True, text=True, timeout=400, check=False
    )


def test_json_holds_every_token_and_byte_and_nothing_else_is_printed(tokenizer_dir, tmp_path):
    (tmp_path / "page.txt").write_bytes(TEXT.encode())
    source = ("--text-file", str(tmp_path / "page.txt"), "--json")
    done = ctd("inspect", "--student", "bytes", "--teacher", tokenizer_dir, *source)
    assert done.returncode == 0, done.stderr
    (line,) = done.stdout.splitlines()
    shown = json.loads(line)
    assert b"".join(bytes.fromhex(chunk["bytes"]) for chunk in shown["chunks"]) == TEXT.encode()
    assert [i for chunk in shown["chunks"] for i in chunk["student_ids"]] == list(TEXT.encode())
    assert shown["student_tokens"] == len(TEXT.encode())
    assert shown["teacher_tokens"] == sum(len(chunk["teacher_ids"]) for chunk in shown["chunks"])
    assert shown["aligned_fraction"] == 1.0


def test_people_see_the_text_and_the_counts(tokenizer_dir):
    done = ctd("inspect", "--student", "bytes", "--teacher", tokenizer_dir, "--text", "the fox")
    assert done.returncode == 0, done.stderr
    assert "the│ fox" in done.stdout
    assert "7 student tokens" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--text", "a", "--text-file", "b"), "either --text or --text-file"),
        (("--text-file", "missing.txt"), "missing.txt"),
        (("--text", "a", "--student", "./no-such-tokenizer"), "./no-such-tokenizer"),
    ],
)
def test_wrong_usage_says_what_is_wrong_and_ends_with_status_2(arguments, message):
    done = ctd("inspect", "--student", "bytes", "--teacher", "bytes", *arguments)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr


@pytest.fixture(scope="module")
def teacher_dir(tmp_path_factory):
    path = tmp_path_factory.mktemp("teacher")
    tokenizer = train_tokenizer(TEXTS, 500)
    tokenizer.save_pretrained(path)
    llama(len(tokenizer)).save_pretrained(path)
    return str(path)


def test_a_rule_merges_the_chunks_and_shows_the_teachers_numbers(teacher_dir):
    arguments = ("inspect", "--student", "bytes", "--teacher", teacher_dir, "--text", "the fox is here")
    done = ctd(*arguments, "--rule", "whitespace", "--json")
    assert done.returncode == 0, done.stderr
    chunks = json.loads(done.stdout)["chunks"]
    assert [bytes.fromhex(chunk["bytes"]) for chunk in chunks] == [b"", b"the", b" fox", b" is", b" here", b""]
    assert all(chunk["teacher_logprob"] < 0 for chunk in chunks[1:])
    assert all(0 < chunk["boundary_probability"] < 1 for chunk in chunks)
    shown = ctd(*arguments, "--rule", "{kind: groups, size: 2}")
    assert "boundary" in shown.stdout
    longer = ctd(*arguments[:-1], "the fox " * 600, "--rule", "finest")
    assert longer.returncode == 2
    assert "reads 512 tokens at most" in longer.stderr


def test_a_rule_that_asks_the_teacher_is_refused_on_shards_without_its_numbers(tmp_path):
    tokenizers = prepared("bytes"), prepared("byte-level BPE, 600")
    rows, counts = build_rows(*tokenizers, [plain_document("d", "the fox")], 96, 96)
    folder = Folder(tmp_path)
    prints = [tokenizer_fingerprint(tokenizer) for tokenizer in tokenizers]
    origin = Origin(student_tokenizer=prints[0], teacher_tokenizer=prints[1], teacher_model=None, config={})
    write_manifest(folder, build_manifest(origin, [write_shard(folder, 0, shard_bytes(rows), counts)]))
    for arguments in (("chunks",), ("inspect", "--student", "bytes")):
        done = ctd(*arguments, "--shards", str(tmp_path), "--rule", "debiased")
        assert done.returncode == 2
        assert "holds no numbers of the teacher" in done.stderr
    assert "debiased" not in ctd("chunks", "--shards", str(tmp_path)).stdout


def test_rows_of_prepared_shards_are_shown(tmp_path):
    write_set(tmp_path / "shards", prepared("bytes"), prepared("byte-level BPE, 600"), ["the fox", "is here"], parts=1)
    arguments = ("inspect", "--student", "bytes", "--shards", str(tmp_path / "shards"), "--row")
    done = ctd(*arguments, "1", "--json")
    assert done.returncode == 0, done.stderr
    spelled = b"".join(bytes.fromhex(chunk["bytes"]) for chunk in json.loads(done.stdout)["chunks"])
    assert spelled == b"is here"
    beyond = ctd(*arguments, "7")
    assert beyond.returncode == 2
    assert "has the rows 0 to 1" in beyond.stderr
