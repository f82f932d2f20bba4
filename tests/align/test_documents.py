"""Documents with markers, and their windows."""

from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ctd_core.align.documents import (
    BEFORE_WHITESPACE,
    MARKER,
    ONE_TO_ONE,
    SCORED,
    AlignedText,
    align_documents,
    cut_windows,
)
from ctd_core.errors import DocumentError
from ctd_core.text.documents import Document, Marker, Text, plain_document
from ctd_core.text.prepared_tokenizer import PreparedTokenizer
from tests.support.strategies import TEXT
from tests.support.tokenizers import encoder

KINDS = ["bytes", "byte-level BPE, 600", "SentencePiece BPE with a leading space"]


def prepared(kind, begin=(1,), end=(2,)):
    return PreparedTokenizer(encoder(kind), {"begin": begin, "end": end})


def spelled(tokenizer, ids):
    return b"".join(tokenizer.encoder.token_bytes.by_id[token] or b"" for token in ids)


@pytest.mark.parametrize(("student", "teacher"), product(KINDS, KINDS))
def test_windows_keep_every_byte_within_both_limits(student, teacher):
    tokenizers = prepared(student), prepared(teacher)

    @given(st.lists(TEXT.filter(bool), min_size=1, max_size=3), st.integers(6, 40), st.integers(6, 40))
    def promises(texts, student_limit, teacher_limit):
        documents = [plain_document(str(n), text) for n, text in enumerate(texts)]
        for document, aligned in zip(documents, align_documents(*tokenizers, documents), strict=True):
            if isinstance(aligned, DocumentError):
                assert "▁" in document.segments[1].text
                continue
            windows = cut_windows(aligned, student_limit, teacher_limit)
            if isinstance(windows, DocumentError):
                assert windows.reason == "a chunk longer than a window"
                continue
            text = document.segments[1].text.encode()
            assert sum(int(window.chunk_bytes.sum()) for window in windows) == len(text)
            for window in windows:
                assert len(window.student_ids) <= student_limit
                assert len(window.teacher_ids) <= teacher_limit
                assert window.student_ids[0] == window.teacher_ids[0] == 1
                assert window.student_chunk_ends[-1] == len(window.student_ids)
                assert window.teacher_chunk_ends[-1] == len(window.teacher_ids)
            for which, tokenizer in zip(("student_ids", "teacher_ids"), tokenizers, strict=True):
                body = np.concatenate([getattr(window, which)[1:] for window in windows])
                assert body[-1] == 2
                assert spelled(tokenizer, body[:-1]) in (text, b" " + text)

    promises()


@pytest.mark.parametrize(("student", "teacher"), product(KINDS, KINDS))
def test_one_to_one_are_single_tokens_of_the_same_bytes_and_no_others(student, teacher):
    tokenizers = prepared(student), prepared(teacher)

    @given(st.lists(TEXT, min_size=1, max_size=4))
    def promises(texts):
        documents = [plain_document(str(n), text) for n, text in enumerate(texts)]
        for aligned in align_documents(*tokenizers, documents):
            if isinstance(aligned, DocumentError):
                continue
            cuts = [
                np.split(ids, ends[:-1])
                for ids, ends in (
                    (aligned.student_ids, aligned.student_chunk_ends),
                    (aligned.teacher_ids, aligned.teacher_chunk_ends),
                )
            ]
            for kind, student_ids, teacher_ids in zip(aligned.chunk_kinds, *cuts, strict=True):
                alike = len(student_ids) == len(teacher_ids) == 1 and spelled(tokenizers[0], student_ids) == spelled(
                    tokenizers[1], teacher_ids
                )
                assert bool(kind & ONE_TO_ONE) == (alike and not kind & MARKER)

    promises()


@pytest.mark.parametrize("kind", [*KINDS, "byte-level BPE with a leading space", "Unigram with a leading space"])
@given(st.text("ab c,", min_size=1, max_size=8), st.text("ab c,", min_size=1, max_size=8))
def test_a_text_that_goes_on_with_a_space_has_that_space_once(kind, prompt, response):
    document = Document("d", (Marker("begin", scored=False), Text(prompt, False), Text(" " + response), Marker("end")))
    (aligned,) = align_documents(prepared(kind), prepared("bytes"), [document])
    whole = document.text.encode()
    assert spelled(prepared(kind), aligned.student_ids[1:-1]) in (whole, b" " + whole)
    assert spelled(prepared("bytes"), aligned.teacher_ids[1:-1]) == whole
    assert aligned.chunk_bytes.sum() == len(whole)


def test_the_first_token_is_not_one_to_one_where_one_side_alone_invents_a_space():
    invents = prepared("SentencePiece BPE with a leading space")
    letter = next(
        character
        for character in "abcdefghijklmnopqrstuvwxyz"
        if len(invents.encoder.encode_batch([character])[0].ids) == 1
    )
    document = plain_document("d", letter)
    for pair, expected in (((prepared("bytes"), invents), False), ((invents, invents), True)):
        (aligned,) = align_documents(*pair, [document])
        assert aligned.chunk_bytes.tolist() == [0, 1, 0]
        assert [bool(kind & ONE_TO_ONE) for kind in aligned.chunk_kinds] == [False, expected, False]


def test_a_marker_without_a_token_on_one_side_aligns_and_is_not_scored():
    (aligned,) = align_documents(
        prepared("bytes"), prepared("bytes", begin=(1, 3), end=()), [plain_document("d", "ab c")]
    )
    assert aligned.student_chunk_ends.tolist() == [1, 2, 3, 4, 5, 6]
    assert aligned.teacher_chunk_ends.tolist() == [2, 3, 4, 5, 6, 6]
    assert [bool(kind & MARKER) for kind in aligned.chunk_kinds] == [True, False, False, False, False, True]
    assert [bool(kind & SCORED) for kind in aligned.chunk_kinds] == [False, True, True, True, True, False]
    assert [bool(kind & BEFORE_WHITESPACE) for kind in aligned.chunk_kinds] == [True, False, True, False, True, True]
    assert aligned.chunk_bytes.tolist() == [0, 1, 1, 1, 1, 0]


def test_without_a_token_before_it_the_first_chunk_is_not_scored():
    (aligned,) = align_documents(prepared("bytes", begin=()), prepared("bytes"), [plain_document("d", "abcdefghijk")])
    assert [bool(kind & SCORED) for kind in aligned.chunk_kinds[:3]] == [False, False, True]
    for window in cut_windows(aligned, 6, 6):
        assert [bool(kind & SCORED) for kind in window.chunk_kinds[:3]] == [False, False, True]


def test_no_window_is_without_a_token_of_one_side():
    (aligned,) = align_documents(
        prepared("bytes", begin=(), end=()), prepared("bytes", begin=()), [plain_document("d", "abcd")]
    )
    windows = cut_windows(aligned, 2, 2)
    assert [window.student_ids.tolist() for window in windows] == [[97, 98], [99, 100]]


def test_only_segments_meant_for_training_are_scored():
    document = Document("d", (Marker("begin", scored=False), Text("ask ", scored=False), Text("answer"), Marker("end")))
    (aligned,) = align_documents(prepared("bytes"), prepared("bytes"), [document])
    assert [bool(kind & SCORED) for kind in aligned.chunk_kinds] == [False] * 5 + [True] * 7


def test_cuts_lie_before_white_space_where_there_is_some_late_in_the_window():
    (aligned,) = align_documents(prepared("bytes"), prepared("bytes"), [plain_document("d", "aaaa bbbb cccc dddd")])
    windows = cut_windows(aligned, 11, 11)
    assert [spelled(prepared("bytes"), window.student_ids[1:]) for window in windows] != []
    assert [bytes(window.student_ids[1:].astype(np.uint8)) for window in windows][:2] == [b"aaaa bbbb", b" cccc dddd"]


def test_an_end_that_no_text_goes_before_in_its_window_is_not_learned():
    (aligned,) = align_documents(prepared("bytes"), prepared("bytes"), [plain_document("d", "aaaa bbbb")])
    first, last = cut_windows(aligned, 10, 10)
    assert last.student_ids.tolist() == [1, 2]
    assert not (last.chunk_kinds & SCORED).any()
    assert (first.chunk_kinds[1:] & SCORED).all()


def test_a_chunk_that_fits_no_window_drops_the_document():
    aligned = AlignedText(
        "d", np.arange(9, dtype=np.int32), np.arange(9, dtype=np.int32), np.array([9]), np.array([9]),
        np.array([0], dtype=np.uint8), np.array([9]),
    )  # fmt: skip
    assert cut_windows(aligned, 8, 20).reason == "a chunk longer than a window"
