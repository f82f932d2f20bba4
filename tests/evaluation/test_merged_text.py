"""The merged chunks of a row are its text, in order, whatever the rule."""

import numpy as np
import pytest

from ctd_core.config.align import AtWhitespace, Debiased, Finest, Groups
from ctd_core.evaluation.merged_text import merged_text
from ctd_core.shards.reading import ShardSet
from tests.support.shard_sets import prepared, texts, write_set

RULES = [Finest(), AtWhitespace(kind="whitespace"), Debiased(kind="debiased"), Groups(kind="groups", size=3)]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.kind)
@pytest.mark.parametrize("kind", ["byte-level BPE, 300", "SentencePiece BPE with a leading space"])
def test_merged_chunks_spell_the_text_and_add_up(tmp_path, rule, kind):
    student, documents = prepared(kind), [text[:60] for text in texts(6)]
    write_set(tmp_path, student, prepared("byte-level BPE, 600"), documents, parts=1)
    shards = ShardSet(tmp_path, verify=True)
    for row, text in enumerate(documents):
        shown = merged_text(shards, row, rule, student.encoder.token_bytes)
        assert b"".join(chunk.text_bytes for chunk in shown) == text.encode()
        at = np.array([row])
        assert sum(chunk.student_tokens for chunk in shown) == len(shards.read("student_ids", at)[0])
        assert sum(chunk.teacher_tokens for chunk in shown) == len(shards.read("teacher_ids", at)[0])
        total = shards.read("teacher_chunk_logprobs", at)[0].sum()
        assert sum(chunk.teacher_logprob for chunk in shown) == pytest.approx(total, rel=1e-5)
        assert not shown[0].scored  # the begin marker
        if rule.kind == "whitespace":
            words = shown[2 if shown[1].scored else 3 : -1]  # a chunk that nothing stands before is cut off
            assert all(word.text_bytes[:1] in (b" ", b"\n", b"\t", b"\r") for word in words)
    with pytest.raises(IndexError):
        merged_text(shards, 6, rule, student.encoder.token_bytes)
