"""`ctd evaluate`: teacher, student before and student after training on every evaluation set."""

import torch

from ctd_core.evaluation.teacher_distance import Agreement, gap_closed, measure_agreement
from ctd_core.models.loading import count_parameters, parameters
from ctd_core.models.logprob_model import LogprobModel
from ctd_core.shards.reading import ShardSet
from pipelines.artifacts.checkpoints import trained_checkpoint
from pipelines.artifacts.report import Figures, Report, SetFigures, run_stamp, write_report
from pipelines.artifacts.run_paths import Places
from pipelines.display.progress import Reporter, progress
from pipelines.stages.student import load_student, student_tokenizer


def evaluate(places: Places) -> Report:
    """Measure, and write the report."""
    report = measure(places)
    write_report(places, report)
    return report


def measure(places: Places) -> Report:
    """The student before training and at its latest checkpoint; raises CtdError where there is none."""
    checkpoint, side = trained_checkpoint(places), student_tokenizer(places)
    teacher, options = places.config.teacher, places.config.evaluate
    sets, gap_set = options.sets, options.gap_set
    with progress("evaluate", 2 * len(sets)) as reporter:
        before = _measure(places, load_student(places, side, None), reporter, 0, "before training")
        student = load_student(places, side, checkpoint)
        after = _measure(places, student, reporter, len(sets), "after training")
    return Report(
        run=run_stamp(places),
        sets={name: _set_figures(before[name], after[name]) for name in sets},
        gap_closed=gap_closed(before[gap_set], after[gap_set]) if gap_set is not None else None,
        teacher_parameters=count_parameters(teacher.model, teacher.revision, teacher.trust_remote_code),
        student_parameters=parameters(student.model),
    )


def _measure(places: Places, student: LogprobModel, reporter: Reporter, done: int, when: str) -> dict[str, Agreement]:
    student = student.to("cuda" if torch.cuda.is_available() else "cpu")
    measured = {}
    for number, name in enumerate(places.config.evaluate.sets, done):
        shards = ShardSet(places.datasets[name].location, verify=True, cache=places.cache)

        def on_batch(share: float, number: int = number, name: str = name) -> None:
            done = number + share
            reporter.update(int(done), f"{name}, {when}", done / (2 * len(places.config.evaluate.sets)))

        measured[name] = measure_agreement(student, shards, places.config.evaluate.batch_tokens, on_batch)
    return measured


def _set_figures(before: Agreement, after: Agreement) -> SetFigures:
    teacher = Figures(
        bits_per_byte=after.teacher_bits_per_byte,
        teacher_distance_bits_per_byte=0.0,
        correlation=1.0,
        tokens_per_byte=after.teacher_tokens_per_byte,
    )
    return SetFigures(
        text_bytes=after.text_bytes,
        chunks=after.chunks,
        teacher=teacher,
        student_before=_student_figures(before),
        student_after=_student_figures(after),
    )


def _student_figures(measured: Agreement) -> Figures:
    return Figures(
        bits_per_byte=measured.student_bits_per_byte,
        teacher_distance_bits_per_byte=measured.teacher_distance_bits_per_byte,
        correlation=measured.correlation,
        tokens_per_byte=measured.student_tokens_per_byte,
    )
