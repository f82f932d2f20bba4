"""Services that keep the figures of trials, told of them by Ray's own callbacks, under the names of metrics.jsonl."""

from typing import Literal

from ray.tune import Callback

from ctd_core.errors import UsageError


def tracker(kind: Literal["mlflow", "wandb"], project: str) -> Callback:
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
        raise UsageError(f"trackers: {kind} cannot be told of trials ({error}).") from error
    return made


def _callback(kind: Literal["mlflow", "wandb"], project: str) -> Callback:
    if kind == "mlflow":
        from ray.air.integrations.mlflow import MLflowLoggerCallback

        return MLflowLoggerCallback(experiment_name=project)
    from ray.air.integrations.wandb import WandbLoggerCallback

    return WandbLoggerCallback(project=project, log_config=True)
