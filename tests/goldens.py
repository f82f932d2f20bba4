"""`python -m tests.goldens FILE`: runs on tiny models, to the last digit, to compare two states of the code.

Where FILE is there already, what differs from it is printed, and the exit status is 1. On one machine everything has
to be equal: Arrow columns of three pairs of real tokenizers, the losses of twelve steps of every objective, a report, a
search. `make goldens` compares with what `tests/goldens.json` holds.
"""

import hashlib
import json
import sys
import tempfile
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import pyarrow as pa
import yaml
from pyarrow import ipc, parquet

from ctd_core.text.tokenizers import load_tokenizer, save_tokenizer
from tests.pipelines.test_run import ctd
from tests.support.models import llama
from tests.support.real_tokenizers import REAL
from tests.support.shard_sets import texts
from tests.support.tokenizers import TEXTS, train_tokenizer

STEPS = 12
PAIRS = [("SmolLM2", "Mistral v1"), ("Qwen", "SmolLM2"), ("Mistral v1", "Qwen")]
ONE_TO_ONE = [{"kind": "alm", "exclude_one_to_one": True}, {"kind": "one_to_one_kl"}]
OBJECTIVES: dict[str, list[dict[str, Any]]] = {
    "alm": [{"kind": "alm"}],
    "alm as published": [
        {"kind": "alm", "divergence": "kl", "temperature": 5, "chunks": {"kind": "debiased"}, "boundary": True}
    ],
    "alm whitespace": [
        {"kind": "alm", "divergence": "reverse_kl", "temperature": 100, "chunks": {"kind": "whitespace"}}
    ],
    "alm groups": [{"kind": "alm", "chunks": {"kind": "groups", "size": 3}, "average": "byte"}],
    "alm tokens": [{"kind": "alm", "average": "token"}],
    "prefix_kl": [{"kind": "prefix_kl"}],
    "prefix_kl and alm": [{"kind": "prefix_kl"}, {"kind": "alm", "weight": 0.2}],
    "sft": [{"kind": "sft"}],
    "one_to_one_kl": ONE_TO_ONE,
    "one_to_one_kl forward": [{"kind": "one_to_one_kl", "direction": "forward"}],
    **{kind: [{"kind": kind}] for kind in ("uld", "min_ed", "p_kl", "gold", "hidden_states", "dskd")},
    "uld one-to-one": [{"kind": "uld", "positions": "one_to_one"}],
}


def measured(folder: Path) -> dict[str, Any]:
    """Everything, by name."""
    return dict(chain(_pairs(folder / "pairs"), _trainings(folder / "tiny")))


def _pairs(folder: Path) -> Iterator[tuple[str, Any]]:
    """The shards of 200 documents under pairs of real tokenizers."""
    folder.mkdir(parents=True)
    documents = [*texts(120), *(f"def f_{n}(x):\n\treturn x ** {n}  # naïve 日本 {n * 7919}" for n in range(80))]
    (folder / "corpus.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in documents))
    for student, teacher in PAIRS:
        tokenizer = load_tokenizer(str(REAL[teacher]))
        model = folder / teacher
        if not model.exists():
            llama(len(tokenizer)).save_pretrained(model)
            save_tokenizer(tokenizer, model)
        run = {
            "name": f"{student}-{teacher}".replace(" ", "-"),
            "output": str(folder / "runs"),
            "teacher": {"model": str(model)},
            "student": {"tokenizer": {"kind": "pretrained", "name": str(REAL[student])}},
            "corpus": {"kind": "jsonl", "paths": [str(folder / "corpus.jsonl")]},
            "prepare": {"student_window_tokens": 64, "teacher_window_tokens": 64, "slice_bytes": 8000, "top_k": 4},
            "train": {"steps": STEPS, "objectives": [{"kind": "alm"}]},
        }
        ctd("prepare", "--config", _written(folder / "run.yaml", run))
        (prepared,) = (folder / "runs" / run["name"] / "prepared").glob("train-*")
        yield f"shards: {student} from {teacher}", columns(prepared)


def _trainings(folder: Path) -> Iterator[tuple[str, Any]]:
    """Losses, a report and a search of tiny models."""
    folder.mkdir(parents=True)
    for name, size, corpus, seed in (("teacher", 600, TEXTS, 0), ("second", 450, TEXTS[::2], 3)):
        llama(size, seed=seed).save_pretrained(folder / name)
        train_tokenizer(corpus, size).save_pretrained(folder / name)
    (folder / "corpus.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts(120)))
    run = {
        "name": "tiny",
        "output": str(folder / "runs"),
        "teacher": {"model": str(folder / "teacher")},
        "student": {"tokenizer": {"kind": "train", "vocab_size": 300}},
        "corpus": {"kind": "jsonl", "paths": [str(folder / "corpus.jsonl")], "held_out_fraction": 0.2},
        "prepare": {"student_window_tokens": 96, "teacher_window_tokens": 96, "slice_bytes": 8000, "top_k": 4},
        "train": {
            "steps": STEPS,
            "batch_tokens": 400,
            "gradient_accumulation": 2,
            "learning_rate": 1e-3,
            "objectives": [{"kind": "alm"}],
        },
        "evaluate": {"sets": {"held-out": {"kind": "held_out"}}, "gap_set": "held-out"},
    }
    for name, objectives in OBJECTIVES.items():
        yield f"losses: {name}", losses(folder, run, objectives=objectives)
    balanced = {"objectives": [{"kind": "alm"}, {"kind": "sft"}], "weighting": "gradient_magnitude"}
    yield "losses: gradient_magnitude", losses(folder, run, **balanced)
    yield (
        "losses: warm-up, decay, frozen",
        losses(folder, run, warmup_steps=4, min_lr_ratio=0.1, weight_decay=0.1, freeze=["norm"]),
    )
    student = {"tokenizer": {"kind": "pretrained", "name": str(folder / "teacher")}}
    yield "losses: kd", losses(folder, run | {"name": "same", "student": student}, objectives=[{"kind": "kd"}])
    adapted = run | {"name": "adapted", "student": run["student"] | {"adapters": {"rank": 4}}}
    yield "losses: adapters", losses(folder, adapted, objectives=[{"kind": "alm"}, {"kind": "uld"}])
    both = [{"kind": "alm"}, {"kind": "alm", "weight": 0.5, "teacher": "second"}]
    two = run | {"name": "two", "extra_teachers": {"second": {"model": str(folder / "second")}}}
    yield "losses: two teachers", losses(folder, two, objectives=both)
    untied = run | {"name": "untied", "student": run["student"] | {"head": "untied", "pad_to_multiple_of": 64}}
    yield "losses: untied", losses(folder, untied)
    of_bytes = run | {"name": "bytes", "student": {"tokenizer": {"kind": "bytes"}, "byte_expansion": {"max_bytes": 8}}}
    yield "losses: bytes", losses(folder, of_bytes, objectives=OBJECTIVES["prefix_kl"])
    file = _written(folder / "run.yaml", run)
    ctd("run", "--config", file)
    report = json.loads((folder / "runs" / "tiny" / "report.json").read_text())
    yield "report", {name: report[name] for name in ("sets", "gap_closed", "data", "student_parameters")}
    yield "search", _search(folder, file)


def _search(folder: Path, file: Path) -> Any:
    space = {"train.learning_rate": {"log_uniform": [1e-4, 1e-2]}, "train.objectives.0.temperature": {"choice": [1, 5]}}
    search = {"recipe": str(file), "space": space, "trials": 4, "seed": 1, "scheduler": {"kind": "none"}}
    best = Path(ctd("tune", "--config", _written(folder / "search.yaml", search)).split()[-1])
    rows = parquet.read_table(best.parent / "trials.parquet").to_pylist()
    wanted = ("step", "train.learning_rate", "held-out_teacher_distance_bits_per_byte")
    return sorted([row[name] for name in wanted] for row in rows)


def losses(folder: Path, run: dict[str, Any], **train: Any) -> list[list[float]]:
    """Loss and gradient norm of each step."""
    file = _written(folder / "run.yaml", run | {"train": run["train"] | train, "evaluate": {}})
    before = set((folder / "runs").glob("*/train-*"))
    ctd("prepare", "--config", file)
    ctd("train", "--config", file)
    (made,) = set((folder / "runs").glob("*/train-*")) - before
    lines = [json.loads(line) for line in (made / "metrics.jsonl").read_text().splitlines()]
    return [[line["loss"], line["gradient_norm"]] for line in lines]


def columns(prepared: Path) -> dict[str, str]:
    """A digest of what each column of a set of shards holds."""
    tables = []
    for shard in sorted(prepared.glob("*.arrow")):
        with ipc.open_file(str(shard)) as reader:
            tables.append(reader.read_all())
    table = pa.concat_tables(tables)
    return {
        name: hashlib.sha256(json.dumps(table[name].to_pylist()).encode()).hexdigest()[:16]
        for name in table.column_names
        if not name.startswith("document")  # an id has the path of the corpus
    }


def _written(file: Path, values: dict[str, Any]) -> Path:
    file.write_text(yaml.safe_dump(values))
    return file


def main(file: Path) -> int:
    with tempfile.TemporaryDirectory() as folder:
        found = json.loads(json.dumps(measured(Path(folder))))
    if not file.exists():
        file.write_text(json.dumps(found, indent=1) + "\n")
        return 0
    before = json.loads(file.read_text())
    differ = [name for name in {**before, **found} if before.get(name) != found.get(name)]
    for name in differ:
        print(f"{name} was {before.get(name)} and is {found.get(name)}")
    print(f"{len(found) - len(differ)} of {len(found)} are equal")
    return bool(differ)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
