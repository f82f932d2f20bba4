"""Finest chunks against a slow reference, and what they promise."""

from itertools import combinations_with_replacement

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ctd_core.align.chunks import finest_chunks
from ctd_core.text.encoding import EncodedPair, encode_pairs
from tests.support.real_tokenizers import REAL, real_encoder
from tests.support.strategies import TEXT
from tests.support.tokenizers import PARTIAL, TOTAL, encoder


def align(pairs):
    return finest_chunks([pair.student.byte_ends for pair in pairs], [pair.teacher.byte_ends for pair in pairs])


def triples(chunks):
    return list(zip(chunks.student_ends.tolist(), chunks.teacher_ends.tolist(), chunks.byte_ends.tolist(), strict=True))


def reference(student, teacher):
    """Every byte at which both sides end a token, with the tokens ended by then."""
    shared = sorted(set(student) & set(teacher))
    return [(sum(e <= byte for e in student), sum(e <= byte for e in teacher), byte) for byte in shared]


PAIRS = list(combinations_with_replacement(TOTAL | PARTIAL, 2))


@pytest.mark.parametrize(("student", "teacher"), PAIRS)
def test_chunks_cover_both_sides_with_equal_bytes_and_none_is_finer(student, teacher):
    holds_what_chunks_promise(encoder(student), encoder(teacher))


@pytest.mark.slow
@pytest.mark.parametrize(("student", "teacher"), combinations_with_replacement(REAL, 2))
def test_chunks_of_real_tokenizers_hold_it_too(student, teacher):
    holds_what_chunks_promise(real_encoder(student), real_encoder(teacher))


def holds_what_chunks_promise(*tokenizers):
    @given(st.lists(TEXT, min_size=1, max_size=4))
    def promises(texts):
        pairs = [pair for pair in encode_pairs(*tokenizers, texts) if isinstance(pair, EncodedPair)]
        mirrored = [pair for pair in encode_pairs(*tokenizers[::-1], texts) if isinstance(pair, EncodedPair)]
        for pair, chunks, mirror in zip(pairs, align(pairs), align(mirrored), strict=True):
            assert triples(chunks) == reference(pair.student.byte_ends.tolist(), pair.teacher.byte_ends.tolist())
            assert [(t, s, b) for s, t, b in triples(chunks)] == triples(mirror)
            if pair.text_bytes:
                assert triples(chunks)[-1] == (len(pair.student.ids), len(pair.teacher.ids), len(pair.text_bytes))
            expected = spans(pair.text_bytes, chunks.byte_ends)
            for tokenizer, encoded, ends in (
                (tokenizers[0], pair.student, chunks.student_ends),
                (tokenizers[1], pair.teacher, chunks.teacher_ends),
            ):
                tokens = [tokenizer.token_bytes.by_id[token_id] for token_id in encoded.ids]
                spelled = [b"".join(span) for span in spans(tokens, ends)]
                invented = sum(map(len, spelled)) - len(pair.text_bytes)
                assert spelled == [b" " * invented + expected[0], *expected[1:]] if expected else spelled == []
            if tokenizers[0].name == tokenizers[1].name:
                assert len(chunks.byte_ends) == len(pair.student.ids)

    promises()


def spans(sequence, ends):
    return [sequence[start:end] for start, end in zip([0, *ends[:-1]], ends, strict=True)] if len(ends) else []


@given(st.lists(st.tuples(st.sets(st.integers(1, 40)), st.sets(st.integers(1, 40)), st.integers(41, 60)), max_size=5))
def test_a_batch_gives_what_each_text_gives_alone(rows):
    student = [np.array([*sorted(ends), last]) for ends, _, last in rows]
    teacher = [np.array([*sorted(ends), last]) for _, ends, last in rows]
    for student_ends, teacher_ends, chunks in zip(student, teacher, finest_chunks(student, teacher), strict=True):
        assert triples(chunks) == reference(student_ends.tolist(), teacher_ends.tolist())


def test_sides_of_different_length_are_an_error():
    with pytest.raises(ValueError, match="same number of bytes"):
        finest_chunks([np.array([1, 2])], [np.array([1, 3])])
