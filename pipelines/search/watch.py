"""What a search shows and writes down while Ray Tune runs its trials."""

import math
import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ray import tune
from ray.tune.experiment import Trial

from pipelines.artifacts.run_plan import RunPlan
from pipelines.display.progress import Reporter
from pipelines.search.record import RECORD, TrialRecord, numbers_of, same_values, write_record
from pipelines.stages.train_worker import SHARE_SECONDS

if TYPE_CHECKING:
    from pipelines.search.optuna_searcher import OptunaSearcher


class Watch(tune.Callback):
    """Shows the progress of a search, and records what its trials reported.

    trials: all of the search, those of an earlier try first. An interrupted search has trials that are `running`: Ray
    ends them all, and is not asked again.
    """

    def __init__(
        self, metric: str, mode: str, reporter: Reporter, base: RunPlan, directory: Path, past: Sequence[TrialRecord]
    ) -> None:
        self._metric, self._better, self._reporter = metric, min if mode == "min" else max, reporter
        self._base, self._directory = base, directory
        self.trials = list(past)
        self.searcher: OptunaSearcher | None = None
        self._numbers: dict[str, int] = {}
        self._said = "", 0
        self._shared = -math.inf

    def on_trial_result(
        self, iteration: int, trials: list[Trial], trial: Trial, result: dict[str, Any], **info: Any
    ) -> None:
        number = self._number(trial)
        lines = {line["step"]: line for line in self.trials[number].lines} | {result["step"]: numbers_of(result)}
        self._change(number, lines=[lines[step] for step in sorted(lines)])

    def on_step_end(self, iteration: int, trials: list[Trial], **info: Any) -> None:
        for ray_trial in trials:
            number = self._number(ray_trial)
            if ray_trial.is_finished() and self.trials[number].state == "running":
                failed = ray_trial.status == Trial.ERROR
                self._change(
                    number, state="failed" if failed else "ended", error=_error_of(ray_trial) if failed else None
                )
        values = [trial.lines[-1].get(self._metric, math.nan) for trial in self.trials if trial.lines]
        values = [value for value in values if math.isfinite(value)]
        best = f", best {self._metric} so far {self._better(values):.4f}" if values else ""
        running = sum(ray_trial.status == Trial.RUNNING for ray_trial in trials)
        ended = sum(trial.state != "running" for trial in self.trials)
        words = f"ended, {running} running{best}"
        if (words, ended) != self._said:
            self._said = words, ended
            self._reporter.update(ended, words)

    def _number(self, trial: Trial) -> int:
        """Which of `trials` one of Ray's is: one that an earlier try began, or a new one."""
        if trial.trial_id not in self._numbers:
            values, taken = trial.config["values"], set(self._numbers.values())
            unfinished = (
                n for n, trial in enumerate(self.trials)
                if n not in taken and trial.state == "running" and same_values(trial.values, values)
            )  # fmt: skip
            number = next(unfinished, len(self.trials))
            if number == len(self.trials):
                choices = self.searcher.choices.get(trial.trial_id, {}) if self.searcher is not None else {}
                self.trials.append(TrialRecord(values=values, choices=choices))
            self._numbers[trial.trial_id] = number
            self._write()
        return self._numbers[trial.trial_id]

    def _change(self, number: int, **changes: Any) -> None:
        self.trials[number] = self.trials[number].model_copy(update=changes)
        self._write()

    def _write(self) -> None:
        write_record(self._directory, self.trials)
        is_over = all(trial.state != "running" for trial in self.trials)
        if self._base.files.store is not None and (is_over or time.monotonic() - self._shared > SHARE_SECONDS):
            self._base.files.upload(self._directory / RECORD)
            self._shared = time.monotonic()


def _error_of(trial: Trial) -> str:
    """Why a trial failed, in a line."""
    file = trial.error_file  # Ray copies it to where trial.get_error() looks some time later
    text = Path(file).read_text(encoding="utf-8") if file is not None and Path(file).exists() else trial.get_error()
    text = str(text or f"it failed; {trial.path} may tell why").strip()
    named = list(re.finditer(r"^[\w.]+(Error|Exception): ", text, re.MULTILINE))  # a traceback's last lines
    return text[named[-1].end() :] if named else text.splitlines()[-1]
