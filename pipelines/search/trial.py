"""One trial of a search: a training that tells Ray Tune of every evaluation."""

from typing import Any

import torch
from ray import tune
from ray.tune.integration.ray_train import TuneReportCallback

from ctd_core.errors import Recurring
from ctd_core.training.loop import Metrics
from pipelines.artifacts.checkpoints import latest_checkpoint, steps_done
from pipelines.artifacts.failure import note_failure, raise_failure
from pipelines.artifacts.metrics_log import EVALUATION, METRICS_FILE, read_metrics
from pipelines.artifacts.remote_copy import alone_in
from pipelines.artifacts.run_paths import Places, variant
from pipelines.stages.measure import measure_sets
from pipelines.stages.student import load_student, student_tokenizer
from pipelines.stages.train import train_student


def trial_training(config: dict[str, Any], base: Places, metric: str, cpus: int) -> None:
    """One trial: the training of `base` with the values of `config`, from where an earlier try of it stopped."""
    torch.set_num_threads(cpus)
    places = variant(base, config["values"], "a trial")

    told: set[float] = set()

    def report(metrics: Metrics) -> None:
        if metric in metrics and metrics["step"] not in told:
            told.add(metrics["step"])
            tune.report(metrics)

    with alone_in(places.train):  # Optuna may draw the same settings twice
        raise_failure(places)  # of an earlier try: Ray tries again what fails
        done = steps_done(latest_checkpoint(places.checkpoints))
        places.files.bring(places.train / METRICS_FILE, anew=True)
        for line in read_metrics(places.train / METRICS_FILE):
            if line.pop(EVALUATION, None) == places.evaluation and line["step"] <= done:
                report(line)
        try:
            train_student(places, report, on_ray=TuneReportCallback)
        except Recurring as error:
            note_failure(places, error)
            raise
        if done == places.config.train.steps not in told:  # it was measured on other sets before, or on none
            student = load_student(places, student_tokenizer(places), latest_checkpoint(places.checkpoints))
            report({"step": float(places.config.train.steps)} | measure_sets(places, student))
