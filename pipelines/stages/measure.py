"""The student's figures on the evaluation sets of a run."""

from ctd_core.evaluation.teacher_distance import measure_agreement
from ctd_core.models.logprob_model import LogprobModel
from ctd_core.shards.reading import ShardSet
from ctd_core.training.loop import Metrics
from pipelines.artifacts.run_paths import Places


def figure_names(name: str) -> tuple[str, str]:
    """What the metrics call the distance to the teacher and the bits per byte on an evaluation set."""
    return f"{name}_teacher_distance_bits_per_byte", f"{name}_bits_per_byte"


def measure_sets(places: Places, model: LogprobModel) -> Metrics:
    """The distance to the teacher and the bits per byte on every evaluation set."""
    figures: Metrics = {}
    for name in places.config.evaluate.sets:
        shards = ShardSet(places.datasets[name].location, verify=False, cache=places.cache)
        measured = measure_agreement(model, shards, places.config.evaluate.batch_tokens)
        distance, bits = figure_names(name)
        figures |= {distance: measured.teacher_distance_bits_per_byte, bits: measured.student_bits_per_byte}
    return figures
