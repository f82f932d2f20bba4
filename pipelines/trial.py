"""One trial of a search: a training that tells Ray Tune of every evaluation."""

import json
import posixpath
from typing import Any

import torch
from ray import tune
from ray.air.constants import EXPR_RESULT_FILE
from ray.tune.experiment import Trial
from ray.tune.integration.ray_train import TuneReportCallback

from ctd_core.errors import CtdError
from ctd_core.training.loop import Metrics
from pipelines.checkpoints import latest_checkpoint, steps_done
from pipelines.metrics import EVALUATION, METRICS, read_metrics
from pipelines.places import Places, variant
from pipelines.prepare import student_side
from pipelines.run_files import alone_in
from pipelines.train import load_student, measure_sets, train_student


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
        done = steps_done(latest_checkpoint(places.checkpoints))
        places.files.bring(places.train / METRICS, anew=True)
        for line in read_metrics(places.train / METRICS):
            if line.pop(EVALUATION, None) == places.evaluation and line["step"] <= done:
                report(line)
        train_student(places, report, on_ray=TuneReportCallback)
        if done == places.config.train.steps not in told:  # it was measured on other sets before, or on none
            student = load_student(places, student_side(places), latest_checkpoint(places.checkpoints))
            report({"step": float(places.config.train.steps)} | measure_sets(places, student))


def reported(trial: Trial) -> list[dict[str, Any]]:
    """What a trial reported, each step once."""
    if trial.storage.trial_dir_name is None:  # it has not begun
        return []
    file = posixpath.join(trial.storage.trial_fs_path, EXPR_RESULT_FILE)
    try:
        with trial.storage.storage_filesystem.open_input_stream(file) as stream:
            lines = stream.read().decode().splitlines(keepends=True)
    except FileNotFoundError:
        return []
    except OSError as error:
        raise CtdError(f"{file}: cannot be read ({error}). Go on with the search: --resume.") from error
    whole = [json.loads(line) for line in lines if line.endswith("\n")]
    return list({line["step"]: line for line in whole}.values())
