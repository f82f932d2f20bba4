"""Bits per byte and the distance to the teacher against plain sums."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ctd_core.evaluation.likelihoods import measure_likelihoods
from ctd_core.evaluation.metrics import METRICS, Likelihoods, metric_key, metric_words, metrics_of
from ctd_core.shards.reading import ShardSet
from tests.support.models import llama, logprobs_of
from tests.support.shard_sets import prepared, texts, write_set

KIND = "byte-level BPE, 300"


@pytest.mark.parametrize("metric", METRICS)
def test_a_key_in_words_is_of_its_own_metric_and_set(metric):
    assert metric_words(metric_key("general", metric)) == metric.words(" on general")


def test_a_teacher_agrees_with_itself(tmp_path):
    tokenizer = prepared(KIND)
    model = logprobs_of(llama(300), tokenizer.encoder.token_bytes.begins_pretoken)
    write_set(tmp_path, tokenizer, tokenizer, texts(10), teacher_model=model)
    measured = measure_likelihoods(model, ShardSet(tmp_path, verify=True), 512)
    student, teacher = metrics_of(measured), metrics_of(measured.of_teacher)
    assert student == pytest.approx(teacher, rel=1e-5, abs=1e-5)
    assert teacher["teacher_distance_bits_per_byte"] == 0
    assert teacher["correlation"] == teacher["rank_correlation"] == pytest.approx(1)


def test_figures_are_sums_over_text_chunks(tmp_path):
    student, teacher = prepared(KIND), prepared("byte-level BPE, 600")
    model = llama(300)
    scored = logprobs_of(llama(600, seed=1), teacher.encoder.token_bytes.begins_pretoken)
    write_set(tmp_path, student, teacher, texts(10), parts=1, teacher_model=scored)
    shards = ShardSet(tmp_path, verify=True)
    total = student_total = teacher_total = distance = 0.0
    rows = np.arange(len(shards))
    columns = ("student_ids", "student_chunk_ends", "chunk_kinds", "chunk_bytes", "teacher_chunk_logprobs")
    for ids, ends, kinds, sizes, targets in zip(*(shards.read(column, rows) for column in columns), strict=True):
        with torch.no_grad():
            logprobs = model(torch.from_numpy(ids.astype(np.int64))[None]).logits[0].double().log_softmax(1)
        start = 0
        for end, kind, size, target in zip(ends, kinds, sizes, targets, strict=True):
            if kind & 1 and not kind & 2:
                chunk = sum(float(logprobs[position - 1, ids[position]]) for position in range(start, end))
                total, student_total, teacher_total = total + size, student_total - chunk, teacher_total - float(target)
                distance += abs(chunk - float(target))
            start = end
    measured = measure_likelihoods(logprobs_of(model, student.encoder.token_bytes.begins_pretoken), shards, 512)
    figures = metrics_of(measured)
    assert measured.text_bytes == total
    assert figures["bits_per_byte"] == pytest.approx(student_total / total / math.log(2), rel=1e-4)
    of_teacher = metrics_of(measured.of_teacher)["bits_per_byte"]
    assert of_teacher == pytest.approx(teacher_total / total / math.log(2), rel=1e-4)
    assert figures["teacher_distance_bits_per_byte"] == pytest.approx(distance / total / math.log(2), rel=1e-4)


@given(st.lists(st.tuples(st.integers(-9, 0), st.integers(-9, 0)), min_size=3, max_size=40))
def test_the_rank_correlation_is_that_of_ranks_with_ties_at_their_mean(pairs):
    student, teacher = np.array(pairs, dtype=float).T
    if len(set(student)) == 1 or len(set(teacher)) == 1:
        return  # without spread there is no correlation

    def rank(values, value):
        return sum(other < value for other in values) + (sum(other == value for other in values) + 1) / 2

    slow = np.corrcoef([rank(student, value) for value in student], [rank(teacher, value) for value in teacher])[0, 1]
    figures = metrics_of(Likelihoods(student, teacher, 100, 0.3, 0.2))
    assert figures["rank_correlation"] == pytest.approx(slow)
