"""A map is calculated once for a pair of vocabularies."""

from ctd_core.align import vocabulary_cache
from ctd_core.align.vocabulary import nearest_map
from ctd_core.align.vocabulary_cache import cached_nearest_map
from tests.support.tokenizers import encoder


def test_a_nearest_map_is_calculated_once_for_a_pair_of_vocabularies(tmp_path, monkeypatch):
    first, second = (encoder(f"byte-level BPE, {size}").token_bytes for size in (300, 600))
    calls = []

    def counted(student, teacher):
        calls.append(len(student.by_id))
        return nearest_map(student, teacher)

    monkeypatch.setattr(vocabulary_cache, "nearest_map", counted)
    for student, teacher in ((first, second), (first, second), (second, first)):
        assert (cached_nearest_map(student, teacher, tmp_path) == nearest_map(student, teacher)).all()
    assert calls == [300, 458]
    for kept_bytes in (50, 0):
        for file in tmp_path.iterdir():
            file.write_bytes(file.read_bytes()[:kept_bytes])  # as a foreign or damaged one
        assert (cached_nearest_map(first, second, tmp_path) == nearest_map(first, second)).all()
    assert cached_nearest_map(first, second, None) is not None
    assert calls == [300, 458, 300, 300, 300]
