"""Services that keep the figures of trials, told of them by Ray's own callbacks, under the names of metrics.jsonl."""

from typing import Literal

from ray.tune import Callback

from ctd_core.errors import UsageError


def tracker(kind: Literal["mlflow", "wandb"], project: str) -> Callback:
    """What tells a service of every trial, in `project`; addresses and keys come from the service's own variables.

    Raises UsageError where its package is not installed.
    """
    try:
        if kind == "mlflow":
            from ray.air.integrations.mlflow import MLflowLoggerCallback

            return MLflowLoggerCallback(experiment_name=project)
        from ray.air.integrations.wandb import WandbLoggerCallback

        return WandbLoggerCallback(project=project, log_config=True)
    except (ImportError, RuntimeError) as error:
        raise UsageError(f"trackers: {kind} needs its package ({error}). Install it: pip install {kind}.") from error
