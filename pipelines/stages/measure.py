"""The student's metrics on the evaluation sets of a run."""

from collections.abc import Callable

from ctd_core.evaluation.likelihoods import measure_likelihoods
from ctd_core.evaluation.metrics import METRICS, Likelihoods, metric_key, metrics_of
from ctd_core.models.logprob_model import LogprobModel
from ctd_core.shards.reading import ShardSet
from ctd_core.training.loop import Metrics
from pipelines.artifacts.run_plan import RunPlan


def measure_set(
    plan: RunPlan,
    model: LogprobModel,
    name: str,
    verify: bool = False,
    on_batch: Callable[[float], None] = lambda share: None,
) -> Likelihoods:
    """The likelihoods of student and teacher on the evaluation set `name`."""
    shards = ShardSet(plan.datasets[name].location, verify=verify, cache=plan.shard_cache)
    return measure_likelihoods(model, shards, plan.config.evaluate.batch_tokens, on_batch)


def measure_sets(plan: RunPlan, model: LogprobModel) -> Metrics:
    """Every metric on every evaluation set, as metrics.jsonl has it."""
    metrics: Metrics = {}
    for name in plan.config.evaluate.sets:
        measured = metrics_of(measure_set(plan, model, name))
        metrics |= {metric_key(name, metric): measured[metric.name] for metric in METRICS}
    return metrics
