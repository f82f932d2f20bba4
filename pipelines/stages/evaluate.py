"""`ctd evaluate`: teacher, student before and student after training on every evaluation set."""

import torch

from ctd_core.config.evaluation import Evaluate
from ctd_core.evaluation.metrics import Likelihoods, gap_closed, metrics_of
from ctd_core.models.loading import count_parameters, parameters
from ctd_core.models.logprob_model import LogprobModel
from pipelines.artifacts.checkpoints import trained_checkpoint
from pipelines.artifacts.locks import stage_lock
from pipelines.artifacts.report import (
    RESULTS,
    Report,
    SetMetrics,
    measured_checkpoint,
    read_report,
    run_stamp,
    write_report,
)
from pipelines.artifacts.report_page import write_page
from pipelines.artifacts.run_plan import RunPlan
from pipelines.display.progress import Reporter, progress
from pipelines.stages.export import refresh_card
from pipelines.stages.measure import measure_set
from pipelines.stages.own_texts import measure_own_texts
from pipelines.stages.student import load_student
from pipelines.stages.tasks import ask_models_of_run
from pipelines.stages.tokenizer import student_tokenizer


def evaluate(plan: RunPlan) -> Report:
    """Measure, ask the tasks, and write the report."""
    with stage_lock(plan.files, RESULTS):
        earlier = read_report(plan)
        report = measure(plan)
        if earlier is not None and earlier.run == report.run:  # and no later step was reached meanwhile
            report = earlier.model_copy(update={name: getattr(report, name) for name in report.model_fields_set})
        write_report(plan, report)
        return add_tasks(plan, report)


def evaluate_tasks(plan: RunPlan) -> Report:
    """Ask the tasks, and add their figures to the report; what is measured already stays."""
    with stage_lock(plan.files, RESULTS):
        return add_tasks(plan, read_report(plan) or measure(plan))


def asks_anything(options: Evaluate) -> bool:
    """Whether there is more than sets to measure."""
    return bool(options.tasks.names or options.problems or options.own_texts)


def add_tasks(plan: RunPlan, report: Report) -> Report:
    """The report, which is written, with the figures of the run's tasks, and those of others that it has; for who has
    the lock.
    """
    checkpoint = measured_checkpoint(plan, report)
    figures = ask_models_of_run(plan, checkpoint)
    if (written := plan.config.evaluate.own_texts) is not None:
        figures.append(measure_own_texts(plan, written, checkpoint))
    names = {asked.task for asked in figures}
    report = report.model_copy(update={"tasks": [old for old in report.tasks if old.task not in names] + figures})
    write_report(plan, report)
    write_page(plan, report)
    refresh_card(plan, report)
    return report


def measure(plan: RunPlan) -> Report:
    """The student before training and at its latest checkpoint; raises CtdError where there is none."""
    checkpoint, tokenizer = trained_checkpoint(plan.checkpoints), student_tokenizer(plan)
    teacher, options = plan.config.teacher, plan.config.evaluate
    sets, gap_set = options.sets, options.gap_set
    with progress("evaluate", 2 * len(sets)) as reporter:
        before = _measure(plan, load_student(plan, tokenizer, None), reporter, 0, "before training")
        student = load_student(plan, tokenizer, checkpoint)
        after = _measure(plan, student, reporter, len(sets), "after training")
    figures = {name: _set_metrics(before[name], after[name]) for name in sets}
    return Report(
        run=run_stamp(plan, checkpoint),
        sets=figures,
        gap_closed=gap_closed(figures[gap_set].student_before, figures[gap_set].student_after) if gap_set else None,
        teacher_parameters=count_parameters(teacher.model, teacher.revision, teacher.trust_remote_code),
        student_parameters=parameters(student.model),
    )


def _measure(plan: RunPlan, student: LogprobModel, reporter: Reporter, done: int, when: str) -> dict[str, Likelihoods]:
    student = student.to("cuda" if torch.cuda.is_available() else "cpu")
    sets = plan.config.evaluate.sets
    measured = {}
    for number, name in enumerate(sets, done):

        def on_batch(share: float, number: int = number, name: str = name) -> None:
            reporter.update(int(number + share), f"{name}, {when}", (number + share) / (2 * len(sets)))

        measured[name] = measure_set(plan, student, name, verify=True, on_batch=on_batch)
    return measured


def _set_metrics(before: Likelihoods, after: Likelihoods) -> SetMetrics:
    return SetMetrics(
        text_bytes=after.text_bytes,
        chunks=len(after.student_logprobs),
        teacher=metrics_of(after.of_teacher),
        student_before=metrics_of(before),
        student_after=metrics_of(after),
    )
