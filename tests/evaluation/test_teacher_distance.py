"""Bits per byte and the distance to the teacher against plain sums."""

import math

import numpy as np
import pytest
import torch

from ctd_core.evaluation.teacher_distance import measure_agreement
from ctd_core.models.logprob_model import LogprobModel
from ctd_core.shards.reading import ShardSet
from tests.support.models import llama
from tests.support.shard_sets import side, texts, write_set

KIND = "byte-level BPE, 300"


def test_a_teacher_agrees_with_itself(tmp_path):
    one = side(KIND)
    model = LogprobModel(llama(300), one.encoder.spelling.begins_pretoken)
    write_set(tmp_path, one, one, texts(10), teacher_model=model)
    measured = measure_agreement(model, ShardSet(tmp_path, verify=True), 512)
    assert measured.teacher_distance_bits_per_byte == pytest.approx(0, abs=1e-5)
    assert measured.student_bits_per_byte == pytest.approx(measured.teacher_bits_per_byte, rel=1e-5)
    assert measured.correlation == pytest.approx(1)


def test_figures_are_sums_over_text_chunks(tmp_path):
    student, teacher = side(KIND), side("byte-level BPE, 600")
    model = llama(300)
    scored = LogprobModel(llama(600, seed=1), teacher.encoder.spelling.begins_pretoken)
    write_set(tmp_path, student, teacher, texts(10), parts=1, teacher_model=scored)
    shards = ShardSet(tmp_path, verify=True)
    total = mine = theirs = distance = 0.0
    rows = np.arange(len(shards))
    columns = ("student_ids", "student_chunk_ends", "chunk_kinds", "chunk_bytes", "teacher_chunk_logprobs")
    for ids, ends, kinds, sizes, targets in zip(*(shards.read(one, rows) for one in columns), strict=True):
        with torch.no_grad():
            logprobs = model(torch.from_numpy(ids.astype(np.int64))[None]).logits[0].double().log_softmax(1)
        start = 0
        for end, kind, size, target in zip(ends, kinds, sizes, targets, strict=True):
            if kind & 1 and not kind & 2:
                chunk = sum(float(logprobs[place - 1, ids[place]]) for place in range(start, end))
                total, mine, theirs = total + size, mine - chunk, theirs - float(target)
                distance += abs(chunk - float(target))
            start = end
    measured = measure_agreement(LogprobModel(model, student.encoder.spelling.begins_pretoken), shards, 512)
    assert measured.text_bytes == total
    assert measured.student_bits_per_byte == pytest.approx(mine / total / math.log(2), rel=1e-4)
    assert measured.teacher_bits_per_byte == pytest.approx(theirs / total / math.log(2), rel=1e-4)
    assert measured.teacher_distance_bits_per_byte == pytest.approx(distance / total / math.log(2), rel=1e-4)
