"""Small sets of shards, made as `ctd prepare` makes them but without Ray."""

import numpy as np

from ctd_core.models.scorer import TransformersScorer
from ctd_core.models.scoring import NOTHING, score_rows
from ctd_core.shards.building import build_rows
from ctd_core.shards.files import Folder, shard_bytes, write_manifest, write_shard
from ctd_core.shards.manifest import Origin, build_manifest, tokenizer_fingerprint
from ctd_core.shards.schema import TARGET_FIELDS, with_columns
from ctd_core.text.documents import plain_document
from ctd_core.text.prepared_tokenizer import prepare_tokenizer
from tests.support.tokenizers import TEXTS, TOTAL

WORDS = " ".join(TEXTS).split(" ")


def prepared(kind):
    tokenizer = TOTAL[kind]()
    return prepare_tokenizer(tokenizer, kind, None, None)


def texts(count, seed=0):
    """Texts of very different lengths."""
    random = np.random.default_rng(seed)
    return [" ".join(random.choice(WORDS, size=int(random.integers(3, 60)))) for _ in range(count)]


def write_set(location, student, teacher, documents, parts=2, teacher_model=None, stored=NOTHING):
    """Shards of `documents` in `location`; targets of `teacher_model`, random ones where that is None."""
    folder = Folder(location)
    random = np.random.default_rng(0)
    entries = []
    for part in range(parts):
        chosen = [plain_document(f"d{n}", text) for n, text in enumerate(documents) if n % parts == part]
        rows, counts = build_rows(student, teacher, chosen, 96, 96)
        if teacher_model is None:
            sizes = [len(row) for row in rows.column("chunk_bytes").to_pylist()]
            numbers = [-random.exponential(2.0, size).astype(np.float32) for size in sizes]
            rows = with_columns(rows, TARGET_FIELDS, [numbers, numbers])
        else:
            rows = score_rows(TransformersScorer(teacher_model), rows, 512, stored)
        entries.append(write_shard(folder, part, shard_bytes(rows), counts))
    origin = Origin(
        student_tokenizer=tokenizer_fingerprint(student),
        teacher_tokenizer=tokenizer_fingerprint(teacher),
        teacher_model=None,
        config={},
    )
    manifest = build_manifest(origin, entries)
    write_manifest(folder, manifest)
    return manifest
