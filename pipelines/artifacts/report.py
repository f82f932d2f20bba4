"""report.json: what was measured of a run, and how it is shown."""

import logging
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial

from pydantic import Field, ValidationError

from ctd_core.config.base import Record
from ctd_core.evaluation.figures import TaskFigures
from ctd_core.evaluation.metrics import BITS_PER_BYTE, METRICS, gap_closed
from ctd_core.shards.manifest import Counts, Manifest
from ctd_core.storage.atomic import write_atomic
from ctd_core.storage.locations import below
from pipelines.artifacts.checkpoints import latest_checkpoint, name_of
from pipelines.artifacts.run_plan import RunPlan
from pipelines.display.tables import TextTable, print_table, wide_console

logger = logging.getLogger(__name__)
RESULTS = "results"  # the lock of report and model, which a run has one of
ROUNDING = 5e-4  # of a gap that is shown with three digits
FAR = 1.5  # times the teacher's bits per byte: beyond it, what a student writes is hardly text
TEACHER, BEFORE, AFTER = MODELS = ("teacher", "student before", "student after")
METRIC_COLUMNS = ["text", "metric", *MODELS]


class SetMetrics(Record):
    """Every metric of teacher and student, before and after training, on the same bytes."""

    text_bytes: int
    chunks: int
    teacher: dict[str, float]
    student_before: dict[str, float]
    student_after: dict[str, float]


class Continuation(Record):
    """A prompt and what each model wrote after it."""

    prompt: str
    teacher: str
    student: str
    answered: dict[str, bool] = Field(
        default={}, description="whether the prompt was a user's message to each, and not a text to continue"
    )
    max_new_tokens: int | None = Field(default=None, description="that were asked for")


class Report(Record):
    """A run. `run` names the training and the step that the figures belong to; `data` and below are of `ctd run`."""

    run: str
    sets: dict[str, SetMetrics]
    gap_closed: float | None
    teacher_parameters: int = Field(description="by its config")
    student_parameters: int
    data: dict[str, Counts] = Field(default={})
    tasks: list[TaskFigures] = Field(default=[])
    samples: list[Continuation] = Field(default=[])
    seconds: dict[str, float] = Field(default={})
    peak_memory_mb: dict[str, int] = Field(default={}, description="by stage, of this machine's processes")


def run_stamp(plan: RunPlan, checkpoint: str | None) -> str:
    """The training, the step and the evaluation that the figures of a checkpoint belong to."""
    return f"{plan.training.name}/{name_of(checkpoint) if checkpoint else None}/{plan.evaluation}"


def measured_checkpoint(plan: RunPlan, report: Report) -> str:
    """The location of the checkpoint that `report` measured: of a training that goes on there may be a later one."""
    return below(plan.checkpoints, report.run.split("/")[1])


def read_report(plan: RunPlan) -> Report | None:
    """What was measured of this very training and step; None where nothing was, of another, or by another version."""
    plan.files.fetch(plan.report, overwrite=True)
    if not plan.report.exists():
        return None
    try:
        report = Report.model_validate_json(plan.report.read_text(encoding="utf-8"))
    except ValidationError:
        logger.warning(f"{plan.report}: not a report of this version, so it is taken for none")
        return None
    return report if report.run == run_stamp(plan, latest_checkpoint(plan.checkpoints)) else None


def write_report(plan: RunPlan, report: Report) -> None:
    """Write report.json atomically, and to the store where there is one."""
    write_atomic(plan.report, report.model_dump_json(indent=1))
    plan.files.upload(plan.report)


def metric_rows(report: Report) -> list[list[str]]:
    """Set, metric, and what teacher and student before and after training have of it, for each set and metric.

    Metrics that an earlier version did not measure are left out.
    """
    rows = []
    for name, measured in report.sets.items():
        models = (measured.teacher, measured.student_before, measured.student_after)
        for metric in METRICS:
            if all(metric.name in figures for figures in models):
                rows.append([name, metric.title, *(f"{figures[metric.name]:.{metric.digits}f}" for figures in models)])
    return rows


def metrics_table(report: Report) -> TextTable:
    """Every metric on every set."""
    lines = []
    if report.gap_closed is not None:
        lines.append(f"gap closed: {report.gap_closed:.3f} of the distance before training, on the gap_set")
    for name, measured in report.sets.items():
        if gap_closed(measured.student_before, measured.student_after) < -ROUNDING:
            lines.append(
                f"{name}: the student moved away from its teacher. Take a lower train.learning_rate, or train on text "
                "that is more like this"
            )
        bits, of_teacher = (figures[BITS_PER_BYTE.name] for figures in (measured.student_after, measured.teacher))
        if bits > FAR * of_teacher:
            lines.append(
                f"{name}: the student is still far from its teacher, {bits:.2f} bits per byte to {of_teacher:.2f}: do "
                "not expect good text. Train longer."
            )
    return TextTable(METRIC_COLUMNS, metric_rows(report), "measured", "\n".join(lines), text_columns=2)


def tasks_table(found: Sequence[TaskFigures]) -> TextTable:
    """Every figure of every task, a column for each model, with standard errors; a teacher's is 100%."""
    models = list(dict.fromkeys(figures.model for figures in found))
    by_key = {(figures.task, figures.model): figures for figures in found}
    has_teacher = TEACHER in models and len(models) > 1
    rows, lines = [], []
    for task in dict.fromkeys(figures.task for figures in found):
        of_task = {model: by_key[task, model] for model in models if (task, model) in by_key}
        for name in dict.fromkeys(name for figures in of_task.values() for name in figures.figures):
            cells = []
            for model in models:
                value = of_task[model].figures.get(name) if model in of_task else None
                error = of_task[model].errors.get(name) if model in of_task else None
                share = ""
                if has_teacher and model != TEACHER and value is not None:
                    best = of_task[TEACHER].figures.get(name) if TEACHER in of_task else None
                    share = f" ({value / best:.0%})" if best else ""
                spread = "" if error is None else f" ± {error:.3f}"
                cells.append("" if value is None else f"{value:.3f}{spread}{share}")
            rows.append([task, name, f"{max(figures.questions for figures in of_task.values()):,}", *cells])
        lines += [
            f"{task}: {figures.cut_questions} questions are longer than {model} reads; their beginnings were left out"
            for model, figures in of_task.items()
            if figures.cut_questions
        ]
    return TextTable(["task", "figure", "questions", *models], rows, "tasks", "\n".join(lines), text_columns=2)


def data_table(manifests: Mapping[str, Manifest], locations: Mapping[str, str]) -> TextTable:
    """What the shards hold and where they are, a row for each set."""
    counted = {}
    for name, manifest in manifests.items():
        counted[name] = manifest.counts
        counted |= {f"{name}: {label}": counts for label, counts in manifest.counts_by_source.items()}
    lines = [f"{name}: {locations[name]}" for name in manifests]
    for manifest in list(manifests.values())[:1]:
        if (sizes := manifest.vocabularies) is not None:
            lines.append(
                f"vocabularies: student {sizes.student:,} tokens, teacher {sizes.teacher:,}; {sizes.shared:,} of the "
                "same bytes"
            )
    return replace(counts_table(counted), caption="\n".join(lines))


def counts_table(counted: Mapping[str, Counts]) -> TextTable:
    """What sets hold and how they align, a row for each."""
    columns = ["set", "texts", "dropped", "rows", "left out", "kB", "student tokens", "teacher tokens"]
    columns += ["bytes a chunk", "tokens a chunk", "scored", "one-to-one"]
    rows = [
        [
            name,
            f"{counts.documents:,}",
            f"{counts.dropped_documents:,}",
            f"{counts.rows:,}",
            f"{counts.left_out_rows:,}",
            f"{counts.text_bytes / 1e3:,.0f}",
            f"{counts.student_tokens:,}",
            f"{counts.teacher_tokens:,}",
            f"{counts.text_bytes / max(counts.chunks, 1):.2f}",
            " / ".join(
                f"{tokens / max(counts.chunks, 1):.2f}" for tokens in (counts.student_tokens, counts.teacher_tokens)
            ),
            f"{counts.scored_bytes / max(counts.text_bytes, 1):.1%}",
            f"{counts.one_to_one_chunks / max(counts.scored_chunks, 1):.1%}",
        ]
        for name, counts in counted.items()
    ]
    return TextTable(columns, rows, "prepared")


def print_report(plan: RunPlan, report: Report) -> None:
    """The end of a run: what was measured, two continuations, where everything is."""
    print_table(metrics_table(report))
    if report.tasks:
        print_table(tasks_table(report.tasks))
    console = wide_console(sys.stdout)
    say = partial(console.print, markup=False, emoji=False, highlight=False)
    for sample in report.samples:
        say(f"\n{sample.prompt}", style="bold")
        for who, text in (("teacher", sample.teacher), ("student", sample.student)):
            verb = "answers" if sample.answered.get(who) else "continues"
            say(f"  {who} {verb}: {text.strip()}")
    seconds = ", ".join(f"{stage} {spent:.0f}" for stage, spent in report.seconds.items())
    say(f"parameters: teacher {report.teacher_parameters:,}, student {report.student_parameters:,}")
    say(f"seconds: {seconds}")
    say(f"model: {plan.model}\nreport: {plan.report}\npage: {plan.report.with_suffix('.html')}")
    if plan.files.store is not None:
        say(f"both are in {plan.files.store} too")
