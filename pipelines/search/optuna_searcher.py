"""Optuna's sampler as a searcher of Ray Tune, which can begin with trials that have ended already."""

import math
from collections.abc import Sequence
from typing import Any, Literal

import optuna
from ray.tune.search import Searcher

from ctd_core.config.search_space import Choice, Numbers, draw
from pipelines.search.record import TrialRecord


class OptunaSearcher(Searcher):
    """Asks a study of Optuna's (https://optuna.org, tree-structured Parzen estimators) for the settings of each trial.

    choices: by Ray's name of a trial what the sampler chose for it.
    """

    def __init__(
        self, space: dict[str, Any], metric: str, mode: str, seed: int, past: Sequence[TrialRecord] = ()
    ) -> None:
        super().__init__(metric=metric, mode=mode)
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._space = space
        self._running: dict[str, Any] = {}
        self.choices: dict[str, dict[str, float]] = {}
        direction: Literal["minimize", "maximize"] = "minimize" if mode == "min" else "maximize"
        ended = [trial for trial in past if trial.state != "running"]
        sampler = optuna.samplers.TPESampler(seed=seed + len(ended))  # and not what it drew for these again
        self._study = optuna.create_study(direction=direction, sampler=sampler)
        for trial in ended:
            self._study.enqueue_trial(dict(trial.choices))
            asked, _ = self._ask()
            value = trial.lines[-1].get(metric) if trial.lines and trial.state == "ended" else None
            self._tell(asked, value)
        for trial in (trial for trial in past if trial.state == "running"):  # what is waiting is asked for first
            self._study.enqueue_trial(dict(trial.choices))

    def suggest(self, trial_id: str) -> dict[str, Any]:
        """The settings of a trial."""
        self._running[trial_id], values = self._ask()
        self.choices[trial_id] = dict(self._running[trial_id].params)
        return {"values": values}

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Add a trial's result to the study."""
        if trial_id in self._running:
            self._tell(self._running.pop(trial_id), None if error or not result else result.get(self.metric))

    def save(self, checkpoint_path: str) -> None:
        """Nothing: trials.json holds what a resumed search tells the study."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing, see save."""

    def _ask(self) -> tuple[Any, dict[str, Any]]:
        trial = self._study.ask()

        def choose(name: str, spec: Choice | Numbers) -> float:
            if isinstance(spec, Choice):
                return trial.suggest_categorical(name, list(range(len(spec.options))))
            if spec.is_integer:
                return trial.suggest_int(name, int(spec.low), int(spec.high))
            return trial.suggest_float(name, spec.low, spec.high, log=spec.logarithmic)

        return trial, draw(self._space, choose)

    def _tell(self, trial: Any, value: float | None) -> None:
        state = optuna.trial.TrialState
        failed = value is None or math.isnan(value)  # a correlation may not be defined
        self._study.tell(trial, None if failed else value, state=state.FAIL if failed else state.COMPLETE)
