"""The figures of a chunking rule against a walk over every row."""

import math

import numpy as np
import pytest

from ctd_core.config.align import AtWhitespace, Debiased, Finest, Groups
from ctd_core.evaluation.chunking import measure_chunking
from ctd_core.shards.reading import ShardSet
from tests.support.shard_sets import prepared, texts, write_set

COLUMNS = ("student_chunk_ends", "teacher_chunk_ends", "chunk_kinds", "chunk_bytes", "teacher_boundary_logprobs")


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    location = tmp_path_factory.mktemp("shards")
    write_set(location, prepared("byte-level BPE, 300"), prepared("SentencePiece BPE"), texts(40))
    return ShardSet(location, verify=True)


def walk(shards, closes):
    """(bytes, student tokens, teacher tokens) of every merged chunk; `closes` sees a chunk's kind, boundary, place."""
    rows = np.arange(len(shards))
    for student_ends, teacher_ends, kinds, sizes, boundaries in zip(
        *(shards.read(column, rows) for column in COLUMNS), strict=True
    ):
        merged, place = np.zeros(3, dtype=int), 0
        tokens = np.diff(student_ends, prepend=0), np.diff(teacher_ends, prepend=0)
        for n, kind in enumerate(kinds):
            if not kind & 1 or kind & 2:
                continue
            merged, place = merged + np.array([sizes[n], tokens[0][n], tokens[1][n]]), place + 1
            is_last = n + 1 == len(kinds) or not kinds[n + 1] & 1 or kinds[n + 1] & 2
            if is_last or closes(kind, boundaries[n], place):
                yield merged
                merged, place = np.zeros(3, dtype=int), 0


@pytest.mark.parametrize(
    ("rule", "closes"),
    [
        (Finest(), lambda kind, boundary, place: True),
        (AtWhitespace(kind="whitespace"), lambda kind, boundary, place: kind & 4),
        (Debiased(kind="debiased", gamma=0.3), lambda kind, boundary, place: boundary > math.log(0.3)),
        (Groups(kind="groups", size=3), lambda kind, boundary, place: place == 3),
    ],
)
def test_figures_are_those_of_a_walk_over_every_row(shards, rule, closes):
    merged = np.array(list(walk(shards, closes)))
    figures = measure_chunking(shards, rule)
    num_bytes, student_tokens, teacher_tokens = merged.sum(0)
    assert figures.chunks == len(merged)
    assert figures.chunks_per_1000_bytes == pytest.approx(1000 * len(merged) / num_bytes)
    assert figures.student_tokens == pytest.approx(student_tokens / len(merged))
    assert figures.teacher_tokens == pytest.approx(teacher_tokens / len(merged))
    assert figures.single_token_share == pytest.approx(np.mean((merged[:, 1] == 1) & (merged[:, 2] == 1)))
    assert figures.covered_share == pytest.approx(num_bytes / shards.manifest.counts.text_bytes)
