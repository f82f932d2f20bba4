"""The windows that are learned from are those in which the tokenizers differ most."""

import numpy as np
import pytest

from ctd_core.align.documents import MARKER, align_documents
from ctd_core.align.window_selection import most_fragmented
from ctd_core.text.documents import plain_document
from tests.support.shard_sets import prepared, texts


@pytest.fixture(scope="module")
def windows():
    tokenizers = prepared("byte-level BPE, 300"), prepared("byte-level BPE, 600")
    return align_documents(*tokenizers, [plain_document(str(n), text) for n, text in enumerate(texts(60))])


def share(window):
    tokens = np.diff([0, *window.student_chunk_ends])[(window.chunk_kinds & MARKER) == 0]
    return (tokens > 1).mean()


def test_everything_is_kept_where_everything_is_asked_for(windows):
    assert most_fragmented(windows, 1.0) == windows


def test_a_window_longer_than_its_share_is_kept_where_it_is_the_only_one(windows):
    assert most_fragmented(windows[:1], 0.1) == windows[:1]
    assert most_fragmented([], 0.1) == []


@pytest.mark.parametrize("fraction", [0.1, 0.4, 0.8])
def test_no_window_left_out_is_split_more_than_one_kept(windows, fraction):
    kept = most_fragmented(windows, fraction)
    names = {window.document_id for window in kept}
    left = [window for window in windows if window.document_id not in names]
    assert [window for window in windows if window.document_id in names] == kept  # in their order
    assert min(map(share, kept)) >= max(map(share, left))
    tokens = sum(len(window.student_ids) for window in windows)
    longest = max(len(window.student_ids) for window in windows)
    assert fraction * tokens - longest < sum(len(window.student_ids) for window in kept) <= fraction * tokens
