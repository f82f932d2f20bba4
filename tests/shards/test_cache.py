"""Copies of remote shards: whole, checked, and within their limit."""

import hashlib

import pytest

from ctd_core.errors import CtdError
from ctd_core.shards.cache import Cache
from ctd_core.shards.manifest import Counts, ShardEntry
from tests.disks import files_of_at_most


def entry(content):
    digest = hashlib.sha256(content).hexdigest()
    return ShardEntry(file="shard-000000.arrow", size_bytes=len(content), sha256=digest, counts=Counts())


def never():
    raise AssertionError("it was read again")


def test_a_shard_is_read_once_and_those_not_read_for_longest_make_room(tmp_path):
    cache = Cache(tmp_path, 250)
    a, b, c = (bytes([n]) * 100 for n in range(3))
    first = cache.fetch(entry(a), lambda: a)
    assert first.read_bytes() == a
    cache.fetch(entry(b), lambda: b)
    assert cache.fetch(entry(a), never) == first
    cache.fetch(entry(c), lambda: c)
    assert {one.read_bytes() for one in tmp_path.iterdir()} == {a, c}
    whole = bytes(1000)
    assert cache.fetch(entry(whole), lambda: whole).read_bytes() == whole  # one is kept, whatever its size


def test_a_part_of_a_shard_is_never_taken_for_the_whole(tmp_path):
    cache, content = Cache(tmp_path, 10**6), bytes(range(256)) * 40
    with pytest.raises(CtdError, match=r"shard-000000\.arrow: what was read of it differs from its checksum"):
        cache.fetch(entry(content), lambda: content[:-1])
    with files_of_at_most(5000), pytest.raises(CtdError, match="Free some space"):
        cache.fetch(entry(content), lambda: content)
    assert list(tmp_path.iterdir()) == []
    file = cache.fetch(entry(content), lambda: content)
    file.write_bytes(content[:100])  # as a crash of the machine may leave it
    assert cache.fetch(entry(content), lambda: content).read_bytes() == content
