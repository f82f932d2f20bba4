"""What each step of a training measured: metrics.jsonl, and the same for TensorBoard."""

import json
import time
from pathlib import Path
from typing import Any

from tensorboardX import SummaryWriter

from ctd_core.training.loop import Metrics
from pipelines.run_files import write_whole

METRICS = "metrics.jsonl"


class MetricsLog:
    """metrics.jsonl: one line a step. A run starts after `done` steps: the lines after these are taken away first.

    Each figure goes to TensorBoard's events in the same directory too, under the same name.
    """

    def __init__(self, file: Path, done: int) -> None:
        kept = [line for line in read_metrics(file) if line["step"] <= done]
        write_whole(file, "".join(json.dumps(line) + "\n" for line in kept))
        self._file, self._last = file, time.monotonic()
        self._events = SummaryWriter(str(file.parent), purge_step=done + 1, flush_secs=10)

    def add(self, metrics: Metrics) -> str:
        """Append a step; the words that tell of it."""
        now = time.monotonic()
        seconds, self._last = now - self._last, now
        line = metrics | {"seconds": seconds, "tokens_per_second": metrics["tokens"] / seconds}
        with self._file.open("a") as stream:
            stream.write(json.dumps(line) + "\n")
        for name, value in line.items():
            self._events.add_scalar(name, value, int(metrics["step"]))
        return step_words(line)

    def close(self) -> None:
        """Write what TensorBoard has not seen yet."""
        self._events.close()


def step_words(metrics: dict[str, Any]) -> str:
    """A step in a few words."""
    return f"loss {metrics['loss']:.4f}, {metrics['tokens_per_second']:.0f} tokens/s"


def read_metrics(file: Path) -> list[dict[str, Any]]:
    """The whole lines of a metrics file; none where there is no file."""
    return parse_metrics(file.read_text()) if file.exists() else []


def parse_metrics(text: str) -> list[dict[str, Any]]:
    """The whole lines of what a metrics file holds."""
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]
