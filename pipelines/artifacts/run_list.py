"""`ctd runs`: the runs under a storage path, how far each has come, and when it last changed."""

import json
import re
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from ctd_core.errors import CtdError, UsageError
from ctd_core.evaluation.metrics import TEACHER_DISTANCE
from ctd_core.shards import MANIFEST
from ctd_core.storage.locations import below, files_below, open_to_read
from pipelines.artifacts.locks import LOCK, is_held
from pipelines.artifacts.metrics_file import METRICS_FILE, parse_metrics
from pipelines.artifacts.training_options import OPTIONS_FILE, steps_asked
from pipelines.display.tables import TextTable


@dataclass(frozen=True)
class RunState:
    """One run: `state` is preparing, prepared, training, trained or measured; `last` its last figures; `age_seconds`
    since then.

    working: whether a command is at work on it. step: the last step of the training that changed last, None where there
    is none.
    """

    name: str
    state: str
    working: bool
    step: int | None
    last: dict[str, float]
    age_seconds: float


def list_runs(storage: str) -> list[RunState]:
    """The runs under `storage`, a directory or a URI, what changed last first; raises UsageError where it is none."""
    try:
        files = files_below(storage)
    except UsageError as error:
        raise UsageError(f"{error} Name the `output` of your runs; it is runs unless they say more.") from error
    runs: dict[str, dict[str, float]] = {}
    for path, changed in files.items():
        name, _, inside = path.partition("/")
        runs.setdefault(name, {})[inside] = changed
    states = [state for name, found in runs.items() if (state := _state(storage, name, found)) is not None]
    return sorted(states, key=lambda item: item.age_seconds)


def as_table(runs: list[RunState]) -> TextTable:
    """The runs, a row each."""
    rows = []
    for run in runs:
        figures = ", ".join(f"{name.replace('_', ' ')} {value:.4g}" for name, value in run.last.items())
        step = "" if run.step is None else str(run.step)
        is_stopped = run.state in ("preparing", "training") and not run.working
        rows.append(
            [run.name, f"{run.state}, stopped" if is_stopped else run.state, step, figures, _age(run.age_seconds)]
        )
    return TextTable(["run", "state", "step", "last metrics", "last change"], rows, text_columns=5)


def _state(storage: str, name: str, files: dict[str, float]) -> RunState | None:
    """The state of a run by what it left, each file with the time when it changed."""
    kinds = {
        "preparing": r"prepared/[^/]+/[^/]+\.arrow", "prepared": rf"prepared/[^/]+/{MANIFEST}",
        "training": rf"train-[^/]+/{METRICS_FILE}", "measured": r"report\.json",
    }  # fmt: skip
    newest = {
        kind: max(matches, key=files.__getitem__)
        for kind, pattern in kinds.items()
        if (matches := [file for file in files if re.fullmatch(pattern, file)])
    }
    if not newest:
        return None
    state, file = max(newest.items(), key=lambda item: (files[item[1]], item[0] != "preparing"))
    steps: list[dict[str, Any]] = []
    if "training" in newest:
        with suppress(CtdError):  # a damaged line: the run is listed without its last figures
            steps = parse_metrics(_text(storage, name, newest["training"]), newest["training"])
    last: dict[str, float] = {}
    step = int(steps[-1]["step"]) if steps else None
    if state == "training" and (options := file.replace(METRICS_FILE, OPTIONS_FILE)) in files:
        state = "trained" if steps_asked(_text(storage, name, options)) == step else state
    if state == "measured":
        report = _text(storage, name, file)
        last = _gap_closed(report)
        if of_report := re.search(r'"run": *"[^"]*/step_(\d+)/', report):  # another training may have gone on since
            step = int(of_report[1])
    elif state in ("training", "trained") and steps:
        distances = (step for step in reversed(steps) if any(TEACHER_DISTANCE.name in figure for figure in step))
        measured = {figure: value for figure, value in next(distances, {}).items() if TEACHER_DISTANCE.name in figure}
        last = {"loss": steps[-1]["loss"], **measured}
    working = is_held(storage, (f"{name}/{file}" for file in files if file.startswith(LOCK)))
    return RunState(name, state, working, step, last, time.time() - files[file])


def _gap_closed(report: str) -> dict[str, float]:
    """By name, where a report has it: this one may be of another version."""
    try:
        return {"gap_closed": float(json.loads(report)["gap_closed"])}
    except (ValueError, TypeError, KeyError):
        return {}


def _text(storage: str, *names: str) -> str:
    with open_to_read(below(storage, *names)) as stream:
        return stream.read().decode()


def _age(seconds: float) -> str:
    for size, unit in ((86400, "days"), (3600, "hours"), (60, "minutes")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit} ago"
    return f"{seconds:.0f} seconds ago"
