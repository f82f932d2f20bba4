"""`ctd evaluate`: teacher, student before and student after training on every evaluation set."""

import torch

from ctd_core.evaluation.metrics import Likelihoods, figures_of, gap_closed
from ctd_core.models.loading import count_parameters, parameters
from ctd_core.models.logprob_model import LogprobModel
from pipelines.artifacts.checkpoints import trained_checkpoint
from pipelines.artifacts.report import Report, SetFigures, run_stamp, write_report
from pipelines.artifacts.run_paths import Places
from pipelines.display.progress import Reporter, progress
from pipelines.stages.measure import measure_set
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
    figures = {name: _set_figures(before[name], after[name]) for name in sets}
    return Report(
        run=run_stamp(places),
        sets=figures,
        gap_closed=gap_closed(figures[gap_set].student_before, figures[gap_set].student_after) if gap_set else None,
        teacher_parameters=count_parameters(teacher.model, teacher.revision, teacher.trust_remote_code),
        student_parameters=parameters(student.model),
    )


def _measure(places: Places, student: LogprobModel, reporter: Reporter, done: int, when: str) -> dict[str, Likelihoods]:
    student = student.to("cuda" if torch.cuda.is_available() else "cpu")
    measured = {}
    for number, name in enumerate(places.config.evaluate.sets, done):

        def on_batch(share: float, number: int = number, name: str = name) -> None:
            done = number + share
            reporter.update(int(done), f"{name}, {when}", done / (2 * len(places.config.evaluate.sets)))

        measured[name] = measure_set(places, student, name, verify=True, on_batch=on_batch)
    return measured


def _set_figures(before: Likelihoods, after: Likelihoods) -> SetFigures:
    return SetFigures(
        text_bytes=after.text_bytes,
        chunks=len(after.student_logprobs),
        teacher=figures_of(after.of_teacher),
        student_before=figures_of(before),
        student_after=figures_of(after),
    )
