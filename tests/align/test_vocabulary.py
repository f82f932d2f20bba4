"""Tokens are mapped where they are the same bytes."""

from itertools import permutations

import pytest

from ctd_core.align.vocabulary import exact_map
from tests.tokenizers import PARTIAL, TOTAL, encoder


@pytest.mark.parametrize(("student", "teacher"), permutations(TOTAL | PARTIAL, 2))
def test_every_teacher_token_goes_to_the_last_student_token_of_its_bytes_or_to_none(student, teacher):
    mine, theirs = encoder(student).spelling, encoder(teacher).spelling
    ids = exact_map(mine, theirs)
    assert len(ids) == len(theirs.token_bytes)
    for token, raw in enumerate(theirs.token_bytes):
        same = [n for n, other in enumerate(mine.token_bytes) if raw and other == raw and not mine.is_special[n]]
        last = token == max(n for n, other in enumerate(theirs.token_bytes) if other == raw)
        assert ids[token] == (same[-1] if same and last and not theirs.is_special[token] else -1)
