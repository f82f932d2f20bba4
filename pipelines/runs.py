"""`ctd runs`: the runs under a storage path, how far each has come, and when it last changed."""

import json
import time
from dataclasses import dataclass
from pathlib import Path

from rich.table import Table

from ctd_core.errors import UsageError
from ctd_core.shards.files import MANIFEST
from pipelines.metrics import METRICS, read_metrics


@dataclass(frozen=True)
class RunState:
    """One run: `state` is preparing, prepared, training or measured; `last` its last figures; `age_seconds` since then.

    step: the last step of the training that changed last, None where there is none.
    """

    name: str
    state: str
    step: int | None
    last: dict[str, float]
    age_seconds: float


def list_runs(storage: Path) -> list[RunState]:
    """The runs under `storage`, the one that changed last first; raises UsageError where there is no such directory."""
    if not storage.is_dir():
        raise UsageError(
            f"{storage}: no such directory. Name the `output` of your runs; it is runs unless they say more."
        )
    states = [state for folder in storage.iterdir() if (state := _state(folder)) is not None]
    return sorted(states, key=lambda one: one.age_seconds)


def as_table(runs: list[RunState]) -> Table:
    """The runs for a terminal."""
    table = Table("run", "state", "step", "last figures", "last change")
    for run in runs:
        figures = ", ".join(f"{name.replace('_', ' ')} {value:.4g}" for name, value in run.last.items())
        table.add_row(run.name, run.state, "" if run.step is None else str(run.step), figures, _age(run.age_seconds))
    return table


def _state(folder: Path) -> RunState | None:
    files = {name: _newest(folder, pattern) for name, pattern in (
        ("preparing", "prepared/*/*.arrow"), ("prepared", f"prepared/*/{MANIFEST}"),
        ("training", f"train-*/{METRICS}"), ("measured", "report.json"),
    )}  # fmt: skip
    found = {name: file for name, file in files.items() if file is not None}
    if not found:
        return None
    state, newest = max(found.items(), key=lambda one: (one[1].stat().st_mtime, one[0] != "preparing"))
    steps = read_metrics(found["training"]) if "training" in found else []
    last: dict[str, float] = {}
    if state == "measured":
        gap_closed = json.loads(newest.read_text())["gap_closed"]
        last = {} if gap_closed is None else {"gap_closed": gap_closed}
    elif state == "training" and steps:
        distances = (step for step in reversed(steps) if any("teacher_distance" in name for name in step))
        measured = {name: value for name, value in next(distances, {}).items() if "teacher_distance" in name}
        last = {"loss": steps[-1]["loss"], **measured}
    age = time.time() - newest.stat().st_mtime
    return RunState(folder.name, state, int(steps[-1]["step"]) if steps else None, last, age)


def _newest(folder: Path, pattern: str) -> Path | None:
    return max(folder.glob(pattern), key=lambda file: file.stat().st_mtime, default=None)


def _age(seconds: float) -> str:
    for size, unit in ((86400, "days"), (3600, "hours"), (60, "minutes")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit} ago"
    return f"{seconds:.0f} seconds ago"
