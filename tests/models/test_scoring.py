"""The teacher's numbers against a plain computation."""

import numpy as np
import pytest
import torch

from ctd_core.align.vocabulary import exact_map
from ctd_core.models.scorer import TransformersScorer
from ctd_core.models.scoring import Stored, TopTokens, score_rows
from ctd_core.shards.building import build_rows
from ctd_core.text.documents import plain_document
from tests.support.models import gpt2, llama, logprobs_of
from tests.support.shard_sets import prepared, texts

STUDENT, TEACHER = "bytes", "byte-level BPE, 600"


@pytest.mark.parametrize("model", [lambda: llama(600), lambda: gpt2(600)])
def test_scores_are_sums_of_log_probabilities_and_masses_of_the_boundary(model):
    model, teacher = model(), prepared(TEACHER)
    mask = torch.zeros(600, dtype=torch.bool)
    mask[: len(teacher.encoder.token_bytes.begins_pretoken)] = torch.from_numpy(
        teacher.encoder.token_bytes.begins_pretoken
    )
    documents = [plain_document(str(n), text) for n, text in enumerate(texts(6))]
    rows, _ = build_rows(prepared(STUDENT), teacher, documents, 400, 400)
    scored = score_rows(TransformersScorer(logprobs_of(model, mask.numpy())), rows, 256)
    for row in scored.to_pylist():
        ids = torch.tensor(row["teacher_ids"])
        with torch.no_grad():
            logprobs = model(ids[None]).logits[0].double().log_softmax(1)
        token = torch.cat([torch.zeros(1).double(), logprobs[:-1].gather(1, ids[1:, None])[:, 0]])
        starts = [0, *row["teacher_chunk_ends"][:-1]]
        chunks = [float(token[a:b].sum()) for a, b in zip(starts, row["teacher_chunk_ends"], strict=True)]
        np.testing.assert_allclose(row["teacher_chunk_logprobs"], chunks, atol=2e-4)
        bounds = [float(logprobs[end - 1][mask].logsumexp(0)) for end in row["teacher_chunk_ends"]]
        np.testing.assert_allclose(row["teacher_boundary_logprobs"], bounds, atol=2e-4)


def test_top_tokens_are_those_of_the_model_that_the_student_has_too():
    model, student, teacher = llama(600), prepared("byte-level BPE, 300"), prepared(TEACHER)
    student_ids = exact_map(student.encoder.token_bytes, teacher.encoder.token_bytes)
    rows, _ = build_rows(student, teacher, [plain_document(str(n), text) for n, text in enumerate(texts(6))], 400, 400)
    scorer = TransformersScorer(logprobs_of(model, teacher.encoder.token_bytes.begins_pretoken))
    scored = score_rows(scorer, rows, 256, Stored(TopTokens(7, student_ids)))
    padded = [*student_ids, *[-1] * (600 - len(student_ids))]
    filled = 0
    for row in scored.to_pylist():
        with torch.no_grad():
            logprobs = model(torch.tensor(row["teacher_ids"])[None]).logits[0].log_softmax(1)
        stored = iter(zip(row["teacher_top_ids"], row["teacher_top_logprobs"], strict=True))
        sides = zip(row["student_chunk_ends"], row["teacher_chunk_ends"], strict=True)
        chunks = zip(sides, row["chunk_kinds"], row["teacher_top_counts"], strict=True)
        before = (0, 0)
        for ends, kind, count in chunks:
            tokens = [end - start for end, start in zip(ends, before, strict=True)]
            found = [next(stored) for _ in range(count)]
            if tokens == [1, 1] and kind & 1 and not kind & 2:
                best = logprobs[ends[1] - 2].topk(7)
                mapped = [(padded[n], float(value)) for n, value in zip(best.indices, best.values, strict=True)]
                expected = [(token, value) for token, value in mapped if token >= 0]
                assert [token for token, _ in found] == [token for token, _ in expected]
                np.testing.assert_allclose([v for _, v in found], [v for _, v in expected], rtol=1e-3)
                filled += 1
            else:
                assert not found
            before = ends
        assert next(stored, None) is None
    assert filled > 20


def test_no_rows_score_to_no_rows():
    teacher = prepared(TEACHER)
    rows, _ = build_rows(prepared(STUDENT), teacher, [], 40, 40)
    model = logprobs_of(llama(600), teacher.encoder.token_bytes.begins_pretoken)
    assert score_rows(TransformersScorer(model), rows, 256).num_rows == 0
    assert (
        score_rows(TransformersScorer(model), rows, 256, Stored(TopTokens(3, np.zeros(600, dtype=np.int32)))).num_rows
        == 0
    )
