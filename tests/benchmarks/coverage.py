"""`python -m tests.benchmarks.coverage RUN MODEL…`: where the distance to the teacher lies on the set `general` of a
run, for its models (such as runs/demo/init-* and runs/demo/model): by how many tokens of either side a chunk has, and
how often the training text had the same chunk.
"""

import argparse
from collections import Counter
from pathlib import Path

import numpy as np

import ctd_core as ctd
from ctd_core.align.documents import MARKER, SCORED
from ctd_core.evaluation.likelihoods import measure_likelihoods
from ctd_core.models.building import logprob_model
from ctd_core.models.loading import load_model
from ctd_core.shards.reading import ShardSet
from ctd_core.shards.row_order import ordered_batches

SEEN = (0, 1, 4, 10)
BATCH_TOKENS = 2048


def chunks(shards, rows):
    """Of each scored chunk of text: its number of student tokens, and its teacher tokens; and how often each occurs."""
    names = ("chunk_kinds", "student_chunk_ends", "teacher_chunk_ends", "teacher_ids")
    for kinds, ends, teacher_ends, ids in zip(*(shards.read(name, rows) for name in names), strict=True):
        starts = np.concatenate([[0], teacher_ends[:-1]])
        for kind, length, start, end in zip(kinds, np.diff(ends, prepend=0), starts, teacher_ends, strict=True):
            if kind & SCORED and not kind & MARKER:
                yield int(length), tuple(ids[start:end])


def main() -> None:
    """Print a table for each model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("models", nargs="+")
    given = parser.parse_args()
    train, general = (
        ShardSet(next((given.run / "prepared").glob(f"{name}-*")), verify=True) for name in ("train", "general")
    )
    times = Counter(teacher for _, teacher in chunks(train, np.arange(len(train))))
    lengths = general.student_lengths()
    order = ordered_batches(lengths, np.argsort(lengths, kind="stable"), BATCH_TOKENS)  # as it is measured in
    found = list(chunks(general, np.concatenate(list(order))))
    many, teacher_many = np.array([(student > 1, len(teacher) > 1) for student, teacher in found]).T
    seen = np.array([times[teacher] for _, teacher in found])
    kinds = {
        "one token of both": ~many & ~teacher_many,
        "several of the student, one of the teacher": many & ~teacher_many,
        "several of the teacher": teacher_many,
    }
    tokenizer = ctd.prepare_tokenizer(str(given.run / "model"))
    for name in given.models:
        measured = measure_likelihoods(logprob_model(load_model(name), tokenizer), general, BATCH_TOKENS)
        bits = np.abs(measured.student_logprobs - measured.teacher_logprobs) / np.log(2)
        print(f"{name}: {bits.sum() / measured.text_bytes:.3f} bits per byte from the teacher, in all")
        print("| chunks | seen in training | of all | bits of difference each | part of the distance |")
        for kind, of_kind in kinds.items():
            for least, most in zip(SEEN, (*SEEN[1:], np.inf), strict=True):
                chosen = of_kind & (seen >= least) & (seen < most)
                if not chosen.any():
                    continue
                print(
                    f"| {kind} | {least} to {most - 1:.0f} | {chosen.mean():.3f} | {bits[chosen].mean():.2f} "
                    f"| {bits[chosen].sum() / bits.sum():.3f} |"
                )


if __name__ == "__main__":
    main()
