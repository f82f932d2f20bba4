"""What a comparison shows: for each variant, means over seeds, as a table, as Markdown and as a plot."""

import math
import statistics
from collections.abc import Sequence
from pathlib import Path

from rich.table import Table

from ctd_core.config.base import Record
from ctd_core.evaluation.metrics import METRICS
from pipelines.artifacts.report import Report, markdown_table


class Cost(Record):
    """What training took: the median step, and the peak memory of its process (of its GPU, where there is one)."""

    seconds_a_step: float
    peak_memory_mb: float


class Trial(Record):
    """One variant under one seed."""

    report: Report
    cost: Cost


class Row(Record):
    """One variant: for each figure its mean over the seeds and the standard error of that."""

    variant: str
    figures: dict[str, tuple[float, float | None]]


def row_of(variant: str, trials: Sequence[Trial]) -> Row:
    """Means and standard errors over `trials`, one a seed."""
    columns: dict[str, list[float]] = {}
    for trial in trials:
        for name, one in trial.report.sets.items():
            for metric in METRICS:
                if metric.is_headline:
                    columns.setdefault(f"{name}: {metric.title}", []).append(one.student_after[metric.name])
        if trial.report.gap_closed is not None:
            columns.setdefault("gap closed", []).append(trial.report.gap_closed)
        columns.setdefault("seconds a step", []).append(trial.cost.seconds_a_step)
        columns.setdefault("peak memory, MB", []).append(trial.cost.peak_memory_mb)
    return Row(variant=variant, figures={name: _mean(values) for name, values in columns.items()})


def _mean(values: list[float]) -> tuple[float, float | None]:
    """The mean and its standard error, which one value has none of."""
    error = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else None
    return statistics.fmean(values), error


def _cells(row: Row) -> list[str]:
    digits = {name: 0 if "memory" in name else 3 for name in row.figures}
    return [
        row.variant,
        *(
            f"{mean:.{digits[name]}f}" + (f" ± {error:.{digits[name]}f}" if error is not None else "")
            for name, (mean, error) in row.figures.items()
        ),
    ]


def as_table(rows: list[Row]) -> Table:
    """A line for each variant."""
    table = Table(title="mean ± standard error over seeds")
    for column in ("variant", *rows[0].figures):
        table.add_column(column, justify="left" if column == "variant" else "right")
    for row in rows:
        table.add_row(*_cells(row))
    return table


def as_markdown(rows: list[Row]) -> str:
    """The same for a document."""
    return markdown_table(["variant", *rows[0].figures], [_cells(row) for row in rows])


def plot(rows: list[Row], file: Path) -> None:
    """Every figure of quality as bars, with standard errors."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    names = [name for name in rows[0].figures if "memory" not in name and "seconds" not in name]
    size = (3 * len(names), 0.4 * len(rows) + 1.5)
    figure, axes = pyplot.subplots(1, len(names), figsize=size, sharey=True, squeeze=False)
    for axis, name in zip(axes[0], names, strict=True):
        figures = [row.figures[name] for row in rows]
        errors = [error or 0.0 for _, error in figures]
        axis.barh([row.variant for row in rows], [mean for mean, _ in figures], xerr=errors)
        axis.set_title(name)
    axes[0][0].invert_yaxis()  # the first variant on top, on all axes
    figure.tight_layout()
    figure.savefig(file)
    pyplot.close(figure)
