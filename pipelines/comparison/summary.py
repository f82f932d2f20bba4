"""What a comparison shows: for each variant, means over seeds, as a table, as Markdown and as a plot."""

import math
import statistics
from collections.abc import Sequence

from pydantic import Field

from ctd_core.config.base import Record
from ctd_core.evaluation.figures import TaskFigures
from ctd_core.evaluation.metrics import METRICS
from pipelines.artifacts.report import BEFORE, TEACHER, Report
from pipelines.display.plots import Dots, dots
from pipelines.display.tables import TextTable


class Cost(Record):
    """What training took: the median step, and the peak memory of its process (of its GPU, where there is one)."""

    seconds_a_step: float
    peak_memory_mb: float


class SeedResult(Record):
    """One variant under one seed."""

    report: Report
    cost: Cost


class Row(Record):
    """One variant: for each figure its mean over the seeds and the standard error of that.

    references: for each figure the teacher's value and the student's before training, by name.
    """

    variant: str
    figures: dict[str, tuple[float, float | None]]
    references: dict[str, dict[str, float]] = Field(default={})


def row_of(variant: str, results: Sequence[SeedResult], asked: Sequence[TaskFigures] = ()) -> Row:
    """Means and standard errors over `results`, one a seed.

    Args:
        variant: its name.
        results: one a seed.
        asked: what teacher and student before training reach in the tasks.

    Returns:
        The row.
    """
    columns: dict[str, list[float]] = {}
    references: dict[str, dict[str, float]] = {}
    for result in results:
        for name, measured in result.report.sets.items():
            for metric in METRICS:
                if metric.is_headline:
                    column = f"{name}: {metric.title}"
                    columns.setdefault(column, []).append(measured.student_after[metric.name])
                    references[column] = {
                        TEACHER: measured.teacher[metric.name], BEFORE: measured.student_before[metric.name]
                    }  # fmt: skip
        for found in result.report.tasks:
            for name, value in found.figures.items():
                column = f"{found.task}: {name}"
                columns.setdefault(column, []).append(value)
                references[column] = {
                    other.model: other.figures[name]
                    for other in asked
                    if other.task == found.task and name in other.figures
                }
        if result.report.gap_closed is not None:
            columns.setdefault("gap closed", []).append(result.report.gap_closed)
        columns.setdefault("seconds a step", []).append(result.cost.seconds_a_step)
        columns.setdefault("peak memory, MB", []).append(result.cost.peak_memory_mb)
    figures = {name: _mean(values) for name, values in columns.items()}
    return Row(variant=variant, figures=figures, references=references)


def _mean(values: list[float]) -> tuple[float, float | None]:
    """The mean and its standard error, which one value has none of."""
    error = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else None
    return statistics.fmean(values), error


def _cell(name: str, figure: tuple[float, float | None] | None) -> str:
    if figure is None:
        return ""
    digits, (mean, error) = 0 if "memory" in name else 3, figure
    return f"{mean:.{digits}f}" + (f" ± {error:.{digits}f}" if error is not None else "")


def as_table(rows: list[Row]) -> TextTable:
    """A row for each variant, with an empty cell for what it has no figure of."""
    names = _names(rows)
    cells = [[row.variant, *(_cell(name, row.figures.get(name)) for name in names)] for row in rows]
    return TextTable(["variant", *names], cells, "mean ± standard error over seeds")


def _names(rows: list[Row]) -> list[str]:
    """The figures that any row has."""
    return list(dict.fromkeys(name for row in rows for name in row.figures))


def plot(rows: list[Row]) -> str:
    """Every metric of quality, the best variant by the first on top, with standard errors; SVG."""
    names = [name for name in _names(rows) if "memory" not in name and "seconds" not in name]
    first = names[0]
    falls = not any(first.endswith(metric.title) and not metric.lower_is_better for metric in METRICS)
    ordered = sorted(rows, key=lambda row: row.figures[first][0], reverse=not falls)
    return dots(
        [
            Dots(
                name,
                {row.variant: row.figures[name] for row in ordered if name in row.figures},
                rows[0].references.get(name, {}),
            )
            for name in names
        ]
    )
