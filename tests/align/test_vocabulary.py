"""Tokens are mapped where they are the same bytes."""

from itertools import permutations

import pytest

from ctd_core.align.vocabulary import exact_map, nearest_map
from tests.support.tokenizers import PARTIAL, TOTAL, encoder


@pytest.mark.parametrize(("student", "teacher"), permutations(TOTAL | PARTIAL, 2))
def test_every_teacher_token_goes_to_the_student_token_that_stands_for_its_bytes_or_to_none(student, teacher):
    student_bytes, teacher_bytes = encoder(student).token_bytes, encoder(teacher).token_bytes
    ids = exact_map(student_bytes, teacher_bytes)
    assert len(ids) == len(teacher_bytes.by_id)
    for token, raw in enumerate(teacher_bytes.by_id):
        to, stands_for_them = stands_for(student_bytes, raw), token == stands_for(teacher_bytes, raw)
        assert ids[token] == (to if to is not None and stands_for_them else -1)


def stands_for(token_bytes, raw):
    """The last token of these bytes, byte-fallback tokens before all others; None where there is none."""
    same = [n for n, other in enumerate(token_bytes.by_id) if raw and other == raw and not token_bytes.is_special[n]]
    return next((n for n in reversed(same) if not token_bytes.is_fallback[n]), same[-1] if same else None)


def edit_distance(a, b):
    row = list(range(len(b) + 1))
    for n, x in enumerate(a, 1):
        before, row[0] = row[0], n
        for m, y in enumerate(b, 1):
            before, row[m] = row[m], min(row[m] + 1, row[m - 1] + 1, before + (x != y))
    return row[-1]


@pytest.mark.parametrize("student", ["byte-level BPE, 300", "SentencePiece BPE"])
def test_every_teacher_token_goes_to_the_nearest_student_token(student):
    student_bytes, teacher_bytes = encoder(student).token_bytes, encoder("byte-level BPE, 600").token_bytes
    exact, nearest = exact_map(student_bytes, teacher_bytes), nearest_map(student_bytes, teacher_bytes)
    for token in range(0, len(nearest), 7):
        if exact[token] >= 0:
            assert nearest[token] == exact[token]
            continue
        raw = b"" if teacher_bytes.is_special[token] else teacher_bytes.by_id[token] or b""
        if not raw:
            assert nearest[token] == -1
            continue
        others = [other for n, other in enumerate(student_bytes.by_id) if other and not student_bytes.is_special[n]]
        assert edit_distance(raw, student_bytes.by_id[nearest[token]]) == min(
            edit_distance(raw, other) for other in others
        )
