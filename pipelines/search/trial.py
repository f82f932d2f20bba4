"""One trial of a search: a training that reports every evaluation to Ray Tune."""

from typing import Any

import torch
from ray import tune
from ray.tune.integration.ray_train import TuneReportCallback

from ctd_core.errors import Recurring
from ctd_core.training.loop import Metrics
from pipelines.artifacts.checkpoints import latest_checkpoint, steps_done
from pipelines.artifacts.failure import raise_failure, write_failure
from pipelines.artifacts.metrics_file import EVALUATION, METRICS_FILE, read_metrics
from pipelines.artifacts.remote_copy import locked_directory
from pipelines.artifacts.run_plan import RunPlan, variant
from pipelines.stages.measure import measure_sets
from pipelines.stages.student import load_student
from pipelines.stages.tokenizer import student_tokenizer
from pipelines.stages.train import train_student


def trial_training(config: dict[str, Any], base: RunPlan, metric: str, cpus: int) -> None:
    """One trial: the training of `base` with the values of `config`, from where an earlier try of it stopped."""
    torch.set_num_threads(cpus)
    plan = variant(base, config["values"], "a trial")

    reported: set[float] = set()

    def report(metrics: Metrics) -> None:
        if metric in metrics and metrics["step"] not in reported:
            reported.add(metrics["step"])
            tune.report(metrics)

    with locked_directory(plan.training):  # Optuna may draw the same settings twice
        raise_failure(plan.checkpoints)  # of an earlier try: Ray tries again what fails
        done = steps_done(latest_checkpoint(plan.checkpoints))
        plan.files.fetch(plan.training / METRICS_FILE, overwrite=True)
        for line in read_metrics(plan.training / METRICS_FILE):
            if line.pop(EVALUATION, None) == plan.evaluation and line["step"] <= done:
                report(line)
        try:
            train_student(plan, report, on_ray=TuneReportCallback)
        except Recurring as error:
            write_failure(plan.checkpoints, error)
            raise
        if done == plan.config.train.steps not in reported:  # it was measured on other sets before, or on none
            student = load_student(plan, student_tokenizer(plan), latest_checkpoint(plan.checkpoints))
            report({"step": float(plan.config.train.steps)} | measure_sets(plan, student))
