"""report.json: what was measured of a run, and how it is shown."""

from pydantic import Field, ValidationError
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ctd_core.config.base import Record
from ctd_core.errors import CtdError
from ctd_core.evaluation.metrics import METRICS
from ctd_core.shards.manifest import Counts, Manifest
from ctd_core.storage.atomic import write_atomic
from pipelines.artifacts.checkpoints import latest_checkpoint, name_of
from pipelines.artifacts.run_paths import Places


class SetFigures(Record):
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


class Report(Record):
    """A run. `run` names the training and the step that the figures belong to; `data` and below are of `ctd run`."""

    run: str
    sets: dict[str, SetFigures]
    gap_closed: float | None
    teacher_parameters: int = Field(description="by its config")
    student_parameters: int
    data: dict[str, Counts] = Field(default={})
    samples: list[Continuation] = Field(default=[])
    seconds: dict[str, float] = Field(default={})


def run_stamp(places: Places) -> str:
    """The training, the step and the evaluation that figures belong to."""
    checkpoint = latest_checkpoint(places.checkpoints)
    return f"{places.train.name}/{name_of(checkpoint) if checkpoint else None}/{places.evaluation}"


def read_report(places: Places) -> Report | None:
    """What was measured of this very training and step; None where nothing was, or of another."""
    places.files.bring(places.report, anew=True)
    if not places.report.exists():
        return None
    try:
        report = Report.model_validate_json(places.report.read_text(encoding="utf-8"))
    except ValidationError as error:
        raise CtdError(f"{places.report}: not a report of this version. Run `ctd evaluate` again.") from error
    return report if report.run == run_stamp(places) else None


def write_report(places: Places, report: Report) -> None:
    """Put `report` in the place of the one before."""
    write_atomic(places.report, report.model_dump_json(indent=1))
    places.files.share(places.report)


def figure_rows(report: Report) -> list[list[str]]:
    """Set, metric, and what teacher and student before and after training have of it, for each set and metric.

    Metrics that an earlier version did not measure are left out.
    """
    rows = []
    for name, measured in report.sets.items():
        models = (measured.teacher, measured.student_before, measured.student_after)
        for metric in METRICS:
            if all(metric.name in figures for figures in models):
                rows.append([name, metric.title, *(f"{one[metric.name]:.{metric.digits}f}" for one in models)])
    return rows


def metrics_table(report: Report) -> Table:
    """Every metric on every set."""
    table = Table("text", "metric", title="measured")
    for column in ("teacher", "student before", "student after"):
        table.add_column(column, justify="right")
    for row in figure_rows(report):
        table.add_row(*row)
    if report.gap_closed is not None:
        table.caption = f"gap closed: {report.gap_closed:.3f}"
    return table


def data_table(manifests: dict[str, Manifest]) -> Table:
    """What the shards hold, a row for each set."""
    table = Table(title="prepared")
    columns = ("set", "texts", "dropped", "rows", "left out", "kB", "student tokens", "teacher tokens", "bytes a chunk")
    for column in columns:
        table.add_column(column, justify="left" if column == "set" else "right")
    for name, manifest in manifests.items():
        counts = manifest.counts
        table.add_row(
            name,
            f"{counts.documents:,}",
            f"{counts.dropped_documents:,}",
            f"{counts.rows:,}",
            f"{counts.left_out_rows:,}",
            f"{counts.text_bytes / 1e3:,.0f}",
            f"{counts.student_tokens:,}",
            f"{counts.teacher_tokens:,}",
            f"{counts.text_bytes / max(counts.chunks, 1):.2f}",
        )
    return table


def markdown_table(columns: list[str], rows: list[list[str]]) -> str:
    """A table for a document."""
    return "".join(f"| {' | '.join(line)} |\n" for line in [columns, ["---"] * len(columns), *rows])


def print_report(places: Places, report: Report) -> None:
    """The end of a run: what was measured, two continuations, where things lie."""
    console = Console()
    console.print(metrics_table(report))
    for sample in report.samples:
        for who, text in (("teacher", sample.teacher), ("student", sample.student)):
            console.print(f"{who}: {escape(sample.prompt)}[bold]{escape(text)}[/bold]", highlight=False)
    seconds = ", ".join(f"{stage} {spent:.0f}" for stage, spent in report.seconds.items())
    console.print(f"parameters: teacher {report.teacher_parameters:,}, student {report.student_parameters:,}")
    console.print(f"seconds: {seconds}")
    console.print(f"model: {places.model}\nreport: {places.report}")
    if places.files.store is not None:
        console.print(f"both are in {places.files.store} too")
