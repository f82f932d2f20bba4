"""What rounds take beside writing, scoring and learning: SmolLM2 under the tokenizer of the demo, in one process."""

import json
import tempfile
import time
from pathlib import Path

from rich.table import Table

from ctd_core.config.run import RunConfig
from pipelines.artifacts.metrics_file import METRICS_FILE, read_metrics
from pipelines.artifacts.run_plan import plan_run
from pipelines.cluster.connection import stop_local_ray
from pipelines.stages.on_policy import train_whole
from pipelines.stages.prepare import prepare
from pipelines.stages.rounds import rounds_of
from pipelines.stages.student import ensure_student

ROUNDS = {"rounds": 2, "texts": 64, "batch": 32, "max_new_tokens": 96}


def add_rows(table: Table, teacher: str, tokenizers: str) -> None:
    """All of the rounds' time to that of writing, scoring and the optimizer's steps."""
    with tempfile.TemporaryDirectory() as folder:
        plan = plan_run(
            RunConfig.model_validate(
                {
                    "name": "rounds",
                    "output": folder,
                    "teacher": {"model": teacher},
                    "student": {"tokenizer": {"kind": "pretrained", "name": str(Path(tokenizers) / "mistral-v1")}},
                    "corpus": {"kind": "conversations", "sample_fraction": 0.05},
                    "prepare": {"student_window_tokens": 256, "teacher_window_tokens": 256},
                    "train": {"steps": 48, "batch_tokens": 512, "checkpoint_every": 24, "on_policy": ROUNDS},
                }
            )
        )
        prepare(plan)
        stop_local_ray()
        ensure_student(plan)
        begun = time.monotonic()
        train_whole(plan)
        whole = time.monotonic() - begun
        learning = sum(line["seconds"] for line in read_metrics(plan.training / METRICS_FILE))
        figures = [json.loads((item.folder / "round.json").read_text()) for item in rounds_of(plan)]
    writing, scoring, measuring = (
        sum(found[f"seconds_{name}"] for found in figures) for name in ("writing", "scoring", "measuring")
    )
    ratio = whole / (writing + scoring + learning)
    words = f"writing {writing:.0f} s, scoring {scoring:.0f} s, learning {learning:.0f} s, measuring {measuring:.0f} s"
    table.add_row("rounds", f"a round : {words}, time", f"{ratio:.3f}", "≤ 1.05")
