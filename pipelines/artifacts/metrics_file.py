"""metrics.jsonl, read: one line a step."""

import json
from pathlib import Path
from typing import Any

from ctd_core.errors import CtdError

METRICS_FILE = "metrics.jsonl"
EVALUATION = "evaluation"  # stands for the evaluation sets, where a line has figures of them


def step_words(metrics: dict[str, Any]) -> str:
    """A step in a few words."""
    return f"loss {metrics['loss']:.4f}, {metrics['tokens_per_second']:.0f} tokens/s"


def read_metrics(file: Path) -> list[dict[str, Any]]:
    """The complete lines of a metrics file; none where there is no file. Raises CtdError where one is damaged."""
    return parse_metrics(file.read_text(), str(file)) if file.exists() else []


def parse_metrics(text: str, source: str) -> list[dict[str, Any]]:
    """The complete lines of what a metrics file holds; raises CtdError, naming `source`, where one is damaged."""
    lines = []
    for number, line in enumerate(text.splitlines(keepends=True), 1):
        if line.endswith("\n"):
            try:
                lines.append(json.loads(line))
            except ValueError as error:
                raise CtdError(f"{source}: line {number} is damaged ({error}). Take that line out.") from error
    return lines
