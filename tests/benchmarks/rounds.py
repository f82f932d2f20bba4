"""What rounds take beside writing, scoring and a training: SmolLM2 under the tokenizer of the demo, in one process."""

import json
import tempfile
import time
from pathlib import Path
from typing import Any

from rich.table import Table

from ctd_core.config.run import RunConfig
from pipelines.artifacts.run_plan import RunPlan, plan_run
from pipelines.cluster.connection import stop_local_ray
from pipelines.stages.on_policy import train_whole
from pipelines.stages.prepare import prepare
from pipelines.stages.rounds import rounds_of
from pipelines.stages.student import ensure_student

ROUNDS = {"rounds": 2, "texts": 64, "batch": 32, "max_new_tokens": 96}


def add_rows(table: Table, teacher: str, tokenizers: str) -> None:
    """All of the rounds' time to that of writing, of scoring, and of a training of as many steps on the corpus."""
    with tempfile.TemporaryDirectory() as folder:
        values: dict[str, Any] = {
            "name": "rounds",
            "output": folder,
            "teacher": {"model": teacher},
            "student": {"tokenizer": {"kind": "pretrained", "name": str(Path(tokenizers) / "mistral-v1")}},
            "corpus": {"kind": "conversations", "sample_fraction": 0.05},
            "prepare": {"student_window_tokens": 256, "teacher_window_tokens": 256},
            "train": {"steps": 48, "batch_tokens": 512, "checkpoint_every": 24, "on_policy": ROUNDS},
        }
        plan = plan_run(RunConfig.model_validate(values))
        prepare(plan)
        stop_local_ray()
        ensure_student(plan)
        whole = _seconds(plan)
        values["train"] = {name: value for name, value in values["train"].items() if name != "on_policy"}
        learning = _seconds(plan_run(RunConfig.model_validate(values)))
        figures = [json.loads((item.folder / "round.json").read_text()) for item in rounds_of(plan)]
    writing, scoring, measuring = (
        sum(found[f"seconds_{name}"] for found in figures) for name in ("writing", "scoring", "measuring")
    )
    ratio = whole / (writing + scoring + learning)
    words = f"writing {writing:.0f} s, scoring {scoring:.0f} s, a training on the corpus {learning:.0f} s"
    table.add_row("rounds", f"rounds, of them {measuring:.0f} s of measuring : {words}, time", f"{ratio:.3f}", "≤ 1.05")


def _seconds(plan: RunPlan) -> float:
    begun = time.monotonic()
    train_whole(plan)
    return time.monotonic() - begun
