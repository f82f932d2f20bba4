"""Asynchronous successive halving that remembers an interrupted search."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ray.tune.experiment import Trial
from ray.tune.schedulers import ASHAScheduler

from pipelines.search.options import EVALUATIONS, Asha
from pipelines.search.record import TrialRecord


def rungs_of(options: Asha, steps: int, ended: list[TrialRecord]) -> "Rungs":
    grace = min(options.grace_steps or max(1, steps // EVALUATIONS), steps)
    rungs = Rungs(time_attr="step", max_t=steps, grace_period=grace, reduction_factor=options.reduction_factor)
    rungs.ended = ended
    return rungs


@dataclass(frozen=True)
class _Past:
    """A trial of an earlier try, as far as a scheduler looks at one."""

    trial_id: str


class Rungs(ASHAScheduler):
    """ASHA whose rungs hold what an interrupted search has seen: `ended`, the trials that need not run again."""

    ended: Sequence[TrialRecord] = ()

    def on_trial_add(self, tune_controller: Any, trial: Trial) -> None:
        ended, self.ended = self.ended, ()
        for number, ended_trial in enumerate(ended):
            past: Any = _Past(f"past {number}")
            super().on_trial_add(tune_controller, past)
            for line in ended_trial.lines:
                self.on_trial_result(tune_controller, past, line)
        super().on_trial_add(tune_controller, trial)
