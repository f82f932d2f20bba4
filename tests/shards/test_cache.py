"""Copies of remote shards: whole, checked, and within their limit."""

import hashlib

import pytest

from ctd_core.errors import CtdError
from ctd_core.shards.cache import Cache
from ctd_core.shards.manifest import Counts, ShardEntry
from tests.support.disks import files_of_at_most


def entry(content):
    digest = hashlib.sha256(content).hexdigest()
    return ShardEntry(file="shard-000000.arrow", size_bytes=len(content), sha256=digest, counts=Counts())


def never():
    raise AssertionError("it was read again")


def fetched(cache, content, again=True, verify=True):
    return cache.fetch(entry(content), (lambda: content) if again else never, verify).to_pybytes()


def test_a_shard_is_read_once_and_those_not_read_for_longest_evict(tmp_path):
    cache = Cache(tmp_path, 250)
    a, b, c = (bytes([n]) * 100 for n in range(3))
    assert fetched(cache, a) == a
    assert fetched(cache, b) == b
    assert fetched(cache, a, again=False) == a
    assert fetched(cache, c) == c
    assert {file.read_bytes() for file in tmp_path.iterdir()} == {a, c}
    whole = bytes(1000)
    assert fetched(cache, whole) == whole  # one is kept, whatever its size
    assert {file.read_bytes() for file in tmp_path.iterdir()} == {whole}


def test_a_shard_that_another_process_took_away_at_once_is_read_all_the_same(tmp_path, monkeypatch):
    cache, content = Cache(tmp_path, 250), bytes(100)
    monkeypatch.setattr(Cache, "_evict", lambda self, newest: newest.unlink())
    assert fetched(cache, content) == content


def test_a_part_of_a_shard_is_never_taken_for_the_whole(tmp_path):
    cache, content = Cache(tmp_path, 10**6), bytes(range(256)) * 40
    with pytest.raises(CtdError, match=r"shard-000000\.arrow: what was read of it differs from its checksum"):
        cache.fetch(entry(content), lambda: content[:-1], verify=True)
    with files_of_at_most(5000), pytest.raises(CtdError, match="Free some space"):
        fetched(cache, content)
    assert list(tmp_path.iterdir()) == []
    assert fetched(cache, content) == content
    (file,) = tmp_path.iterdir()
    for damaged in (content[:100], content[::-1]):  # as a crash of the machine may leave it, or a bad disk
        file.write_bytes(damaged)
        assert fetched(cache, content) == content
        assert fetched(cache, content, again=False, verify=False) == content
