"""Micro-batches of a mixture: of each source as many bytes as its share asks, in epochs of its own."""

from collections import Counter
from itertools import islice

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ctd_core.align.documents import SCORED
from ctd_core.config.text import Mixture
from ctd_core.config.training import Train
from ctd_core.shards.building import build_rows
from ctd_core.shards.joined_rows import JoinedRows
from ctd_core.shards.row_order import MixedRows, mixed_micro_batches
from ctd_core.shards.rows import MemoryRows
from ctd_core.text.corpora import in_turn, plan_slices, read_documents, read_slice
from ctd_core.text.corpora.slices import held_out_documents, training_documents
from ctd_core.text.documents import Document, Text, plain_document
from ctd_core.training.streams import row_streams
from tests.support.shard_sets import prepared, texts


def mixture(sizes, shares, bytes_per_token):
    starts = np.cumsum([0, *sizes])
    return [
        MixedRows(np.arange(starts[number], starts[number + 1]), bytes_per_token[number], shares[number])
        for number in range(len(sizes))
    ]


def drawn(lengths, sources, batch_tokens, seed, tokens):
    """The first micro-batches, with at least so many tokens."""
    found, seen = [], 0
    for rows in mixed_micro_batches(lengths, sources, batch_tokens, seed):
        found.append(rows)
        seen += lengths[rows].sum()
        if seen >= tokens:
            return found
    raise AssertionError("a stream without end has ended")


@pytest.mark.parametrize("steps", [60, 400, 5000])
def test_the_bytes_of_each_source_are_its_share_within_a_hundredth(steps):
    """Whatever the sizes of the sources: one is repeated many times, one is cut."""
    lengths = np.random.default_rng(0).integers(4, 256, 2000 + 40 + 900)
    sources = mixture([2000, 40, 900], [0.1, 0.6, 0.3], [3.5, 1.2, 5.0])
    given = np.zeros(3)
    for rows in islice(mixed_micro_batches(lengths, sources, 1024, 7), steps):
        for number, source in enumerate(sources):
            chosen = rows[np.isin(rows, source.numbers)]
            given[number] += lengths[chosen].sum() * source.bytes_per_token
    assert np.abs(given / given.sum() - [0.1, 0.6, 0.3]).max() < 0.01


@given(st.data())
def test_each_source_comes_in_epochs_of_its_own_within_the_budget(data):
    sizes = data.draw(st.lists(st.integers(1, 12), min_size=1, max_size=4))
    lengths = np.array(data.draw(st.lists(st.integers(1, 50), min_size=sum(sizes), max_size=sum(sizes))))
    weights = np.array(data.draw(st.lists(st.integers(1, 9), min_size=len(sizes), max_size=len(sizes))))
    sources = mixture(sizes, weights / weights.sum(), [1.0] * len(sizes))
    batches = drawn(lengths, sources, 120, 3, 4000)
    assert all(len(rows) == 1 or len(rows) * lengths[rows].max() <= 120 for rows in batches)
    counts = Counter(np.concatenate(batches).tolist())
    whole = len(np.concatenate(batches)) // 1024 * 1024  # rows of pools that were used up
    of_pools = Counter(np.concatenate(batches)[:whole].tolist())
    for source in sources:  # no row comes a second time before all others of its source have come
        times = [of_pools[row] for row in source.numbers.tolist()]
        assert max(times) - min(times) <= 1
    assert set(counts) <= set(range(sum(sizes)))


def test_the_order_is_a_function_of_seed_and_rows():
    lengths = np.random.default_rng(0).integers(1, 100, 300)
    sources = mixture([100, 200], [0.5, 0.5], [1.0, 1.0])
    first, again, other = (
        [rows.tolist() for rows in islice(mixed_micro_batches(lengths, sources, 400, seed), 300)] for seed in (1, 1, 2)
    )
    assert first == again != other


@pytest.fixture
def three(tmp_path):
    """Three sources of text files, one text of which is in two of them."""
    sources = []
    for number in range(3):
        folder = tmp_path / str(number)
        folder.mkdir()
        for text in range(20):
            (folder / f"{text:02}.txt").write_text(f"text {text} of {number}" if text else "the same")
        sources.append({"kind": "text", "paths": [f"{folder}/*.txt"], "weight": number + 1})
    return sources


def test_slices_of_all_sources_are_numbered_through_and_hold_every_document_once(three):
    corpus = Mixture(kind="mixture", sources=three, held_out_fraction=0.3)
    slices = plan_slices(corpus, 60)
    assert [item.number for item in slices] == list(range(len(slices)))
    documents = [document for item in slices for document in read_slice(corpus, item)]
    assert documents == [document for part in corpus.parts for document in read_documents(part, 60)]
    assert len(documents) == 60
    in_order = list(read_documents(corpus, 60))
    assert sorted(document.id for document in in_order) == sorted(document.id for document in documents)
    assert [document.text for document in in_order[3:6]] == ["text 1 of 0", "text 1 of 1", "text 1 of 2"]
    assert [item.part for item in in_turn(slices)[:6]] == [0, 1, 2, 0, 1, 2]
    trained = {document.text for document in training_documents(corpus, documents)}
    held_out = {document.text for document in held_out_documents(corpus, 1.0, documents)}
    assert not trained & held_out  # also the text that is in several sources
    assert {document.text for document in documents} == trained | held_out


def test_prompts_which_are_not_learned_count_for_no_share():
    ends = prepared("byte-level BPE, 300"), prepared("byte-level BPE, 600")
    asked = [Document(str(number), (Text(text * 4, scored=False), Text(text))) for number, text in enumerate(texts(60))]
    plain = [plain_document(str(number), text) for number, text in enumerate(texts(60))]
    parts = {}
    for label, documents in (("asked", asked), ("plain", plain)):
        rows, counts = build_rows(*ends, documents, 400, 400)
        parts[label] = MemoryRows(label, [rows], counts)
    joined = JoinedRows(parts)
    shares = {"asked": 0.25, "plain": 0.75}
    stream = row_streams(Train(steps=1, batch_tokens=1024), {None: joined}, {None: shares}, 0)[None]
    both = {None: joined, "extra": joined}
    streams = row_streams(Train(steps=1, batch_tokens=1024), both, {"extra": shares}, 0)
    assert [*map(list, islice(streams["extra"], 9))] == [
        *map(list, islice(row_streams(Train(steps=1, batch_tokens=1024), both, {None: shares}, 0)[None], 9))
    ]
    assert [*map(list, islice(streams[None], 9))] != [*map(list, islice(streams["extra"], 9))]
    rows = np.concatenate(list(islice(stream, 300)))
    kinds, sizes = (joined.read(column, rows) for column in ("chunk_kinds", "chunk_bytes"))
    learned = np.array([found[kind & SCORED > 0].sum() for kind, found in zip(kinds, sizes, strict=True)])
    assert abs(learned[rows < len(parts["asked"])].sum() / learned.sum() - shares["asked"]) < 0.02


def test_weights_are_shares_and_change_no_shards(three):
    corpus = Mixture(kind="mixture", sources=three)
    assert corpus.shares == {"text-0": 1 / 6, "text-1": 2 / 6, "text-2": 3 / 6}
    others = Mixture(kind="mixture", sources=[source | {"weight": 1} for source in three])
    assert corpus.content_values() == others.content_values()
    assert Mixture.model_validate(corpus.model_dump()) == corpus


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"held_out_fraction": 0.1}, "belong to the mixture"),
        ({"label": "text-1"}, "labels of sources have to be different"),
        ({"weight": 0}, "greater than 0"),
        ({"kind": "mixture"}, "mixture"),
    ],
)
def test_a_source_that_does_not_fit_is_refused(three, change, message):
    with pytest.raises(ValueError, match=message):
        Mixture(kind="mixture", sources=[three[0] | change, *three[1:]])
