"""The student's figures on the evaluation sets of a run."""

from collections.abc import Callable

from ctd_core.evaluation.likelihoods import measure_likelihoods
from ctd_core.evaluation.metrics import METRICS, Likelihoods, figure_name, figures_of
from ctd_core.models.logprob_model import LogprobModel
from ctd_core.shards.reading import ShardSet
from ctd_core.training.loop import Metrics
from pipelines.artifacts.run_paths import Places


def measure_set(
    places: Places,
    model: LogprobModel,
    name: str,
    verify: bool = False,
    on_batch: Callable[[float], None] = lambda share: None,
) -> Likelihoods:
    """The likelihoods of student and teacher on the evaluation set `name`."""
    shards = ShardSet(places.datasets[name].location, verify=verify, cache=places.cache)
    return measure_likelihoods(model, shards, places.config.evaluate.batch_tokens, on_batch)


def measure_sets(places: Places, model: LogprobModel) -> Metrics:
    """Every metric on every evaluation set, as metrics.jsonl has it."""
    figures: Metrics = {}
    for name in places.config.evaluate.sets:
        measured = figures_of(measure_set(places, model, name))
        figures |= {figure_name(name, metric): measured[metric.name] for metric in METRICS}
    return figures
