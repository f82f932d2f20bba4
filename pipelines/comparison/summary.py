"""What a comparison shows: for each variant, means over seeds, as a table, as Markdown and as a plot."""

import math
import statistics
from collections.abc import Sequence
from typing import Any

from ctd_core.config.base import Record
from ctd_core.evaluation.metrics import METRICS
from pipelines.artifacts.report import Report
from pipelines.display.plots import svg
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
    """One variant: for each figure its mean over the seeds and the standard error of that."""

    variant: str
    figures: dict[str, tuple[float, float | None]]


def row_of(variant: str, results: Sequence[SeedResult]) -> Row:
    """Means and standard errors over `results`, one a seed."""
    columns: dict[str, list[float]] = {}
    for result in results:
        for name, measured in result.report.sets.items():
            for metric in METRICS:
                if metric.is_headline:
                    columns.setdefault(f"{name}: {metric.title}", []).append(measured.student_after[metric.name])
        if result.report.gap_closed is not None:
            columns.setdefault("gap closed", []).append(result.report.gap_closed)
        columns.setdefault("seconds a step", []).append(result.cost.seconds_a_step)
        columns.setdefault("peak memory, MB", []).append(result.cost.peak_memory_mb)
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


def as_table(rows: list[Row]) -> TextTable:
    """A row for each variant."""
    return TextTable(["variant", *rows[0].figures], [_cells(row) for row in rows], "mean ± standard error over seeds")


def plot(rows: list[Row]) -> str:
    """Every metric of quality as bars, with standard errors; SVG."""
    names = [name for name in rows[0].figures if "memory" not in name and "seconds" not in name]

    def draw(pyplot: Any) -> Any:
        size = (3 * len(names), 0.4 * len(rows) + 1.5)
        figure, axes = pyplot.subplots(1, len(names), figsize=size, sharey=True, squeeze=False)
        for axis, name in zip(axes[0], names, strict=True):
            means, errors = zip(*(row.figures[name] for row in rows), strict=True)
            axis.barh([row.variant for row in rows], means, xerr=[error or 0.0 for error in errors])
            axis.set_title(name)
        axes[0][0].invert_yaxis()  # the first variant on top, on all axes
        return figure

    return svg(draw)
