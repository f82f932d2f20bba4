"""`ctd evaluate`: teacher, student before and student after training on every evaluation set."""

from dataclasses import asdict, dataclass

import torch

from ctd_core.evaluation.agreement import Agreement, measure_agreement
from ctd_core.models.loading import parameters
from ctd_core.models.student import LogprobModel
from ctd_core.shards.reading import ShardSet
from pipelines.places import Places, trained_checkpoint
from pipelines.prepare import student_side
from pipelines.progress import Reporter, progress
from pipelines.train import load_student


@dataclass(frozen=True)
class Evaluation:
    """Agreements by set, before and after training; gap_closed is None where no set was named for it."""

    before: dict[str, Agreement]
    after: dict[str, Agreement]
    parameters: int
    gap_closed: float | None


def evaluate(places: Places) -> Evaluation:
    """Measure the student before training and at its latest checkpoint; raises CtdError where there is none."""
    checkpoint, side = trained_checkpoint(places), student_side(places)
    sets = places.config.evaluate.sets
    with progress("evaluate", 2 * len(sets)) as reporter:
        before = _measure(places, load_student(places, side, None), reporter, 0, "before training")
        student = load_student(places, side, checkpoint)
        after = _measure(places, student, reporter, len(sets), "after training")
    gap_set = places.config.evaluate.gap_set
    gap_closed = None
    if gap_set is not None:
        distances = [one[gap_set].teacher_distance_bits_per_byte for one in (before, after)]
        gap_closed = 1 - distances[1] / distances[0] if distances[0] else 0.0
    return Evaluation(before, after, parameters(student.model), gap_closed)


def _measure(places: Places, student: LogprobModel, reporter: Reporter, done: int, when: str) -> dict[str, Agreement]:
    student = student.to("cuda" if torch.cuda.is_available() else "cpu")
    measured = {}
    for number, name in enumerate(places.config.evaluate.sets, done + 1):
        shards = ShardSet(places.datasets[name].directory, verify=True)
        measured[name] = measure_agreement(student, shards, places.config.evaluate.batch_tokens)
        reporter.update(number, f"{name}, {when}")
    return measured


def as_report(evaluation: Evaluation) -> dict[str, object]:
    """The figures of an evaluation as report.json holds them."""
    sets: dict[str, object] = {}
    for name, after in evaluation.after.items():
        before = evaluation.before[name]
        sets[name] = {
            "text_bytes": after.text_bytes,
            "chunks": after.chunks,
            "teacher": {
                "bits_per_byte": after.teacher_bits_per_byte,
                "teacher_distance_bits_per_byte": 0.0,
                "tokens_per_byte": after.teacher_tokens_per_byte,
            },
            "student_before": _student(before),
            "student_after": _student(after),
        }
    return {"sets": sets, "gap_closed": evaluation.gap_closed, "student_parameters": evaluation.parameters}


def _student(measured: Agreement) -> dict[str, float]:
    figures = asdict(measured)
    return {
        "bits_per_byte": figures["student_bits_per_byte"],
        "teacher_distance_bits_per_byte": figures["teacher_distance_bits_per_byte"],
        "correlation": figures["correlation"],
        "tokens_per_byte": figures["student_tokens_per_byte"],
    }
