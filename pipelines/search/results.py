"""What a search found: its trials as a table, as Parquet and as plots, the best run's file, and a page of it all."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import yaml
from pyarrow import parquet

from ctd_core.config.run import RunConfig
from ctd_core.evaluation.metrics import is_metric_key, metric_words
from ctd_core.storage.atomic import write_atomic
from pipelines.display.pages import page, paragraph, picture, preformatted, section
from pipelines.display.pages import table as html_table
from pipelines.display.plots import COLORS, REFERENCE_COLOR, Curves, curves, fit_scale, svg
from pipelines.display.tables import TextTable, as_markdown

BEST = "best.yaml"
SHOWN_TRIALS = 6  # lines in one picture


@dataclass(frozen=True)
class TrialResult:
    """One trial: its values by dotted path, a line for each evaluation, and what it failed with."""

    number: int
    values: dict[str, Any]
    lines: list[dict[str, Any]]
    error: str | None

    @property
    def steps(self) -> int:
        """The steps at its last evaluation."""
        return int(self.lines[-1]["step"]) if self.lines else 0

    def has_finite(self, metric: str) -> bool:
        """Whether its last evaluation came to a number."""
        return bool(self.lines) and math.isfinite(self.lines[-1][metric])


def order(trials: list[TrialResult], metric: str, mode: str) -> list[TrialResult]:
    """The best first: failed ones last, those stopped early behind those that were not, else by their last figure."""
    most = max((trial.steps for trial in trials if trial.error is None), default=0)
    sign = 1 if mode == "min" else -1

    def rank(trial: TrialResult) -> tuple[bool, bool, float]:
        return (
            trial.error is not None,
            trial.steps < most,
            sign * trial.lines[-1][metric] if trial.has_finite(metric) else math.inf,
        )

    return sorted(trials, key=rank)


def write_results(title: str, trials: Sequence[TrialResult], metric: str, best: RunConfig, directory: Path) -> None:
    """best.yaml, trials.parquet (a row for each evaluation), trials.md, metric.svg, parameters.svg and index.html."""
    recipe = yaml.safe_dump(json.loads(best.model_dump_json()), sort_keys=False)
    write_atomic(directory / BEST, recipe)
    evaluations = pa.BufferOutputStream()
    parquet.write_table(_evaluations(trials), evaluations)
    write_atomic(directory / "trials.parquet", evaluations.getvalue())
    table = as_table(trials, metric)
    write_atomic(directory / "trials.md", as_markdown(table))
    plots = {"metric.svg": _plot_metric(trials, metric), "parameters.svg": _plot_parameters(trials, metric)}
    for name, plot in plots.items():
        write_atomic(directory / name, plot)
    introduction = f"{len(trials)} trials, the best first, by {metric} at their last evaluation."
    pictures = [picture(plot) for plot in plots.values()]
    best_run = section("The best trial's run", preformatted(recipe))
    content = page(title, paragraph(introduction), html_table(table), *pictures, best_run)
    write_atomic(directory / "index.html", content)


def as_table(trials: Sequence[TrialResult], metric: str) -> TextTable:
    """A row for each trial: what it differs in, its steps, its last metric."""
    parameters = _varied(trials)
    rows = []
    for trial in trials:
        leaves = _leaves(trial.values)
        last = f"{trial.lines[-1][metric]:.4f}" if trial.lines else ""
        values = ["" if name not in leaves else str(leaves[name]) for name in parameters]
        rows.append([str(trial.number), *values, str(trial.steps), trial.error or last])
    columns = ["trial", *(name.removeprefix("train.") for name in parameters), "steps", metric]
    return TextTable(columns, rows, "the best trial first", text_columns=len(columns))


def _varied(trials: Sequence[TrialResult]) -> list[str]:
    """The names of those single values in which trials differ."""
    leaves = [_leaves(trial.values) for trial in trials]
    names = dict.fromkeys(name for leaves_of_trial in leaves for name in leaves_of_trial)
    return [name for name in names if len({repr(leaves_of_trial.get(name)) for leaves_of_trial in leaves}) > 1]


def _leaves(value: Any, name: str = "") -> dict[str, Any]:
    """The single values within `value` by dotted path."""
    if not isinstance(value, dict | list):
        return {name: value}
    items = value.items() if isinstance(value, dict) else enumerate(value)
    return {
        path: leaf
        for key, inner in items
        for path, leaf in _leaves(inner, f"{name}.{key}" if name else str(key)).items()
    }


def _evaluations(trials: Sequence[TrialResult]) -> pa.Table:
    parameters = _varied(trials)
    leaves = {trial.number: _leaves(trial.values) for trial in trials}
    numeric = {name: all(_is_number(own.get(name, 0.0)) for own in leaves.values()) for name in parameters}
    rows = []
    for trial in trials:
        own = leaves[trial.number]
        shown = {
            name: None if name not in own else float(own[name]) if numeric[name] else str(own[name])
            for name in parameters
        }
        figures = [{name: value for name, value in line.items() if _is_figure(name, value)} for line in trial.lines]
        rows += [{"trial": trial.number, "error": trial.error, **shown, **line} for line in figures or [{}]]
    columns = dict.fromkeys(name for row in rows for name in row)
    return pa.table({name: [row.get(name) for row in rows] for name in columns})


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_figure(name: str, value: Any) -> bool:
    """Whether a reported value is the training's own, and none of Ray's."""
    own = ("step", "loss", "seconds", "tokens", "chunks", "learning_rate", "gradient_norm")
    return isinstance(value, int | float) and (name in own or is_metric_key(name))


def _plot_metric(trials: Sequence[TrialResult], metric: str) -> str:
    """The best trials over their steps, named by what they differ in."""
    lines = {
        _name(trial, trials): ([line["step"] for line in trial.lines], [line[metric] for line in trial.lines])
        for trial in trials[:SHOWN_TRIALS]
        if trial.lines
    }
    return curves([Curves(metric_words(metric), lines, has_dots=True)])


def _name(trial: TrialResult, trials: Sequence[TrialResult]) -> str:
    leaves = _leaves(trial.values)
    parts = [
        f"{name.rpartition('.')[2]} {leaves[name]:.3g}" if _is_number(leaves[name]) else str(leaves[name])
        for name in _varied(trials)
        if name in leaves
    ]
    return f"{trial.number}: {', '.join(parts)}"


def _plot_parameters(trials: Sequence[TrialResult], metric: str) -> str:
    names = _varied(trials) or [""]
    shown = [trial for trial in trials if trial.lines]
    most_steps = max((trial.steps for trial in shown), default=0)

    def draw(pyplot: Any) -> Any:
        rows = math.ceil(len(names) / 3)
        figure, axes = pyplot.subplots(rows, 3, figsize=(11, 3 * rows), squeeze=False, sharey=True)
        for axis in axes.flat[len(names) :]:
            axis.remove()
        for axis, name in zip(axes.flat, names, strict=False):
            points = [(_leaves(trial.values)[name], trial) for trial in shown if name in _leaves(trial.values)]
            numeric = all(_is_number(x) and math.isfinite(x) for x, _ in points)
            xs: list[Any] = [x if numeric else str(x) for x, _ in points]
            colors = [COLORS[0] if trial.steps == most_steps else REFERENCE_COLOR for _, trial in points]
            axis.scatter(xs, [trial.lines[-1][metric] for _, trial in points], c=colors)  # grey: stopped early
            if numeric and xs:
                fit_scale(axis, xs)
            axis.set_xlabel(name.removeprefix("train.").replace("_", " "), fontsize="small")
        axes[0][0].set_ylabel(metric_words(metric), fontsize="small")
        return figure

    return svg(draw)
