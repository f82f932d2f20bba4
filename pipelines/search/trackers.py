"""Experiment trackers, which get the metrics of trials from Ray's own callbacks, under the names of metrics.jsonl."""

import logging
from typing import Any, Literal

from ray.tune import Callback
from ray.tune.experiment import Trial

from ctd_core.errors import UsageError

logger = logging.getLogger(__name__)

UPLOAD_SECONDS = 60  # that a search waits at its end


def tracker(kind: Literal["mlflow", "wandb"], project: str) -> "Tracker":
    """What tells a service of every trial, in `project`; addresses and keys come from the service's own variables.

    Raises UsageError where its package is not installed, or the service does not let us in.
    """
    try:
        made = _callback(kind, project)
    except (ImportError, RuntimeError) as error:
        raise UsageError(f"trackers: {kind} needs its package ({error}). Install it: pip install {kind}.") from error
    try:
        made.setup()  # Tune does it again, but after much work
    except Exception as error:  # of whatever kind the service's package has
        raise UsageError(f"trackers: {kind} cannot be reached ({error}).") from error
    return Tracker(kind, made)


def _callback(kind: Literal["mlflow", "wandb"], project: str) -> Callback:
    if kind == "mlflow":
        from ray.air.integrations.mlflow import MLflowLoggerCallback

        return MLflowLoggerCallback(experiment_name=project)
    from ray.air.integrations.wandb import WandbLoggerCallback

    return WandbLoggerCallback(project=project, upload_timeout=UPLOAD_SECONDS)


class Tracker(Callback):
    """Hands on to a callback of Ray's what it needs, each figure at its training step, and each trial's end.

    An error is logged once, and the search goes on without the tracker.
    """

    def __init__(self, kind: str, callback: Callback) -> None:
        self._kind = kind
        self._callback: Callback | None = callback
        self._begun: dict[str, Trial] = {}

    def on_trial_start(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        self._begun[trial.trial_id] = trial
        self._tell("on_trial_start", iteration, trials, trial)

    def on_trial_result(
        self, iteration: int, trials: list[Trial], trial: Trial, result: dict[str, Any], **info: Any
    ) -> None:
        if trial.trial_id in self._begun:
            at_step = result | {"training_iteration": int(result["step"])}
            self._tell("on_trial_result", iteration, trials, trial, at_step)

    def on_trial_complete(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        if self._begun.pop(trial.trial_id, None) is not None:
            self._tell("on_trial_complete", iteration, trials, trial)

    def on_trial_error(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        if self._begun.pop(trial.trial_id, None) is not None:
            self._tell("on_trial_error", iteration, trials, trial)

    def on_experiment_end(self, trials: list[Trial], **info: Any) -> None:
        for trial in list(self._begun.values()):  # of a search that was interrupted
            self.on_trial_complete(0, trials, trial)
        self._tell("on_experiment_end", trials)

    def _tell(self, method: str, *what: Any) -> None:
        if self._callback is None:
            return
        try:
            getattr(self._callback, method)(*what)
        except Exception as error:  # of whatever kind the service's package has
            logger.warning(f"tune: {self._kind} gets no more trials: {error}")
            self._callback = None
